"""diagnose(): hand-made observations become stalls whose every number can be computed on paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.diagnosis.culprit import Stack
from loopwatch.diagnosis.diagnose import MAX_PROFILE, diagnose
from loopwatch.diagnosis.site import Site
from loopwatch.events import Cause, Evidence, Frame, Stall
from loopwatch.watch.observation import Observation, Sample
from loopwatch.watch.stacks import RawFrame, RawStack

STDLIB = "/usr/lib/python3.12"
SITE = Site((STDLIB,))
START = 5000.0
THRESHOLD = 0.1

WAITING = Evidence(0.3, cpu=0.0, process_cpu=0.001, gil_wait=0.0, syscall="clock_nanosleep", syscall_share=1.0)
COMPUTING = Evidence(0.3, cpu=0.29, process_cpu=0.29, gil_wait=0.005, syscall="running", syscall_share=1.0)


def raw(function: str, line: int = 1, file: str = "/srv/app/views.py", module: str = "app.views") -> RawFrame:
    """Return a raw frame of a function of that qualified name."""
    code = (lambda: None).__code__.replace(co_qualname=function, co_name=function.rpartition(".")[2], co_filename=file)
    return RawFrame(code, line, 2 * line, module)


def std(function: str, module: str) -> RawFrame:
    return raw(function, 1, f"{STDLIB}/{module.replace('.', '/')}.py", module)


HANDLER = raw("handler", 10)


def sample(
    at: float, *frames: RawFrame, callback: object = "cb", late: float = 0.0, position: int | None = None,
    planned: int | None = None,
) -> Sample:  # fmt: skip
    """Return a sample ``at`` seconds into the block; ``frames`` outermost first."""
    return Sample(START + at, late, RawStack(tuple(reversed(frames)), {}, False, False, position, planned), callback)


def seen(samples: Sequence[Sample], evidence: Evidence = WAITING, length: float = 0.3, **fields: Any) -> Observation:
    """Return an observation of a block of ``length`` seconds."""
    evidence = dataclasses.replace(evidence, wall=length, samples=len(samples))
    return Observation(
        id="0a1b2c3d4e", loop="main", thread="MainThread", started_at=1_767_261_600.0, start=START, end=START + length,
        evidence=evidence, samples=list(samples), pid=42, **fields,
    )  # fmt: skip


def judged(observation: Observation, *, call: str | None = None, dump: Stack = ()) -> Stall:
    stall = diagnose(observation, SITE, THRESHOLD, lambda stack: call, dump)
    assert stall is not None
    return stall


def steady(*frames: RawFrame, count: int = 5, **fields: Any) -> list[Sample]:
    """Return samples of the same stack at 50, 100, ... milliseconds."""
    return [sample(0.05 * (number + 1), *frames, **fields) for number in range(count)]


def test_observed_fields_are_copied() -> None:
    """Names, times, context and victims are those of the observation; the duration is end minus start."""
    stall = judged(
        seen(steady(HANDLER), task="Task-7", coroutine="app.handler", context={"http.route": "/x"}, victims=12),
        call="time.sleep",
    )
    assert (stall.id, stall.loop, stall.thread, stall.pid) == ("0a1b2c3d4e", "main", "MainThread", 42)
    assert stall.started_at == 1_767_261_600.0
    assert stall.duration == pytest.approx(0.3)
    assert (stall.task, stall.coroutine, stall.context, stall.victims) == (
        "Task-7",
        "app.handler",
        {"http.route": "/x"},
        12,
    )
    assert not stall.ongoing
    assert (stall.cause, stall.uncertainty) == (Cause.SLEEP, 0.0)
    assert "asyncio.sleep" in stall.remedy


def test_culprit_leaf_stack_and_samples() -> None:
    """The culprit is the user's innermost frame, the leaf the innermost of all, the stack outermost first."""
    stall = judged(seen(steady(HANDLER, raw("load", 33), std("loads", "json"))), call="json.decode")
    assert stall.culprit == Frame("load", "app.views", "/srv/app/views.py", 33)
    assert stall.leaf == Frame("loads", "json", f"{STDLIB}/json.py", 1)
    assert [frame.function for frame in stall.stack] == ["handler", "load", "loads"]
    assert stall.samples == (5, 5)


def test_evidence_is_completed() -> None:
    """Facts derived from the samples are added: movement, callbacks, call, threshold; the rest is left as measured."""
    frames = [raw("work", line) for line in (1, 1, 2, 3, 3)]
    samples = [sample(0.05 * (index + 1), HANDLER, frame) for index, frame in enumerate(frames)]
    stall = judged(seen(samples, COMPUTING), call="re.sub")
    assert stall.evidence.moving == pytest.approx(2 / 4)
    assert (stall.evidence.callbacks, stall.evidence.call, stall.evidence.threshold) == (1, "re.sub", THRESHOLD)
    assert stall.evidence.cpu == 0.29
    assert stall.cause is Cause.PYTHON


@pytest.mark.parametrize(("late_samples", "share"), [(0, 0.0), (2, 0.4), (5, 1.0)])
def test_calls_of_c_code_seen_by_the_collector(late_samples: int, share: float) -> None:
    """in_call is the share of samples that found the thread in the collector's callback inside a call."""
    samples = steady(HANDLER)
    for item in samples[:late_samples]:
        item.stack.in_gc = True
    assert judged(seen(samples, COMPUTING), call="json.loads").evidence.in_call == pytest.approx(share)
    assert judged(seen(samples, COMPUTING), call=None).evidence.in_call == 0.0


def shared(samples: Sequence[Sample], **fields: Any) -> Observation:
    return seen(samples, COMPUTING, shared=True, **fields)


def test_one_callback_alone_in_its_pass_is_exact() -> None:
    """The only callback of a pass accounts for all of it: no uncertainty."""
    stall = judged(shared(steady(HANDLER, position=0, planned=1)))
    assert stall.uncertainty == 0.0
    assert stall.evidence.longest_callback == pytest.approx(0.3)
    assert stall.evidence.dominant_callback == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("position", "planned", "surely"),
    [
        (0, 1, 0.3),  # all of it
        (0, 2, 0.25),  # from the start of the pass to the last sample
        (1, 2, 0.25),  # from the first sample to the end of the pass
        (1, 3, 0.2),  # from the first sample to the last
        (None, None, 0.2),
    ],
)
def test_share_of_one_callback(position: int | None, planned: int | None, surely: float) -> None:
    """Seen from 50 to 250 ms of a pass of 300 ms, a callback had the time between, or up to the pass's ends."""
    stall = judged(shared(steady(HANDLER, position=position, planned=planned)))
    assert stall.evidence.longest_callback == pytest.approx(0.3)
    assert stall.evidence.dominant_callback == pytest.approx(surely)
    assert stall.uncertainty == pytest.approx(0.3 - surely)


def test_two_callbacks_in_one_pass() -> None:
    """The longer callback is bounded by the other's samples: at most from their last one, at least from its own."""
    samples = [
        sample(0.02, raw("short"), callback="a", position=0, planned=2),
        sample(0.08, raw("long"), callback="b", position=1, planned=2),
        sample(0.20, raw("long"), callback="b", position=1, planned=2),
    ]
    stall = judged(shared(samples))
    assert stall.evidence.callbacks == 2
    assert stall.evidence.longest_callback == pytest.approx(0.28)
    assert stall.evidence.dominant_callback == pytest.approx(0.22)
    assert stall.uncertainty == pytest.approx(0.08)
    assert stall.culprit is not None
    assert stall.culprit.function == "long"


def test_overload() -> None:
    """Callbacks that changed with every sample, none of which can have been long, are an exact overload."""
    samples = [sample(0.03 * (i + 1), raw("tick"), callback=i, position=30 * i, planned=300) for i in range(9)]
    stall = judged(shared(samples))
    assert stall.cause is Cause.OVERLOAD
    assert stall.evidence.callbacks == 9
    assert stall.evidence.longest_callback == pytest.approx(0.06)
    assert stall.uncertainty == 0.0


def test_one_long_callback_among_many_is_no_overload() -> None:
    """Of four callbacks one held the loop for 180 ms: it is the culprit, and not the number of callbacks."""
    samples = [
        sample(0.01, raw("tick"), callback="a", position=0, planned=4),
        *[sample(0.05 + 0.03 * i, raw("slow"), callback="b", position=1, planned=4) for i in range(7)],
        sample(0.26, raw("tick"), callback="c", position=2, planned=4),
        sample(0.28, raw("tick"), callback="d", position=3, planned=4),
    ]
    stall = judged(shared(samples))
    assert stall.cause is Cause.PYTHON
    assert stall.culprit is not None
    assert stall.culprit.function == "slow"
    assert stall.evidence.dominant_callback == pytest.approx(0.18)
    assert stall.evidence.longest_callback == pytest.approx(0.25)


def test_same_callback_seen_twice_with_another_between_is_two_runs() -> None:
    """A callback that came back later in the pass is not one long run, though it is one callback."""
    samples = [
        sample(0.1, raw("a"), callback="a"),
        sample(0.2, raw("b"), callback="b"),
        sample(0.25, raw("a"), callback="a"),
    ]
    evidence = judged(shared(samples)).evidence
    assert evidence.callbacks == 2
    assert evidence.longest_callback == pytest.approx(0.2)


_runs = st.lists(st.tuples(st.integers(0, 3), st.floats(0.001, 0.2)), min_size=1, max_size=20)


@given(_runs, st.floats(0.001, 0.2), st.booleans())
def test_bounds_hold(runs: list[tuple[int, float]], rest: float, is_shared: bool) -> None:
    """For any sequence of samples: 0 <= surely <= longest <= duration, and the uncertainty never exceeds it."""
    samples, at = [], 0.0
    for callback, gap in runs:
        at += gap
        samples.append(sample(at, raw("f"), callback=callback))
    stall = judged(seen(samples, COMPUTING, length=at + rest, shared=is_shared))
    longest, surely = stall.evidence.longest_callback, stall.evidence.dominant_callback
    assert longest is not None
    assert surely is not None
    assert -1e-9 <= surely <= longest + 1e-9 <= stall.duration + 2e-9
    assert 0.0 <= stall.uncertainty <= stall.duration + 1e-9
    assert is_shared or stall.uncertainty == 0.0


def test_uncertainty_of_the_probe_is_added() -> None:
    """The probe's own uncertainty is added to that of the samples."""
    assert judged(seen(steady(HANDLER), uncertainty=0.025)).uncertainty == pytest.approx(0.025)


def test_no_samples() -> None:
    """A shared block without samples may belong to any callback: all of it is uncertain, and no culprit is named."""
    stall = judged(seen([], Evidence(0.3), shared=True))
    assert (stall.culprit, stall.leaf, stall.stack, stall.profile) == (None, None, (), ())
    assert (stall.samples, stall.cause) == ((0, 0), Cause.UNKNOWN)
    assert stall.uncertainty == pytest.approx(0.3)
    assert (stall.evidence.moving, stall.evidence.longest_callback) == (None, None)
    assert stall.remedy.endswith(".")


def test_no_samples_of_a_block_that_is_exact() -> None:
    """A block whose probe knows its bounds stays exact without samples."""
    assert judged(seen([], Evidence(0.3))).uncertainty == 0.0


def test_samples_of_loop_machinery_only() -> None:
    """Samples that show nothing above the loop count as taken, and name no culprit."""
    stall = judged(seen([sample(0.29)], COMPUTING))
    assert (stall.culprit, stall.leaf, stall.samples) == (None, None, (0, 1))


HOG = RawStack((std("sub", "re"), raw("crunch", 77, "/srv/app/jobs.py", "app.jobs"), std("run", "threading")))
GIL = Evidence(0.3, cpu=0.001, process_cpu=0.29, watcher_late=0.28, gil_wait=0.28, syscall="futex", syscall_share=1.0)


def test_gil_names_the_hog() -> None:
    """For the GIL the culprit is the thread that held it: its user frame, its stack, its leaf, its call."""
    called: list[RawStack] = []

    def call_name(stack: RawStack) -> str | None:
        called.append(stack)
        return "re.sub"

    stall = diagnose(seen([sample(0.29, HANDLER)], GIL, hog=HOG), SITE, THRESHOLD, call_name)
    assert stall is not None
    assert stall.cause is Cause.GIL
    assert stall.culprit == Frame("crunch", "app.jobs", "/srv/app/jobs.py", 77)
    assert [frame.function for frame in stall.stack] == ["run", "crunch", "sub"]
    assert stall.leaf == stall.stack[-1]
    assert called[-1] is HOG


def test_gil_without_a_hog_has_no_culprit() -> None:
    """If the holder of the GIL was not seen, the callback that waited for it is not named as the culprit."""
    stall = judged(seen([sample(0.29, HANDLER)], GIL))
    assert stall.cause is Cause.GIL
    assert stall.culprit is None
    assert stall.samples == (0, 1)


def test_hog_is_ignored_for_other_causes() -> None:
    """A busy other thread is not the culprit of a sleep."""
    stall = judged(seen(steady(HANDLER), hog=HOG), call="time.sleep")
    assert stall.was_in is None
    assert stall.culprit is not None
    assert stall.culprit.function == "handler"


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        (Evidence(0.3, cpu=0.05, process_cpu=0.05, run_queue=0.24, gil_wait=0.0), Cause.STARVED),
        (Evidence(0.3, cpu=0.0, process_cpu=0.0, run_queue=0.0, watcher_late=0.29, gil_wait=0.29), Cause.SUSPENDED),
    ],
)
def test_suspended_or_starved_process_has_no_culprit(evidence: Evidence, cause: Cause) -> None:
    """A process that was stopped or starved has no culprit, but keeps the sampled stack and what it was in."""
    stall = judged(seen(steady(HANDLER), evidence))
    assert stall.was_in is not None and stall.was_in.function == "handler"
    assert stall.starved == pytest.approx(evidence.run_queue)
    assert (stall.cause, stall.culprit, stall.samples) == (cause, None, (0, 5))
    assert [frame.function for frame in stall.stack] == ["handler"]


def test_loop_asleep_in_its_poll() -> None:
    """A loop that could not wake up was in no callback: no sleep or lock of the user's is claimed."""
    evidence = dataclasses.replace(WAITING, asleep=True, syscall="epoll_wait")
    stall = judged(seen([], evidence, asleep=True))
    assert stall.cause is Cause.UNKNOWN
    assert stall.culprit is None


@pytest.mark.parametrize(
    "module",
    ["pdb", "bdb", "IPython.core.debugger", "pydevd", "debugpy.server.api", "ipdb.__main__", "_pydevd_bundle.x"],
)
def test_debugger_is_no_stall(module: str) -> None:
    """If any sample shows a debugger, there is no stall."""
    samples = [*steady(HANDLER), sample(0.28, HANDLER, std("interaction", module))]
    assert diagnose(seen(samples), SITE, THRESHOLD, lambda stack: None) is None


@pytest.mark.parametrize("module", ["pdbx", "app.pdb", "debugpyish"])
def test_module_with_a_name_like_a_debugger(module: str) -> None:
    """A user's module with a name similar to a debugger's is reported."""
    assert judged(seen(steady(HANDLER, raw("f", module=module)))).duration > 0


DUMP = (Frame("handler", "app.views", "/srv/app/views.py", 10), Frame("contains", "app.views", "/srv/app/views.py", 21))


def test_dump_is_used_where_no_sample_shows_the_user() -> None:
    """If the samples came too late, the stack that faulthandler wrote during the block names the culprit."""
    stall = judged(seen([sample(0.29)], COMPUTING), dump=DUMP)
    assert stall.culprit == DUMP[1]
    assert stall.stack == DUMP
    assert stall.leaf == DUMP[1]


def test_samples_are_preferred_to_a_dump() -> None:
    """If samples show the user's code the dump is ignored."""
    stall = judged(seen(steady(raw("other", 5))), dump=DUMP)
    assert stall.culprit is not None
    assert stall.culprit.function == "other"


@pytest.mark.parametrize(
    ("module", "call", "waits"),
    [
        ("threading", ".acquire", True),
        ("threading", ".wait", True),
        ("queue", ".wait", True),
        ("concurrent.futures._base", ".wait", True),
        ("multiprocessing.pool", ".get", True),
        ("app.views", ".acquire", True),
        ("app.views", ".wait", False),
        ("app.views", ".get", False),
        ("threading", "time.sleep", False),
        ("threadingx", ".wait", False),
        ("threading", None, False),
    ],
)
def test_waits_for_a_lock(module: str, call: str | None, waits: bool) -> None:
    """A wait for a lock is recognised by name: acquire anywhere, the other methods inside the standard library only."""
    stall = judged(seen(steady(HANDLER, raw("f", module=module))), call=call)
    assert stall.evidence.lock_wait is waits


def test_profile() -> None:
    """Distinct stacks are counted, most frequent first, at most eight; one stack alone is no profile."""
    assert judged(seen(steady(HANDLER))).profile == ()
    samples = []
    for number in range(12):
        samples += [sample(0.001 * len(samples), HANDLER, raw("f", number)) for _ in range(number + 1)]
    profile = judged(seen(samples, COMPUTING)).profile
    assert len(profile) == MAX_PROFILE == 8
    assert [item.count for item in profile] == [12, 11, 10, 9, 8, 7, 6, 5]
    assert profile[0].stack[-1].line == 11


def test_remedy_gets_the_calls_below_the_culprit() -> None:
    """The remedy fits the call, also one made through a library; for Python code the call does not matter."""
    slept = judged(seen(steady(HANDLER), task="Task-7"), call="time.sleep")
    assert "await asyncio.sleep()" in slept.remedy
    moving = [sample(0.05 * (i + 1), raw("work", i)) for i in range(5)]
    computed = judged(seen(moving, COMPUTING), call="time.sleep")
    assert computed.cause is Cause.PYTHON
    assert "await asyncio.sleep()" not in computed.remedy


def test_ongoing() -> None:
    """The early notice of a hang is diagnosed like any other stall, and marked as ongoing."""
    stall = judged(seen(steady(HANDLER), ongoing=True), call="time.sleep")
    assert stall.ongoing
    assert stall.cause is Cause.SLEEP


def test_judging_twice_gives_the_same() -> None:
    """diagnose() does not change the observation and depends on nothing else."""
    observation = seen(steady(HANDLER, raw("load", 33)))
    assert judged(observation) == judged(observation)
