"""SharedBuffer: memory shared by several processes, released exactly once, with a lock and atomic operations."""

from __future__ import annotations

import copy
import doctest
import gc
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loopwatch.errors import ConfigError, NotPicklable, OffloadError
from loopwatch.workers import descriptor_passing, shared_buffer
from loopwatch.workers.shared_buffer import SharedBuffer

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="descriptors are counted in /proc")

SERVE = """
import os, pickle, signal, socket, sys
from loopwatch.workers import descriptor_passing

channel = socket.socket(fileno=int(sys.argv[1]))
names = {"os": os, "signal": signal, "channel": channel}
while True:
    data, received, _, _ = socket.recv_fds(channel, 1 << 16, 64)
    if not data:
        break
    passage = descriptor_passing.Passage(received)
    with descriptor_passing.passing(passage):
        code, arguments = pickle.loads(data)
    passage.close()
    names.update(arguments)
    names.pop("result", None)
    try:
        exec(code, names)
    except BaseException as exc:
        names["result"] = exc
    passage = descriptor_passing.Passage()
    with descriptor_passing.passing(passage):
        answer = pickle.dumps(names.get("result"))
    socket.send_fds(channel, [answer], passage.sent)
    arguments = exc = None
"""

PER_BUFFER = 1 if sys.version_info >= (3, 13) else 2
"""Descriptors of an open buffer: mmap keeps one of its own before 3.13."""


class Worker:
    """A process that runs the code it is sent; its names last from one run to the next."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", SERVE, str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)

    def send(self, code: str, **arguments: object) -> int:
        """Have the process run ``code``; return how many descriptors were sent with it."""
        passage = descriptor_passing.Passage()
        with descriptor_passing.passing(passage):
            message = pickle.dumps((code, arguments))
        socket.send_fds(self._channel, [message], passage.sent)
        return len(passage.sent)

    def result(self) -> Any:
        """Return the value of ``result`` in the worker, or raise the exception of its code."""
        data, received, _, _ = socket.recv_fds(self._channel, 1 << 16, 64)
        assert data, f"the worker ended: {self.process.wait()}"
        passage = descriptor_passing.Passage(received)
        with descriptor_passing.passing(passage):
            result = pickle.loads(data)
        passage.close()
        if isinstance(result, BaseException):
            raise result
        return result

    def run(self, code: str, **arguments: object) -> Any:
        """Have the process run ``code`` and return its ``result``."""
        self.send(code, **arguments)
        return self.result()

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it has ended."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._channel.close()
        self.kill()


@pytest.fixture
def start() -> Iterator[Callable[[], Worker]]:
    """Start any number of workers."""
    workers: list[Worker] = []

    def started() -> Worker:
        workers.append(Worker())
        return workers[-1]

    yield started
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(start: Callable[[], Worker]) -> Worker:
    """One worker."""
    return start()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:loopwatch")


@contextmanager
def thread(target: Callable[[], object]) -> Iterator[None]:
    """Run ``target`` in a thread for the duration of the block; fail if it fails."""
    failures: list[BaseException] = []

    def caught() -> None:
        try:
            target()
        except BaseException as exc:
            failures.append(exc)

    running = threading.Thread(target=caught)
    running.start()
    try:
        yield
    finally:
        running.join()
    assert not failures, failures


# -- the memory ------------------------------------------------------------------------------------------------------


def test_is_a_buffer() -> None:
    """A buffer is zeroed, has slices, length and the buffer protocol, and is written in place."""
    with SharedBuffer(100) as buffer:
        assert (len(buffer), buffer.nbytes, buffer.size(), bytes(buffer)) == (100, 100, 100, bytes(100))
        buffer[:5] = b"hello"
        with memoryview(buffer) as view:
            assert not view.readonly
            view[0:1] = b"J"
        assert buffer[:5] == b"Jello"
        assert repr(buffer) == "<SharedBuffer nbytes=100>"


def test_results_are_written_in_place(worker: Worker) -> None:
    """Writes of a worker are visible to the parent, and the other way round, without a message."""
    with SharedBuffer(8192) as buffer:
        buffer[:4] = b"ping"
        assert worker.run("result = shared[:4]; shared[4096:4100] = b'pong'", shared=buffer) == b"ping"
        assert buffer[4096:4100] == b"pong"
        buffer[:4] = b"more"
        assert worker.run("result = shared[:4], len(shared)") == (b"more", 8192)


def test_numpy_on_both_sides(worker: Worker) -> None:
    """An array over the buffer is writable and no copy, in the parent and in a worker."""
    numpy = pytest.importorskip("numpy")
    with SharedBuffer(8 * 12) as buffer:
        ours, raw = buffer.array("f8", (3, 4)), numpy.frombuffer(buffer, dtype="f8")
        ours[:] = numpy.arange(12).reshape(3, 4)
        assert raw.flags.writeable
        assert raw.tolist() == list(range(12))
        assert (
            worker.run("theirs = shared.array('f8', (3, 4)); theirs *= 2; result = theirs.sum()", shared=buffer) == 132
        )
        assert raw.sum() == 132
        assert buffer.array("i4").shape == (24,)
        assert buffer.array("i4", 5).shape == (5,)
        assert buffer.array("i1", [2, 3]).shape == (2, 3)
        with pytest.raises(ValueError, match="smaller than requested"):
            buffer.array("f8", (4, 4))
        del ours, raw


def test_numpy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numpy, ``array`` names the command that installs it."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with SharedBuffer(8) as buffer, pytest.raises(ConfigError, match="pip install numpy"):
        buffer.array("f8")


@pytest.mark.parametrize("nbytes", [0, -1, True, "8", 8.0, None, 2**63])
def test_bad_sizes(nbytes: Any) -> None:
    """An invalid size is refused in one line with its value and the allowed range."""
    with pytest.raises(ConfigError) as caught:
        SharedBuffer(nbytes)
    message = str(caught.value)
    assert f"nbytes={nbytes!r}: must be an int" in message
    assert "\n" not in message


def test_a_size_beyond_the_machine() -> None:
    """An allocation refused by the system raises the system's error and leaks no descriptor."""
    before = descriptors()
    with pytest.raises(OSError, match=r"Cannot allocate memory|File too large"):
        SharedBuffer(2**62)
    assert descriptors() == before


def test_the_size_is_sealed() -> None:
    """The memory cannot be truncated, which would make an access elsewhere fatal (SIGBUS)."""
    with SharedBuffer(4096) as buffer:
        for size in (1, 8192):
            with pytest.raises(PermissionError):
                os.truncate(buffer._fd, size)


def test_temporary_file_where_memfd_is_missing(monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
    """Without memfd_create an unlinked temporary file is used, which has no name either."""
    monkeypatch.delattr(os, "memfd_create")
    with SharedBuffer(64) as buffer:
        assert os.fstat(buffer._fd).st_nlink == 0
        assert worker.run("shared[0] = 7; result = shared.add(1, 1)", shared=buffer) == 0
        assert (buffer[0], buffer.load(1)) == (7, 1)


def test_no_lock_without_file_description_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel has no suitable lock, locking is refused."""
    monkeypatch.delattr("fcntl.F_OFD_SETLK")
    with SharedBuffer(8) as buffer, pytest.raises(OffloadError, match="Linux"), buffer.lock():
        pass


# -- its lifetime ----------------------------------------------------------------------------------------------------


def test_close() -> None:
    """Closing releases descriptor and mapping, may be repeated, and makes every later use a ValueError."""
    before, maps = descriptors(), mapped()
    buffer = SharedBuffer(64)
    assert (descriptors(), mapped()) == (before + PER_BUFFER, maps + 1)
    buffer.close()
    buffer.close()
    assert (descriptors(), mapped(), buffer.closed, buffer.nbytes) == (before, maps, True, 64)
    assert repr(buffer) == "<SharedBuffer nbytes=64 closed>"
    uses: list[Callable[[], object]] = [
        lambda: buffer[0],
        lambda: len(buffer),
        lambda: memoryview(buffer),
        lambda: buffer.load(0),
        lambda: buffer.notify(0),
        lambda: buffer.wait(0, 0, timeout=0),
        lambda: buffer.lock().__enter__(),
        buffer.__enter__,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    with descriptor_passing.passing(descriptor_passing.Passage()), pytest.raises(ValueError, match="closed"):
        pickle.dumps(buffer)


def test_closing_leaves_views_valid() -> None:
    """A view in use stays valid after close(); the mapping is released with the last of view and buffer."""
    before = descriptors(), mapped()
    buffer = SharedBuffer(64)
    view = memoryview(buffer)
    buffer.close()
    assert buffer.closed
    assert descriptors() == before[0] + PER_BUFFER - 1, "ours is closed at once"
    view[0] = 7
    assert view[0] == 7
    with pytest.raises(ValueError, match="closed"):
        buffer.load(0)
    del buffer
    assert view[0] == 7
    del view
    assert (descriptors(), mapped()) == before


def test_closing_again_releases_the_mapping() -> None:
    """When the views are gone, a second close() releases the mapping that the first had to leave."""
    maps = mapped()
    buffer = SharedBuffer(64)
    with memoryview(buffer):
        buffer.close()
        assert mapped() == maps + 1
    buffer.close()
    assert mapped() == maps


def test_the_last_reference_releases_it() -> None:
    """Without close(), the last reference releases descriptor and mapping; a closed descriptor is not closed again."""
    before = descriptors(), mapped()
    buffer = SharedBuffer(64)
    number, dead = buffer._fd, weakref.ref(buffer)
    del buffer
    assert dead() is None
    assert (descriptors(), mapped()) == before
    closed = SharedBuffer(64)
    closed.close()
    reused = os.open("/dev/null", os.O_RDONLY)
    assert reused <= number
    del closed
    os.fstat(reused)
    os.close(reused)


def test_killed_worker_leaks_nothing(worker: Worker) -> None:
    """A worker killed with the memory in use leaves nothing in /dev/shm, and no descriptor in the parent."""
    before, names = descriptors(), set(os.listdir("/dev/shm"))  # noqa: PTH208
    with SharedBuffer(1 << 20) as buffer:
        worker.run("own = type(shared)(4096); held = shared.lock(); held.__enter__()", shared=buffer)
        worker.kill()
        buffer[0] = 1
    assert descriptors() == before
    assert set(os.listdir("/dev/shm")) == names  # noqa: PTH208


def test_passing_again_accumulates_nothing(worker: Worker) -> None:
    """However often a buffer is passed, a worker maps it once, and releases mapping and descriptors on dropping it."""
    count = "result = len(os.listdir('/proc/self/fd')), open('/proc/self/maps').read().count('memfd:loopwatch')"
    worker.run("from loopwatch.workers.shared_buffer import SharedBuffer; SharedBuffer(1).close()")
    descriptors_before, _ = worker.run(count)
    with SharedBuffer(64) as buffer:
        ours = descriptors()
        worker.run("first = shared", shared=buffer)
        for number in range(100):
            assert worker.run("result = shared is first and shared.add(0, 1)", shared=buffer) == number
        assert worker.run(count) == (descriptors_before + PER_BUFFER, 1)
        assert descriptors() == ours
        for _ in range(50):
            worker.run("del shared, first", first=buffer, shared=buffer)
        assert worker.run(count) == (descriptors_before, 0)


def test_twice_in_a_message_is_one_descriptor(worker: Worker) -> None:
    """The same buffer twice in a message is one descriptor and one object; two buffers are two."""
    with SharedBuffer(8) as one, SharedBuffer(8) as two:
        assert worker.send("result = a is b[0], a is c", a=one, b=[one], c=two) == 2
        assert worker.result() == (True, False)


def test_returned_buffer_is_the_same_object(worker: Worker) -> None:
    """A buffer returned by a worker is the parent's own object, and one made by the worker is shared by both."""
    with SharedBuffer(8) as buffer:
        assert worker.run("result = shared", shared=buffer) is buffer
        worker.run("shared.close()")
        assert not buffer.closed
        assert worker.run("result = shared.closed", shared=buffer) is False, "closed there, and mapped anew"
    with worker.run("result = own = type(shared)(16)") as made:
        made[3] = 9
        assert worker.run("result = own[3]") == 9


def test_may_be_passed_on(start: Callable[[], Worker]) -> None:
    """A received buffer can be passed on: three processes share one memory."""
    first, second = start(), start()
    with SharedBuffer(8) as buffer:
        first.run("shared[0] = 5", shared=buffer)
        with first.run("result = own = type(shared)(8)") as theirs:
            second.run("theirs[0] = shared[0] + 1", shared=buffer, theirs=theirs)
            assert first.run("result = own[0]") == 6


def test_no_pickle_without_a_worker() -> None:
    """Pickling or copying outside of a call is refused, with the alternative."""
    with SharedBuffer(8) as buffer:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(NotPicklable, match=r"argument of an offloaded function.*bytes\(shared\)"):
                attempt(buffer)
        with descriptor_passing.passing(descriptor_passing.Passage()):
            data = pickle.dumps(buffer)
    with pytest.raises(NotPicklable, match="descriptor"):
        pickle.loads(data)


# -- the lock --------------------------------------------------------------------------------------------------------


def test_lock_excludes_a_process(worker: Worker) -> None:
    """While a worker holds the lock no other process can take it; afterwards one can. Atomics are not affected."""
    with SharedBuffer(64) as buffer:
        worker.run("held = shared.lock(); held.__enter__()", shared=buffer)
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError, match="held by others"), buffer.lock(timeout):
                pass
        assert buffer.add(0, 1) == 0
        worker.run("held.__exit__(None, None, None)")
        with buffer.lock(timeout=0), pytest.raises(TimeoutError):
            worker.run("with shared.lock(0.02): pass")


def test_lock_excludes_threads() -> None:
    """The lock excludes threads as it excludes processes, the current thread included."""
    with SharedBuffer(8) as buffer:

        def count() -> None:
            for _ in range(300):
                with buffer.lock():
                    buffer[0] = (buffer[0] + 1) % 251

        with thread(count), thread(count), thread(count):
            count()
        assert buffer[0] == 1200 % 251
        with buffer.lock(), pytest.raises(TimeoutError), buffer.lock(timeout=0):
            pass


@pytest.mark.parametrize("timeout", [None, 30, math.inf])
def test_a_killed_holder_frees_the_lock(worker: Worker, timeout: float | None) -> None:
    """``kill -9`` of the holder lets a process that already waits take the lock, with or without a timeout."""
    with SharedBuffer(8) as buffer:
        worker.run("held = shared.lock(); held.__enter__()", shared=buffer)
        entered = threading.Event()

        def enter() -> None:
            with buffer.lock(timeout):
                entered.set()

        with thread(enter):
            assert not entered.wait(0.02)
            worker.kill()
            assert entered.wait(30)


def test_a_killed_holder_frees_it_though_others_have_the_descriptor(start: Callable[[], Worker]) -> None:
    """A lock does not live on in a buffer that its holder passed on, nor in an unread message."""
    holder, other = start(), start()
    with holder.run(
        "from loopwatch.workers.shared_buffer import SharedBuffer; result = own = SharedBuffer(8)"
    ) as buffer:
        other.run("", shared=buffer)
        holder.run("held = own.lock(); held.__enter__()")
        holder.send("result = own")
        holder.kill()
        with buffer.lock(timeout=30):
            pass


def test_freed_though_a_child_still_has_the_descriptor() -> None:
    """Leaving the block releases the lock at once, even if a child between fork and exec has its descriptor."""
    with SharedBuffer(8) as buffer:
        with buffer.lock():
            (held,) = shared_buffer._buffers.held.values()
            copied = os.dup(held)
        with buffer.lock(timeout=0):
            pass
        os.close(copied)


def test_an_error_frees_the_lock() -> None:
    """An exception inside the block releases the lock and its descriptor."""
    with SharedBuffer(8) as buffer:
        before = descriptors()
        with pytest.raises(ZeroDivisionError), buffer.lock():
            raise ZeroDivisionError
        with buffer.lock(timeout=0):
            pass
        assert descriptors() == before
        assert not shared_buffer._buffers.held


def forked(check: Callable[[], bool]) -> bool:
    """Return the result of ``check`` in a fork of this process."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_of_a_holder() -> None:
    """A fork within the block sees the memory but does not hold the lock, and does not release it when it leaves."""
    with SharedBuffer(64) as buffer:

        def is_locked_out() -> bool:
            buffer.add(1, 1)
            try:
                with buffer.lock(timeout=0):
                    return False
            except TimeoutError:
                return not shared_buffer._buffers.held

        block = buffer.lock()
        with block:
            assert forked(is_locked_out)
            assert forked(lambda: block.__exit__(None, None, None) is not True and is_locked_out())
            assert forked(is_locked_out), "still held: the fork that left the block freed nothing"
        assert not forked(is_locked_out)
        assert buffer.load(1) == 4


def test_fork_does_not_retain_lock_of_killed_holder(worker: Worker) -> None:
    """The lock of a killed holder is free even while a fork of the holder lives on."""
    fork = """
held = shared.lock(); held.__enter__()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
child = os.fork()
if child == 0:
    shared.store(0, os.getpid())
    shared.notify(0)
    channel.close()
    signal.pause()
"""
    with SharedBuffer(8) as buffer:
        worker.run(fork, shared=buffer)
        assert buffer.wait(0, 0, timeout=30)
        worker.kill()
        with buffer.lock(timeout=30):
            os.kill(buffer.load(0), 0)  # alive
        os.kill(buffer.load(0), signal.SIGKILL)


@pytest.mark.parametrize("timeout", [-1, True, "1", math.nan])
def test_bad_timeouts(timeout: Any) -> None:
    """An invalid timeout is refused with its value and the allowed range."""
    with SharedBuffer(8) as buffer:
        for use in (lambda: buffer.lock(timeout).__enter__(), lambda: buffer.wait(0, 0, timeout)):
            with pytest.raises(ConfigError, match=r"timeout=.*: must be a number of seconds, 0 or more"):
                use()


# -- atomic operations -----------------------------------------------------------------------------------------------


def test_operations_return_the_previous_value() -> None:
    """Each operation returns the previous value; slots are independent, at ``index * 8``."""
    with SharedBuffer(24) as buffer:
        buffer.store(1, -5)
        assert buffer.load(1) == -5
        assert buffer.add(1, 7) == -5
        assert buffer.exchange(1, 40) == 2
        assert buffer.compare_exchange(1, 41, 0) == 40
        assert buffer.compare_exchange(1, 40, 1) == 40
        assert [buffer.load(index) for index in range(3)] == [0, 1, 0]
        assert buffer[8:16] == (1).to_bytes(8, sys.byteorder)


def test_values_wrap_around() -> None:
    """Values beyond 64 bits wrap around."""
    with SharedBuffer(8) as buffer:
        buffer.store(0, 2**63 - 1)
        assert buffer.add(0, 1) == 2**63 - 1
        assert buffer.load(0) == -(2**63)
        assert buffer.compare_exchange(0, 2**63, 2**64 + 3) == -(2**63)
        assert buffer.load(0) == 3


@pytest.mark.parametrize("index", [-1, 3, 2**70])
def test_slots_out_of_range(index: int) -> None:
    """A slot that lies outside the buffer, or partly so, is an IndexError with the number of slots."""
    with SharedBuffer(31) as buffer:
        buffer.store(2, 1)
        for use in (lambda: buffer.load(index), lambda: buffer.add(index, 1), lambda: buffer.notify(index)):
            with pytest.raises(IndexError, match=f"slot {index}: 31 bytes have 3 slots of 8"):
                use()
        bad: Any = 1.5
        with pytest.raises(TypeError):
            buffer.load(bad)
        with pytest.raises(TypeError):
            buffer.store(0, bad)


def test_no_addition_is_lost(start: Callable[[], Worker]) -> None:
    """4 processes that add 2000 times each make 8000, and no two of them saw the same value."""
    workers = [start() for _ in range(4)]
    with SharedBuffer(16) as buffer:
        for each in workers:
            each.send("result = [shared.add(1, 1) for _ in range(2000)]", shared=buffer)
        seen = [value for each in workers for value in each.result()]
        assert buffer.load(1) == 8000
        assert sorted(seen) == list(range(8000))


def test_no_addition_is_lost_among_threads() -> None:
    """Threads lose no addition either."""
    with SharedBuffer(8) as buffer:

        def add() -> None:
            for _ in range(500):
                buffer.add(0, 1)

        with thread(add), thread(add):
            add()
        assert buffer.load(0) == 1500


@pytest.mark.parametrize("futex", [True, False])
def test_wait_sees_a_change(worker: Worker, monkeypatch: pytest.MonkeyPatch, futex: bool) -> None:
    """A waiter returns once another process has changed the slot, with futex or by polling."""
    if not futex:
        monkeypatch.setattr(shared_buffer, "_futex_call", lambda: None)
    with SharedBuffer(24) as buffer:
        assert buffer.wait(2, 7, timeout=30), "it is not 7 to begin with"
        assert not buffer.wait(2, 0, timeout=0.02)
        for number in range(20):
            worker.send("shared.add(2, 1); shared.notify(2)", shared=buffer)
            assert buffer.wait(2, number, timeout=30)
            worker.result()
        assert buffer.notify(2) == 0, "there are no waiters"


def test_notify_counts_woken_waiters(start: Callable[[], Worker]) -> None:
    """``notify`` wakes the given number of waiters of this slot."""
    if shared_buffer._futex_call() is None:
        pytest.skip("futex(2) is called on x86-64 and arm64 Linux")
    workers = [start(), start()]
    with SharedBuffer(16) as buffer:
        for each in workers:
            each.send("result = shared.wait(1, 0, timeout=30)", shared=buffer)
        woken = 0
        while woken < 3:  # a woken waiter that sees no change waits again
            once = buffer.notify(1, count=1)
            assert once <= 1
            woken += once
        assert buffer.notify(0) == 0
        assert buffer.notify(1, count=0) == 0
        buffer.store(1, 1)
        buffer.notify(1)
        assert [each.result() for each in workers] == [True, True]


def test_a_change_without_notify_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters wake up even if a process is killed between its store and its notify."""
    real = shared_buffer._futex_call()
    if real is None:
        pytest.skip("futex(2) is called on x86-64 and arm64 Linux")

    def sleep_through(*arguments: Any) -> int:
        buffer.store(0, 2**32)  # the low half, which it waits on, stays the same
        return real(*arguments)

    monkeypatch.setattr(shared_buffer, "_LOOK_AGAIN", 0.01)
    monkeypatch.setattr(shared_buffer, "_futex_call", lambda: sleep_through)
    with SharedBuffer(8) as buffer:
        assert buffer.wait(0, 0)


def test_examples() -> None:
    """The examples of the docstrings hold."""
    assert doctest.testmod(shared_buffer).failed == 0
    gc.collect()
