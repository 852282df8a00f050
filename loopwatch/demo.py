"""``loopwatch demo``: a service that blocks its loop, the agent inside it, and a client that is made to wait.

The service (:mod:`loopwatch.demo_app`) runs in a child process; the load comes from here. All that is told about blocks
comes from the agent in the child, one JSON line a stall through a pipe; what is true is known here only, in
:data:`HABITS`, and compared at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loopwatch
from loopwatch import demo_app
from loopwatch.errors import ConfigError, LoopwatchError
from loopwatch.events import AgentStats, Cause, Frame, Stall
from loopwatch.telemetry.journal import journal_path, printable
from loopwatch.telemetry.report import seconds as in_words
from loopwatch.telemetry.report import times

EXPORT = "/export"
"""Template of the route that needs a disk."""
LOOPS = ("asyncio", "uvloop")
THRESHOLD = 0.1
WIDTH = 96
HEALTH_EVERY = 0.02
"""s between two questions to /health: each on a connection of its own, so that a slow answer holds back no other."""
QUIET = 1.5
"""s at the start in which nothing slow is asked for."""
PAUSE = 0.2
"""s between two slow requests."""
PATIENCE = 10.0
"""s that the client waits for one answer."""
START_TIMEOUT, STOP_TIMEOUT = 60.0, 5.0
"""s for the child to start, and to end."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


@dataclass(frozen=True, slots=True)
class Habit:
    """A way to block a loop, and the truth about it.

    Attributes:
        method, template: the route, as the service labels it.
        path: what is asked for.
        culprit: qualified name of the function that does it.
        cause: why the loop cannot go on meanwhile.
    """

    method: str
    template: str
    path: str
    culprit: str
    cause: Cause

    @property
    def route(self) -> str:
        """Method and template."""
        return f"{self.method} {self.template}"


def _habit(method: str, template: str, culprit: Callable[..., object], cause: Cause) -> Habit:
    return Habit(method, template, template.replace("{id}", "2026-07"), culprit.__qualname__, cause)


HABITS = (
    _habit("GET", "/report/{id}", demo_app.build_report, Cause.NATIVE_GIL),
    _habit("GET", "/thumbnail", demo_app.shrink_image, Cause.PYTHON),
    _habit("POST", "/login", demo_app.hash_password, Cause.NATIVE),
    _habit("GET", "/search", demo_app.is_plain_search, Cause.NATIVE_GIL),
    _habit("GET", "/legacy", demo_app.ask_old_inventory, Cause.SLEEP),
    _habit("GET", "/stock", demo_app.ask_supplier, Cause.IO),
    _habit("POST", EXPORT, demo_app.export_orders, Cause.IO),
    _habit("GET", "/lock", demo_app.PriceList.price_of, Cause.LOCK),
    _habit("POST", "/fanout", demo_app.notify_subscriber, Cause.OVERLOAD),
)
"""What the demo's service does wrong."""

BUSY = 0.2
"""Share of a block for which the loop waited for a processor: from here on, this machine is in the way of the demo."""

WHY = {
    Cause.PYTHON: "it ran Python code",
    Cause.NATIVE_GIL: "C code that keeps the GIL; no other Python thread could run either",
    Cause.NATIVE: "C code that gives up the GIL; other threads went on, the loop could not",
    Cause.IO: "it waited for a disk, the network or another process",
    Cause.SLEEP: "it slept",
    Cause.LOCK: "it waited for a lock that another thread held",
    Cause.GIL: "another thread held the GIL",
    Cause.GC: "the garbage collector ran",
    Cause.STARVED: "it was given no processor; the machine is busy",
    Cause.SUSPENDED: "the whole process was stopped",
    Cause.OVERLOAD: "no callback was slow, but very many were ready at once",
    Cause.UNKNOWN: "the evidence does not tell",
}


def main(loop: str = "asyncio", seconds: float = 10.0, journal: str | None = None) -> int:
    """Run the demo and print what it shows.

    Args:
        loop: ``asyncio`` or ``uvloop``, what the service runs on.
        seconds: s that the load lasts; each slow route is asked for once in any case, which takes about 6 s.
        journal: file or directory for the journal, None for a new private directory; both are kept.

    Returns:
        Exit status: 0 after a complete run, 1 if the service failed, 2 for arguments that cannot be, 130 after Ctrl-C.
    """
    screen = Screen()
    try:
        settings = _settings(loop, seconds, journal)
    except ConfigError as exc:
        sys.stderr.write(f"loopwatch demo: {exc}\n")
        return 2
    try:
        asyncio.run(_run(settings, screen))
    except KeyboardInterrupt:
        screen.line()
        screen.line("Interrupted. The service is stopped.")
        return INTERRUPTED
    except LoopwatchError as exc:
        sys.stderr.write(f"loopwatch demo: {exc}\n")
        return 1
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    finally:
        settings.tidy_up()
    return 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo was asked for; ``temporary`` if the directory of the journal was made for it."""

    loop: str
    seconds: float
    journal: str
    temporary: bool

    def tidy_up(self) -> None:
        """Remove a directory that was made for nothing."""
        if self.temporary:
            with contextlib.suppress(OSError):  # not empty: it is kept
                Path(self.journal).rmdir()


def _settings(loop: str, seconds: float, journal: str | None) -> Settings:
    """Check the arguments; what is made on disk is made last.

    Raises:
        ConfigError: a value that cannot be, or uvloop is not installed.
    """
    if loop not in LOOPS:
        raise ConfigError(f"loop={loop!r}: must be one of {', '.join(LOOPS)}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"seconds={seconds!r}: must be a number of seconds above 0")
    if loop == "uvloop":
        try:
            import uvloop  # noqa: F401
        except ImportError:
            raise ConfigError("uvloop is not installed: pip install 'loopwatch[uvloop]'") from None
    if journal is not None:
        return Settings(loop, seconds, str(loopwatch.Config(journal=journal).journal), temporary=False)
    return Settings(loop, seconds, tempfile.mkdtemp(prefix="loopwatch-demo-"), temporary=True)


# --------------------------------------------------------------------------------------- in the child process


def run_service() -> None:
    """Be the child: run the service under the agent until standard input ends; arguments: loop, journal."""
    loop, journal = sys.argv[-2:]
    threading.Thread(target=_die_with_parent, name="lifeline", daemon=True).start()
    shop = demo_app.Shop.open()
    send = _Sender()
    agent = loopwatch.install(
        loopwatch.Config(
            threshold=THRESHOLD,
            cpu_budget=0.05,  # it samples while the loop is blocked, and here that is half of the time
            journal=journal,
            log_level=logging.DEBUG,  # nobody listens below WARNING: the parent tells
            on_stall=lambda stall: send({"stall": stall.to_dict()}),
            context=(demo_app.labels,),
            user_code=(demo_app.__name__,),  # it is installed with the package, and would be a library's otherwise
        )
    )
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(shop, agent, send))


async def _serve(shop: demo_app.Shop, agent: loopwatch.Agent, send: Callable[[dict[str, Any]], None]) -> None:
    running, end = asyncio.get_running_loop(), asyncio.Event()
    server = await asyncio.start_server(shop.serve, "127.0.0.1", 0)
    running.add_reader(0, end.set)
    send({"port": server.sockets[0].getsockname()[1], "disk": shop.export_to is not None})
    await end.wait()
    running.remove_reader(0)
    server.close()
    await asyncio.to_thread(agent.flush)
    send({"end": agent.snapshot().to_dict()})


class _Sender:
    """Writes messages to the parent, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):  # the parent is gone: so are we, soon
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()


def _die_with_parent() -> None:
    """Wait for the end of standard input, which comes also when the parent is killed; then nothing holds us long."""
    while os.read(0, 64):
        pass
    time.sleep(STOP_TIMEOUT / 2)
    os._exit(1)


# -------------------------------------------------------------------------------------- the child from outside


class Child:
    """The process of the service. Ends when its standard input does, so it cannot outlive this one.

    Args:
        settings: what the demo was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        # Our own copy of the package may not be importable from elsewhere; last, so that it shadows nothing.
        code = "import sys; sys.path.append(sys.argv[1]); from loopwatch.demo import run_service; run_service()"
        root = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, root, settings.loop, settings.journal],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us, and we end it
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Give what the child sends, until it ends."""
        reader = asyncio.StreamReader(limit=2**24)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            while line := await reader.readline():
                yield json.loads(line)
        finally:
            transport.close()

    def ask_to_end(self) -> None:
        """Have the child end by itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> int:
        """See to it that the child is gone, and return its exit status."""
        self.ask_to_end()
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End the child now, and return its exit status."""
        self.ask_to_end()
        self._process.kill()
        return self._process.wait()


# ------------------------------------------------------------------------------------------------- the client


@dataclass(slots=True)
class Seen:
    """What the client and the agent saw; times in seconds since the epoch.

    Attributes:
        health: (when asked, s until the answer) for each question to /health.
        slow: (when asked, when answered) for each slow request, by habit.
        failed: what went wrong, by route.
        stalls: what the agent told.
        agent: what the agent says of itself at the end.
        began, ended: of the load.
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    slow: dict[Habit, list[tuple[float, float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    agent: AgentStats | None = None
    began: float = 0.0
    ended: float = 0.0


class Connections:
    """Connections to the service that are kept open and used again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str) -> None:
        """Ask for ``path`` and read the answer.

        Raises:
            OSError, asyncio.IncompleteReadError, TimeoutError: there was none.
            ValueError: it was not "200 OK".
        """
        async with asyncio.timeout(PATIENCE):
            if self._free:
                reader, writer = self._free.pop()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lengths = (line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
                await reader.readexactly(int(next(lengths).partition(":")[2]))
            except BaseException:
                writer.close()
                raise
        self._free.append((reader, writer))
        status = head.partition("\r\n")[0]
        if not status.endswith(" 200 OK"):
            raise ValueError(status)

    def close(self) -> None:
        """Close them all."""
        for _, writer in self._free:
            writer.close()


_FAILURES = (OSError, ValueError, asyncio.IncompleteReadError)  # TimeoutError is an OSError


class Client:
    """Asks for /health all the time, and for something slow now and then."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._connections = Connections(port)
        self._seen = seen

    async def run(self, habits: Sequence[Habit], seconds: float) -> None:
        """Ask for ``seconds``, and for each slow route at least once."""
        self._seen.began = time.time()
        steady = asyncio.create_task(self._ask_for_health())
        try:
            await self._ask_for_trouble(habits, time.monotonic() + seconds)
        finally:
            self._seen.ended = time.time()
            steady.cancel()
            await asyncio.gather(steady, return_exceptions=True)
            self._connections.close()

    async def _ask_for_trouble(self, habits: Sequence[Habit], until: float) -> None:
        await asyncio.sleep(QUIET)
        first = True
        while first or time.monotonic() < until:
            for habit in habits:
                if not first and time.monotonic() >= until:
                    break
                asked = time.time()
                try:
                    await self._connections.ask(habit.method, habit.path)
                except _FAILURES as exc:
                    self._seen.failed[habit.route] = _reason(exc)
                self._seen.slow.setdefault(habit, []).append((asked, time.time()))
                await asyncio.sleep(PAUSE)
            first = False

    async def _ask_for_health(self) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while True:
                group.create_task(self._time_health())
                due += HEALTH_EVERY
                await asyncio.sleep(max(due - time.monotonic(), 0.0))

    async def _time_health(self) -> None:
        asked, began = time.time(), time.monotonic()
        try:
            await self._connections.ask("GET", "/health")
        except _FAILURES as exc:
            self._seen.failed["GET /health"] = _reason(exc)
        else:
            self._seen.health.append((asked, time.monotonic() - began))


def _reason(exc: BaseException) -> str:
    return f"no answer within {PATIENCE:g} s" if isinstance(exc, TimeoutError) else f"{type(exc).__name__}: {exc}"


# -------------------------------------------------------------------------------------------------- the run


async def _run(settings: Settings, screen: Screen) -> None:
    """Run it all; whatever happens, the child is gone afterwards.

    Raises:
        LoopwatchError: the service did not start, or ended by itself.
    """
    screen.heading(f"loopwatch demo: a small web service on {settings.loop}, and what blocks its event loop")
    screen.line()
    screen.line("Starting the service and finding out how fast this machine is ...")
    child = Child(settings)
    try:
        seen, habits = await _converse(child, settings.seconds, screen)
        status = child.end()
    except BaseException:
        child.kill()
        raise
    if seen.agent is None or status != 0:
        raise LoopwatchError(f"the service ended by itself (exit status {status}); its own message is above")
    _summarise(screen, seen, habits)
    _what_next(screen, journal_path(settings.journal, child.pid), temporary=settings.temporary)


async def _converse(child: Child, seconds: float, screen: Screen) -> tuple[Seen, list[Habit]]:
    """Ask the service and listen to its agent; return what was seen, and which habits it has on this machine."""
    seen = Seen()
    async with contextlib.aclosing(child.messages()) as messages:
        ready = await _first(messages)
        habits = [habit for habit in HABITS if ready["disk"] or habit.template != EXPORT]
        _introduce(screen, habits)
        listening = asyncio.create_task(_listen(messages, seen, screen))
        asking = asyncio.create_task(Client(ready["port"], seen).run(habits, seconds))
        try:
            await asyncio.wait((listening, asking), return_when=asyncio.FIRST_COMPLETED)
            child.ask_to_end()
            await asyncio.wait((listening,), timeout=STOP_TIMEOUT)
        finally:
            asking.cancel()
            listening.cancel()
            results = await asyncio.gather(asking, listening, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return seen, habits


async def _first(messages: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while "port" not in (message := await anext(messages)):
                pass
            return message
    except TimeoutError:
        raise LoopwatchError(f"the service did not start within {START_TIMEOUT:g} s") from None
    except StopAsyncIteration:
        raise LoopwatchError("the service did not start; its own message is above") from None


async def _listen(messages: AsyncIterator[dict[str, Any]], seen: Seen, screen: Screen) -> None:
    async for message in messages:
        if "stall" in message:
            stall = Stall.from_dict(message["stall"])
            _tell(screen, stall, seen)
            seen.stalls.append(stall)
        elif "end" in message:
            seen.agent = AgentStats(**message["end"]["agent"])


# ------------------------------------------------------------------------------------------------- the output


class Screen:
    """Writes lines to standard output, with colour only on a terminal that wants it."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = terminal and not os.environ.get("NO_COLOR")
        self._encoding = sys.stdout.encoding or "ascii"

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line; what the terminal cannot show becomes a question mark."""
        text = text.encode(self._encoding, "replace").decode(self._encoding)
        sys.stdout.write((f"\x1b[{style}m{text}\x1b[0m" if style and text and self._colour else text) + "\n")
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """Write a line that stands out."""
        self.line(text, "1")

    def item(self, name: str, text: str) -> None:
        """Write one fact, on as many lines as it takes."""
        for number, line in enumerate(textwrap.wrap(printable(text), WIDTH - 16, break_on_hyphens=False)):
            self.line(f"         {name if not number else '':<6} {line}")


def _introduce(screen: Screen, habits: Sequence[Habit]) -> None:
    screen.line(f"A client asks it for /health {round(1 / HEALTH_EVERY)} times a second, and now and then for one of")
    for line in textwrap.wrap(", ".join(habit.route.replace(" ", "\xa0") for habit in habits), WIDTH - 2):
        screen.line("  " + line.replace("\xa0", " "))
    screen.line(f"The agent inside the service tells when the loop was held for more than {THRESHOLD * 1000:.0f} ms:")
    if not any(habit.template == EXPORT for habit in habits):
        screen.line("(POST /export is left out: this machine's temporary files wait for no disk.)")
    screen.line()


def _tell(screen: Screen, stall: Stall, seen: Seen) -> None:
    """Print one finding: in full the first time, in one line when it comes again."""
    at = f"{max(stall.started_at - seen.began, 0):5.1f} s"
    held = f"{'holds' if stall.ongoing else 'held'} the loop for {in_words(stall.duration)}"
    title = f"{at}  {_route(stall)} {held}"
    if any(_same(stall, other) for other in seen.stalls):
        screen.line(f"{title}: {_culprit(stall)} again ({stall.cause.value})")
        return
    screen.line(title, "1;33")
    screen.item("where", _where(stall))
    screen.item("why", f"{stall.cause.value}: {WHY[stall.cause]}")
    if stall.victims is not None:
        screen.item("hurt", f"{stall.victims} callbacks and events waited" if stall.victims != 1 else "1 waited")
    screen.item("do", stall.remedy)


def _same(one: Stall, other: Stall) -> bool:
    return (_route(one), one.cause, _culprit(one)) == (_route(other), other.cause, _culprit(other))


def _route(stall: Stall) -> str:
    method, route = stall.context.get("http.request.method", ""), stall.context.get("http.route")
    return f"{method} {route}".strip() if route else "(request unknown)"


def _culprit(stall: Stall) -> str:
    return stall.culprit.function if stall.culprit is not None else "no one function"


def _where(stall: Stall) -> str:
    if stall.culprit is None:
        return "no function is to blame" if stall.leaf is None else f"nobody's fault; it was in {_place(stall.leaf)}"
    call = _call(stall)
    return _place(stall.culprit) + (f", in {call}()" if call else "")


def _call(stall: Stall) -> str | None:
    """Return what the culprit had called, where that is what took the time."""
    if stall.culprit in stall.stack:
        inner = stall.stack[stall.stack.index(stall.culprit) + 1 :]
        if inner:
            return f"{inner[0].module}.{inner[0].function}"
    in_culprit = stall.cause in (Cause.PYTHON, Cause.OVERLOAD) or not stall.evidence.call
    return None if in_culprit else str(stall.evidence.call).removeprefix(".")


def _place(frame: Frame) -> str:
    return f"{frame.function}, line {frame.line} of {Path(frame.file).name}"


def _summarise(screen: Screen, seen: Seen, habits: Sequence[Habit]) -> None:
    screen.line()
    screen.heading("What the agent found")
    screen.line()
    _row(screen, "route", "culprit", "cause", "found", "blocked", "waited", style="2")
    claimed: set[str] = set()
    right = 0
    for habit in habits:
        found = [stall for stall in seen.stalls if not stall.ongoing and _during(stall, seen.slow.get(habit, []))]
        claimed.update(stall.id for stall in found)
        right += _report(screen, habit, found, len(seen.slow.get(habit, [])))
    others = [stall for stall in seen.stalls if not stall.ongoing and stall.id not in claimed]
    for cause in sorted({stall.cause for stall in others}):
        group = [stall for stall in others if stall.cause is cause]
        _row(screen, "(none of these)", "", cause.value, str(len(group)), _blocked(group), "")
    screen.line()
    asked = sum(len(times) for times in seen.slow.values())
    disturbed = sum(_disturbed(stall) for stall in seen.stalls if stall.id in claimed)
    screen.line(_judgement(len(habits), right, asked))
    if disturbed and right < asked:
        screen.line(f"Here the service lacked a processor {times(disturbed)}; the demo tells more on a quiet machine.")
    for route, reason in seen.failed.items():
        screen.line(f"{route} did not always answer: {reason}")
    screen.line()
    _latencies(screen, seen)
    _cost(screen, seen)


def _report(screen: Screen, habit: Habit, found: Sequence[Stall], asked: int) -> int:
    """Print what was found of ``habit``; return how often it was found with the right function and cause."""
    true = [stall for stall in found if _culprit(stall) == habit.culprit and stall.cause is habit.cause]
    waited = sum(stall.victims or 0 for stall in found)
    _row(screen, habit.route, habit.culprit, habit.cause.value, f"{len(true)} of {asked}", _blocked(found), str(waited))
    if true:
        screen.line("  " + textwrap.shorten(true[-1].remedy, WIDTH - 2, placeholder=" ..."), "32")
    for text, count in Counter(_verdict(stall) for stall in found if stall not in true).items():
        screen.line("  " + text.format(times=times(count)), "31")
    if asked > len(found):
        screen.line(f"  not found {times(asked - len(found))}", "31")
    return min(len(true), asked)


def _verdict(stall: Stall) -> str:
    """Return what was told instead of the truth, with room for how often."""
    told = f"{_culprit(stall)}, {stall.cause.value}".replace("{", "{{").replace("}", "}}")
    return ("machine busy {times}: " if _disturbed(stall) else "wrong {times}: ") + told


def _disturbed(stall: Stall) -> bool:
    """Whether the machine held the service up as well: what was told may be true, but is not what was planned."""
    waited = max(stall.evidence.run_queue or 0.0, stall.evidence.throttled or 0.0)
    return waited >= BUSY * stall.duration or stall.cause in (Cause.STARVED, Cause.SUSPENDED)


def _row(screen: Screen, *cells: str, style: str = "") -> None:
    widths = (18, 22, 12, 10, 11, 9)
    aligned = [
        f"{cell:<{width}}" if n < 3 else f"{cell:>{width}}"
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    screen.line("  ".join(aligned).rstrip(), style)


def _during(stall: Stall, windows: Sequence[tuple[float, float]]) -> bool:
    """Whether more than half of ``stall`` lies in one of ``windows``."""
    ends = stall.started_at + stall.duration
    return any(min(ends, last) - max(stall.started_at, first) > stall.duration / 2 for first, last in windows)


def _blocked(stalls: Sequence[Stall]) -> str:
    return f"{sum(stall.duration for stall in stalls):.2f} s"


def _judgement(habits: int, right: int, asked: int) -> str:
    if right == asked:
        return (
            f"All {habits} habits were found, each of the {asked} times, with the right function and the right cause."
        )
    return (
        f"{right} of {asked} slow requests were found with the right function and the right cause; see the lines above."
    )


def _latencies(screen: Screen, seen: Seen) -> None:
    windows = [window for times in seen.slow.values() for window in times]
    slow: list[float] = []
    rest: list[float] = []
    for asked, took in seen.health:
        met = any(asked < last and asked + took > first for first, last in windows)
        (slow if met else rest).append(took)
    screen.heading("What a client of /health saw")
    screen.line()
    names = ("", "requests", "p50", "p99", "max")
    for style, cells in (
        ("2", names),
        ("", ("while nothing slow was asked for", *_quantiles(rest))),
        ("", ("while a slow request was served", *_quantiles(slow))),
    ):
        screen.line(f"{cells[0]:<34}" + "".join(f"{cell:>12}" for cell in cells[1:]), style)
    screen.line()


def _quantiles(times: Sequence[float]) -> Iterator[str]:
    ordered = sorted(times)
    yield str(len(ordered))
    for share in (0.5, 0.99, 1.0):
        yield _short(ordered[max(math.ceil(share * len(ordered)) - 1, 0)]) if ordered else "-"


def _short(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 0.0995 else in_words(value)


def _cost(screen: Screen, seen: Seen) -> None:
    agent, wall = seen.agent, seen.ended - seen.began
    if agent is None:
        return
    blocked = sum(stall.duration for stall in seen.stalls if not stall.ongoing)
    share = agent.cpu / wall
    screen.line(
        f"The agent's threads used {_short(agent.cpu)} of processor time in {wall:.1f} s, {share:.1%} of one core;"
    )
    screen.line(f"the loop was blocked for {blocked:.1f} s of them.")
    if agent.faults or agent.dropped:
        screen.line(f"It had faults of its own: {dict(agent.faults)}, and left {agent.dropped} findings untold.", "31")


def _what_next(screen: Screen, journal: Path, *, temporary: bool) -> None:
    kept = " is kept in a new directory that only you can read" if temporary else " is kept"
    page = journal.parent / "report.html"
    screen.line(f"The journal of this run{kept}. Look at it again:")
    screen.line()
    screen.line(f"  loopwatch report {shlex.quote(str(journal))} \\")
    screen.line(f"      --html {shlex.quote(str(page))}")
