"""What is made late: once, by whoever comes first, and never where it has been given up."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from loopwatch.core.late import Late

SOON = 10.0


def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads that want it while it is being made get the one that was made."""
    made, begun, may_go_on = [], threading.Event(), threading.Event()

    def make() -> object:
        begun.set()
        assert may_go_on.wait(SOON)
        made.append(object())
        return made[-1]

    late, got = Late(make, (), print), []
    late.soon()
    assert begun.wait(SOON)
    threads = [threading.Thread(target=lambda: got.append(late.now())) for _ in range(8)]
    for thread in threads:
        thread.start()
    may_go_on.set()
    for thread in threads:
        thread.join(SOON)
    assert len(made) == 1 and got == made * 8 and late.made is made[0]
    assert late.thread.end(SOON)


def test_not_on_the_thread_of_a_loop() -> None:
    """Where a loop runs it is made in another thread, as files are read for it."""

    async def main() -> int | None:
        return Late(threading.get_ident, (), print).now()

    assert asyncio.run(main()) not in (None, threading.get_ident())


def test_who_asks_while_he_makes_it_gets_none() -> None:
    """A signal handler of the program that comes in between does not wait for itself."""
    asked: list[object] = []

    def make() -> str:
        asked.append(late.now())
        return "made"

    late: Late[str] = Late(make, (), print)
    assert late.now() == "made" and asked == [None]


def test_an_error_is_for_who_wanted_it() -> None:
    """It is raised once where it is wanted now, and handed over where a thread makes it; nobody tries again."""
    late: Late[float] = Late(lambda: 1 / 0, (), print)
    with pytest.raises(ZeroDivisionError):
        late.now()
    assert late.now() is None and not late.is_waiting
    failed: list[BaseException] = []
    told = threading.Event()

    def take(exc: BaseException) -> None:
        failed.append(exc)
        told.set()

    late = Late(lambda: 1 / 0, (), take)
    late.soon()
    assert told.wait(SOON) and [type(each) for each in failed] == [ZeroDivisionError]
    assert late.now() is None


def test_it_is_given_up_between_two_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was about to load next is not loaded, and it is made no more."""
    (tmp_path / "late_first.py").write_text("import late_events as events\nevents.begun.set(); events.go_on.wait(10)")
    (tmp_path / "late_events.py").write_text("import threading\nbegun, go_on = threading.Event(), threading.Event()")
    (tmp_path / "late_second.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import late_events  # type: ignore[import-not-found]

    late: Late[object] = Late(object, ("late_first", "late_second"), print)
    late.soon()
    assert late_events.begun.wait(SOON)
    late.give_up(0.0)
    late_events.go_on.set()
    assert late.thread.end(SOON)
    assert "late_first" in sys.modules and "late_second" not in sys.modules
    assert late.now() is None
    for name in ("late_first", "late_events"):
        del sys.modules[name]
