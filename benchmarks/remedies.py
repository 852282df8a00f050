"""Measures every row of the remedy table: a program that blocks, and the same program after following the advice.

    python benchmarks/remedies.py                            # all rows, about three minutes
    python benchmarks/remedies.py --only "sleep;DNS"         # some rows
    python benchmarks/remedies.py --write docs/remedies.md   # and write the table of the documentation

Blocked time is what a heartbeat of 1 ms sees: the sum of all its delays of more than 10 ms. The programs run on a loop
of asyncio. Servers are threads of this process that answer late; nothing leaves the machine. The least of three runs
counts on both sides, as neighbours on the machine only add to it.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import concurrent.futures
import contextlib
import copy
import csv
import difflib
import fcntl
import ftplib
import functools
import gc
import glob
import hashlib
import imaplib
import importlib
import importlib.util
import inspect
import itertools
import json
import logging
import logging.handlers
import math
import multiprocessing
import multiprocessing.connection
import os
import pickle
import platform
import queue
import random
import re
import select
import shutil
import signal
import smtplib
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tokenize
import urllib.request
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwatch.diagnosis.remedy_table import TABLE, Advice

LATE = 0.2
"""Seconds by which the servers, locks and processes of the benchmark answer late."""
COUNTED = 0.01
"""Seconds of delay of the heartbeat from which on it counts as blocked."""
REPEATS = 3
TARGET = 0.2
"""Most of the blocked time that may be left."""

Program = Callable[[], Awaitable[object]]
FOLDER = Path(tempfile.gettempdir()) / f"loopwatch-remedies-{os.getpid()}"


@dataclass(frozen=True)
class Pair:
    """A program before and after its advice is followed, and the libraries that it needs."""

    before: Program
    after: Program
    needs: tuple[str, ...] = ()


# -- servers that answer late ------------------------------------------------------------------------------------------


class _Late(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        """Answer every request late: HTTP to HTTP, ``+OK`` to everything else."""
        with contextlib.suppress(OSError):
            if self.server.speaks_first:  # type: ignore[attr-defined]
                time.sleep(LATE)
                return
            while data := self.request.recv(65536):
                time.sleep(LATE)
                is_http = b" HTTP/1." in data
                body = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                self.request.sendall(body if is_http else b"+OK\r\n")
                if not is_http and not data.startswith((b"*", b"PING")):
                    return


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    speaks_first = False


@functools.cache
def port(*, greets: bool = False) -> int:
    """Return the port of a server; ``greets``: of a protocol in which the server speaks first, which it does late."""
    server = _Server(("127.0.0.1", 0), _Late)
    server.speaks_first = greets
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def url() -> str:
    return f"http://127.0.0.1:{port()}/"


# -- ways to follow an advice ------------------------------------------------------------------------------------------


@functools.cache
def processes() -> concurrent.futures.ProcessPoolExecutor:
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    pool.submit(int).result()
    return pool


def here(work: Callable[..., object], *args: Any) -> Program:
    async def program() -> None:
        with contextlib.suppress(Exception):
            work(*args)

    return program


def in_thread(work: Callable[..., object], *args: Any, needs: Sequence[str] = ()) -> Pair:
    """Return the pair of ``work`` on the loop, and through asyncio.to_thread."""

    async def after() -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(work, *args)

    return Pair(here(work, *args), after, tuple(needs))


def in_process(work: Callable[..., object], *args: Any, needs: Sequence[str] = ()) -> Pair:
    """Return the pair of ``work`` on the loop, and in a process."""

    async def after() -> None:
        await asyncio.get_running_loop().run_in_executor(processes(), work, *args)

    return Pair(here(work, *args), after, tuple(needs))


def instead(work: Callable[..., object], other: Callable[..., Any], *, needs: Sequence[str] = ()) -> Pair:
    """Return the pair of ``work`` on the loop, and ``other``, awaited if it is a coroutine function."""

    async def after() -> None:
        with contextlib.suppress(Exception):
            result = other()
            if inspect.isawaitable(result):
                await result

    return Pair(here(work), after, tuple(needs))


def module(name: str) -> Any:
    return importlib.import_module(name)


def later(action: Callable[[], object]) -> None:
    """Run ``action`` in a thread, late."""
    threading.Timer(LATE, action).start()


# -- the programs ------------------------------------------------------------------------------------------------------


def nothing() -> None:
    """Return at once: what remains of a call whose result is kept."""


async def sleep() -> None:
    await asyncio.sleep(LATE)


def failing() -> None:
    raise OSError


async def failing_coroutine() -> None:
    raise OSError


def retry(package: str) -> Pair:
    def tenacity() -> None:
        own = module("tenacity")
        own.Retrying(stop=own.stop_after_attempt(2), wait=own.wait_fixed(LATE))(failing)

    async def tenacity_async() -> None:
        own = module("tenacity")
        await own.AsyncRetrying(stop=own.stop_after_attempt(2), wait=own.wait_fixed(LATE))(failing_coroutine)

    def backoff(function: Any) -> Any:
        own = module("backoff")
        return own.on_exception(own.constant, OSError, max_tries=2, interval=LATE, jitter=None)(function)()

    if package == "tenacity":
        return instead(tenacity, tenacity_async, needs=["tenacity"])
    return instead(lambda: backoff(failing), lambda: backoff(failing_coroutine), needs=["backoff"])


@functools.cache
def http_client() -> Any:
    return module("httpx").AsyncClient()


async def get() -> None:
    await http_client().get(url())


async def stream() -> None:
    async with http_client().stream("GET", url()) as response:
        async for _ in response.aiter_bytes():
            pass


@functools.cache
def tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def many_contexts() -> None:
    for _ in range(8):
        ssl.create_default_context()


def one_context() -> None:
    for _ in range(8):
        tls_context()


def chain(times: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for _ in range(times):
        context.load_cert_chain(FOLDER / "cert.pem")


@functools.cache
def aws() -> Any:
    config = module("botocore.config").Config(retries={"total_max_attempts": 1})
    return (
        module("boto3")
        .session.Session()
        .client(
            "sqs", endpoint_url=url(), region_name="x", aws_access_key_id="x", aws_secret_access_key="x", config=config
        )
    )


def aws_clients() -> None:
    for service in ("ec2", "s3", "iam"):
        module("boto3").session.Session().client(service, region_name="eu-west-1")


@functools.cache
def llm(package: str, name: str) -> Any:
    return getattr(module(package), name)(base_url=url(), api_key="x", max_retries=0)


def chat(client: Any) -> Any:
    message = [{"role": "user", "content": "x"}]
    if hasattr(client, "chat"):
        return client.chat.completions.create(model="m", messages=message)
    return client.messages.create(model="m", max_tokens=9, messages=message)


def rpc() -> None:
    channel = module("grpc").insecure_channel(f"127.0.0.1:{port(greets=True)}")
    channel.unary_unary("/s/m")(b"", timeout=LATE)


async def rpc_async() -> None:
    async with module("grpc.aio").insecure_channel(f"127.0.0.1:{port(greets=True)}") as channel:
        await channel.unary_unary("/s/m")(b"", timeout=LATE)


def ssh() -> None:
    module("paramiko").Transport(("127.0.0.1", port(greets=True))).start_client(timeout=1)


def web_socket() -> None:
    module("websockets.sync.client").connect(f"ws://127.0.0.1:{port(greets=True)}")


async def web_socket_async() -> None:
    await module("websockets").connect(f"ws://127.0.0.1:{port(greets=True)}")


def zmq() -> None:
    receiver = module("zmq").Context.instance().socket(module("zmq").PULL)
    receiver.setsockopt(module("zmq").RCVTIMEO, int(1000 * LATE))
    receiver.bind("inproc://a")
    try:
        receiver.recv()
    finally:
        receiver.close()


async def zmq_async() -> None:
    receiver = module("zmq.asyncio").Context.instance().socket(module("zmq").PULL)
    receiver.bind("inproc://b")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(receiver.recv(), LATE)
    receiver.close()


def resolve() -> None:
    """Ask a name server that is late; the one of this machine would answer at once, or be on the internet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        ours.settimeout(LATE)
        ours.recv(1)


def dns_query(kind: str) -> Any:
    dns = module("dns.message").make_query("a.test", "A")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        return module(kind).udp(dns, "127.0.0.1", port=silent.getsockname()[1], timeout=LATE)


async def dns_async() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        query = module("dns.message").make_query("a.test", "A")
        await module("dns.asyncquery").udp(query, "127.0.0.1", port=silent.getsockname()[1], timeout=LATE)


def talk() -> None:
    with socket.create_connection(("127.0.0.1", port())) as ours:
        ours.sendall(b"PING\r\n")
        ours.recv(9)


async def talk_async() -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port())
    writer.write(b"PING\r\n")
    await reader.read(9)
    writer.close()


def tls() -> None:
    with socket.create_connection(("127.0.0.1", port(greets=True))) as ours:
        tls_context().wrap_socket(ours, server_hostname="a")


async def tls_async() -> None:
    await asyncio.open_connection("127.0.0.1", port(greets=True), ssl=tls_context(), server_hostname="a")


def selected() -> None:
    with socket.create_connection(("127.0.0.1", port(greets=True))) as ours:
        select.select([ours], [], [])


async def readable(descriptor: Any) -> None:
    loop, found = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, found.set)
    await found.wait()
    loop.remove_reader(descriptor)


async def selected_async() -> None:
    with socket.create_connection(("127.0.0.1", port(greets=True))) as ours:
        await readable(ours)


def postgres() -> None:
    module("psycopg").connect(host="127.0.0.1", port=port(greets=True), sslmode="disable", connect_timeout=2)


async def postgres_async() -> None:
    await module("psycopg").AsyncConnection.connect(
        host="127.0.0.1", port=port(greets=True), sslmode="disable", connect_timeout=2
    )


def mongo() -> None:
    module("pymongo").MongoClient(port=port(greets=True), serverSelectionTimeoutMS=1000 * LATE).x.y.find_one()


async def mongo_async() -> None:
    await (
        module("pymongo").AsyncMongoClient(port=port(greets=True), serverSelectionTimeoutMS=1000 * LATE).x.y.find_one()
    )


def redis() -> None:
    module("redis").Redis(port=port(), protocol=2, driver_info=None).ping()


async def redis_async() -> None:
    await module("redis.asyncio").Redis(port=port(), protocol=2, driver_info=None).ping()


SLOW_SQL = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1500000) SELECT sum(x) FROM c"


def sqlite() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(SLOW_SQL).fetchall()


async def sqlite_async() -> None:
    async with module("aiosqlite").connect(":memory:") as connection, connection.execute(SLOW_SQL) as cursor:
        await cursor.fetchall()


def alchemy_sync() -> None:
    with module("sqlalchemy").create_engine("sqlite://").connect() as connection:
        connection.execute(module("sqlalchemy").text(SLOW_SQL)).all()


async def alchemy_async() -> None:
    async with module("sqlalchemy.ext.asyncio").create_async_engine("sqlite+aiosqlite://").connect() as connection:
        await connection.execute(module("sqlalchemy").text(SLOW_SQL))


@functools.cache
def model() -> Any:
    from sqlalchemy import Integer, String
    from sqlalchemy.orm import declarative_base, mapped_column

    return type(
        "User",
        (declarative_base(),),
        {"__tablename__": "users", "id": mapped_column(Integer, primary_key=True), "name": mapped_column(String)},
    )


def alchemy(action: Callable[[Any], Awaitable[object]], rows: int) -> Program:
    """Return a program that does ``action`` in an asynchronous session, with a table of so many rows."""

    async def program() -> None:
        own = module("sqlalchemy.ext.asyncio")
        engine = own.create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.run_sync(model().metadata.create_all)
            text = module("sqlalchemy").text(
                f"INSERT INTO users WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {rows}) "
                "SELECT x, 'name' FROM c"
            )
            if rows:
                await connection.execute(text)
        async with own.AsyncSession(engine) as session:
            await action(session)
        await engine.dispose()

    return program


async def all_rows(session: Any) -> None:
    (await session.scalars(module("sqlalchemy").select(model()))).all()


async def streamed_rows(session: Any) -> None:
    query = module("sqlalchemy").select(model()).execution_options(yield_per=50)
    async for _ in await session.stream_scalars(query):
        pass


async def made(_session: Any) -> None:
    own = model()
    assert len([own(name=str(number)) for number in range(30_000)]) == 30_000


async def objects(session: Any) -> None:
    session.add_all([model()(name="x") for _ in range(6000)])
    await session.flush()


async def dicts(session: Any) -> None:
    for first in range(0, 6000, 300):
        await session.execute(module("sqlalchemy").insert(model()), [{"name": str(first)} for _ in range(300)])


def fetched(limit: int) -> None:
    """Turn rows of SQLite into objects; the table is made beforehand."""
    with contextlib.closing(sqlite3.connect(FOLDER / "rows.db")) as connection:
        for _ in range(4):
            connection.execute("SELECT * FROM t LIMIT ?", (limit,)).fetchall()


def decoded(fields: int) -> None:
    document = {f"field{number}": [number] * 40 for number in range(fields)}
    data = module("bson").encode(document)
    for _ in range(800):
        module("bson").decode(data)


def replies(items: int) -> None:
    parser = module("redis._parsers")
    own = parser._RESP2Parser(65536)
    data = b"*%d\r\n" % items + b"$5\r\nhello\r\n" * items
    ours, theirs = socket.socketpair()
    threading.Thread(target=lambda: (theirs.sendall(data), theirs.close()), daemon=True).start()
    own._buffer = module("redis._parsers.socket").SocketBuffer(ours, 65536, 5)
    own.encoder = module("redis._parsers").Encoder("utf-8", "strict", False)
    own.read_response()
    ours.close()


SLEEPER = [sys.executable, "-S", "-c", f"import time; time.sleep({LATE})"]


async def process_async() -> None:
    await (await asyncio.create_subprocess_exec(*SLEEPER)).communicate()


async def shell_async() -> None:
    await (await asyncio.create_subprocess_shell(f"sleep {LATE}")).wait()


def wait_for_child() -> None:
    child = subprocess.Popen(SLEEPER)
    os.waitpid(child.pid, 0)
    child.returncode = 0


def child_processes() -> None:
    for _ in range(4):
        child = multiprocessing.get_context("spawn").Process(target=nothing)
        child.start()
        child.join()


async def asyncio_processes(count: int) -> None:
    for _ in range(count):
        await (await asyncio.create_subprocess_exec("true")).wait()


def started() -> multiprocessing.connection.Connection:
    """Return a connection that becomes readable late."""
    ours, theirs = multiprocessing.Pipe()
    later(lambda: theirs.send(1))
    return ours  # type: ignore[return-value]


async def pipe_async() -> None:
    ours = started()
    await readable(ours.fileno())
    ours.recv()


BIG = {"big": [str(number) for number in range(700_000)]}


async def big_payload() -> None:
    pickle.dumps(BIG)
    await asyncio.get_running_loop().run_in_executor(processes(), len, BIG)


async def small_payload() -> None:
    await asyncio.get_running_loop().run_in_executor(processes(), len, "a path")


@functools.cache
def mp_pool() -> Any:
    pool = multiprocessing.get_context("spawn").Pool(1)
    pool.apply(int)
    return pool


async def pool_async() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    mp_pool().map_async(time.sleep, [LATE], callback=lambda _: loop.call_soon_threadsafe(future.set_result, None))
    await future


def held(lock: Any) -> Any:
    """Return ``lock``, held and released late."""
    lock.acquire()
    later(lock.release)
    return lock


async def lock_async() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(LATE, lock.release)
    await lock.acquire()


def event() -> None:
    found = threading.Event()
    later(found.set)
    found.wait()


async def event_async() -> None:
    found, loop = asyncio.Event(), asyncio.get_running_loop()
    later(lambda: loop.call_soon_threadsafe(found.set))
    await found.wait()


def sleeping_thread() -> threading.Thread:
    thread = threading.Thread(target=time.sleep, args=(LATE,))
    thread.start()
    return thread


def from_queue() -> None:
    items: queue.Queue[int] = queue.Queue()
    later(lambda: items.put(1))
    items.get()


async def from_queue_async() -> None:
    items: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    later(lambda: loop.call_soon_threadsafe(items.put_nowait, 1))
    await items.get()


POOL = concurrent.futures.ThreadPoolExecutor(4)


async def future_async() -> None:
    await asyncio.wrap_future(POOL.submit(time.sleep, LATE))


async def futures_async() -> None:
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(POOL, time.sleep, LATE) for _ in range(3)))


def pool_per_call() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, LATE)


def file_lock() -> None:
    with (FOLDER / "lock").open("w") as first, (FOLDER / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        later(lambda: fcntl.flock(first, fcntl.LOCK_UN))
        fcntl.flock(second, fcntl.LOCK_EX)


def inner_loop() -> None:
    """Run a loop inside the loop, as nest_asyncio does; asyncio.run() itself refuses."""
    inner = asyncio.new_event_loop()
    asyncio._set_running_loop(None)
    try:
        inner.run_until_complete(asyncio.sleep(LATE))
    finally:
        inner.close()


def nested(run: Callable[[], object]) -> Program:
    async def program() -> None:
        outer = asyncio.get_running_loop()
        try:
            run()
        finally:
            asyncio._set_running_loop(outer)

    return program


async def tasks(batch: int) -> None:
    made: list[asyncio.Task[None]] = []
    for number in range(40_000):
        made.append(asyncio.create_task(asyncio.sleep(0)))
        if number % batch == batch - 1:
            await asyncio.gather(*made)
            made.clear()
    await asyncio.gather(*made)


async def items(every: int) -> None:
    waiting: asyncio.Queue[int] = asyncio.Queue()
    for number in range(300_000):
        waiting.put_nowait(number)
        await waiting.get()
        if number % every == every - 1:
            await asyncio.sleep(0)


async def timers(every: int) -> None:
    loop = asyncio.get_running_loop()
    for number in range(150_000):
        loop.call_later(9, nothing).cancel()
        if number % every == every - 1:
            await asyncio.sleep(0)


def tree() -> None:
    """Make, copy and remove a folder of many files."""
    folder = FOLDER / f"tree{threading.get_ident()}"
    folder.mkdir()
    for number in range(1200):
        (folder / str(number)).write_bytes(b"x")
    shutil.copytree(folder, FOLDER / f"{folder.name}-copy")
    shutil.rmtree(folder)
    shutil.rmtree(FOLDER / f"{folder.name}-copy")


def stats() -> None:
    for _ in range(60_000):
        FOLDER.stat()


def walk() -> None:
    for _ in range(12):
        list(os.walk(os.path.dirname(json.__file__) + "/.."))  # noqa: PTH120
        glob.glob("/etc/**/x", recursive=True)  # noqa: PTH207


def synced(times: int) -> None:
    for _ in range(times):
        with (FOLDER / "synced").open("wb") as file:
            file.write(b"x" * 100_000)
            os.fsync(file.fileno())


def archive() -> None:
    with tarfile.open(os.devnull, "w:gz") as file:
        file.add(os.path.dirname(json.__file__) + "/../asyncio")  # noqa: PTH120


def fifo() -> None:
    """Open and read a named pipe that is written late: a file on a slow disk."""
    path = FOLDER / f"fifo{threading.get_ident()}"
    os.mkfifo(path)
    later(lambda: path.write_bytes(b"x"))
    path.read_bytes()
    path.unlink()


def slow_pipe() -> None:
    """Write to a pipe whose reader is late, as print() does to a terminal."""
    reader, writer = os.pipe()
    later(lambda: os.close(reader))
    with contextlib.suppress(OSError):
        os.write(writer, b"x" * 1_000_000)
    os.close(writer)


async def piped_input() -> None:
    reader, writer = os.pipe()
    later(lambda: os.close(writer))
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader))
    await stream.read()


def input_line() -> None:
    reader, writer = os.pipe()
    later(lambda: os.close(writer))
    with os.fdopen(reader) as file:
        file.readline()


class SlowHandler(logging.Handler):
    """A handler whose disk or server is late."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write late."""
        time.sleep(LATE)


def logger(*handlers: logging.Handler) -> logging.Logger:
    found = logging.Logger("remedies", logging.INFO)
    for handler in handlers:
        found.addHandler(handler)
    return found


def queued_log() -> None:
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, SlowHandler())
    listener.start()
    logger(logging.handlers.QueueHandler(records)).warning("x")
    threading.Thread(target=listener.stop).start()


def big_log(wanted: object) -> None:
    with open(os.devnull, "w") as file:  # noqa: PTH123
        logger(logging.StreamHandler(file)).warning("got %r", wanted)


def loguru(*, enqueue: bool) -> None:
    own = module("loguru").logger
    own.remove()
    own.add(lambda _: time.sleep(LATE), enqueue=enqueue)
    own.warning("x")


def structlog(*handlers: logging.Handler) -> None:
    module("structlog").wrap_logger(logger(*handlers)).warning("x")


def structlog_queued() -> None:
    structlog(logging.handlers.QueueHandler(queue.SimpleQueue()))


def wait_for_signal() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    later(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    signal.sigwait({signal.SIGUSR1})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def signal_async() -> None:
    loop, found = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, found.set)
    later(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    await found.wait()
    loop.remove_signal_handler(signal.SIGUSR1)


def imported() -> None:
    for name in [each for each in sys.modules if each.startswith(("xml", "email", "unittest", "sqlite3", "distutils"))]:
        del sys.modules[name]
    for _ in range(3):
        for name in ("email.mime.text", "unittest.mock", "xml.dom.minidom", "sqlite3"):
            importlib.import_module(name)
        for name in [each for each in sys.modules if each.startswith(("email", "unittest", "xml.dom"))]:
            del sys.modules[name]


SOURCE = "\n".join(f"def f{n}(a, b):\n    return [a + {n} for a in range(b) if a % 3]" for n in range(1500))


def compiled() -> None:
    ast.parse(SOURCE)
    compile(SOURCE, "x", "exec")


def introspected() -> None:
    for _ in range(12):
        with open(inspect.getsourcefile(argparse) or "", "rb") as file:  # noqa: PTH123
            list(tokenize.tokenize(file.readline))


@functools.cache
def garbage() -> list[dict[str, int]]:
    return [{"a": number} for number in range(400_000)]


def collected() -> None:
    garbage()
    for _ in range(5):
        gc.collect()


def work_json() -> None:
    for _ in range(4):
        json.loads(json.dumps([{"n": n, "t": str(n)} for n in range(40_000)]))


def work_orjson() -> None:
    for _ in range(4):
        module("orjson").loads(module("orjson").dumps([{"n": n, "t": str(n)} for n in range(150_000)]))


def pickled(count: int) -> None:
    pickle.loads(pickle.dumps([{"n": n, "t": str(n)} for n in range(count)]))


def copied(count: int) -> None:
    copy.deepcopy([{"n": n} for n in range(count)])


def work_yaml() -> None:
    module("yaml").safe_load("\n".join(f"k{n}: {{a: {n}, b: [1, 2]}}" for n in range(900)))


def work_xml() -> None:
    text = "<a>" + "".join(f"<b n='{n}'>t</b>" for n in range(200_000)) + "</a>"
    for element in ET.fromstring(text):
        element.get("n")


def work_csv() -> None:
    for row in csv.reader([f"{n},{n * 2},x y,{n}" for n in range(300_000)]):
        row[0].strip()


def work_msgpack() -> None:
    for _ in range(4):
        module("msgpack").unpackb(module("msgpack").packb([{"n": n, "t": str(n)} for n in range(120_000)]))


def work_pydantic() -> None:
    own = module("pydantic").create_model("M", n=(int, ...), t=(str, ...))
    adapter = module("pydantic").TypeAdapter(list[own])  # type: ignore[valid-type]
    adapter.dump_python(adapter.validate_python([{"n": n, "t": "x"} for n in range(150_000)]))


def encoded() -> None:
    module("fastapi.encoders").jsonable_encoder([{"n": n, "t": "x"} for n in range(30_000)])


def encoded_bytes() -> None:
    module("orjson").dumps([{"n": n, "t": "x"} for n in range(30_000)])


TEMPLATE = "<ul>{% for n in items %}<li>{{ n|upper }}</li>{% endfor %}</ul>" * 40


@functools.cache
def template() -> Any:
    return module("jinja2").Environment().from_string(TEMPLATE)


def rendered() -> None:
    template().render(items=["text"] * 6000)


@functools.cache
def page() -> str:
    return str(template().render(items=["text"] * 6000))


def templates() -> None:
    for _ in range(10):
        module("jinja2").Environment().from_string(TEMPLATE)


def work_markdown() -> None:
    module("markdown").markdown("# title\n\n" + "* item with *emphasis* and `code`\n" * 1500)


def hashed() -> None:
    hashlib.sha256(bytes(150_000_000)).hexdigest()


def password() -> None:
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 400_000)


def rsa_key() -> None:
    for _ in range(3):
        module("cryptography.hazmat.primitives.asymmetric.rsa").generate_private_key(65537, 2048)


@functools.cache
def key_pem() -> bytes:
    own = module("cryptography.hazmat.primitives.serialization")
    key = module("cryptography.hazmat.primitives.asymmetric.rsa").generate_private_key(65537, 2048)
    pem: bytes = key.private_bytes(own.Encoding.PEM, own.PrivateFormat.PKCS8, own.NoEncryption())
    return pem


def tokens(count: int) -> None:
    for _ in range(count):
        module("jwt").encode({"sub": "x"}, key_pem(), algorithm="RS256")


def compressed() -> None:
    zlib.compress(random.Random(1).randbytes(6_000_000), 9)


def image() -> None:
    own = module("PIL.Image").new("RGB", (3000, 3000))
    for _ in range(3):
        own.resize((1500, 1500), resample=1)


def matrix() -> None:
    own = module("numpy").ones((1500, 1500))
    for _ in range(3):
        own = own @ own / 1500


def work_pandas() -> None:
    own = module("pandas")
    frame = own.DataFrame({"a": range(1_000_000), "b": range(1_000_000)})
    frame.assign(c=frame.a % 1000).groupby("c").b.sum().sort_values()
    frame.sort_values("b").to_numpy()


@functools.cache
def frame() -> Any:
    own = module("pandas")
    return own.DataFrame({"a": range(40_000), "b": range(40_000)})


def row_by_row() -> None:
    frame().apply(lambda row: row.a + row.b, axis=1)


def by_column() -> None:
    frame().a + frame().b


def torch_model() -> None:
    own = module("torch")
    own.set_num_threads(1)
    with own.inference_mode():
        layer = own.nn.Linear(1500, 1500)
        for _ in range(8):
            layer(own.ones(600, 1500))


def sklearn_model() -> None:
    own = module("sklearn.ensemble").RandomForestClassifier(40)
    own.fit([[n, n % 7] for n in range(1500)], [n % 2 for n in range(1500)]).predict([[1, 2]])


BACKTRACKS = re.compile(r"(a+)+b")
CANNOT = re.compile(r"a+b")


def unsplit() -> None:
    BACKTRACKS.match("a" * 23)


def linear() -> None:
    CANNOT.match("a" * 23)


def patterns() -> None:
    for number in range(250):
        re.compile(rf"(?:x{number}|[a-z]+\d{{2,3}})(?P<n>\w+)+?$")


READY = re.compile(r"(?:x|[a-z]+\d{2,3})(?P<n>\w+)+?$")


def ready() -> None:
    for _ in range(250):
        READY.match("x1")


def diffed(length: int) -> None:
    words = [str(n % 50) for n in range(length)]
    difflib.SequenceMatcher(None, words, words[::-1]).ratio()


def drained() -> None:
    for _ in itertools.combinations(range(300), 3):
        pass


def ordered(count: int) -> None:
    sorted(random.Random(1).random() for _ in range(count))


async def in_pieces(every: int) -> None:
    total = 0
    for first in range(0, 8_000_000, every):
        total += sum(range(first, first + every))
        await asyncio.sleep(0)


def factorial(size: int) -> None:
    math.factorial(size)


def many_stats() -> None:
    module("psutil").cpu_percent(interval=LATE)


def many_stats_at_once() -> None:
    module("psutil").cpu_percent(interval=None)


def connected(package: str, function: str = "connect", **options: Any) -> Callable[[], object]:
    return lambda: getattr(module(package), function)(**({"host": "127.0.0.1", "port": port(greets=True)} | options))


GREETS = functools.partial(port, greets=True)
PAIRS: dict[str, Pair] = {
    "sleep": instead(lambda: time.sleep(LATE), sleep),
    "retry with tenacity": retry("tenacity"),
    "retry with backoff": retry("backoff"),
    "HTTP client without asyncio": instead(lambda: urllib.request.urlopen(url()).read(), get, needs=["httpx"]),
    "body of an HTTP response": instead(
        lambda: module("requests").get(url()).content, stream, needs=["httpx", "requests"]
    ),
    "httpx.Client": instead(lambda: module("httpx").get(url()), get, needs=["httpx"]),
    "TLS context, HTTP client": instead(many_contexts, one_context),
    "certificate chain of a TLS server": instead(
        lambda: chain(300), lambda: chain(1), needs=["cryptography"]
    ),
    "AWS request": in_thread(lambda: aws().list_queues(), needs=["boto3"]),
    "AWS client": instead(aws_clients, nothing, needs=["boto3"]),
    "OpenAI request": instead(
        lambda: chat(llm("openai", "OpenAI")), lambda: chat(llm("openai", "AsyncOpenAI")), needs=["openai"]
    ),
    "Anthropic request": instead(
        lambda: chat(llm("anthropic", "Anthropic")), lambda: chat(llm("anthropic", "AsyncAnthropic")),
        needs=["anthropic"],
    ),
    "search engine client": instead(
        lambda: module("elasticsearch").Elasticsearch(url()).info(),
        lambda: module("elasticsearch").AsyncElasticsearch(url()).info(), needs=["elasticsearch"],
    ),
    "gRPC call": instead(rpc, rpc_async, needs=["grpc"]),
    "SMTP": instead(
        lambda: smtplib.SMTP("127.0.0.1", GREETS()),
        lambda: module("aiosmtplib").SMTP(hostname="127.0.0.1", port=GREETS()).connect(), needs=["aiosmtplib"],
    ),
    "FTP": in_thread(lambda: ftplib.FTP().connect("127.0.0.1", GREETS())),
    "IMAP, POP": in_thread(lambda: imaplib.IMAP4("127.0.0.1", GREETS())),
    "SSH": instead(
        ssh, lambda: module("asyncssh").connect("127.0.0.1", GREETS(), known_hosts=None),
        needs=["paramiko", "asyncssh"],
    ),
    "WebSocket client": instead(web_socket, web_socket_async, needs=["websockets"]),
    "ZeroMQ": instead(zmq, zmq_async, needs=["zmq"]),
    "DNS": in_thread(resolve),
    "DNS (dnspython)": instead(lambda: dns_query("dns.query"), dns_async, needs=["dns"]),
    "socket": instead(talk, talk_async),
    "TLS socket": instead(tls, tls_async),
    "select": instead(selected, selected_async),
    "PostgreSQL (psycopg2)": in_thread(
        connected("psycopg2", sslmode="disable", connect_timeout=2), needs=["psycopg2"]
    ),
    "PostgreSQL (psycopg)": instead(postgres, postgres_async, needs=["psycopg"]),
    "MySQL": instead(
        connected("pymysql"), lambda: module("aiomysql").connect(host="127.0.0.1", port=GREETS()),
        needs=["pymysql", "aiomysql"],
    ),
    "SQLite": instead(sqlite, sqlite_async, needs=["aiosqlite"]),
    "MongoDB": instead(mongo, mongo_async, needs=["pymongo"]),
    "Redis": instead(redis, redis_async, needs=["redis"]),
    "Redis with large replies": instead(lambda: replies(150_000), lambda: replies(2_000), needs=["redis"]),
    "Memcached": in_thread(
        lambda: module("pymemcache").Client(("127.0.0.1", port())).get("x"), needs=["pymemcache"]
    ),
    "SQLAlchemy without asyncio": instead(alchemy_sync, alchemy_async, needs=["sqlalchemy", "aiosqlite"]),
    "Oracle": instead(
        lambda: module("oracledb").connect(user="x", password="x", dsn=f"127.0.0.1:{GREETS()}/x"),
        lambda: module("oracledb").connect_async(user="x", password="x", dsn=f"127.0.0.1:{GREETS()}/x"),
        needs=["oracledb"],
    ),
    "rows read by SQLAlchemy": Pair(
        alchemy(all_rows, 40_000), alchemy(streamed_rows, 40_000), ("sqlalchemy", "aiosqlite")
    ),
    "rows written by SQLAlchemy": Pair(alchemy(objects, 0), alchemy(dicts, 0), ("sqlalchemy", "aiosqlite")),
    "objects made for SQLAlchemy": Pair(alchemy(made, 0), alchemy(dicts, 0), ("sqlalchemy", "aiosqlite")),
    "rows read by other drivers": instead(lambda: fetched(60_000), lambda: fetched(50)),
    "documents read from MongoDB": instead(lambda: decoded(60), lambda: decoded(1), needs=["bson"]),
    "subprocess": instead(lambda: subprocess.run(SLEEPER, check=False), process_async),
    "shell command": instead(lambda: os.system(f"sleep {LATE}"), shell_async),
    "wait for a child": instead(wait_for_child, process_async),
    "start of an asyncio subprocess": Pair(lambda: asyncio_processes(100), lambda: asyncio_processes(0)),
    "start of a process": in_thread(child_processes),
    "multiprocessing queue or pipe": instead(lambda: started().recv(), pipe_async),
    "payload sent to another process": Pair(big_payload, small_payload),
    "multiprocessing pool": instead(lambda: mp_pool().map(time.sleep, [LATE]), pool_async),
    "join of a process": in_thread(child_processes),
    "multiprocessing lock": in_thread(lambda: held(multiprocessing.get_context("spawn").Lock()).acquire()),
    "other multiprocessing": in_thread(lambda: multiprocessing.connection.wait([started()])),
    "thread lock": instead(lambda: held(threading.Lock()).acquire(), lock_async),
    "thread event, condition, semaphore": instead(event, event_async),
    "join of a thread": instead(lambda: sleeping_thread().join(), lambda: asyncio.to_thread(time.sleep, LATE)),
    "thread queue": instead(from_queue, from_queue_async),
    "result of a future": instead(lambda: POOL.submit(time.sleep, LATE).result(), future_async),
    "results of several futures": instead(lambda: list(POOL.map(time.sleep, [LATE] * 3)), futures_async),
    "shutdown of an executor": instead(pool_per_call, lambda: POOL.submit(time.sleep, LATE)),
    "file lock": in_thread(file_lock),
    "loop inside the loop": Pair(nested(inner_loop), sleep),
    "nest_asyncio": Pair(nested(inner_loop), sleep),
    "coroutine run from sync code": Pair(nested(inner_loop), sleep),
    "many tasks at once": Pair(lambda: tasks(40_000), lambda: tasks(200)),
    "awaits that never wait": Pair(lambda: items(300_000), lambda: items(500)),
    "other functions of asyncio": Pair(lambda: timers(150_000), lambda: timers(500)),
    "files and folders": in_thread(stats),
    "copy or removal of a tree": in_thread(tree),
    "walk of a folder": in_thread(walk),
    "sync to disk": in_thread(synced, 60),
    "archive": in_process(archive),
    "open, read, write a file": in_thread(fifo),
    "terminal input": instead(input_line, piped_input),
    "print": in_thread(slow_pipe),
    "log record written": instead(lambda: logger(SlowHandler()).warning("x"), queued_log),
    "log record formatted": instead(lambda: big_log(BIG), lambda: big_log(len(BIG))),
    "loguru sink": instead(lambda: loguru(enqueue=False), lambda: loguru(enqueue=True), needs=["loguru"]),
    "structlog output": instead(lambda: structlog(SlowHandler()), structlog_queued, needs=["structlog"]),
    "wait for a signal": instead(wait_for_signal, signal_async),
    "system statistics": instead(many_stats, many_stats_at_once, needs=["psutil"]),
    "import": instead(imported, nothing),
    "compile, exec": in_process(compiled),
    "introspection": instead(introspected, nothing),
    "garbage collection": instead(collected, nothing),
    "JSON": in_process(work_json),
    "JSON with a fast library": in_process(work_orjson, needs=["orjson"]),
    "pickle": instead(lambda: pickled(250_000), lambda: pickled(1_000)),
    "deep copy": instead(lambda: copied(60_000), lambda: copied(100)),
    "YAML": in_process(work_yaml, needs=["yaml"]),
    "XML, HTML": in_process(work_xml),
    "CSV, spreadsheets": in_process(work_csv),
    "binary formats": in_process(work_msgpack, needs=["msgpack"]),
    "validation": in_process(work_pydantic, needs=["pydantic"]),
    "response encoding": instead(encoded, encoded_bytes, needs=["fastapi", "orjson"]),
    "template rendering": instead(rendered, page, needs=["jinja2"]),
    "template compilation": instead(templates, template, needs=["jinja2"]),
    "document conversion": in_process(work_markdown, needs=["markdown"]),
    "hash of large data": in_thread(hashed),
    "password hash": in_thread(password),
    "keys and signatures": in_thread(rsa_key, needs=["cryptography"]),
    "tokens": instead(lambda: tokens(60), lambda: tokens(1), needs=["jwt", "cryptography"]),
    "compression": in_thread(compressed),
    "images": in_thread(image, needs=["PIL"]),
    "numpy, scipy": in_thread(matrix, needs=["numpy"]),
    "data frames": in_process(work_pandas, needs=["pandas"]),
    "data frame row by row": instead(row_by_row, by_column, needs=["pandas"]),
    "torch": in_thread(torch_model, needs=["torch"]),
    "machine learning": in_process(sklearn_model, needs=["sklearn"]),
    "regular expression": instead(unsplit, linear),
    "regular expression compiled": instead(patterns, ready),
    "text distance": instead(lambda: diffed(1500), lambda: diffed(100)),
    "iterators and numbers of the standard library": in_process(drained),
    "sort": in_process(ordered, 500_000),
    "builtins over many items": Pair(lambda: in_pieces(8_000_000), lambda: in_pieces(20_000)),
    "large numbers and texts": instead(lambda: factorial(60_000), lambda: factorial(3_000)),
    "method: lock": instead(lambda: held(threading.RLock and threading.Lock()).acquire(), lock_async),
    "method: wait for a thread": instead(event, event_async),
    "method: wait for a process": instead(lambda: subprocess.Popen(SLEEPER).wait(), process_async),
    "method: output of a process": instead(lambda: subprocess.Popen(SLEEPER).communicate(), process_async),
    "method: queue": instead(from_queue, from_queue_async),
    "method: future": instead(lambda: POOL.submit(time.sleep, LATE).result(), future_async),
    "method: join": instead(lambda: sleeping_thread().join(), lambda: asyncio.to_thread(time.sleep, LATE)),
    "method: shutdown": in_thread(pool_per_call),
    "method: query": in_thread(sqlite),
    "method: rows": instead(lambda: fetched(60_000), lambda: fetched(50)),
    "method: socket or pipe": instead(talk, talk_async),
    "method: file": in_thread(fifo),
    "method: select": instead(selected, selected_async),
    "method: regular expression": instead(unsplit, linear),
    "method: sort": in_process(ordered, 500_000),
    "method: render": instead(rendered, page, needs=["jinja2"]),
}  # fmt: skip
"""By operation. Where the advice is to keep or share a result, what remains of the call is nothing, or a look-up."""

NOT_RUN = {
    "Google Cloud request": "needs an account",
    "Azure request": "needs an account",
    "LLM framework": "needs a provider of the framework; OpenAI and Anthropic are measured",
    "LDAP": "needs a directory server",
    "Kafka (kafka-python)": "needs a broker",
    "Kafka (confluent)": "needs a broker",
    "AMQP": "needs a broker",
    "MQTT": "needs a broker",
    "serial port": "needs a device",
    "result of a task queue": "needs a broker and workers",
    "ODBC": "needs a driver manager",
    "Cassandra": "needs a cluster",
    "other databases": "each needs its own server",
    "Django ORM": "needs a project; its queries block as the drivers below it, which are measured",
    "rows written by Django": "needs a project",
    "start of a thread": "blocks only while processors are short",
    "breakpoint": "needs somebody who types",
}
"""Operations that cannot be run here, and why."""


# -- measuring ---------------------------------------------------------------------------------------------------------


async def blocked(program: Program) -> tuple[float, str]:
    """Return for how many seconds the loop was blocked while ``program`` ran, and how it failed, "" if it did not."""
    failed = ""
    delays: list[float] = []
    running = asyncio.Event()

    async def heartbeat() -> None:
        before = time.monotonic()
        while True:
            running.set()
            await asyncio.sleep(0.001)
            now = time.monotonic()
            delays.append(now - before - 0.001)
            before = now

    beat = asyncio.create_task(heartbeat())
    await running.wait()
    await asyncio.sleep(0.02)
    delays.clear()
    try:
        await program()
    except Exception as exc:  # noqa: BLE001 - some servers of these programs do not speak their protocol to the end
        failed = type(exc).__name__
    await asyncio.sleep(0.02)
    beat.cancel()
    return sum(delay for delay in delays if delay > COUNTED), failed


def prepare() -> None:
    """Make the files that the programs read."""
    FOLDER.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(FOLDER / "rows.db")) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (a, b, c)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", ((n, str(n), "x") for n in range(60_000)))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", "-days", "9"]
    pem = FOLDER / "cert.pem"
    subprocess.run([*command, "-keyout", pem, "-out", FOLDER / "own.pem"], check=False, capture_output=True)
    pem.write_bytes(pem.read_bytes() + (FOLDER / "own.pem").read_bytes())


@dataclass(frozen=True)
class Measured:
    """The result of one row: blocked seconds before and after, or why it was not run."""

    before: float = 0.0
    after: float = 0.0
    why: str = ""

    @property
    def ratio(self) -> float:
        """Share of the blocked time that is left."""
        return self.after / self.before if self.before else math.inf


def measure(operation: str) -> Measured:
    """Run both programs of a row; each first once without measuring, so that modules and caches are loaded.

    A second program that fails where the first one does not proves nothing.
    """
    if operation in NOT_RUN:
        return Measured(why=NOT_RUN[operation])
    pair = PAIRS[operation]
    missing = [name for name in pair.needs if importlib.util.find_spec(name) is None]
    if missing:
        return Measured(why=f"needs {', '.join(missing)}, which is not installed here")
    (_, failed), (_, failed_after) = (asyncio.run(blocked(program)) for program in (pair.before, pair.after))
    if failed_after and not failed:
        return Measured(why=f"the second program fails with {failed_after}")
    befores = [asyncio.run(blocked(pair.before))[0] for _ in range(REPEATS)]
    if not min(befores):
        return Measured(why="the first program does not block on this machine")
    afters: list[float] = []
    while len(afters) < REPEATS and 0.0 not in afters:
        afters.append(asyncio.run(blocked(pair.after))[0])
    return Measured(min(befores), min(afters))


def row_of(advice: Advice, found: Measured) -> str:
    """Return the line of the documentation's table."""
    text = advice.text.format(call="the call", offload="an executor", thread="asyncio.to_thread")
    causes = ", ".join(sorted(cause.value for cause in advice.causes))
    numbers = f"not run: {found.why} | |" if found.why else f"{found.before * 1e3:.0f} | {found.after * 1e3:.0f} |"
    ratio = "" if found.why else f"{found.ratio:.2f}"
    return (
        f"| {advice.operation} | {causes} | {text} | {advice.reason} | [docs]({advice.reference}) | {numbers} {ratio} |"
    )


HEAD = """# Remedies

What loopwatch advises, by operation and cause, and what following the advice is worth. Written by
`python benchmarks/remedies.py --write docs/remedies.md` from `loopwatch/diagnosis/remedy_table.py`; tests hold the two
together.

The sentences are those for a coroutine. In a plain callback, a function that a library calls, `__del__`, `__exit__` or
a signal handler nothing can be awaited: there the advice names what can be done instead, such as to start a task that
uses the asynchronous form.

*Before* and *after* are milliseconds for which a small program held the loop, and the same program after following the
advice: the sum of all delays of a heartbeat of 1 ms that are longer than 10 ms, least of three runs, on {machine}.
Servers are threads of the same process that answer {late:.0f} ms late. Where the advice is to keep or share a result,
what remains is a look-up. The aim is a ratio of {target} at most.

| operation | causes | advice | reason | reference | before | after | ratio |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="operations, separated by semicolons")
    parser.add_argument("--write", type=Path, help="file for the table")
    options = parser.parse_args()
    only = {name.strip() for name in options.only.split(";") if name.strip()}
    prepare()
    lines, failed, run = [], [], 0
    for advice in TABLE:
        if only and advice.operation not in only:
            continue
        found = measure(advice.operation)
        lines.append(row_of(advice, found))
        told = found.why or f"{found.before * 1e3:7.0f} ms {found.after * 1e3:7.0f} ms {found.ratio:6.2f}"
        print(f"{advice.operation:48} {told}", flush=True)
        run += not found.why
        if not found.why and not found.ratio <= TARGET:
            failed.append(advice.operation)
    print(f"\n{run} rows run, {run - len(failed)} at {TARGET} or below", *failed, sep="\n  ")
    if options.write:
        machine = f"CPython {platform.python_version()}, {os.cpu_count()} processors"
        head = HEAD.format(machine=machine, late=LATE * 1000, target=TARGET)
        options.write.write_text(head + "\n".join(lines) + "\n")
    shutil.rmtree(FOLDER, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)  # threads of clients that were given up would keep the process


if __name__ == "__main__":
    main()
