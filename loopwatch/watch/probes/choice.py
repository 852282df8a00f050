"""Chooses the probe for a loop by the loop's type; no method of the loop is called to decide."""

from __future__ import annotations

import time
from asyncio import base_events
from types import BuiltinFunctionType
from typing import Any

from loopwatch.core.patches import PatchSet, loaded
from loopwatch.watch.probes.asyncio import AsyncioProbe
from loopwatch.watch.probes.base import Failed, Loop, Probe
from loopwatch.watch.probes.heartbeat import HeartbeatProbe

REAL_TIME = frozenset({"PySide6", "gbulb", "qasync", "quamash", "rloop", "winloop"})
"""Packages that have their own loops, whose timers run by the machine's clock."""


def make_probe(loop: Loop, limit: float, patches: PatchSet, failed: Failed, *, given: bool = False) -> Probe | None:
    """Return the best probe for ``loop``, None if it must not be watched.

    A probe that cannot be attached is reported, and the heartbeat is used instead.

    Args:
        loop: any object that runs as an event loop, also a mock of one.
        limit: seconds, blocks at least this long are reported.
        patches: holds replaced attributes.
        failed: called with the exception of a probe that cannot be attached.
        given: whether the program asked for this loop to be watched: then it may see a timer of the agent.
    """
    if not (given or is_known(loop)):
        return None
    try:
        if _has_timed_selector(loop):
            return AsyncioProbe(loop, limit, patches, failed, real_time=keeps_real_time(loop))
        if _is_uvloop(loop):
            from loopwatch.watch.probes.uvloop import UvloopProbe  # loads ctypes, only where it is needed

            return UvloopProbe(loop, limit)
    except (AttributeError, TypeError, OSError) as exc:
        failed(exc)
    return HeartbeatProbe(limit) if given or keeps_real_time(loop) else None


def is_known(loop: Loop) -> bool:
    """Return whether ``loop`` can be read without visible effects on it."""
    return keeps_real_time(loop) or _has_timed_selector(loop) or _is_uvloop(loop)


def keeps_real_time(loop: Loop) -> bool:
    """Return whether the timers of ``loop`` run by the machine's monotonic clock.

    Simulators, and tests, have loops with a clock of their own that jumps to the next timer, or ends the run when there
    is none (``TestLoop`` of CPython's Lib/test/test_asyncio/utils.py, async-solipsism, looptime). A timer of the agent
    would be visible there, and the loop would have to wait for it.
    """
    kind = type(loop)
    if issubclass(kind, base_events.BaseEventLoop):
        return _has_method(loop, "time", base_events.BaseEventLoop.time) and _is_stock_clock()
    if _is_uvloop(loop):
        return bool(kind.time is loaded("uvloop").Loop.time)  # its timers run by libuv's clock
    return kind.__module__.partition(".")[0] in REAL_TIME


def _has_method(loop: Loop, name: str, function: Any) -> bool:
    """Whether ``loop.name()`` calls ``function``, replaced neither on its class nor on itself.

    Reading ``loop.__dict__`` would make the interpreter create that dictionary, after which every attribute of the loop
    costs several times as much: CPython keeps attributes in an array until then (Objects/dictobject.c,
    ``make_dict_from_instance_attributes``). The cost is a twelfth of an aiohttp request.
    """
    method = getattr(loop, name, None)
    return getattr(method, "__self__", None) is loop and getattr(method, "__func__", None) is function


def _is_stock_clock() -> bool:
    """Whether asyncio's loops read the machine's clock: neither their method nor the function it calls is replaced."""
    code = getattr(base_events.BaseEventLoop.time, "__code__", None)
    is_stock = code is not None and code.co_filename == base_events.__file__
    return is_stock and type(time.monotonic) is BuiltinFunctionType


def _is_uvloop(loop: Loop) -> bool:
    uvloop = loaded("uvloop")
    return uvloop is not None and issubclass(type(loop), uvloop.Loop)


def _has_timed_selector(loop: Loop) -> bool:
    """Whether ``loop`` makes passes around a selector that can be timed.

    A loop with a clock of its own qualifies only if its passes are asyncio's: then the timing has no effect on it.
    """
    kind = type(loop)
    if not issubclass(kind, base_events.BaseEventLoop):
        return False
    if not _has_method(loop, "_run_once", kind._run_once):  # type: ignore[attr-defined]
        return False
    stock = kind._run_once is base_events.BaseEventLoop._run_once  # type: ignore[attr-defined]
    return (stock or keeps_real_time(loop)) and _is_real(getattr(loop, "_selector", None))


def _is_real(selector: Any) -> bool:
    return callable(getattr(type(selector), "select", None))  # a mock has it on the instance, if at all
