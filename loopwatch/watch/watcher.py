"""The watcher thread: reads all loops at each tick, samples blocked ones closely, passes on its observations.

Everything here runs beside the loops, never on them.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from loopwatch.config import Config
from loopwatch.core.dataclasses import compile_now, dataclass
from loopwatch.core.faults import Faults
from loopwatch.core.originals import time
from loopwatch.core.threads.alarm import Alarm
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.system import threads as facts
from loopwatch.system.gc_monitor import GcMonitor
from loopwatch.watch import pacing, stacks
from loopwatch.watch.assemble import (
    Measured,
    Origin,
    expected_by,
    expected_within,
    main_caller,
    observation,
    waits_in_poll,
)
from loopwatch.watch.contention import FORGOTTEN_AFTER, LATE, Contention, Lateness
from loopwatch.watch.expected_code import spans_within
from loopwatch.watch.lapse import PUT_OFF, Lapse, Waited
from loopwatch.watch.limits import limit_of, lowest
from loopwatch.watch.observation import Baseline, Caller, Case, Episode, Observation, Sample
from loopwatch.watch.probes.base import IDLE, Block, Loop
from loopwatch.watch.sampler import Glimpse, Moment, Sampler, Samples, Suspect
from loopwatch.watch.usage import usage
from loopwatch.watch.watched_loop import QUIET_SPELL, WatchedLoop

if TYPE_CHECKING:
    from loopwatch.watch.waiters import Waiters

ACTIVE_SHARE = 0.05
"""A loop busy for less than this share of the time since the last tick counts as idle."""
LONGEST_DOZE = 1.0
"""Seconds of an idle sleep, while every loop is quiet and will wake the watcher itself."""
JUST_KEPT = 0.05
"""Seconds after a call that kept the GIL within which the next one may have begun."""
LATELY = 5.0
"""Seconds after a stall during which the next one is looked for at any cost to the agent's budget."""
DOUBT, BEAT_DOUBT = 0.001, 0.02
"""Seconds by which code of a block may seem to begin before it or end after it: exactly dated, and dated by ticks."""
SELDOM = 5.0
"""Factor for the time between two readings of clocks that cost a file."""
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class WatcherHooks:
    """Callbacks of a :class:`Watcher`. None may raise.

    Attributes:
        observed: receives each observation, of a finished block or an ongoing hang; must not block.
        ticked: called at the end of each tick with ``time.monotonic`` seconds.
        retired: receives each loop that is no longer watched, while it can still be read; in any thread.
        waiters: returns the finder of waiting callbacks, None if there is none.
        diagnose_early: receives an observation of an ongoing block, its case, and a function to call once diagnosed.
    """

    observed: Callable[[Observation], None]
    ticked: Callable[[float], None]
    retired: Callable[[WatchedLoop], object]
    waiters: Callable[[], Waiters | None]
    diagnose_early: Callable[[Observation, Case, Callable[[], object]], object]


class Watcher:
    """Watches loops from a daemon thread, started with the first loop.

    Args:
        config: returns the current settings.
        hooks: callbacks of the watcher.
        faults: where failures of the watcher's parts are counted.
        sources: sources of the blocking callback's labels, beside those of the settings.

    Attributes:
        loops: the watched loops.
        paused: whether no loop is read.
        stretch: factor by which its intervals are stretched, 1 or more.
    """

    def __init__(
        self, config: Callable[[], Config], hooks: WatcherHooks, faults: Faults, sources: Sequence[Any]
    ) -> None:
        self._config, self._hooks, self._faults = config, hooks, faults
        self.loops: tuple[WatchedLoop, ...] = ()
        self._retiring: set[WatchedLoop] = set()
        self.gc = GcMonitor(lambda exc: faults.add("gc", exc, for_good=True), stacks.of_caller)
        self.stretch = 1.0
        self.thread = OwnThread("watcher", self._run, self.wake)
        self._alarm = Alarm()
        self._guard = threading.RLock()  # a finalizer or signal handler of the program may run in between
        self._collecting = threading.RLock()
        self._walking = threading.Lock()  # only one thread switches off the garbage collector while it reads stacks
        self._ticked = threading.Condition()
        self._ticks = 0
        self.paused = False
        self._contention = Contention()
        self._sampler = Sampler(config, faults, self._contention, sources, self._goes_on)
        self._woken_at = 0.0
        self._rest_ends = 0.0
        self._lapse = Lapse(self.glimpse, self.came_late, LATE)
        self._kept_at = 0.0
        self._only_looks_since: float | None = None
        self._ticked_at = 0.0
        self._settling = 0  # threads that wait for all finished blocks
        self._glimpsed: Sequence[Glimpse] = ()
        self._glimpses: dict[Suspect, Sample] = {}
        self._grace_until = time.monotonic() + config().grace

    # -- life -----------------------------------------------------------------------------------------------------

    def add(self, loop: WatchedLoop) -> None:
        """Watch ``loop``; starts the thread if necessary."""
        with self._guard:
            self.loops = (*self.loops, loop)
        self.ensure_thread()

    def ensure_thread(self) -> None:
        """Start the thread unless it runs."""
        self.thread.start()
        self.wake()

    def remove(self, loops: Iterable[WatchedLoop]) -> None:
        """Stop watching ``loops`` and leave them as they were."""
        gone = set(loops)
        with self._guard:
            gone &= set(self.loops)
            self.loops = tuple(loop for loop in self.loops if loop not in gone)
            self._retiring |= gone
        for loop in gone:
            try:
                with self._faults.guard("probe"):
                    self.collect(loop)
                    self._hooks.retired(loop)
            finally:
                self._detach(loop)

    def detach(self, target: Loop) -> None:
        """Stop watching ``target``, whose memory is freed once this has returned: it is not read after that.

        Also where another thread is removing it, and still reads its last statistics.
        """
        self.remove([loop for loop in self.loops if loop.ref() is target])
        with self._guard:
            retiring = [loop for loop in self._retiring if loop.ref() is target]
        for loop in retiring:
            self._detach(loop)

    def _detach(self, loop: WatchedLoop) -> None:
        with self._faults.guard("probe"):
            loop.detach()
        with self._guard:
            self._retiring.discard(loop)

    def wake(self) -> None:
        """Make the thread tick now."""
        self._woken_at = time.monotonic()
        self._alarm.wake()

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread and detach from every loop; waits at most ``timeout`` seconds."""
        self.thread.end(timeout)
        self.remove(self.loops)
        self._drop_glimpses()
        self.gc.stop()

    def abandon(self) -> None:
        """Drop every loop in a forked child: the thread does not exist there, and a lock may never be released."""
        loops, self.loops = self.loops, ()
        self._drop_glimpses()
        for loop in loops:
            loop.abandon()

    def _drop_glimpses(self) -> None:
        """Release what was glimpsed: it refers to tasks and contexts of the program."""
        self._glimpsed, self._glimpses = (), {}

    def settle(self, timeout: float) -> bool:
        """Wait until every finished block is passed on, at most ``timeout`` seconds; return whether it was."""
        if not self.alive or self.is_own_thread(threading.get_ident()):
            return not self.loops
        self._settling += 1
        try:
            ends, wanted = time.monotonic() + timeout, self._ticks + 2
            while self._ticks < wanted and time.monotonic() < ends and self.alive:
                self.wake()
                with self._ticked:
                    self._ticked.wait(min(0.01, timeout))
            return self._ticks >= wanted
        finally:
            self._settling -= 1

    def collect(self, loop: WatchedLoop) -> None:
        """Pass on the finished blocks of ``loop`` now; from any thread."""
        with self._collecting:
            blocks = loop.probe.finished()
            if blocks:
                self._complete_glimpses(loop)
            for block in blocks:
                self._finish(loop, block)

    def _complete_glimpses(self, loop: WatchedLoop) -> None:
        """Complete the samples that were left to a later tick: a block of ``loop`` is over."""
        for suspect in [known for known in list(self._glimpses) if known.loop is loop]:
            sample = self._glimpses.pop(suspect, None)
            if sample is not None:
                self._faults.run("sampling", self._sampler.complete, suspect, sample)

    def _goes_on(self) -> None:
        """Look at once if the thread has just got the GIL back, in the midst of its work."""
        if self.is_own_thread(threading.get_ident()):
            self._lapse.goes_on()

    def wake_if_blocked(self, loop: WatchedLoop) -> None:
        """Tick soon after ``loop`` has stopped, if a block of it may have ended with that."""
        if loop.episodes:
            self.wake()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self.thread.exists

    @property
    def cpu(self) -> float:
        """Processor seconds of its thread."""
        return self.thread.cpu

    def is_own_thread(self, ident: int) -> bool:
        """Whether ``ident`` is the watcher's thread."""
        return self.thread.ident == ident

    @property
    def _waiters(self) -> Waiters | None:
        """The finder of waiting callbacks, None while tracing is not in use."""
        waiters = self._hooks.waiters()
        return waiters if waiters is not None and waiters.in_use else None

    def expect_typed(self, is_expected: bool) -> None:
        """Set whether blocks by code typed at a prompt are expected."""
        self._sampler.expects_typed = is_expected

    # -- ticking --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        facts.load_reader()
        compile_now(Baseline, Block, Caller, Case, Episode, Lateness, Observation, stacks.RawStack, Sample)
        planned, self._rest_ends = time.monotonic(), 0.0
        while self.thread.stays():
            # The thread's outermost guard: without the thread, nothing is watched.
            after = self._faults.attempt("watcher", functools.partial(self._turn, planned), None)
            if after is None:
                self._sit_out()
            planned = time.monotonic() if after is None else after

    def _turn(self, planned: float) -> float:
        """Tick, and sleep until the next tick; return when that was due."""
        planned = self._tick(planned)
        with self._ticked:
            self._ticks += 1
            self._ticked.notify_all()
        self._announce_visit(planned)
        if self.thread.is_asked:
            return planned
        if not self.loops:
            self._drop_glimpses()  # there is nothing to do until a loop is added
        if self._rest_ends == 0.0 and self.loops:
            self._contention.waited(time.monotonic())  # what the tick itself went through is none of the next one's
        is_woken = self._alarm.wait(max(planned - time.monotonic(), 0.0) if self.loops else -1)
        # The tick was due from then on, and could not run until the GIL was free.
        planned = self._woken_at if is_woken else planned
        self._glimpsed = self.glimpse() if time.monotonic() - planned >= LATE else ()
        if is_woken:
            self._rest_ends = 0.0
        return planned

    def _sit_out(self) -> None:
        """Skip ticks for a moment after a fault, and while the watcher is switched off; probes go on."""
        self._drop_glimpses()
        ends = time.monotonic() + pacing.LONGEST_TICK
        while not self.thread.is_asked and (time.monotonic() < ends or self._faults.is_off("watcher")):
            self._alarm.wait(pacing.LONGEST_TICK)

    def _announce_visit(self, when: float) -> None:
        """Ask busy loops to release the GIL at the watcher's next tick, ``when``."""
        self._each(lambda loop: loop.probe.expect(when))

    def _tick(self, planned: float) -> float:
        """Read every loop once; return when the next tick is due (``time.monotonic`` seconds)."""
        now = time.monotonic()
        self._lapse.begin(now, self._contention.own)
        late = max(now - planned, 0.0)
        config = self._config()
        moment = Moment(now, planned, late)
        if late >= LATE:
            moment = moment._replace(waited=self._contention.waited(now))
            self._judge(self._glimpsed, moment)
        self._glimpsed = ()
        if self._only_looks(moment):
            if late >= LATE:
                self._contention.note(self._contention.take_kept(now), planned, now, moment.waited)
            self._each(lambda loop: loop.probe.busy_since(now, late) if loop.is_running else IDLE)
            if now - self._ticked_at >= config.hang_after / 4:  # or the hang timer would take the program for hung
                self._end_tick(now)
            return time.monotonic() + pacing.SHORTEST_GAP
        self._only_looks_since = None
        self._lapse.goes_on()
        rests = now < self._rest_ends and late < LATE and not self._glimpses
        if rests and all(self._each(lambda loop: loop.probe.at_rest())):
            return now + pacing.tick_of(pacing.WITHIN_TICK * lowest(config), self.stretch)
        gone = [loop for loop in self.loops if loop.gone]
        if gone:
            self.remove(gone)
        if (waiters := self._hooks.waiters()) is not None:
            waiters.renew(self.loops, wanted=not self.paused and now >= self._grace_until)
        glimpses, self._glimpses = self._glimpses, {}
        if not self.paused:
            suspects = [found for found in self._each(lambda loop: self._suspect(loop, moment, config)) if found]
            if (suspects or glimpses or late >= LATE) and not self._faults.is_off("sampling"):
                with self._faults.guard("sampling", about=suspects[0].since if suspects else None):
                    self._sample(suspects, moment, glimpses)
            self._lapse.goes_on()
            self._each(lambda loop: self._collect_and_forget(loop, now))
            self._lapse.goes_on()
        self._each(lambda loop: loop.end_window(now) if loop.window_is_over(now) else None)
        self._end_tick(now)
        after = self._next(time.monotonic(), config)
        self._lapse.goes_on()
        return after

    def _end_tick(self, now: float) -> None:
        self._ticked_at = now
        self.gc.forget(now - FORGOTTEN_AFTER)
        self._hooks.ticked(now)

    def _only_looks(self, moment: Moment) -> bool:
        """Whether to leave everything else to a later tick: a call has kept the GIL, and the next may begin.

        A tick takes longer than one turn with the GIL. In the midst of it the thread would get its next turn, at the
        end of the next call, and not look.
        """
        computed = max(self._each(lambda loop: loop.computed()), default=0.0)
        if self.paused or self._settling or not self.was_kept() or computed < moment.kept / 2:
            return False  # where another thread kept the GIL, that one is to be found at once
        self._only_looks_since = self._only_looks_since or moment.now
        return moment.now - self._only_looks_since < PUT_OFF

    def glimpse(self) -> Sequence[Glimpse]:
        """Take the stacks of the loops now, unless another thread of the agent does."""
        if self.paused or self.thread.is_asked or self._faults.is_off("watcher") or not self._walking.acquire(False):
            return ()
        try:
            return self._faults.attempt("sampling", functools.partial(self._sampler.glimpse, self.loops), ())
        finally:
            self._walking.release()

    def look(self) -> None:
        """Sample the loops that are blocked, in the calling thread, which may be that of one.

        For a thread that has kept the watcher's from running: the watcher's next tick may come when the block is over.
        """
        now = time.monotonic()
        self._judge(self.glimpse(), Moment(now, now, 0.0))

    def was_kept(self) -> bool:
        """Whether a call has just kept the GIL for half of the threshold, or longer."""
        return time.monotonic() - self._kept_at < JUST_KEPT

    def came_late(self, glimpsed: Sequence[Glimpse], late: float, waited: Waited) -> None:
        """Judge what a thread of the agent glimpsed when it could not run for ``late`` seconds, mostly for the GIL.

        The thread that releases the GIL at the end of a long call may be in the next one before the watcher's next
        tick: where such calls follow each other, each of them ends in the midst of the work of one of these threads.
        """
        now = time.monotonic()
        if self.is_own_thread(threading.get_ident()):
            self._contention.note(self._contention.take_kept(now), now - late + waited.cpu, now, waited)
        self._judge(glimpsed, Moment(now, now - late, late, waited))
        if self._glimpses and not self.is_own_thread(threading.get_ident()):
            self.wake()

    def _judge(self, glimpsed: Sequence[Glimpse], moment: Moment) -> None:
        """Make samples of what was glimpsed; they are completed in the next tick."""
        if moment.kept >= lowest(self._config()) / 2:
            self._kept_at = moment.now
        if glimpsed:
            self._faults.run("sampling", self._sampler.judge, glimpsed, moment, self._glimpses)

    def _each(self, look: Callable[[WatchedLoop], Found]) -> list[Found]:
        """Apply ``look`` to every loop; a loop that cannot be read is no longer watched."""
        found = []
        for loop in self.loops:
            try:
                found.append(look(loop))
            except Exception as exc:  # noqa: BLE001 - the boundary between one loop's probe and the other loops
                self._faults.add("probe", exc)
                self.remove((loop,))
        return found

    def _suspect(self, loop: WatchedLoop, moment: Moment, config: Config) -> Suspect | None:
        """Return the loop and the start of its busy span, if it may be blocked."""
        now, late = moment.now, moment.late
        overdue = max(now - loop.heart.due, 0.0)
        since = loop.since = loop.probe.busy_since(now, late, overdue, moment.kept) if loop.is_running else IDLE
        if loop.is_blind:
            self._faults.say(
                logging.INFO, "loopwatch: the selector of loop %r was replaced: it is not watched until it runs again",
                loop.name,
            )  # fmt: skip
            self.remove((loop,))
            return None
        age, least = now - since, lowest(config)
        episode = loop.episodes.get(since) if age >= least else None
        is_reported = age >= self._limit(episode, config) and loop.expectations.at(now) is None
        is_expected = episode is not None and expected_by(episode.samples) is not None
        loop.blocked_since = since if is_reported and not is_expected else None
        return Suspect(loop, since) if age >= least / 2 or (late >= LATE and age >= late / 2) else None

    def _collect_and_forget(self, loop: WatchedLoop, now: float) -> None:
        self.collect(loop)
        if loop.episodes:
            loop.expire_episodes(now)

    def _next(self, now: float, config: Config) -> float:
        self._rest_ends = 0.0
        if not self.paused and self.loops and all(self._each(lambda loop: self._may_doze(loop, now))):
            for loop in self.loops:  # renews the clocks that the next block is compared with
                self._is_active(loop, now)
            # A poll that does not return for its timer is looked into.
            looks = [due + lowest(config) / 2 for loop in self.loops if (due := loop.heart.due) > now]
            return min([now + self.longest_sleep(), *looks])
        if not self.paused and self.loops and all(loop.rests for loop in self.loops):
            self._rest_ends = now + QUIET_SPELL
        looks = self._each(lambda loop: self._next_look(loop, now, lowest(config)))
        return min(looks, default=now + pacing.LONGEST_TICK * self.stretch)

    def longest_sleep(self) -> float:
        """Return the longest time between two ticks, in seconds."""
        return max(min(LONGEST_DOZE, self._config().hang_after / 2), pacing.LONGEST_TICK) * self.stretch

    def _may_doze(self, loop: WatchedLoop, now: float) -> bool:
        """Whether ``loop`` permits an idle sleep: it has been quiet, and wakes the watcher when it gets busy."""
        return loop.is_quiet(now) and not loop.episodes and loop.probe.wake_when_busy(self.wake)

    def _next_look(self, loop: WatchedLoop, now: float, threshold: float) -> float:
        look = pacing.next_look(self._view(loop, now, threshold), threshold, self.stretch)
        if look.invite is not None:
            loop.heart.invite(look.invite, self.wake)
        elif not look.keeps:
            loop.heart.left()
        return look.at

    def _view(self, loop: WatchedLoop, now: float, threshold: float) -> pacing.View:
        baseline, heart = loop.baseline, loop.heart
        rests = loop.rests and baseline is not None and now - baseline.clocks.at < QUIET_SPELL
        since = loop.probe.busy_since(now) if loop.is_running and not self.paused and not rests else IDLE
        episode = loop.episodes.get(since)
        needs_clocks = not rests and now - since < threshold / 2
        return pacing.View(
            now=now,
            rests=rests,
            since=since,
            samples=0 if episode is None else len(episode.samples),
            is_active=needs_clocks and (self._is_active(loop, now) or since != IDLE),
            is_quiet=loop.quiet,
            is_exact=loop.probe.traits.dates_passes,
            is_traced=self._waiters is not None,
            was_kept=self.was_kept(),
            was_blocked=now - loop.last_blocked < LATELY,
            beat_due=heart.due,
            last_beat=heart.last,
            beat_interval=heart.current_interval,
        )

    def _is_active(self, loop: WatchedLoop, now: float) -> bool:
        """Whether the loop did notable work since the last call; also renews its baseline."""
        before, counters = loop.baseline, loop.probe.counters(now)
        wall = now - before.clocks.at if before is not None else 0.0
        waited = counters.idle - before.idle if before is not None and counters.idle is not None else 0.0
        active = wall <= 0 or 1 - waited / wall >= ACTIVE_SHARE
        # Clocks that cost a file are read seldom while nothing happens, and while the loop works.
        pace = SELDOM if active or loop.quiet else 1.0
        loop.renew_baseline(now, counters.idle or 0.0, pace)
        self._contention.renew(now, pace)
        return active

    # -- sampling -------------------------------------------------------------------------------------------------

    def _sample(self, suspects: list[Suspect], moment: Moment, known: Samples) -> None:
        with self._walking:
            seen, lateness = self._sampler.sample(self.loops, suspects, moment, known)
        if lateness is not None:
            held = lateness.held
            self._each(lambda loop: loop.probe.held_up(moment.now, held))
        for (loop, since), episode in seen:
            is_expected = expected_by(episode.samples) is not None
            if is_expected and self._waiters is not None:
                loop.case_of(since).is_expected = True
            if is_expected or loop.expectations.at(moment.now) is not None:
                continue
            if loop.probe.busy_since(time.monotonic()) != since:  # it was sampled at its very end
                continue
            if loop.probe.traits.shows_handles and waits_in_poll(episode.samples):
                continue  # for the GIL or for a processor, or it was stopped: told when it is over
            if (waiters := self._waiters) is not None:
                self._prepare_waiters(waiters, loop, since, episode, moment.now)
            config = self._config()
            if moment.now - since >= max(config.hang_after, self._limit(episode, config)) and not episode.announced:
                self._announce(loop, since, episode)

    def _prepare_waiters(self, waiters: Waiters, loop: WatchedLoop, since: float, episode: Episode, now: float) -> None:
        age, threshold = now - since, self._limit(episode, self._config())
        loop.case_of(since).limit = threshold
        if age >= threshold / 2:
            waiters.suspected(loop, since, threshold, episode.samples[-1].stack.behind)
        if age < threshold:
            return
        case = waiters.held(loop, since, episode, main_caller(episode).span)
        if case is not None:
            block = Block(since, loop.probe.started(since), time.monotonic(), shared=loop.probe.traits.shares_passes)
            seen = self._observation(loop, block, episode, ongoing=True)
            self._hooks.diagnose_early(seen, case, lambda: waiters.annotate_in_advance(loop, case))

    # -- passing on -----------------------------------------------------------------------------------------------

    def _announce(self, loop: WatchedLoop, since: float, episode: Episode) -> None:
        episode.announced = True
        now = time.monotonic()
        block = Block(key=since, start=since, end=now, shared=loop.probe.traits.shares_passes)
        if episode.samples:
            block.victims = episode.samples[-1].waiting
        self._hand_on(self._observation(loop, block, episode, ongoing=True))

    def _finish(self, loop: WatchedLoop, block: Block) -> None:
        """Complete the observation of a finished block and pass it on."""
        episode = loop.close_episode(block)
        limit = self._limit(episode, self._config())
        if block.end < self._grace_until:
            return
        reached = None
        if self._waiters is not None:  # spans of the block's waiters may be annotated later than now
            case = loop.case_of(block.key, episode.id)
            episode.id, reached = case.id, case.reached
        if episode.samples and block.victims is not None:
            # Callbacks behind the blocking one in its own pass have run by the time the pass ends.
            block.victims += episode.samples[-1].stack.behind
            if reached is not None and loop.probe.traits.ends_first:
                block.victims -= 1  # the agent's handle ran there, so that one was left for the next pass, and counted
        if reached is not None and not loop.probe.traits.ends_first:
            block.end = max(min(block.end, reached), block.start)  # from then on it waited for the annotation
        expectation = None if episode.announced else loop.expectations.of(block.start, block.end)
        if expectation is None and not episode.announced:
            reason = expected_by(episode.samples) or self._expected_within(loop, block, episode)
            expectation = None if reason is None else loop.expectations.always(reason, loop.name)
        seen = self._observation(loop, block, episode, ongoing=False)
        seen.expectation = expectation
        if seen.end - seen.start < limit and not episode.announced and limit > lowest(self._config()):
            if self._waiters is not None:  # a span for it may have begun
                seen.is_below = True
                self._hand_on(seen)
            return
        if expectation is None:
            loop.count(block)
        self._hand_on(seen)

    def _expected_within(self, loop: WatchedLoop, block: Block, episode: Episode) -> str | None:
        """Return why ``block`` is expected, by when expected code was entered and left; None if it is not."""
        if loop.thread is None:
            return None
        doubt = DOUBT if loop.probe.traits.dates_passes else BEAT_DOUBT + block.uncertainty
        spans = spans_within(loop.thread.ident, block.start - doubt, block.end + doubt)
        return expected_within(episode.samples, spans, block) if spans else None

    def _limit(self, episode: Episode | None, config: Config) -> float:
        """Return the threshold in force for a block, in seconds: that of its callback."""
        if not config.thresholds:
            return config.threshold
        caller = Caller(None, None) if episode is None else main_caller(episode)
        return self._faults.attempt("thresholds", lambda: limit_of(config, caller), config.threshold)

    def _hand_on(self, seen: Observation) -> None:
        self._goes_on()
        self._hooks.observed(seen)

    def _observation(self, loop: WatchedLoop, block: Block, episode: Episode, *, ongoing: bool) -> Observation:
        clocks = [sample.clocks for sample in episode.samples if sample.clocks is not None]
        origin = Origin(
            loop.name, "" if loop.thread is None else loop.thread.name, os.getpid(),
            time.time() - (time.monotonic() - block.start),
        )  # fmt: skip
        measured = Measured(
            # Clocks are read after the stack, when the block may have been over.
            usage=usage(loop, block, [item for item in clocks if item.at <= block.end]),
            hindrance=self._contention.during(block),
            gc=self.gc.within(block.start, block.end),
            collector=self.gc.elsewhere(block.start, block.end, None if loop.thread is None else loop.thread.ident),
            switch_interval=sys.getswitchinterval(),
            traced=len(episode.samples) < 2 and facts.traced(),  # costs a file; needed only where samples are lacking
        )
        seen = observation(origin, block, episode, measured, ongoing=ongoing)
        seen.limit = self._limit(episode, self._config())
        return seen
