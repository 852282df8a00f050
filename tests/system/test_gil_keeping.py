"""Files of threads are read without releasing the GIL."""

from __future__ import annotations

import sys
import threading

import pytest

from loopwatch.system import threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

SOON = 20.0


def test_reading_does_not_release_the_gil() -> None:
    """Another thread that wants the GIL does not get it during 200 readings; reading as usual lets it in."""
    threads.load_reader()
    ran, stop, runs = [0], threading.Event(), threading.Event()

    def other() -> None:
        runs.set()
        while not stop.is_set():
            ran[0] += 1
            stop.wait(0.0001)

    thread = threading.Thread(target=other)
    thread.start()
    assert runs.wait(SOON)
    interval, me = sys.getswitchinterval(), threads.ThreadFacts.here()
    sys.setswitchinterval(SOON)  # it is given away by what releases it only
    try:
        me.scheduled()
        before = ran[0]
        for _ in range(200):
            assert me.scheduled() is not None
            assert me.waiting_in() != (None, None)
        after = ran[0]
        stop.set()
    finally:
        sys.setswitchinterval(interval)
    thread.join(SOON)
    assert after == before


def test_same_text_as_read_as_usual() -> None:
    """Both readers return the same account of the calling thread, and None for a thread that does not exist."""
    threads.load_reader()
    gil_keeping = threads.loaded("loopwatch.system.gil_keeping")
    path = f"/proc/self/task/{threading.get_native_id()}/"
    assert gil_keeping.read_file(path + "comm") == threads.read_kernel(path + "comm")
    assert len(gil_keeping.read_file(path + "status")) == 512, "the first part"
    assert gil_keeping.read_file("/proc/self/task/1073741824/schedstat") is None
    assert threads.scheduled(1073741824) is None
