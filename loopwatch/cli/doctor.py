"""``loopwatch doctor``: tries what works on this machine. Changes nothing and leaves nothing behind."""

from __future__ import annotations

import asyncio
import difflib
import faulthandler
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from loopwatch._version import __version__
from loopwatch.config import ENV_PREFIX, Config, field_names, from_env
from loopwatch.core.text import shown
from loopwatch.errors import ConfigError

SCHEMA = "loopwatch.doctor/1"

_NEWEST = (3, 14)
"""Newest Python that loopwatch supports."""

_OTEL_BETA_OFFSET = 21
"""OpenTelemetry Python 1.N is released together with 0.(N+21)b."""


class State(StrEnum):
    """How well something works on this machine."""

    OK = "ok"
    WARNING = "warning"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: subject of the check.
        state: how well it works.
        detail: description of the finding.
        advice: what to do, "" if nothing.
        essential: whether loopwatch cannot work if ``state`` is ``no``.
    """

    name: str
    state: State
    detail: str
    advice: str = ""
    essential: bool = False


_OTEL_SHOWN = ("api", "sdk", "exporter-otlp", "exporter-prometheus", "instrumentation")

Examination = Callable[[Mapping[str, str]], Iterator[Check]]


def examine(environ: Mapping[str, str]) -> tuple[Check, ...]:
    """Run all checks.

    Args:
        environ: the environment variables to check.
    """
    return tuple(check for examination in _EXAMINATIONS for check in _guarded(examination, environ))


def usable(checks: Sequence[Check]) -> bool:
    """Whether nothing essential is broken."""
    return not any(check.essential and check.state is State.NO for check in checks)


def to_json(checks: Sequence[Check]) -> str:
    """Return ``{"schema", "version", "usable", "checks": [{name, state, detail, advice, essential}]}``."""
    record = {
        "schema": SCHEMA,
        "version": __version__,
        "usable": usable(checks),
        "checks": [asdict(check) for check in checks],
    }
    return json.dumps(record, indent=2) + "\n"


def to_text(checks: Sequence[Check]) -> str:
    """Return one line per check, and the verdict."""
    width = max(len(check.name) for check in checks)
    lines = [f"loopwatch {__version__}"]
    for check in checks:
        advice = f" -> {check.advice}" if check.advice else ""
        lines.append(f"{check.name:<{width}}  {check.state:<7}  {shown(f'{check.detail}{advice}')}")
    broken = [check.name for check in checks if check.essential and check.state is State.NO]
    lines.append(f"loopwatch cannot work here: {', '.join(broken)}" if broken else "loopwatch works here.")
    return "\n".join(lines) + "\n"


def _guarded(examination: Examination, environ: Mapping[str, str]) -> Iterator[Check]:
    """Yield the findings; an examination that fails is a finding too, because a user would report it."""
    try:
        yield from examination(environ)
    except Exception as exc:  # noqa: BLE001 - reported below
        name = examination.__name__.removeprefix("_").replace("_", " ")
        yield Check(name, State.NO, f"could not be examined: {_one_line(exc)}", "report this to loopwatch")


def _one_line(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"


# --------------------------------------------------------------------------------------------------- interpreter


def _python(_environ: Mapping[str, str]) -> Iterator[Check]:
    detail = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.implementation.name != "cpython":
        advice = "use CPython: stacks and clocks are read the way it keeps them"
        yield Check("Python", State.NO, detail, advice, essential=True)
    elif sys.version_info[:2] > _NEWEST:
        yield Check("Python", State.WARNING, detail, f"newer than was tested, which is {_NEWEST[0]}.{_NEWEST[1]}")
    else:
        yield Check("Python", State.OK, detail, essential=True)


def _system(_environ: Mapping[str, str]) -> Iterator[Check]:
    detail = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} processors"
    if sys.platform == "linux":
        yield Check("system", State.OK, detail)
    else:
        yield Check("system", State.WARNING, detail, "stalls are found, but fewer causes distinguished than on Linux")


def _gil(_environ: Mapping[str, str]) -> Iterator[Check]:
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    enabled: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    interval = f"switch interval {sys.getswitchinterval() * 1000:g} ms"
    if not free_threaded:
        yield Check("GIL", State.OK, interval)
    elif enabled:
        yield Check("GIL", State.WARNING, f"free-threaded build, GIL enabled, {interval}", "not tested on such builds")
    else:
        yield Check("GIL", State.WARNING, "disabled", "not tested without a GIL; start Python with -X gil=1")


def _dependencies(_environ: Mapping[str, str]) -> Iterator[Check]:
    try:
        for module in ("loopwatch.agent", "loopwatch.health.children.processes"):  # the latter needs psutil
            importlib.import_module(module)
    except ImportError as exc:
        yield Check("agent", State.NO, _one_line(exc), "pip install --force-reinstall loopwatch", essential=True)
        return
    yield Check("agent", State.OK, f"imports, with psutil {importlib.metadata.version('psutil')}", essential=True)


# --------------------------------------------------------------------------------------------------------- loops


def _asyncio_loop(_environ: Mapping[str, str]) -> Iterator[Check]:
    yield _tried("asyncio loop", asyncio.SelectorEventLoop, "asyncio", essential=sys.platform != "win32")


def _proactor_loop(_environ: Mapping[str, str]) -> Iterator[Check]:
    factory = getattr(asyncio, "ProactorEventLoop", None)
    if factory is not None:
        yield _tried("proactor loop", factory, "asyncio", essential=True)


def _uvloop(_environ: Mapping[str, str]) -> Iterator[Check]:
    try:
        version = importlib.metadata.version("uvloop")
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:  # includes PackageNotFoundError
        yield Check("uvloop", State.NO, "not installed", "nothing to do, unless your program is to run on it")
        return
    from loopwatch.watch.probes.uvloop import UvloopProbe

    loop = uvloop.new_event_loop()
    try:
        UvloopProbe(loop, 0.1).detach()
    except (AttributeError, OSError) as exc:
        advice = "its loops are read by heartbeat: lag and stalls, but no utilization; use a wheel of uvloop from PyPI"
        yield Check("uvloop", State.WARNING, f"{version}, libuv's counters do not answer ({_one_line(exc)})", advice)
        return
    finally:
        loop.close()
    yield _tried("uvloop", uvloop.new_event_loop, "uvloop", f"{version}, ")


def _tried(
    name: str,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    kind: str,
    prefix: str = "",
    *,
    essential: bool = False,
) -> Check:
    """Block a loop on purpose and check that the stall is found."""
    from loopwatch.agent import Agent

    block = 0.15
    agent = Agent(Config(threshold=block / 2, log_level=logging.DEBUG, cpu_budget=1.0))
    kinds: list[str] = []

    async def main() -> None:
        await asyncio.sleep(0.02)
        time.sleep(block)
        await asyncio.sleep(0.02)
        kinds.extend(stats.kind for stats in agent.snapshot().loops)

    agent.start()
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
        agent.flush()
        found = agent.stalls()
        reason = agent.snapshot().agent.reason
    finally:
        agent.stop()
    if not found:
        why = f": {reason}" if reason else ""
        return Check(name, State.NO, f"{prefix}a block of {block:g} s was not found{why}", "report this", essential)
    detail = f"{prefix}a block of {block:g} s was found, {found[0].duration:.3f} s by {found[0].cause}"
    if kind not in kinds:
        how = kinds[0] if kinds else "nothing"
        return Check(name, State.WARNING, f"{detail}, but read by {how}", "utilization is not known", essential)
    return Check(name, State.OK, detail, essential=essential)


# ------------------------------------------------------------------------------------------------------ evidence


def _kernel(_environ: Mapping[str, str]) -> Iterator[Check]:
    from loopwatch.system import threads

    if sys.platform != "linux":
        yield Check("kernel facts", State.NO, "only on Linux", "causes starved, io and lock are known less often")
        return
    me = threads.ThreadFacts.here()
    if me.cpu() is None:
        yield Check("thread clock", State.NO, "no processor time of single threads", "causes are mostly unknown then")
    else:
        yield Check("thread clock", State.OK, "processor time of each thread")
    if me.scheduled() is None:
        advice = "starvation (cause starved) is not known; the kernel lacks CONFIG_SCHED_INFO, or /proc is hidden"
        yield Check("schedstat", State.WARNING, "not readable", advice)
    else:
        yield Check("schedstat", State.OK, "time spent waiting for a processor")
    syscall, channel = _where_a_waiting_thread_is(threads.ThreadFacts)
    if syscall is None:
        advice = "waits (io, sleep, lock) are known by their calls only; allow ptrace of own threads (seccomp, Yama)"
        yield Check("syscall", State.WARNING, "not readable", advice)
    elif syscall.startswith("syscall "):
        yield Check(
            "syscall", State.WARNING, f"only numbers on {platform.machine()}", "waits are known by their calls only"
        )
    else:
        yield Check("syscall", State.OK, f"the system call a thread waits in, {syscall} for a lock")
    if channel is None:
        yield Check("wchan", State.WARNING, "not readable", "nothing to do: the verdict does not need it")
    else:
        yield Check("wchan", State.OK, f"the kernel function it waits in, {channel}")
    throttled = threads.throttled()
    if throttled is None:
        yield Check(
            "cgroup", State.WARNING, "no cpu.stat with a throttled time", "nothing to do without a processor quota"
        )
    else:
        yield Check("cgroup", State.OK, f"cpu.stat answers, {throttled:g} s throttled so far")


def _where_a_waiting_thread_is(facts_of: Any) -> tuple[str | None, str | None]:
    facts: list[Any] = []
    release = threading.Event()

    def wait() -> None:
        facts.append(facts_of.here())
        release.wait(5)

    thread = threading.Thread(target=wait, name="loopwatch-doctor", daemon=True)
    thread.start()
    try:
        found: tuple[str | None, str | None] = (None, None)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and (found[0] in (None, "running") or found[1] is None):
            time.sleep(0.005)
            found = facts[0].waiting_in() if facts else found
        return found
    finally:
        release.set()
        thread.join(1)


def _source_columns(_environ: Mapping[str, str]) -> Iterator[Check]:
    code = compile("f()", "<loopwatch>", "eval")
    if any(begin is not None for _, _, begin, _ in code.co_positions()):
        yield Check("source columns", State.OK, "the call that blocks is known by name")
    else:
        advice = "start without -X no_debug_ranges and PYTHONNODEBUGRANGES, or remedies are less concrete"
        yield Check("source columns", State.WARNING, "switched off", advice)


def _hang_timer(_environ: Mapping[str, str]) -> Iterator[Check]:
    if importlib.util.find_spec("_pytest") and "_pytest.faulthandler" in sys.modules:
        yield Check("hang timer", State.WARNING, "pytest uses it", "nothing to do: it is left alone")
        return
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback_later(0.05, file=file)
        try:
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and not os.fstat(file.fileno()).st_size:
                time.sleep(0.01)
            worked = os.fstat(file.fileno()).st_size > 0
        finally:
            faulthandler.cancel_dump_traceback_later()
    if worked:
        yield Check("hang timer", State.OK, "faulthandler writes down where a hang is; needs a journal")
    else:
        yield Check("hang timer", State.NO, "faulthandler wrote nothing", "hangs inside C code show no stack")


def _native_part(_environ: Mapping[str, str]) -> Iterator[Check]:
    yield Check("native part", State.NO, "not in this release", "nothing to do: loopwatch is pure Python")


# --------------------------------------------------------------------------------------------------- other tools


def _opentelemetry(environ: Mapping[str, str]) -> Iterator[Check]:
    found = _otel_versions()
    sdk = found.get("opentelemetry-sdk")
    if sdk is None:
        yield Check("OpenTelemetry", State.NO, "the SDK is not installed", "pip install opentelemetry-sdk")
    else:
        yield _otel_check(found)
    names = sorted(name for name in environ if name.startswith("OTEL_") and environ[name])
    # Only the names: headers may hold keys.
    yield Check("OTEL_* variables", State.OK, ", ".join(names) if names else "none set")


def _otel_check(found: Mapping[str, str]) -> Check:
    name = "OpenTelemetry"
    groups: dict[int, list[str]] = {}
    for package, version in sorted(found.items()):
        release = _otel_release(version)
        if release is not None:
            groups.setdefault(release, []).append(f"{package} {version}")
    if len(groups) > 1:
        newest = max(groups)
        odd = ", ".join(package for release, packages in groups.items() if release != newest for package in packages)
        advice = f"pip install -U all of them to 1.{newest} / 0.{newest + _OTEL_BETA_OFFSET}b"
        return Check(name, State.WARNING, f"releases are mixed: {odd} beside 1.{newest}", advice)
    shown = [f"{short} {found[f'opentelemetry-{short}']}" for short in _OTEL_SHOWN if f"opentelemetry-{short}" in found]
    detail = ", ".join(shown)
    try:
        for module in ("opentelemetry.sdk.metrics", "opentelemetry.sdk.trace"):
            importlib.import_module(module)
    except ImportError as exc:
        return Check(
            name, State.WARNING, f"{detail}; {_one_line(exc)}", "pip install --force-reinstall opentelemetry-sdk"
        )
    if importlib.util.find_spec("loopwatch.telemetry.service") is None:
        return Check(name, State.NO, f"{detail}; this release does not export to it", "use the journal and the log")
    return Check(name, State.OK, detail)


def _otel_versions() -> dict[str, str]:
    one = "api|sdk|proto|semantic-conventions|instrumentation|exporter-(otlp|prometheus|http)[a-z-]*"
    wanted = re.compile(f"opentelemetry-({one})")
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        package = re.sub(r"[-_.]+", "-", distribution.name or "").lower()
        if wanted.fullmatch(package):
            found.setdefault(package, distribution.version)  # the first on the path is the one imported
    return found


def _otel_release(version: str) -> int | None:
    """Return N for 1.N and for the 0.(N+21)b released with it; None for any other version scheme."""
    match = re.match(r"([01])\.(\d+)", version)
    if match is None:
        return None
    return int(match[2]) if match[1] == "1" else int(match[2]) - _OTEL_BETA_OFFSET


def _gevent(_environ: Mapping[str, str]) -> Iterator[Check]:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        advice = "run loopwatch without gevent: asyncio cannot be watched beside it"
        yield Check("gevent", State.NO, "has patched this process", advice, essential=True)
    elif importlib.util.find_spec("gevent"):
        yield Check("gevent", State.WARNING, "installed", "a process that it has patched is not watched")


def _trio(_environ: Mapping[str, str]) -> Iterator[Check]:
    if importlib.util.find_spec("trio"):
        yield Check("trio", State.WARNING, "installed, but not supported", "what trio.run() runs is not watched")


# ------------------------------------------------------------------------------------------------------ settings


def _settings(environ: Mapping[str, str]) -> Iterator[Check]:
    known = {ENV_PREFIX + name.upper(): name for name in field_names()}
    names = sorted(name for name in environ if name.startswith(ENV_PREFIX) and environ[name])
    if not names:
        yield Check("settings", State.OK, f"no {ENV_PREFIX}* variable set, defaults apply")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            yield Check(name, State.WARNING, "no such setting", f"did you mean {near[0]}?" if near else "remove it")
            continue
        yield _setting(name, known[name], environ[name])


def _setting(variable: str, field: str, text: str) -> Check:
    if field in ("on_stall", "context") and ":" in text:
        # It names code of the program, which must not be imported here.
        good = all(_names_an_object(item) for item in text.split(",") if ":" in item)
        advice = "" if good else "write pkg.mod:name"
        return Check(variable, State.OK if good else State.WARNING, f"{text!r}, not imported here", advice)
    try:
        config = from_env({variable: text})
    except ConfigError as exc:
        return Check(variable, State.NO, f"the agent would not start: {exc}", "correct or remove it", essential=True)
    if field == "enabled" and not config.enabled:
        return Check(variable, State.WARNING, f"{text!r}: loopwatch is switched off", "remove it to watch")
    return Check(variable, State.OK, repr(text))


def _names_an_object(text: str) -> bool:
    module, _, name = text.strip().partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def _journal(environ: Mapping[str, str]) -> Iterator[Check]:
    text = environ.get(ENV_PREFIX + "JOURNAL", "")
    if not text:
        yield Check("journal", State.OK, "none configured; --journal or LOOPWATCH_JOURNAL keeps stalls in files")
        return
    try:
        path = Path(str(from_env({ENV_PREFIX + "JOURNAL": text}).journal))
    except ConfigError:
        return  # reported with the settings
    folder = path if path.is_dir() else path.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".loopwatch-"):
            pass
    except OSError as exc:
        advice = "the agent would run without it; give a directory that this user may write"
        yield Check("journal", State.WARNING, f"{folder} cannot be written: {exc.strerror}", advice)
    else:
        yield Check("journal", State.OK, f"{folder} can be written")


_EXAMINATIONS: tuple[Examination, ...] = (
    _python,
    _system,
    _gil,
    _dependencies,
    _asyncio_loop,
    _proactor_loop,
    _uvloop,
    _kernel,
    _source_columns,
    _hang_timer,
    _native_part,
    _opentelemetry,
    _gevent,
    _trio,
    _settings,
    _journal,
)
