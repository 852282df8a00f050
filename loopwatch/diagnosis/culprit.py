"""Finds the culprit of a stall: the responsible frame of the user's own code."""

from __future__ import annotations

import collections
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.text import MAX_PATH, printable
from loopwatch.events import Frame

# As sysconfig and pathlib would say, which take 6 ms to load in every watched process.
_COLLECTIONS = (getattr(collections, "__file__", None) or "").rpartition("__init__.")[0]
_SEPARATOR = _COLLECTIONS[-1:] or "/"
_STDLIB = _COLLECTIONS.rstrip(_SEPARATOR).rpartition(_SEPARATOR)[0]

AGREE = 0.6
"""Share of the samples that must show a function for it to be the culprit."""

Stack = tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a stall happened.

    Attributes:
        culprit: the responsible frame, None if there is none.
        stack: the representative stack, outermost frame first.
        agreeing: number of samples that show the culprit.
    """

    culprit: Frame | None
    stack: Stack
    agreeing: int


@dataclass(frozen=True, slots=True)
class Site:
    """Distinguishes the user's code from libraries and the interpreter.

    Attributes:
        stdlib: directories of the standard library.
        user_code, library_code: path or module prefixes, which take precedence.
    """

    stdlib: tuple[str, ...]
    user_code: tuple[str, ...] = ()
    library_code: tuple[str, ...] = ()

    @classmethod
    def here(cls, user_code: Sequence[str] = (), library_code: Sequence[str] = ()) -> Site:
        """Return the rules for this interpreter; paths are compared in printable form, as frames have them."""
        return cls(
            (printable(_STDLIB, MAX_PATH),) if _STDLIB else (),
            tuple(printable(prefix, MAX_PATH) for prefix in user_code),
            tuple(printable(prefix, MAX_PATH) for prefix in library_code),
        )

    def is_user(self, frame: Frame) -> bool:
        """Whether ``frame`` is the user's own code: not the standard library, not an installed package."""
        return _is_user(self, frame.module, frame.file)

    def is_stdlib(self, frame: Frame) -> bool:
        """Whether ``frame`` belongs to the standard library or is frozen into the interpreter."""
        return _is_stdlib(self, frame.file)

    def judge(self, stacks: Sequence[Stack]) -> Verdict:
        """Find the culprit of stacks that were sampled one after the other.

        It is the deepest function of the user's code that most samples agree on; if none of that code appears, the
        outermost function of a library, which is the task or callback that was started.
        """
        if not stacks:
            return Verdict(None, (), 0)
        seen = Counter(key for stack in stacks for key in {_key(frame) for frame in stack if self.is_user(frame)})
        agreed = _agreed(seen, AGREE * len(stacks))
        found = [self._deepest(stack, agreed) for stack in stacks]
        hits = Counter(frame for frame in found if frame is not None)
        if not hits:
            return self._outermost(stacks)
        function = Counter(_key(frame) for frame in hits.elements()).most_common(1)[0][0]
        culprit = max((frame for frame in hits if _key(frame) == function), key=lambda frame: hits[frame])
        showing = Counter(stack for stack, frame in zip(stacks, found, strict=True) if frame == culprit)
        return Verdict(culprit, showing.most_common(1)[0][0], seen[function])

    def _outermost(self, stacks: Sequence[Stack]) -> Verdict:
        stack = Counter(stacks).most_common(1)[0][0]
        outermost = next((frame for frame in stack if not self.is_stdlib(frame)), None)
        return Verdict(outermost, stack, sum(outermost in other for other in stacks) if outermost else 0)

    def _deepest(self, stack: Stack, keys: set[tuple[str, str]]) -> Frame | None:
        return next((frame for frame in reversed(stack) if _key(frame) in keys and self.is_user(frame)), None)


# Called for each frame of every sample, and a program has few files.
@lru_cache(maxsize=4096)
def _is_user(site: Site, module: str, file: str) -> bool:
    if any(_matches(module, file, prefix) for prefix in site.user_code):
        return True
    if any(_matches(module, file, prefix) for prefix in site.library_code):
        return False
    return not _is_stdlib(site, file) and not _installed(file)


@lru_cache(maxsize=4096)
def _is_stdlib(site: Site, file: str) -> bool:
    if file.startswith("<frozen"):
        return True
    return any(_under(file, folder) for folder in site.stdlib) and not _installed(file)


def _agreed(seen: Counter[tuple[str, str]], needed: float) -> set[tuple[str, str]]:
    """Return the functions that enough samples show; if there are none, the most frequent one."""
    return {key for key, count in seen.items() if count >= needed} or {key for key, _ in seen.most_common(1)}


def _key(frame: Frame) -> tuple[str, str]:
    return frame.function, frame.file


def _installed(file: str) -> bool:
    parts = file.replace("/", _SEPARATOR).split(_SEPARATOR)
    return "site-packages" in parts or "dist-packages" in parts


def _under(file: str, folder: str) -> bool:
    return file.startswith(folder.rstrip("/\\") + ("\\" if "\\" in folder else "/"))


def _matches(module: str, file: str, prefix: str) -> bool:
    if "/" in prefix or "\\" in prefix:
        return file == prefix or _under(file, prefix)
    return module == prefix or module.startswith(prefix + ".")
