"""The sampler reads a possibly blocked loop once, at once, and only while the same callback runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import raised

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.system.threads import ThreadFacts
from loopwatch.watch import sampler as sampling
from loopwatch.watch.contention import LATE, Contention
from loopwatch.watch.probes.base import IDLE
from loopwatch.watch.probes.heartbeat import HeartbeatProbe
from loopwatch.watch.sampler import MAX_SAMPLES, Glimpse, Moment, Sampler, Suspect
from loopwatch.watch.watched_loop import WatchedLoop

NOW = 1000.0
THRESHOLD = 0.1


class Probe(HeartbeatProbe):
    """A probe with a preset answer, which after ``lasts`` calls reports that the loop waits."""

    def __init__(self) -> None:
        super().__init__(THRESHOLD)
        self.since, self.lasts = NOW - 0.3, 10**6

    def busy_since(
        self, now: float, late: float = 0.0, overdue: float = 0.0, kept: float = 0.0, mark: Any = None
    ) -> float:
        return self.mark() if mark is None else float(mark)

    def mark(self) -> float:  # type: ignore[override]
        self.lasts -= 1
        return self.since if self.lasts >= 0 else IDLE


class Held:
    """A watched loop whose thread is blocked in :func:`holds_the_loop`."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.probe = Probe()
        self.watched = WatchedLoop(self.loop, "main", self.probe, None, raised)
        self.watched.is_running = True
        self._there, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._there.wait(20)

    def _run(self) -> None:
        self.watched.thread = ThreadFacts.here()

        def holds_the_loop() -> None:
            self._there.set()
            self._go.wait()

        holds_the_loop()

    def close(self) -> None:
        self._go.set()
        self._thread.join()
        self.loop.close()


@pytest.fixture
def held() -> Iterator[Held]:
    """A loop that is held."""
    made = Held()
    yield made
    made.close()


@pytest.fixture
def sampler() -> Sampler:
    """A sampler with settings of its own."""
    return Sampler(lambda: Config(threshold=THRESHOLD), Faults(), Contention(), ())


def moment(late: float = 2 * LATE) -> Moment:
    return Moment(NOW, NOW - late, late)


def glimpsed(sampler: Sampler, *helds: Held) -> dict[Suspect, Any]:
    found: dict[Suspect, Any] = {}
    sampler.judge(glimpses(sampler, *helds), moment(), found)
    return found


def glimpses(sampler: Sampler, *helds: Held) -> list[Glimpse]:
    return [glimpse._replace(at=NOW) for glimpse in sampler.glimpse([each.watched for each in helds])]


def functions(sample: Any) -> list[str]:
    return [frame.code.co_name for frame in sample.stack.frames]


def test_a_late_watcher_samples_before_anything_else(held: Held, sampler: Sampler) -> None:
    """A loop held for half of the threshold is sampled, with the function that holds it."""
    found = glimpsed(sampler, held)
    (suspect,) = found
    assert suspect == Suspect(held.watched, NOW - 0.3)
    assert "holds_the_loop" in functions(found[suspect])
    assert (found[suspect].at, found[suspect].late) == (NOW, 2 * LATE)


@pytest.mark.parametrize("since", [NOW - THRESHOLD / 2 + 0.001, IDLE])
def test_a_loop_that_is_not_held_is_not_sampled(held: Held, sampler: Sampler, since: float) -> None:
    """A loop that waits, has only just begun its callback, or does not run is not sampled."""
    held.probe.since = since
    assert glimpsed(sampler, held) == {}
    held.probe.since, held.watched.is_running = NOW - 0.3, False
    assert glimpsed(sampler, held) == {}


def test_slow_glimpse_of_a_finished_callback_is_dropped(
    held: Held, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A glimpse that took longer than the GIL is safe counts only if the loop is still in the same pass."""
    held.probe.lasts = 1
    assert len(glimpsed(sampler, held)) == 1, "in time, the pass may end right after it"
    monkeypatch.setattr(sampling, "PROMPT", 0.0)
    held.probe.lasts = 2
    assert len(glimpsed(sampler, held)) == 1
    held.probe.lasts = 1
    assert glimpsed(sampler, held) == {}


def test_a_loop_that_cannot_be_read_costs_the_others_nothing(held: Held, sampler: Sampler) -> None:
    """Samples taken before a failure are kept."""
    found: dict[Suspect, Any] = {}
    (good,) = glimpses(sampler, held)
    with pytest.raises(AttributeError):
        sampler.judge([good, good._replace(loop=object())], moment(), found)  # type: ignore[arg-type]
    assert len(found) == 1


def test_early_sample_is_not_taken_again(held: Held, sampler: Sampler) -> None:
    """The early sample is kept, and the episode has it with the kernel's facts on the thread."""
    known = glimpsed(sampler, held)
    suspect = Suspect(held.watched, NOW - 0.3)
    seen, lateness = sampler.sample([held.watched], [suspect], moment(), known)
    ((found, episode),) = seen
    assert found == suspect
    assert episode.samples == [known[suspect]]
    assert episode.samples[0].clocks is not None
    assert lateness is not None and lateness.seconds == pytest.approx(2 * LATE)


def test_no_hog_is_searched_while_the_watcher_is_on_time(held: Held, sampler: Sampler) -> None:
    """All threads' clocks are read only where the GIL seems to be held."""
    seen, lateness = sampler.sample([held.watched], [Suspect(held.watched, NOW - 0.3)], moment(0.0), {})
    assert len(seen) == 1
    assert lateness is None


def test_samples_of_a_long_block_are_thinned_out(held: Held, sampler: Sampler) -> None:
    """A long block keeps no more samples than the bound, including the first and the last."""
    suspect = Suspect(held.watched, NOW - 0.3)
    for number in range(MAX_SAMPLES + 10):
        sampler.sample([held.watched], [suspect], Moment(NOW + number, NOW + number, 0.0), {})
    samples = held.watched.episodes[suspect.since].samples
    assert MAX_SAMPLES / 2 < len(samples) <= MAX_SAMPLES
    assert (samples[0].at, samples[-1].at) == (NOW, NOW + MAX_SAMPLES + 9)
