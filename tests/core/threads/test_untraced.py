"""Threads of the agent are not traced or profiled with those of the program."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.core.threads.untraced import UntracedThread

SOON = 10.0


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """Idents of the threads for which trace or profile functions for new threads were called."""
    found: list[int] = []

    def note(_frame: object, _event: str, _arg: object) -> object:
        found.append(threading.get_ident())
        return note

    before = threading.gettrace(), threading.getprofile()
    threading.settrace(note)  # type: ignore[arg-type]
    threading.setprofile(note)
    yield found
    threading.settrace(before[0])  # type: ignore[arg-type]
    threading.setprofile(before[1])


def test_functions_for_new_threads_are_not_called(seen: list[int]) -> None:
    """Trace and profile functions are not called for the agent's threads, but are for a thread of the program."""
    inside: list[object] = []

    def work() -> None:
        inside.append((sys.gettrace(), sys.getprofile()))

    gate, runs = threading.Event(), threading.Event()  # both at once, or the second might get the ident of the first
    threads = UntracedThread(lambda: (work(), runs.set(), gate.wait(SOON)), "ours"), threading.Thread(target=work)
    threads[0].start()
    assert runs.wait(SOON)
    threads[1].start()
    idents = [thread.ident for thread in threads]
    threads[1].join(SOON)
    gate.set()
    threads[0].join(SOON)
    assert (idents[0] in seen, idents[1] in seen) == (False, True)
    assert inside[0] == (None, None)


def test_start_does_not_wait_until_the_thread_runs() -> None:
    """A thread that has not had the GIL yet counts as alive, and is waited for by ``join``."""
    interval, done = sys.getswitchinterval(), []
    thread = UntracedThread(lambda: done.append(True), "ours")
    sys.setswitchinterval(SOON)  # this thread keeps the GIL
    try:
        thread.start()
        alive, ident = thread.is_alive(), thread.ident
    finally:
        sys.setswitchinterval(interval)
    assert alive
    assert ident is None or done
    thread.join(SOON)
    assert done and not thread.is_alive()


def test_target_is_released() -> None:
    """A thread that has ended does not keep its target."""
    import gc
    import weakref

    class Work:
        def __call__(self) -> None: ...

    work = Work()
    gone = weakref.ref(work)
    thread = UntracedThread(work, "ours")
    thread.start()
    thread.join(SOON)
    del work
    gc.collect()
    assert gone() is None


def test_escaping_exception_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """MemoryError and the like are passed to the thread's owner, and another thread can be started."""
    failures: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        if not failures:
            raise MemoryError
        done.set()

    def failed(exc: BaseException) -> None:
        failures.append(exc)
        thread.start()

    thread = OwnThread("tried", run, lambda: None, failed=failed)
    thread.start()
    assert done.wait(SOON)
    assert thread.end(SOON)
    assert [type(exc) for exc in failures] == [MemoryError]
    assert capfd.readouterr().err == ""
