"""A warning or log record that names its caller names the program's line, through wrappers too."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from loopwatch.core.patches import PatchSet
from loopwatch.core.unseen import UNSEEN, unseen, unseen_code, unseen_file
from loopwatch.watch import stacks


def complains() -> int:
    """Name its caller in a warning and in a log record; return the line it was called from."""
    warnings.warn("asked", stacklevel=2)
    logging.getLogger("asked").warning("asked", stacklevel=2)
    return sys._getframe(1).f_lineno


@unseen
def through(*args: Any) -> int:
    return complains()


class Outer:
    @unseen
    def method(self) -> int:
        return complains()


@unseen
class Whole:
    def method(self) -> int:
        return complains()

    @staticmethod
    def static() -> int:
        return complains()


@pytest.mark.parametrize("call", [through, Outer().method, Whole().method, Whole.static])
def test_wrapper_is_skipped(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    """For functions, methods and whole classes both name the line that calls the wrapper."""
    with pytest.warns(UserWarning, match="asked") as warned:
        seen, line = call(), sys._getframe().f_lineno
    assert (warned[0].filename, warned[0].lineno) == (__file__, line)
    assert [(each.pathname, each.lineno) for each in caplog.records] == [(__file__, line)]
    assert seen != line, "the frame itself is there"


def test_wrappers_share_code_recognised_as_own() -> None:
    """Wrappers made from one definition share one code object, which is recognised as this package's own."""
    first, second = (unseen(lambda: 1) for _ in range(2))
    assert first.__code__ is second.__code__ is unseen_code(first.__code__)
    patches, target = PatchSet(), SimpleNamespace(f=complains)
    patch = patches.around(target, "f", lambda original, args, kwargs: original(*args, **kwargs))
    file = patch.state.__code__.co_filename
    assert file.endswith(UNSEEN) and not stacks.is_own(file)  # this test's function is the program's
    assert stacks.is_own(unseen_file(stacks._OWN + "watch/discovery.py"))


def test_non_functions_are_returned_unchanged() -> None:
    """Anything other than a function is returned unchanged."""
    for thing in (len, 3, None, functools.partial(len)):
        assert unseen(thing) is thing
