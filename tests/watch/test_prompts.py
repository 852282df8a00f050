"""Code typed at a prompt or run in a notebook cell may hold its loop; a program's code may not."""

from __future__ import annotations

import ast
import asyncio
import code
import logging
import time
import types
from collections.abc import Callable, Iterator

import pytest
from conftest import Run

import loopwatch
from loopwatch._installed import current_agent, install_from_environment
from loopwatch.agent import Agent
from loopwatch.watch.prompts import REASON, is_typed
from loopwatch.watch.stacks import RawFrame

pytestmark = pytest.mark.measures

LONG = 0.4


def raw(function: str, module: str, file: str, *, awaits: bool = False) -> RawFrame:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    made = compile("await x" if awaits else "x", file, "exec", flags=flags)
    return RawFrame(made.replace(co_name=function, co_qualname=function), 1, 0, module)


SHELL = raw("run_code", "IPython.core.interactiveshell", "/venv/IPython/core/interactiveshell.py")
CELL = raw("<module>", "__main__", "/tmp/ipykernel_7/1.py")
HELPER = raw("load", "app", "/srv/app.py")


@pytest.mark.parametrize(
    ("outermost_first", "expected"),
    [
        ([raw("<module>", "__main__", "<stdin>")], True),
        ([raw("<module>", "__main__", "<console>"), HELPER], True),
        ([raw("<module>", "__main__", "<python-input-3>"), HELPER], True),
        ([SHELL, CELL, HELPER], True),
        ([HELPER, SHELL, CELL], True),
        ([SHELL, raw("<module>", "__main__", "/tmp/ipykernel_7/1.py", awaits=True), HELPER], False),
        ([raw("<module>", "__main__", "<stdin>", awaits=True), HELPER], False),
        ([raw("<module>", "app", "/srv/app.py"), HELPER], False),  # an import on the loop
        ([SHELL, HELPER], False),
        ([raw("handle", "__main__", "<stdin>")], False),  # a typed function that the loop calls
        ([], False),
    ],
)
def test_code_run_by_a_prompt_is_recognised(outermost_first: list[RawFrame], expected: bool) -> None:
    """Module code of a prompt is recognised, unless it awaits; a function defined at a prompt is like any other."""
    assert is_typed(outermost_first[::-1]) is expected


@pytest.fixture
def from_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """The agent as ``loopwatch run`` installs it."""
    monkeypatch.setenv("LOOPWATCH_THRESHOLD", "0.1")
    monkeypatch.setenv("LOOPWATCH_HANG_AFTER", "0.2")
    monkeypatch.setenv("LOOPWATCH_CPU_BUDGET", "1")
    install_from_environment()
    agent = current_agent()
    assert agent is not None
    yield agent
    loopwatch.uninstall()


def at_a_prompt() -> None:
    """As ``python -m asyncio`` does: the console's code runs in a callback of the loop."""
    code.InteractiveInterpreter({"time": time}).runsource(f"time.sleep({LONG})", "<stdin>")


def in_a_cell() -> None:
    """As ipykernel does: the shell runs the cell's code in a coroutine of the loop."""
    shell = types.ModuleType("IPython.core.interactiveshell")
    exec("def run_code(made):\n    exec(made, {'time': __import__('time')})", shell.__dict__)
    shell.__dict__["run_code"](compile(f"time.sleep({LONG})", "/tmp/ipykernel_7/123.py", "exec"))


def handler() -> None:
    time.sleep(LONG)


PROMPTS: list[Callable[[], None]] = [at_a_prompt, in_a_cell]


@pytest.mark.parametrize("typed", PROMPTS)
def test_typed_code_under_run_is_expected(
    typed: Callable[[], None], from_environment: Agent, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Code typed twice gives two expected blocks of over 0.8 seconds in all; a handler's block is the only stall."""
    caplog.set_level(logging.WARNING, "loopwatch")

    async def main() -> None:
        for function in (typed, typed, handler):
            await asyncio.sleep(0.05)
            function()
        await asyncio.sleep(0.05)
        from_environment.flush(5.0)
        (loop,) = from_environment.snapshot().loops
        (expected,) = loop.expected
        assert (expected.reason, expected.blocks) == (REASON, 2)
        assert expected.blocked >= 1.9 * LONG
        assert loop.stalls == 1

    run(main())
    from_environment.flush(5.0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all("handler" in line or "starved" in line for line in lines), lines
    assert all(stall.duration < 2 * LONG for stall in from_environment.stalls() if "starved" not in stall.cause)


@pytest.mark.parametrize("typed", PROMPTS)
def test_typed_code_is_reported_after_install_by_hand(typed: Callable[[], None], agent: Agent, run: Run) -> None:
    """After a manual install() at a prompt, a block by the next line is reported."""

    async def main() -> None:
        await asyncio.sleep(0.05)
        typed()
        await asyncio.sleep(0.05)

    run(main())
    agent.flush(5.0)
    assert [stall.duration >= LONG for stall in agent.stalls() if not stall.ongoing] == [True]


def test_install_at_a_prompt_under_run_enables_reports(from_environment: Agent, run: Run) -> None:
    """A manual install() under ``loopwatch run`` has the same effect on the existing agent."""
    assert loopwatch.install() is from_environment

    async def main() -> None:
        await asyncio.sleep(0.05)
        in_a_cell()
        await asyncio.sleep(0.05)

    run(main())
    from_environment.flush(5.0)
    assert [stall.duration >= LONG for stall in from_environment.stalls() if not stall.ongoing] == [True]
