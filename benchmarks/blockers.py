"""Functions that block an event loop, each with the report of a perfect tool. Used by accuracy.py.

A blocker prepares its material outside of the measurement (``setup``), and is then run on the loop's thread for a
wanted length. The true duration is measured around it there, or, where the loop is not inside a callback, by a 1 ms
ticker. Processor-bound blockers fit the size of their material to the wanted length; where the point is a single call
of C code, it is a single call.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime
import fcntl
import functools
import gc
import hashlib
import importlib
import json
import logging
import os
import pickle
import queue
import random
import re
import select
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Setup = Callable[[float], AbstractContextManager[Any]]
Drive = Callable[["Stage", "Blocker", Any], Awaitable[None]]

CALLBACKS, TIMERS, EVENTS = 7, 5, 3
"""Victims planted right before a block: ready callbacks, timers due within it, readable sockets."""

MODULE = "accuracy_generated_module"


class SkipError(Exception):
    """This machine cannot run the blocker; the message says why."""


@dataclass(frozen=True)
class Blocker:
    """One way to hold the loop.

    Attributes:
        name: of the row.
        run: the guilty function, called with the value that ``setup`` yielded; may be a coroutine function.
        culprit: name of the function to blame, None if no function is to blame.
        causes: acceptable causes.
        category: for grouping rows.
        setup: makes the material for a length in seconds; a context manager.
        drive: has the loop run it.
        culprit_optional: naming no culprit is right as well: pure Python cannot know it.
        known_victims: whether the number of waiting callbacks is known.
        in_task: whether it runs in the task named by :func:`task_name`.
    """

    name: str
    run: Callable[[Any], Any]
    culprit: str | None
    causes: frozenset[str]
    category: str
    setup: Setup
    drive: Drive
    culprit_optional: bool = False
    known_victims: bool = True
    in_task: bool = True


@dataclass
class Stage:
    """One repetition: runs the blocker, measures the true duration, plants victims.

    Attributes:
        begin, end: ``time.monotonic`` seconds of the block, once it is over.
        cpu: processor seconds of the loop's thread within it.
        error: exception that the blocker raised.
    """

    loop: asyncio.AbstractEventLoop
    seconds: float
    new_loop: Callable[[], asyncio.AbstractEventLoop]
    start_tool: Callable[[], Awaitable[None]]
    stop_tool: Callable[[], Awaitable[None]]
    begin: float | None = None
    end: float | None = None
    cpu: float | None = None
    error: BaseException | None = None
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    _ticks: list[tuple[float, float]] = field(default_factory=list)

    def place_readers(self) -> None:
        """Register sockets with the loop that become readable during the block."""
        for _ in range(EVENTS):
            ours, theirs = _pair()
            self.loop.add_reader(ours, _read_once, self.loop, ours)
            self._pairs.append((ours, theirs))

    def plant(self) -> None:
        """Make victims: callbacks planted now wait for the end of the block that follows."""
        for _ in range(CALLBACKS):
            self.loop.call_soon(_nothing)
        for number in range(TIMERS):
            self.loop.call_later(0.01 + number / 1000, _nothing)
        for _, theirs in self._pairs:
            theirs.send(b"x")

    def remove_readers(self) -> None:
        """Undo :meth:`place_readers`."""
        for ours, theirs in self._pairs:
            self.loop.remove_reader(ours)
            ours.close()
            theirs.close()
        self._pairs.clear()

    def around(self, run: Callable[[Any], Any], payload: Any) -> None:
        """Run a blocking function and measure its true duration."""
        self.plant()
        cpu, self.begin = time.thread_time(), time.monotonic()
        try:
            run(payload)
        except Exception as exc:  # noqa: BLE001 - some tools raise into the blocking call: that is their finding
            self.error = exc
        self.end, self.cpu = time.monotonic(), time.thread_time() - cpu

    async def around_coroutine(self, run: Callable[[Any], Awaitable[Any]], payload: Any) -> None:
        """Run a coroutine that blocks and never suspends, and measure its true duration."""
        self.plant()
        cpu, self.begin = time.thread_time(), time.monotonic()
        try:
            await run(payload)
        except Exception as exc:  # noqa: BLE001 - as above
            self.error = exc
        self.end, self.cpu = time.monotonic(), time.thread_time() - cpu

    async def tick(self) -> None:
        """Record when ticks 1 ms apart were due and when they ran."""
        while True:
            due = time.monotonic() + 0.001
            await asyncio.sleep(0.001)
            self._ticks.append((due, time.monotonic()))

    def measure_by_most_delayed_tick(self) -> None:
        """Take the delay of the most delayed tick as the true block."""
        if self._ticks:
            self.begin, self.end = max(self._ticks, key=lambda tick: tick[1] - tick[0])


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def _nothing() -> None:
    pass


def _read_once(loop: asyncio.AbstractEventLoop, ours: socket.socket) -> None:
    ours.recv(16)
    loop.remove_reader(ours)


# -- how the loop is made to run a blocker -----------------------------------------------------------------------------


def task_name(blocker: Blocker) -> str:
    """Return the name of the task that runs ``blocker``; it does not contain the name of the guilty function."""
    return f"request-{blocker.name}"


async def in_task(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """As one step of a task."""

    async def request() -> None:
        if asyncio.iscoroutinefunction(blocker.run):
            await stage.around_coroutine(blocker.run, payload)
        else:
            stage.around(blocker.run, payload)

    await stage.loop.create_task(request(), name=task_name(blocker))


async def in_callback(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """As a plain callback of ``call_soon``."""
    await _scheduled(stage, blocker, payload, stage.loop.call_soon)


async def in_timer(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """As a timer's callback."""
    await _scheduled(stage, blocker, payload, functools.partial(stage.loop.call_later, 0.02))


async def _scheduled(
    stage: Stage, blocker: Blocker, payload: Any, schedule: Callable[[Callable[[], None]], Any]
) -> None:
    done = stage.loop.create_future()

    def callback() -> None:
        stage.around(blocker.run, payload)
        done.set_result(None)

    schedule(callback)
    await done


async def in_reader(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """In a callback of ``add_reader``."""
    done = stage.loop.create_future()
    ours, theirs = _pair()

    def readable() -> None:
        stage.loop.remove_reader(ours)
        stage.around(blocker.run, payload)
        done.set_result(None)

    stage.loop.add_reader(ours, readable)
    theirs.send(b"x")
    await done
    ours.close()
    theirs.close()


async def in_protocol(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """In ``Protocol.data_received``."""
    done = stage.loop.create_future()

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            stage.around(blocker.run, payload)
            done.set_result(None)

    ours, theirs = _pair()
    transport, _ = await stage.loop.create_unix_connection(Receiver, sock=ours)
    theirs.send(b"x")
    await done
    transport.close()
    theirs.close()


async def in_second_loop(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """In a task of a loop of its own, in a second thread."""
    problems: list[BaseException] = []

    async def main() -> None:
        await stage.start_tool()
        await asyncio.sleep(0.3)
        other = Stage(asyncio.get_running_loop(), stage.seconds, stage.new_loop, stage.start_tool, stage.stop_tool)
        other.place_readers()
        await in_task(other, blocker, payload)
        await asyncio.sleep(0.5)
        other.remove_readers()
        await stage.stop_tool()
        stage.begin, stage.end, stage.cpu, stage.error = other.begin, other.end, other.cpu, other.error

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=stage.new_loop) as runner:
                runner.run(main())
        except Exception as exc:  # noqa: BLE001 - handed on below
            problems.append(exc)

    thread = threading.Thread(target=run, name="second-loop", daemon=True)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.02)
    if problems:
        raise problems[0]


async def in_many_callbacks(stage: Stage, blocker: Blocker, payload: int) -> None:
    """As many callbacks of 1 ms that are ready in one pass of the loop."""
    done = stage.loop.create_future()

    def first() -> None:
        stage.begin = time.monotonic()

    def last() -> None:
        stage.end = time.monotonic()
        done.set_result(None)

    stage.loop.call_soon(first)
    for _ in range(payload):
        stage.loop.call_soon(blocker.run, 0.001)
    stage.loop.call_soon(last)
    await done


async def beside_the_loop(stage: Stage, blocker: Blocker, payload: Any) -> None:
    """In another thread, while the loop waits for its 1 ms ticker, whose lateness is the time that it was held."""
    thread = threading.Thread(target=blocker.run, args=(payload,), name="hog", daemon=True)
    ticker = asyncio.create_task(stage.tick(), name="ticker")
    await asyncio.sleep(1.2)  # a loop under load: the heartbeat has its shortest interval
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    ticker.cancel()
    stage.measure_by_most_delayed_tick()


# -- material ----------------------------------------------------------------------------------------------------------


def prepared(make: Callable[[float], Any]) -> Setup:
    """Return the setup of material that needs no clearing away."""

    @contextmanager
    def setup(seconds: float) -> Iterator[Any]:
        yield make(seconds)

    return setup


def wanted(seconds: float) -> float:
    """The material is the wanted length itself."""
    return seconds


def fitted(make: Callable[[int], Any], call: Callable[[Any], Any], first: int, power: float = 1.0) -> Setup:
    """Return the setup of a processor-bound call: ``make(n)`` for the n at which ``call`` takes the wanted time.

    Args:
        make: makes the material of size n.
        call: the measured function; its time grows with ``n ** power``.
        first: size to begin with.
        power: how its time grows.
    """

    def fit(seconds: float) -> Any:
        size, material = first, make(first)
        took = _processor_time(call, material)
        while took < min(seconds, 0.05) * 0.5:
            size *= 2
            material = None
            material = make(size)
            took = _processor_time(call, material)
        for _ in range(3):
            if 0.97 <= took / seconds <= 1.15:
                break
            size = max(int(size * (1.05 * seconds / took) ** (1 / power)), 1)
            material = None
            material = make(size)
            took = _processor_time(call, material)
        return material

    return prepared(fit)


def _processor_time(call: Callable[[Any], Any], material: Any) -> float:
    begin = time.thread_time()
    call(material)
    return max(time.thread_time() - begin, 1e-6)


def run_queue() -> float:
    """Return the seconds that the calling thread was runnable but waited for a processor; 0 where it is not known."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def later(seconds: float, action: Callable[[], Any]) -> None:
    """Do something in another thread, which sleeps until then."""

    def wait() -> None:
        time.sleep(seconds)
        action()

    threading.Thread(target=wait, name="helper", daemon=True).start()


def spin(seconds: float) -> int:
    """Compute in Python."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += 1
    return count


# -- computing in Python -----------------------------------------------------------------------------------------------


def count_up(seconds: float) -> int:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += 1
    return count


def generate_numbers(seconds: float) -> Iterator[int]:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(100_000):
            count += 1
        yield count


def exhaust_generator(seconds: float) -> None:
    for _ in generate_numbers(seconds):
        pass


async def generate_numbers_async(seconds: float) -> AsyncIterator[int]:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(100_000):
            count += 1
        yield count


async def exhaust_async_generator(seconds: float) -> None:
    async for _ in generate_numbers_async(seconds):
        pass


async def innermost_coroutine(seconds: float) -> None:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += 1


async def outer_coroutine(seconds: float) -> None:
    await innermost_coroutine(seconds)


sleeping_lambda: Callable[[float], None] = lambda seconds: time.sleep(seconds)  # noqa: E731 - its frame is the point


def comprehend(size: int) -> list[int]:
    return [n for n in range(size) if n * n < 0]


def _logged(function: Callable[[float], int]) -> Callable[[float], int]:
    @functools.wraps(function)
    def wrapper(seconds: float) -> int:
        return function(seconds)

    return wrapper


@_logged
def decorated_loop(seconds: float) -> int:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += 1
    return count


class Thumbnailer:
    """For the row about methods."""

    def resize(self, seconds: float) -> int:
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            count += 1
        return count


def call_method(seconds: float) -> None:
    Thumbnailer().resize(seconds)


def recurse(seconds: float) -> None:
    end = time.monotonic() + seconds

    def descend(level: int) -> int:
        if level == 0 or time.monotonic() >= end:
            return 1
        return descend(level - 1) + descend(level - 1)

    descend(40)


def copy_structure(material: Any) -> None:
    copy.deepcopy(material)


def small_piece(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def spin_in_protocol(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def spin_in_reader(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def spin_in_timer(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def nap_in_callback(seconds: float) -> None:
    time.sleep(seconds)


def spin_in_second_loop(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


# -- C code that keeps the GIL -----------------------------------------------------------------------------------------


def parse_document(text: str) -> None:
    json.loads(text)


def _document(size: int) -> str:
    return "{" + ",".join(['"a":1e-7'] * size) + "}"


def match_badly(text: str) -> None:
    re.search("a*b", text)


def sort_list(numbers: list[float]) -> None:
    sorted(numbers)


def _random_numbers(size: int) -> list[float]:
    return [random.random() for _ in range(size)]


def pickle_objects(objects: list[Any]) -> None:
    pickle.dumps(objects)


def _dates(size: int) -> list[Any]:
    day, step = datetime.datetime(2020, 1, 1), datetime.timedelta(seconds=1)
    return [day + n * step for n in range(size)]


def raise_to_power(exponent: int) -> int:
    return int(3**exponent > 0)


def look_up_in_list(numbers: list[int]) -> bool:
    return -1 in numbers


def concatenate(material: tuple[bytes, float]) -> int:
    block, seconds = material
    end, length = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        length += len(block + block)
    return length


class Box:
    """Holds the last reference to a structure."""

    content: Any = None


def drop_structure(box: Box) -> None:
    box.content = None


@contextmanager
def _structures(seconds: float) -> Iterator[Any]:
    # A structure is gone after one run: its size is fitted.
    sizes: list[int] = []

    def fill(size: int) -> Box:
        sizes.append(size)
        box = Box()
        box.content = [(n, [n]) for n in range(size)]
        return box

    gc.disable()
    try:
        with fitted(fill, drop_structure, 100_000)(seconds):
            pass
        yield Refilled(lambda: fill(sizes[-1]))
    finally:
        gc.enable()


@dataclass
class Refilled:
    """Material that is used up by a run and made again before each."""

    make: Callable[[], Any]


def import_module(_: object) -> None:
    import accuracy_generated_module  # type: ignore[import-not-found] # noqa: F401


@contextmanager
def _generated_module(seconds: float) -> Iterator[Any]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)

        def write(size: int) -> None:
            lines = (f"def function_{n}(a, b={n}):\n    return [a, b, a + b]\n" for n in range(size))
            Path(folder, MODULE + ".py").write_text("".join(lines))
            importlib.invalidate_caches()

        def call(_: object) -> None:
            sys.modules.pop(MODULE, None)
            importlib.invalidate_caches()
            import_module(None)

        try:
            with fitted(write, call, 500)(seconds):
                yield Refilled(lambda: sys.modules.pop(MODULE, None))
        finally:
            sys.path.remove(folder)
            sys.modules.pop(MODULE, None)
            sys.dont_write_bytecode = before


def collect_garbage(rounds: int) -> None:
    for _ in range(rounds):
        gc.collect()


@contextmanager
def _heap(seconds: float) -> Iterator[Any]:
    # One collection of up to 0.3 seconds; a longer block consists of several, or the heap would take gigabytes.
    heap: list[Any] = []

    def grow(size: int) -> list[Any]:
        heap[:] = [[n] for n in range(size)]
        return heap

    with fitted(grow, lambda _: gc.collect(), 100_000)(min(seconds, 0.3)):
        yield max(round(seconds / 0.3), 1)
    heap.clear()


# -- C code that gives up the GIL --------------------------------------------------------------------------------------


def hash_password(rounds: int) -> None:
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", rounds)


def derive_key(parallel: int) -> None:
    hashlib.scrypt(b"password", salt=b"salt", n=4096, r=8, p=parallel, maxmem=2**30)


def compress(data: bytes) -> None:
    zlib.compress(data, 9)


def hash_file(data: bytes) -> None:
    hashlib.sha256(data).hexdigest()


def query_database(rows: int) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(
            "with recursive c(x) as (select 1 union all select x+1 from c where x<?) select sum(x) from c", (rows,)
        ).fetchall()


# -- waiting -----------------------------------------------------------------------------------------------------------


def take_nap(seconds: float) -> None:
    time.sleep(seconds)


def take_many_naps(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.002)


def run_command(seconds: float) -> None:
    subprocess.run(["sleep", str(seconds)], check=True)


def read_command(seconds: float) -> None:
    subprocess.check_output(["sh", "-c", f"sleep {seconds}; echo x"])


def run_shell(seconds: float) -> None:
    os.system(f"sleep {seconds}")


def read_socket(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        connection.recv(1)


def fetch_page(address: tuple[str, int]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address[0]}:{address[1]}/") as response:
        response.read()


@contextmanager
def _slow_server(seconds: float) -> Iterator[tuple[str, int]]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    time.sleep(seconds)
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx")

    threading.Thread(target=serve, name="helper", daemon=True).start()
    try:
        yield server.getsockname()
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def connect_to_dead(material: tuple[tuple[str, int], float]) -> None:
    address, seconds = material
    with contextlib.suppress(TimeoutError):
        socket.create_connection(address, timeout=seconds).close()


@contextmanager
def _full_backlog(seconds: float) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(socket.socket()))
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(contextlib.closing(socket.socket()))
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        time.sleep(0.05)
        yield server.getsockname(), seconds


def resolve_name(_: object) -> None:
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo("slow.accuracy.test.", 80, socket.AF_INET)


@contextmanager
def _slow_name_server(seconds: float) -> Iterator[Any]:
    """A name server under the address that the system is configured to ask; it answers late.

    The address can be taken only in a private network name space, which accuracy.py makes if it may.
    """
    found = re.search(r"^nameserver\s+(\S+)", Path("/etc/resolv.conf").read_text(), re.M)
    if found is None:
        raise SkipError("/etc/resolv.conf names no server")
    server = socket.socket(socket.AF_INET6 if ":" in found[1] else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        server.bind((found[1], 53))
    except OSError as exc:
        server.close()
        raise SkipError(f"no private network name space to put a slow name server into ({exc})") from None

    ended = threading.Event()
    server.settimeout(0.2)

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                question, client = server.recvfrom(4096)
                time.sleep(seconds)
                server.sendto(question[:2] + b"\x81\x83" + question[4:], client)  # no such name
        server.close()

    thread = threading.Thread(target=serve, name="helper", daemon=True)
    thread.start()
    try:
        yield None
    finally:
        ended.set()
        thread.join()


def sync_file(material: tuple[int, float]) -> None:
    descriptor, seconds = material
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.pwrite(descriptor, b"x" * 4096, 0)
        os.fsync(descriptor)


@contextmanager
def _open_file(seconds: float) -> Iterator[Any]:
    with tempfile.TemporaryFile(dir=Path.cwd()) as file:
        yield file.fileno(), seconds


def read_fifo(material: tuple[str, float]) -> None:
    path, seconds = material

    def write() -> None:
        with Path(path).open("wb") as file:
            time.sleep(seconds)
            file.write(b"x")

    later(0, write)
    with Path(path).open("rb") as file:
        file.read()


@contextmanager
def _fifo(seconds: float) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "fifo"))
        os.mkfifo(path)
        yield path, seconds


def write_log(material: Any) -> None:
    reader, writer, logger, seconds = material
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    later(seconds, lambda: os.read(reader, 1 << 20))
    logger.warning("request done")


@contextmanager
def _full_pipe(seconds: float) -> Iterator[Any]:
    reader, writer = os.pipe()
    logger = logging.Logger("accuracy")
    with os.fdopen(writer, "w") as stream:
        logger.addHandler(logging.StreamHandler(stream))
        yield reader, writer, logger, seconds
    os.close(reader)


def lock_file(material: tuple[Path, float]) -> None:
    path, seconds = material
    holder = path.open()
    fcntl.flock(holder, fcntl.LOCK_EX)
    later(seconds, holder.close)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def _locked_file(seconds: float) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lock")
        path.touch()
        yield path, seconds


def poll_socket(material: tuple[socket.socket, float]) -> None:
    select.select([material[0]], [], [], material[1])


@contextmanager
def _silent_socket(seconds: float) -> Iterator[Any]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, seconds


def take_lock(seconds: float) -> None:
    lock = threading.Lock()
    lock.acquire()
    later(seconds, lock.release)
    lock.acquire()


def wait_for_future(seconds: float) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(time.sleep, seconds).result()


def take_from_queue(seconds: float) -> None:
    items: queue.Queue[int] = queue.Queue()
    later(seconds, lambda: items.put(1))
    items.get()


def wait_for_event(seconds: float) -> None:
    threading.Event().wait(seconds)


def join_thread(seconds: float) -> None:
    thread = threading.Thread(target=time.sleep, args=(seconds,), daemon=True)
    thread.start()
    thread.join()


# -- not caused by the loop --------------------------------------------------------------------------------------------


def hog_in_one_call(text: str) -> None:
    re.search("a*b", text)


def hog_in_python(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def stat_files(seconds: float) -> None:
    """Give up the GIL again and again, and wait for it each time behind four threads that compute."""
    for _ in range(4):
        threading.Thread(target=hog_in_python, args=(seconds,), name="hog", daemon=True).start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.stat("/")  # noqa: PTH116 - a path object would spend its time in Python


def stop_process(seconds: float) -> None:
    """From another process: SIGSTOP, and SIGCONT after the wanted time."""
    code = (
        "import os, signal, sys, time\n"
        "pid, seconds = int(sys.argv[1]), float(sys.argv[2])\n"
        "time.sleep(0.1)\n"
        "os.kill(pid, signal.SIGSTOP)\n"
        "time.sleep(seconds)\n"
        "os.kill(pid, signal.SIGCONT)\n"
    )
    subprocess.run([sys.executable, "-S", "-c", code, str(os.getpid()), str(seconds)], check=True)


def compute_starved(material: tuple[Callable[[], None], Callable[[], None], float]) -> None:
    begin, finish, seconds = material
    begin()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += 1
    finish()


@contextmanager
def _busy_neighbours(seconds: float) -> Iterator[Any]:
    """Twice as many processes as processors, of higher priority than this one, that compute for the wanted time."""
    code = (
        "import os, sys, time\n"
        "os.setpriority(os.PRIO_PROCESS, 0, -15)\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    end = time.monotonic() + float(line)\n"
        "    while time.monotonic() < end: pass\n"
    )
    with contextlib.ExitStack() as stack:
        neighbours = []
        for _ in range(2 * (os.cpu_count() or 1)):
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", code],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            neighbours.append(process)
            stack.callback(_end, process)
        if any(process.stdout is None or process.stdout.readline() != "ready\n" for process in neighbours):
            raise SkipError("not permitted to raise the priority of other processes")

        def begin() -> None:
            for process in neighbours:
                if process.stdin is not None:
                    process.stdin.write(f"{seconds}\n")
                    process.stdin.flush()

        yield begin, _nothing, seconds


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


@contextmanager
def _throttled_group(seconds: float) -> Iterator[Any]:
    """A processor quota of 5 percent for this process, in force only during the block (cgroup v1, ``cpu``)."""
    line = next(
        (line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":cpu:" in line or ":cpu," in line), ""
    )
    old = Path("/sys/fs/cgroup/cpu", line.rpartition(":")[2].lstrip("/"))
    group = old / f"accuracy-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as exc:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise SkipError(f"not permitted to make a cgroup of the v1 cpu controller ({exc})") from None
    quota = str(group / "cpu.cfs_quota_us")
    try:
        yield lambda: _write(quota, "5000"), lambda: _write(quota, "-1"), seconds
    finally:
        (old / "cgroup.procs").write_text(str(os.getpid()))
        time.sleep(0.05)
        group.rmdir()


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


# -- the rows ----------------------------------------------------------------------------------------------------------


def _row(
    name: str,
    run: Callable[[Any], Any],
    causes: str,
    category: str,
    setup: Setup | None = None,
    *,
    drive: Drive = in_task,
    culprit: str | None = "",
    **options: Any,
) -> Blocker:
    return Blocker(
        name=name,
        run=run,
        culprit=run.__name__ if culprit == "" else culprit,
        causes=frozenset(causes.split()),
        category=category,
        setup=setup or prepared(wanted),
        drive=drive,
        in_task=drive is in_task,
        **options,
    )


_TEXT = fitted(lambda n: "a" * n, match_badly, 1000, power=2)

BLOCKERS: tuple[Blocker, ...] = (
    _row("sleep", take_nap, "sleep", "sleep"),
    _row("many-sleeps", take_many_naps, "sleep", "sleep"),
    _row("python", count_up, "python", "python"),
    _row("generator", exhaust_generator, "python", "python", culprit="generate_numbers"),
    _row("async-generator", exhaust_async_generator, "python", "python", culprit="generate_numbers_async"),
    _row("nested-coroutine", outer_coroutine, "python", "python", culprit="innermost_coroutine"),
    _row("lambda", sleeping_lambda, "sleep", "where", culprit="<lambda>"),
    _row("comprehension", comprehend, "python", "python", fitted(int, comprehend, 10_000)),
    _row("decorated", decorated_loop, "python", "python", culprit="decorated_loop"),
    _row("method", call_method, "python", "python", culprit="resize"),
    _row("recursion", recurse, "python", "python", culprit="descend"),
    _row(
        "deepcopy", copy_structure, "python", "python",
        fitted(lambda n: [{"a": i, "b": [i]} for i in range(n)], copy_structure, 500),
    ),
    _row("data-received", spin_in_protocol, "python", "where", drive=in_protocol),
    _row("add-reader", spin_in_reader, "python", "where", drive=in_reader),
    _row("timer", spin_in_timer, "python", "where", drive=in_timer),
    _row("callback", nap_in_callback, "sleep", "where", drive=in_callback),
    _row("second-loop", spin_in_second_loop, "python", "where", drive=in_second_loop),
    _row("json", parse_document, "native_gil", "native_gil", fitted(_document, parse_document, 10_000)),
    _row("regex", match_badly, "native_gil", "native_gil", _TEXT),
    _row("sort", sort_list, "native_gil", "native_gil", fitted(_random_numbers, sort_list, 10_000)),
    _row("pickle", pickle_objects, "native_gil", "native_gil", fitted(_dates, pickle_objects, 10_000)),
    _row("import", import_module, "native_gil python", "native_gil", _generated_module),
    _row("gc", collect_garbage, "gc", "gc", _heap),
    _row(
        "list-lookup", look_up_in_list, "native_gil", "operator",
        fitted(lambda n: list(range(n)), look_up_in_list, 100_000), culprit_optional=True,
    ),
    _row(
        "bytes-concat", concatenate, "native_gil python", "operator",
        prepared(lambda seconds: (bytes(20_000_000), seconds)), culprit_optional=True,
    ),
    _row(
        "int-power", raise_to_power, "native_gil", "operator",
        fitted(int, raise_to_power, 10_000, power=1.585), culprit_optional=True,
    ),
    _row("deallocation", drop_structure, "native_gil", "operator", _structures, culprit_optional=True),
    _row("pbkdf2", hash_password, "native", "native", fitted(int, hash_password, 10_000)),
    _row("scrypt", derive_key, "native", "native", fitted(int, derive_key, 1)),
    _row("zlib", compress, "native", "native", fitted(lambda n: random.randbytes(1000) * n, compress, 100)),
    _row("sha256", hash_file, "native", "native", fitted(bytes, hash_file, 1_000_000)),
    _row("sqlite", query_database, "native", "native", fitted(int, query_database, 10_000)),
    _row("recv", read_socket, "io", "io", _slow_server),
    _row("urllib", fetch_page, "io", "io", _slow_server),
    _row("connect", connect_to_dead, "io", "io", _full_backlog),
    _row("dns", resolve_name, "io", "io", _slow_name_server),
    _row("select", poll_socket, "io", "io", _silent_socket),
    _row("subprocess", run_command, "io", "io"),
    _row("command-output", read_command, "io", "io"),
    _row("os-system", run_shell, "io", "io"),
    _row("fsync", sync_file, "io", "io", _open_file),
    _row("fifo", read_fifo, "io", "io", _fifo),
    _row("log-to-pipe", write_log, "io", "io", _full_pipe),
    _row("file-lock", lock_file, "io", "io", _locked_file),
    _row("lock", take_lock, "lock", "lock"),
    _row("future-result", wait_for_future, "lock", "lock"),
    _row("queue-get", take_from_queue, "lock", "lock"),
    _row("event-wait", wait_for_event, "lock", "lock"),
    _row("thread-join", join_thread, "lock", "lock"),
    _row(
        "gil-hog", hog_in_one_call, "gil", "others", _TEXT, drive=beside_the_loop, known_victims=False
    ),
    _row("gil-contention", stat_files, "gil", "others", culprit="hog_in_python"),
    _row(
        "many-callbacks", small_piece, "overload", "others", prepared(lambda seconds: round(seconds / 0.001)),
        drive=in_many_callbacks, known_victims=False,
    ),
    _row(
        "sigstop", stop_process, "suspended", "others", drive=beside_the_loop, culprit=None, known_victims=False
    ),
    _row("throttled", compute_starved, "starved", "others", _throttled_group, culprit=None),
    _row("busy-neighbours", compute_starved, "starved", "others", _busy_neighbours, culprit=None),
)  # fmt: skip
