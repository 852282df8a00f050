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
    """Name its caller in a warning and in a log record; return the line that it was called in, as it sees it."""
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
def test_a_wrapper_is_passed_over(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Functions, methods and whole classes: both name the line that calls the wrapper."""
    with pytest.warns(UserWarning, match="asked") as warned:
        seen, line = call(), sys._getframe().f_lineno
    assert (warned[0].filename, warned[0].lineno) == (__file__, line)
    assert [(each.pathname, each.lineno) for each in caplog.records] == [(__file__, line)]
    assert seen != line, "the frame itself is there"


def test_code_is_shared_and_stays_ours() -> None:
    """Wrappers made of one definition share one code object; it is still known as this package's own."""
    first, second = (unseen(lambda: 1) for _ in range(2))
    assert first.__code__ is second.__code__ is unseen_code(first.__code__)
    patches, target = PatchSet(), SimpleNamespace(f=complains)
    patch = patches.around(target, "f", lambda original, args, kwargs: original(*args, **kwargs))
    file = patch.state.__code__.co_filename
    assert file.endswith(UNSEEN) and not stacks.is_own(file)  # this test's function is the program's
    assert stacks.is_own(unseen_file(stacks._OWN + "watch/discovery.py"))


def test_what_is_no_function_stays() -> None:
    """Anything else comes back as it is."""
    for thing in (len, 3, None, functools.partial(len)):
        assert unseen(thing) is thing
