"""Stalls, journals and hypothesis strategies shared by the tests."""

from __future__ import annotations

import dataclasses
import string
from typing import Any

from hypothesis import strategies as st

from loopwatch.events import Cause, Evidence, Frame, StackCount, Stall
from loopwatch.report.reader import Header, JournalContents

T0 = 1_767_261_600.0  # 2026-01-01 10:00:00 UTC


def frame(name: str = "app.images.resize", line: int = 42) -> Frame:
    """Return a frame for ``package.module.function`` in ``/srv/package/module.py``."""
    module, _, function = name.rpartition(".")
    return Frame(function, module, f"/srv/{module.replace('.', '/')}.py", line)


def make_stall(number: int = 0, **fields: Any) -> Stall:
    """Return the ``number``-th stall of a made-up program: 10 seconds after the one before it, 0.25 seconds long."""
    culprit = fields.get("culprit", frame())
    defaults: dict[str, Any] = {
        "id": f"s{number}",
        "loop": "main",
        "started_at": T0 + 10 * number,
        "duration": 0.25,
        "cause": Cause.PYTHON,
        "evidence": Evidence(wall=0.25, cpu=0.24, samples=9),
        "culprit": culprit,
        "leaf": culprit,
        "stack": (frame("app.main.handle", 7), culprit) if culprit else (),
        "samples": (9, 9),
        "remedy": "Move it off the loop with @loopwatch.offload.",
        "pid": 100,
    }
    return Stall(**(defaults | fields))


def make_contents(*stalls: Stall, **fields: Any) -> JournalContents:
    """Return contents with a header for each process of ``stalls``, started one minute before the first of them."""
    pids = sorted({stall.pid for stall in stalls})
    headers = tuple(Header(f"/log/stalls.{pid}.jsonl", pid, T0 - 60, "0.1.0", "3.11.9", "app.py") for pid in pids)
    return dataclasses.replace(JournalContents(stalls=stalls, headers=headers), **fields)


_texts = st.text(max_size=20) | st.sampled_from(
    ["</script><img src=x onerror=alert(1)>", "a;b\nc", "\x1b[31mred", "\udcff", "\u2028", "名前", "__proto__", ""]
)
_counts = st.integers(0, 10_000)
_seconds = st.floats(0, 1e6, allow_nan=False)
_names = st.text(string.ascii_letters, max_size=8)
frames = st.builds(Frame, function=_texts, module=_texts, file=_texts, line=st.integers(0, 100_000))
_stacks = st.lists(frames, max_size=4).map(tuple)
_maybe_seconds = st.none() | _seconds
evidences = st.builds(
    Evidence,
    wall=_seconds,
    cpu=_maybe_seconds,
    run_queue=_maybe_seconds,
    moving=_maybe_seconds,
    syscall=st.none() | _texts,
    samples=_counts,
    lock_wait=st.booleans(),
    hog=_maybe_seconds,
)
stalls = st.builds(
    Stall,
    id=st.uuids().map(lambda unique: unique.hex[:12]),
    loop=_texts,
    started_at=st.floats(0, 2e9, allow_nan=False),
    duration=_seconds,
    cause=st.sampled_from(Cause),
    evidence=evidences,
    uncertainty=_seconds,
    ongoing=st.booleans(),
    culprit=st.none() | frames,
    leaf=st.none() | frames,
    stack=_stacks,
    samples=st.tuples(_counts, _counts),
    task=st.none() | _texts,
    coroutine=st.none() | _texts,
    context=st.dictionaries(st.sampled_from(["http.route", "trace_id"]) | _texts, _texts, max_size=3),
    victims=st.none() | _counts,
    remedy=_texts,
    profile=st.lists(st.builds(StackCount, stack=_stacks, count=_counts), max_size=3).map(tuple),
    thread=_texts,
    pid=st.integers(1, 4),
    starved=st.floats(allow_nan=False, allow_infinity=False),
    throttled=st.floats(allow_nan=False, allow_infinity=False),
    was_in=st.none() | frames,
)
