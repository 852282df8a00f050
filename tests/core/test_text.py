"""Foreign text is shown printable, on one line and bounded, without running any of the program's code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.core.text import MAX_LINE, MAX_NAME, error_text, printable

NASTY = (
    "a\nb", "a\r\nb", "\x1b[2J\x1b[31m", "\u202eevil\u2066", "\x00", "\ud800", "\udcff", "\u2028", "\x85", "\u200b",
    "名前", "",
    "x" * 10_000_000, "\n" * 10_000_000, "</script>", "%s%n", "{0}",
)  # fmt: skip
texts = st.text(st.characters(), max_size=60) | st.sampled_from(NASTY)


@given(texts, st.integers(12, 400))
def test_printable_bounded_and_stable(text: str, most: int) -> None:
    """The result is printable, no longer than requested, and idempotent."""
    shown = printable(text, most)
    assert type(shown) is str
    assert shown.isprintable()
    assert len(shown) <= most
    assert printable(shown, most) == shown
    shown.encode()
    if text.isprintable() and len(text) <= most:
        assert shown == text


def test_both_ends_of_a_long_text_are_kept() -> None:
    """Of a long path the beginning and the file at its end are kept, and an escape is never split."""
    path = "/srv/" + "deep/" * 1000 + "images.py"
    assert printable(path, 40) == "/srv/deep/deep/deep/deep...eep/images.py"
    assert len(printable("\n" * 500)) <= MAX_NAME
    assert set(printable("\n" * 500)) == {"\\", "n", "."}
    assert printable("\U000e0001" * 500).replace("...", "").count("\\U000e0001") == 19


class Odd(str):
    """A str whose methods belong to the program."""

    def isprintable(self) -> bool:
        raise RuntimeError("code of the program")

    __len__ = __str__ = __getitem__ = __eq__ = __hash__ = __format__ = isprintable  # type: ignore[assignment]


class _Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("code of the program")


class Named(metaclass=_Meta):
    """An object whose class runs code for its name."""

    def __str__(self) -> str:
        raise RuntimeError("code of the program")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "shown"),
    [(Odd("a\nb"), "a\\nb"), (Named(), "<Named>"), (5, "<int>"), (b"x", "<bytes>"), (None, "")],
    ids=["str subclass", "metaclass", "int", "bytes", "None"],
)
def test_other_objects_than_str(value: Any, shown: str) -> None:
    """A subclass of str is shown by its characters, any other object by its type; no code of the program runs."""
    assert printable(value) == shown


def test_text_of_errors() -> None:
    """An exception is shown by type and text on one line, or by its type alone if its text raises."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("code of the program")

    assert error_text(OSError(28, "No\nspace")) == "OSError: [Errno 28] No\\nspace"
    assert error_text(Broken()) == "Broken: (its text cannot be had)"
    assert error_text(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(error_text(ValueError("x" * 10_000_000))) <= MAX_LINE
