"""Adapters that drive loopwatch and its peers for the benchmarks, each in a few lines, and their environments.

An adapter installs its tool at a threshold of 100 ms and collects its findings. Peers are used through their public
interface as their documentation shows it; none of their code is copied here.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

THRESHOLD = 0.1

SERVERS = ("uvloop", "uvicorn", "httptools", "starlette", "aiohttp")
"""Packages that the benchmarks need in the environment of each peer."""


@dataclass
class Finding:
    """One report of a tool.

    Attributes:
        at: time of the report, seconds since the epoch.
        duration: seconds, None where the tool gives none.
        text: the whole report, which is searched for the name of the guilty function.
        start: seconds since the epoch, None where the tool gives none.
        details: of loopwatch: the whole stall.
    """

    at: float
    duration: float | None
    text: str
    start: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Tool:
    """A tool under test; the default is to do nothing.

    Attributes:
        name: of the column.
        requirement: argument of pip install, "" for none.
        module: module that is imported to check the installation.
        raises: the tool raises into the blocking call instead of reporting it.
        everywhere: one start serves all loops of the process.
    """

    name = ""
    requirement = ""
    module = ""
    raises = False
    everywhere = False

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def loop_factory(self, kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
        """Return the factory of loops of ``kind``, ``asyncio`` or ``uvloop``."""
        return plain_loop_factory(kind)

    async def start(self) -> None:
        """Begin to watch the running loop."""

    async def stop(self) -> None:
        """End it."""

    def arm(self) -> None:
        """Right before a block."""

    def disarm(self) -> None:
        """Right after it."""

    def report(self, duration: float | None, text: str) -> None:
        """Keep a finding."""
        self.findings.append(Finding(time.time(), duration, text))

    def drain(self) -> list[Finding]:
        """Return the findings since the last call."""
        found, self.findings = self.findings, []
        return found

    def own_cost(self) -> dict[str, Any]:
        """Return the tool's statistics about itself."""
        return {}


def plain_loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of loops of ``kind``."""
    if kind == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return asyncio.new_event_loop


class Loopwatch(Tool):
    """This project."""

    name = "loopwatch"
    module = "loopwatch"
    everywhere = True

    async def start(self) -> None:
        import loopwatch

        loopwatch.install(threshold=THRESHOLD, log_level="CRITICAL", on_stall=self._take)

    async def stop(self) -> None:
        import loopwatch

        loopwatch.uninstall()

    def _take(self, stall: Any) -> None:
        self.findings.append(
            Finding(time.time(), stall.duration, str(stall.culprit), stall.started_at, stall.to_dict())
        )

    def own_cost(self) -> dict[str, Any]:
        import dataclasses

        import loopwatch

        agent = loopwatch.current_agent()
        return {} if agent is None else dataclasses.asdict(agent.snapshot().agent)


class _Lines(logging.Handler):
    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(self.format(record))


def _listen(logger: str, take: Callable[[str], None], level: int = logging.WARNING) -> None:
    logging.getLogger(logger).addHandler(_Lines(take))
    logging.getLogger(logger).setLevel(level)
    logging.getLogger(logger).propagate = False


class DebugMode(Tool):
    """asyncio's own debug mode."""

    name = "asyncio debug"
    module = "asyncio"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = THRESHOLD
        loop.set_debug(True)
        logger = logging.getLogger("asyncio")
        if not any(isinstance(handler, _Lines) for handler in logger.handlers):
            _listen("asyncio", self._line)

    def _line(self, text: str) -> None:
        if " took " in text:
            self.report(float(text.rpartition(" took ")[2].split()[0]), text)


class Aiocop(Tool):
    name = module = requirement = "aiocop"

    async def start(self) -> None:
        import aiocop

        aiocop.patch_audit_functions()
        aiocop.start_blocking_io_detection(trace_depth=20)
        aiocop.detect_slow_tasks(threshold_ms=round(THRESHOLD * 1000), on_slow_task=self._event)
        aiocop.activate()

    def _event(self, event: Any) -> None:
        if event.exceeded_threshold:
            self.report(event.elapsed_ms / 1000, f"{event.blocking_events} {event.cpu_stack_samples}")


class Aiodebug(Tool):
    name = module = requirement = "aiodebug"
    everywhere = True

    async def start(self) -> None:
        from aiodebug import log_slow_callbacks

        log_slow_callbacks.enable(THRESHOLD, on_slow_callback=lambda name, duration: self.report(duration, name))


class Blockbuster(Tool):
    name = module = requirement = "blockbuster"
    raises = True
    everywhere = True

    async def start(self) -> None:
        from blockbuster import BlockBuster

        self._buster = BlockBuster()

    def arm(self) -> None:
        self._buster.activate()

    def disarm(self) -> None:
        self._buster.deactivate()


class Pyleak(Tool):
    name = module = requirement = "pyleak"

    def __init__(self) -> None:
        super().__init__()
        self._watching: list[Any] = []
        self._said: dict[int, float] = {}

    async def start(self) -> None:
        from pyleak import no_event_loop_blocking
        from pyleak.utils import CallerContext

        logger = logging.getLogger("pyleak.quiet")
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        watching = no_event_loop_blocking(
            action="log", logger=logger, threshold=THRESHOLD, check_interval=0.01,
            caller_context=CallerContext(filename=__file__, name="start"),
        )  # fmt: skip
        await watching.__aenter__()
        self._watching.append(watching)

    async def stop(self) -> None:
        self._collect()
        with contextlib.suppress(Exception):
            await self._watching.pop().__aexit__(None, None, None)

    def _collect(self) -> None:
        # A block with the stack of the one before it is added to that one.
        for watching in self._watching:
            for block in watching.detector.detected_blocks:
                said = self._said.get(id(block), 0.0)
                if block.duration > said:
                    self._said[id(block)] = block.duration
                    self.findings.append(Finding(block.timestamp, block.duration - said, block.format_blocking_stack()))

    def drain(self) -> list[Finding]:
        self._collect()
        return super().drain()


class LoopSentryTool(Tool):
    name = module = requirement = "loopsentry"

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.mkdtemp()
        self._read = 0
        self._sentries: list[Any] = []

    async def start(self) -> None:
        from loopsentry import LoopSentry

        self._sentries.append(LoopSentry(base_dir=self._folder, threshold=THRESHOLD))
        self._sentries[-1].start()

    async def stop(self) -> None:
        self._sentries.pop().stop()

    def drain(self) -> list[Finding]:
        lines = [line for path in sorted(Path(self._folder).rglob("*.jsonl")) for line in path.read_text().splitlines()]
        for line in lines[self._read :]:
            event = json.loads(line)
            if event["type"] == "block_started":
                self.report(None, "".join(event["stack"]))
            elif event["type"] == "block_resolved" and self.findings:
                self.findings[-1].duration = event["duration_current"]
        self._read = len(lines)
        return super().drain()


class Asynclens(Tool):
    name = module = requirement = "asynclens"

    def __init__(self) -> None:
        super().__init__()
        self._dogs: list[Any] = []

    async def start(self) -> None:
        from asynclens import AsyncWatchdog

        logger = logging.getLogger("asynclens")
        if not logger.handlers:
            _listen("asynclens", self._line, logging.DEBUG)
        self._dogs.append(AsyncWatchdog(threshold_ms=round(THRESHOLD * 1000), logger=logger))
        self._dogs[-1].start()

    async def stop(self) -> None:
        await self._dogs.pop().stop()

    def _line(self, text: str) -> None:
        duration = next((number for number in _milliseconds(text)), None)
        if duration is not None or not self.findings:
            self.report(duration, text)
        else:
            self.findings[-1].text += text


def _milliseconds(text: str) -> list[float]:
    return [float(number) / 1000 for number in re.findall(r"([\d.]*\d)\s*ms\b", text)]


class LoopGuard(Tool):
    name = "fastapi-loopguard"
    requirement = "fastapi-loopguard"
    module = "fastapi_loopguard"

    async def start(self) -> None:
        from fastapi_loopguard.config import LoopGuardConfig
        from fastapi_loopguard.monitor import SentinelMonitor

        settings = LoopGuardConfig(
            fallback_threshold_ms=THRESHOLD * 1000, log_blocking_events=False, cumulative_blocking_enabled=False
        )
        self._monitor = SentinelMonitor(settings, lambda lag, path, method: self._lag(lag / 1000))
        await self._monitor.start_with_background_calibration()

    def _lag(self, lag: float) -> None:
        if lag >= THRESHOLD:  # its calibration lowers the threshold below what was asked for
            self.report(lag, "")

    async def stop(self) -> None:
        await self._monitor.stop()


class Loopmon(Tool):
    name = module = requirement = "loopmon"

    async def start(self) -> None:
        import loopmon

        self._monitor = loopmon.create(interval=0.05, callbacks=[self._lag])

    async def _lag(self, lag: float, tasks: int, data_at: Any) -> None:
        if lag >= THRESHOLD:
            self.report(lag, "")

    async def stop(self) -> None:
        await self._monitor.stop()


class AsyncScopeTool(Tool):
    name = "asyncscope-tracer"
    requirement = "asyncscope-tracer"
    module = "asyncscope"

    def __init__(self) -> None:
        super().__init__()
        self._scope: Any = None
        self._read = 0

    async def start(self) -> None:
        from asyncscope import AsyncScope

        if self._scope is None:
            self._scope = AsyncScope(None, threshold=THRESHOLD, project_root=Path(__file__).parent, buffer_size=100_000)
            self._scope.install()

    def drain(self) -> list[Finding]:
        events = self._scope.events if self._scope is not None else []
        for event in events[self._read :]:
            if "loop.blocked" in (event.get("type"), event.get("event"), event.get("kind"), event.get("name")):
                self.report(event["duration_ns"] / 1e9, event.get("label", ""))
        self._read = len(events)
        return super().drain()


class MonitoredIoloop(Tool):
    name = "monitored-ioloop"
    requirement = "monitored-ioloop"
    module = "monitored_ioloop"

    def loop_factory(self, kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
        if kind == "uvloop":
            from monitored_ioloop.monitored_uvloop import monitored_uvloop_loop_factory as make
        else:
            from monitored_ioloop.monitored_asyncio import monitored_asyncio_loop_factory as make
        factory: Callable[[], asyncio.AbstractEventLoop] = make(self._state)
        return factory

    def _state(self, state: Any) -> None:
        if state.callback_wall_time >= THRESHOLD:
            self.report(state.callback_wall_time, state.callback_pretty_name)


TOOLS: tuple[type[Tool], ...] = (
    Loopwatch,
    DebugMode,
    Aiocop,
    Aiodebug,
    Blockbuster,
    Pyleak,
    LoopSentryTool,
    Asynclens,
    LoopGuard,
    Loopmon,
    AsyncScopeTool,
    MonitoredIoloop,
)


def named(name: str) -> type[Tool]:
    """Return the adapter called ``name``."""
    return next(tool for tool in TOOLS if tool.name == name)


def text_of(error: BaseException) -> str:
    """Return the traceback that a raising tool leaves."""
    return "".join(traceback.format_exception(error))


# -- environments ------------------------------------------------------------------------------------------------------


@dataclass
class Environment:
    """The environment of a tool: an interpreter and the version found there, or the reason why there is none."""

    python: str = ""
    version: str = ""
    reason: str = ""


def environment(tool: type[Tool], folder: Path, pythons: list[str], say: Callable[[str], None]) -> Environment:
    """Return the virtual environment of ``tool``, made under ``folder`` if it is not there yet.

    Args:
        tool: the adapter.
        folder: cache of environments.
        pythons: interpreters to try, in order; the first with which pip succeeds is used.
        say: reports the progress.
    """
    if not tool.requirement:
        version = "" if tool.module == "asyncio" else _version(sys.executable, tool.module)
        return Environment(sys.executable, version or "Python " + sys.version.split()[0])
    reasons = []
    for number, interpreter in enumerate(pythons):
        home = folder / f"{tool.name.replace(' ', '-')}-{number}"
        python = str(home / "bin" / "python")
        version = _version(python, tool.requirement)
        if not version:
            say(f"{tool.name}: making an environment with {_described(interpreter)}")
            shutil.rmtree(home, ignore_errors=True)
            made = _run([interpreter, "-m", "venv", str(home)])
            made = made or _run([python, "-m", "pip", "install", "--quiet", tool.requirement, *SERVERS])
            version = _version(python, tool.requirement) if not made else ""
            if made:
                reasons.append(f"{_described(interpreter)}: {made}")
                shutil.rmtree(home, ignore_errors=True)
        if version:
            return Environment(python, f"{version}, {_described(python)}")
    return Environment(reason="; ".join(reasons))


def _run(command: list[str]) -> str:
    """Run a command; return "" if it succeeds, else the last line of its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    complaint = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["failed"]
    return "" if done.returncode == 0 else complaint[-1][:200]


def _version(python: str, package: str) -> str:
    if not Path(python).exists():
        return ""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _described(python: str) -> str:
    code = "import sys; print('Python', sys.version.split()[0])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip() or python


def interpreters(extra: list[str]) -> list[str]:
    """Return the interpreters to try for peers: this one, then ``extra``, then later ones on the search path."""
    found = [shutil.which(f"python3.{minor}") for minor in (12, 13)]
    unique = dict.fromkeys([sys.executable, *extra, *(path for path in found if path)])
    return [path for path in unique if os.access(path, os.X_OK)]
