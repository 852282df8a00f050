"""The watcher thread: checks all loops periodically, samples a blocked one closely, passes on its observations.

Everything here runs beside the loops, never on them. Order matters within a tick: stacks are read first, in one go;
files of ``/proc`` only afterwards, because reading them gives up the GIL and the loop moves on.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import weakref
from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from loopwatch.config import Config
from loopwatch.core.dataclasses import compile_now
from loopwatch.core.faults import Faults
from loopwatch.core.frames import current_frames
from loopwatch.core.median import median
from loopwatch.core.originals import time
from loopwatch.core.own_thread import OwnThread
from loopwatch.events import Evidence
from loopwatch.system import threads as facts
from loopwatch.system.syscalls import LOCK_CALLS, kind_of
from loopwatch.system.threads import GcMonitor
from loopwatch.watch import prompts, stacks, task_info
from loopwatch.watch.contention import LATE, Contention, Hindrance, Lateness
from loopwatch.watch.expectations import Expectation
from loopwatch.watch.observation import Baseline, Caller, Case, Episode, Observation, Sample
from loopwatch.watch.probes.base import IDLE, Block, Loop
from loopwatch.watch.usage import usage
from loopwatch.watch.watched_loop import QUIET_SPELL, WatchedLoop

if TYPE_CHECKING:
    from loopwatch.watch.waiters import Waiters

ACTIVE_SHARE = 0.05
"""A loop busy for less than this share of the time since the last tick counts as idle."""
SHORTEST_TICK, LONGEST_TICK = 0.005, 0.25
INVITED = 0.4
"""Share of a tick by which it may come earlier or later, so that it comes with a beat of the loop."""
EXACT_TICK = 0.9
"""Thresholds between two looks at a busy loop of asyncio."""
QUIET_TICK = 2.0
"""Thresholds between two looks at a loop that is quiet."""
LONGEST_DOZE = 1.0
"""s between two ticks while every loop is quiet and will wake the watcher itself."""
SHORTEST_GAP, LONGEST_GAP = 0.01, 0.1
"""s between two samples of a blocked loop; a quarter of the block's age between these bounds."""
FORGET_AFTER = 0.5
"""s for which samples of a callback that has ended are kept: until then it turns out whether it was a block."""
SELDOM = 5.0
"""Factor for the time between two readings of clocks that cost a file."""
MAX_CALLERS = 50
"""Callbacks of one pass whose task and labels are read."""
MAX_SAMPLES = 200
"""Samples kept of one block; beyond, every second one is dropped and the gap doubles."""
Found = TypeVar("Found")


class Watcher:
    """Watches loops from a daemon thread, which is started with the first loop.

    Args:
        config: current settings.
        tell: takes each finished or ongoing observation; must not block.
        faults: where failures of the watcher's parts are counted.
        each_tick: called at the end of each tick with (now), for the agent's own house-keeping.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        tell: Callable[[Observation], None],
        faults: Faults,
        each_tick: Callable[[float], None],
    ) -> None:
        self._config = config
        self._tell = tell
        self._faults = faults
        self._each_tick = each_tick
        self.loops: tuple[WatchedLoop, ...] = ()
        self._retiring: set[WatchedLoop] = set()
        self.gc = GcMonitor(lambda exc: faults.add("gc", exc, for_good=True))
        self.stretch = 1.0
        self.thread = OwnThread("watcher", self._run, self.wake)
        self.sources: list[Any] = []
        self.victims: Waiters | None = None
        self.retired: Callable[[WatchedLoop], object] = lambda _loop: None
        """Called with each loop that is not watched any more, while it can still be read; in any thread."""
        self.foresee: Callable[[Observation, Case, Callable[[], object]], object] = lambda _seen, _case, _then: None
        self._alarm = allocate_lock()
        self._alarm.acquire()
        self._guard = threading.RLock()  # a finalizer or signal handler of the program may come in between
        self._collecting = threading.RLock()
        self._ticked = threading.Condition()
        self._ticks = 0
        self.paused = False
        self.expects_typed = False
        """Whether blocks by code of a prompt are expected."""
        self._is_without_stacks = False
        self._contention = Contention()
        self._woken_at = 0.0
        self._rest_ends = 0.0
        self._grace_until = time.monotonic() + config().grace

    # -- life -----------------------------------------------------------------------------------------------------

    def add(self, loop: WatchedLoop) -> None:
        """Watch ``loop``; starts the thread if need be."""
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
                    self.retired(loop)
            finally:
                self._detach(loop)

    def detach(self, target: Loop) -> None:
        """Stop watching ``target``, whose memory goes away once this has returned: nobody reads it any more.

        Also where another thread has begun to stop watching it, and still reads what it has last seen.
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
        """Have the thread tick now."""
        self._woken_at = time.monotonic()
        try:
            self._alarm.release()
        except RuntimeError:  # it is on its way already
            pass

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread and detach from every loop; waits at most ``timeout`` seconds."""
        self.thread.end(timeout)
        self.remove(self.loops)
        self.gc.stop()

    def abandon(self) -> None:
        """Drop every loop in a forked child: the thread is not there, and a lock may never be released."""
        loops, self.loops = self.loops, ()
        for loop in loops:
            loop.abandon()

    def settle(self, timeout: float) -> bool:
        """Have every block that has ended handed on, at most ``timeout`` s from now; return whether that was done."""
        if not self.alive or self.is_own_thread(threading.get_ident()):
            return not self.loops
        ends, wanted = time.monotonic() + timeout, self._ticks + 2
        while self._ticks < wanted and time.monotonic() < ends and self.alive:
            self.wake()
            with self._ticked:
                self._ticked.wait(min(0.01, timeout))
        return self._ticks >= wanted

    def collect(self, loop: WatchedLoop) -> None:
        """Hand on the blocks of ``loop`` that have ended, now; from any thread."""
        with self._collecting:
            for block in loop.probe.finished():
                self._finish(loop, block)

    def wake_if_blocked(self, loop: WatchedLoop) -> None:
        """Have a loop that has stopped looked at soon, if a block of it may have ended with it."""
        if loop.episodes:
            self.wake()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self.thread.exists

    @property
    def cpu(self) -> float:
        """Processor s of its thread."""
        return self.thread.cpu

    def is_own_thread(self, ident: int) -> bool:
        """Whether ``ident`` is the watcher's thread."""
        return self.thread.ident == ident

    # -- ticking --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        compile_now(Baseline, Block, Caller, Case, Episode, Lateness, Observation, stacks.RawStack, Sample)
        planned, self._rest_ends = time.monotonic(), 0.0
        while self.thread.stays():
            # The thread's outermost seam: without it, nothing is watched.
            after = self._faults.attempt("watcher", functools.partial(self._turn, planned), None)
            if after is None:
                self._sit_out()
            planned = time.monotonic() if after is None else after

    def _turn(self, planned: float) -> float:
        """Tick, and sleep until the next one; return when that was to be."""
        planned = self._tick(planned)
        with self._ticked:
            self._ticks += 1
            self._ticked.notify_all()
        self._announce_visit(planned)
        if self.thread.is_asked:
            return planned
        # Without loops there is nothing to do until one is added.
        if self._alarm.acquire(True, max(planned - time.monotonic(), 0.0) if self.loops else -1):
            # It wanted to run from then on; until the GIL was free it could not.
            planned, self._rest_ends = self._woken_at, 0.0
        return planned

    def _sit_out(self) -> None:
        """Look at nothing for a moment after a fault, and while the watcher is switched off; probes go on."""
        ends = time.monotonic() + LONGEST_TICK
        while not self.thread.is_asked and (time.monotonic() < ends or self._faults.is_off("watcher")):
            self._alarm.acquire(True, LONGEST_TICK)

    def _announce_visit(self, when: float) -> None:
        """Have busy loops let the watcher have the GIL when it comes."""
        self._each(lambda loop: loop.probe.expect(when))

    def _tick(self, planned: float) -> float:
        """Look at every loop once; return when to look again (``time.monotonic`` seconds)."""
        now = time.monotonic()
        late = max(now - planned, 0.0)
        config = self._config()
        glimpses = self._glimpse(now, late, config) if late >= LATE and not self.paused else {}
        if now < self._rest_ends and late < LATE and all(self._each(lambda loop: loop.probe.at_rest())):
            return now + self._tick_of(QUIET_TICK * config.threshold)
        gone = [loop for loop in self.loops if loop.gone]
        if gone:
            self.remove(gone)
        if self.victims is not None:
            self.victims.renew(self.loops, wanted=not self.paused and now >= self._grace_until)
        if not self.paused:
            suspects = [found for found in self._each(lambda loop: self._suspect(loop, now, config, late)) if found]
            if (suspects or glimpses or late >= LATE) and not self._faults.is_off("sampling"):
                with self._faults.guard("sampling", about=suspects[0][1] if suspects else None):
                    self._sample(suspects, planned, now, late, config=config, glimpses=glimpses)
            self._each(lambda loop: self._collect_and_forget(loop, now))
        self._each(lambda loop: loop.end_window(now) if loop.window_is_over(now) else None)
        self._each_tick(now)
        return self._next(time.monotonic(), config)

    def _each(self, look: Callable[[WatchedLoop], Found]) -> list[Found]:
        """Apply ``look`` to every loop; one that cannot be read is not watched any more."""
        found = []
        for loop in self.loops:
            try:
                found.append(look(loop))
            except Exception as exc:  # noqa: BLE001 - the seam between one loop's probe and the other loops
                self._faults.add("probe", exc)
                self.remove((loop,))
        return found

    def _suspect(self, loop: WatchedLoop, now: float, config: Config, late: float) -> tuple[WatchedLoop, float] | None:
        """Return the loop and the start of what holds it, if it may be blocked."""
        overdue = max(now - loop.heart.due, 0.0)
        since = loop.since = loop.probe.busy_since(now, late, overdue) if loop.is_running else IDLE
        if loop.is_blind:
            self._faults.say(
                logging.INFO, "loopwatch: the selector of loop %r was replaced: it is not watched until it runs again",
                loop.name,
            )  # fmt: skip
            self.remove((loop,))
            return None
        age = now - since
        is_told = age >= config.threshold and loop.expectations.at(now) is None
        loop.blocked_since = since if is_told and not _is_typed(loop.episodes.get(since)) else None
        return (loop, since) if age >= config.threshold / 2 or (late >= LATE and age >= late / 2) else None

    def _collect_and_forget(self, loop: WatchedLoop, now: float) -> None:
        self.collect(loop)
        if loop.episodes:
            self._forget_ended(loop, now)

    def _next(self, now: float, config: Config) -> float:
        self._rest_ends = 0.0
        if not self.paused and self.loops and all(self._each(lambda loop: self._may_doze(loop, now))):
            for loop in self.loops:  # while nothing happens: what comes next is compared with these clocks
                self._is_active(loop, now)
            return now + self.longest_sleep()
        if not self.paused and self.loops and all(loop.rests for loop in self.loops):
            self._rest_ends = now + QUIET_SPELL
        looks = self._each(lambda loop: self._next_look(loop, now, config.threshold))
        return min(looks, default=now + LONGEST_TICK * self.stretch)

    def longest_sleep(self) -> float:
        """Return the longest time between two ticks, s."""
        return max(min(LONGEST_DOZE, self._config().hang_after / 2), LONGEST_TICK) * self.stretch

    def _may_doze(self, loop: WatchedLoop, now: float) -> bool:
        """Whether ``loop`` has been quiet, and will wake the watcher when it is not any more."""
        return loop.is_quiet(now) and not loop.episodes and loop.probe.wake_when_busy(self.wake)

    def _next_look(self, loop: WatchedLoop, now: float, threshold: float) -> float:
        baseline = loop.baseline
        if loop.rests and baseline is not None and now - baseline.clocks.at < QUIET_SPELL:
            return now + self._tick_of(QUIET_TICK * threshold)  # it waits, as it did before: nothing to renew yet
        since = loop.probe.busy_since(now) if loop.is_running and not self.paused else IDLE
        age = now - since
        if age >= threshold / 2:
            gap = min(max(age / 4, SHORTEST_GAP), LONGEST_GAP)
            episode = loop.episodes.get(since)
            if episode is not None and len(episode.samples) >= MAX_SAMPLES / 2:
                gap = max(gap, age / 50)
            # Not beyond the longest tick: where only these looks tell that it is over, it must not be told much later.
            return now + min(gap * self.stretch, max(gap, LONGEST_TICK))
        # The cost lies in the samples; the first look at a block is stretched only in an emergency.
        active = self._is_active(loop, now) or since != IDLE
        if active and age < threshold / 4 and not loop.probe.handles and now < loop.heart.due <= now + threshold:
            # Rather with a beat, where it need not wait for the GIL, and then seldom: if a beat between two looks is
            # missing, that tells how long the loop has been held.
            tick, last = self._tick_of(threshold), loop.heart.last
            beat = loop.heart.invite(last + (1 - INVITED) * tick, self.wake)
            # Whoever waits must be told while the block lasts.
            patience = 1.0 if self.victims is not None and self.victims.in_use else 1 + INVITED
            return max(min(beat, last + patience * tick), now + SHORTEST_GAP)
        loop.heart.left()
        # Where the start of a block is known exactly, one look within each threshold finds it early enough.
        busy_tick = threshold * EXACT_TICK if loop.probe.handles else threshold / 2
        tick = self._tick_of(busy_tick if active else threshold * (QUIET_TICK if loop.quiet else 1))
        return now + tick if age < 0 else min(now + tick, max(since + threshold / 2, now + SHORTEST_GAP))

    def _tick_of(self, seconds: float) -> float:
        return min(max(seconds, SHORTEST_TICK), LONGEST_TICK) * max(self.stretch / 4, 1.0)

    def _is_active(self, loop: WatchedLoop, now: float) -> bool:
        """Whether the loop did anything worth mentioning since the last call; also renews its baseline."""
        before, counters = loop.baseline, loop.probe.counters(now)
        wall = now - before.clocks.at if before is not None else 0.0
        waited = counters.idle - before.idle if before is not None and counters.idle is not None else 0.0
        active = wall <= 0 or 1 - waited / wall >= ACTIVE_SHARE
        # What costs a file is read seldom while nothing happens, and while the loop works: that gives up the GIL, and
        # such a loop is slow to give it back.
        pace = SELDOM if active or loop.quiet else 1.0
        loop.renew_baseline(now, counters.idle or 0.0, pace)
        self._contention.renew(now, pace)
        return active

    # -- sampling -------------------------------------------------------------------------------------------------

    def _glimpse(self, now: float, late: float, config: Config) -> dict[WatchedLoop, tuple[float, Sample]]:
        """Sample every loop at once, when the watcher has had to wait for the GIL: it will not have it for long.

        Who gave it up has been waiting since, and wants it back 5 ms (``sys.getswitchinterval``) after that, of which
        the system takes one or two to wake this thread: what comes first in a tick may be all that is seen of a call.
        """
        found = {}
        if not self._faults.is_off("sampling"):
            with self._faults.guard("sampling"), stacks.uncollected():
                frames = current_frames()
                for loop in self.loops:
                    since = (
                        loop.probe.busy_since(now, late, max(now - loop.heart.due, 0.0)) if loop.is_running else IDLE
                    )
                    if now - since < config.threshold / 2:
                        continue
                    known = loop.episodes.get(since)
                    before = known.samples if known is not None else []
                    sample = self._take(loop, frames, now, late, max_frames=config.max_frames, before=before)
                    if sample is not None and loop.probe.busy_since(time.monotonic()) == since:
                        found[loop] = since, sample
        return found

    def _sample(
        self,
        suspects: list[tuple[WatchedLoop, float]],
        planned: float,
        now: float,
        late: float,
        *,
        config: Config,
        glimpses: dict[WatchedLoop, tuple[float, Sample]],
    ) -> None:
        hog = None
        with stacks.uncollected():
            frames = current_frames()
            if not frames:
                self._say_without_stacks()
            taken = [(loop, since, sample) for loop, (since, sample) in glimpses.items()]
            for loop, since in suspects:
                if loop in glimpses and glimpses[loop][0] == since:
                    continue
                episode = loop.episodes.get(since)
                before = episode.samples if episode is not None else []
                sample = self._take(loop, frames, now, late, max_frames=config.max_frames, before=before)
                if sample is not None and loop.probe.busy_since(time.monotonic()) == since:
                    taken.append((loop, since, sample))
            if late >= LATE or (self._contended(late, taken) and not self._contention.searched_lately(now)):
                innocent = {loop.thread.ident for loop in self.loops if loop.thread is not None} | _own_threads()
                hog = self._contention.find_hog(frames, innocent, config.max_frames, now)
            del frames
        if hog is not None:
            held = self._contention.note(hog, planned, now).held
            self._each(lambda loop: loop.probe.held_up(now, held))
        for loop, since, sample in taken:
            episode = loop.episodes.get(since) or loop.episodes.setdefault(since, Episode(os.urandom(5).hex()))
            self._identify(episode, sample, config)
            self._ask_kernel(loop, sample)
            sample.typed = self.expects_typed and prompts.is_typed(sample.stack.frames)
            episode.samples.append(sample)
            if len(episode.samples) > MAX_SAMPLES:
                del episode.samples[1::2]
            if loop.expectations.at(now) is not None or _is_typed(episode):
                continue
            if self.victims is not None and self.victims.in_use:
                self._see_to_victims(self.victims, loop, since, episode, now)
            if now - since >= max(config.hang_after, config.threshold) and not episode.announced:
                self._announce(loop, since, episode)

    def _say_without_stacks(self) -> None:
        if not self._is_without_stacks:
            self._is_without_stacks = True
            self._faults.say(
                logging.WARNING,
                "loopwatch: stalls are reported without their code while there are sub-interpreters with a GIL of "
                "their own: stacks cannot be read beside them without harm",
            )

    def _see_to_victims(self, victims: Waiters, loop: WatchedLoop, since: float, episode: Episode, now: float) -> None:
        age, threshold = now - since, self._config().threshold
        if age >= threshold / 2:
            victims.suspected(loop, since, threshold, episode.samples[-1].stack.behind)
        if age < threshold:
            return
        case = victims.held(loop, since, episode, _main_caller(episode).span)
        if case is not None:
            block = Block(since, loop.probe.started(since), time.monotonic(), shared=loop.probe.handles)
            seen = self._observation(loop, block, episode, ongoing=True)
            self.foresee(seen, case, lambda: victims.tell_in_advance(loop, case))

    def _take(
        self, loop: WatchedLoop, frames: Any, now: float, late: float, *, max_frames: int, before: list[Sample]
    ) -> Sample | None:
        frame = frames.get(loop.thread.ident) if loop.thread is not None else None
        if frame is None and frames:
            return None
        target = loop.ref()
        if target is None:
            return None
        by_handle = loop.probe.handles
        task = task_info.running_task(target)
        unnamed = task is None and not by_handle
        # On asyncio the base of the heartbeat is the frame of a handle, like that of any other callback.
        base = None if by_handle else loop.heart.base
        stack, handle = stacks.RawStack(()), None
        if frame is not None:
            stack, handle = stacks.take(frame, base, max_frames, tell_calls_apart=unnamed)
        task = task if task is not None else task_info.task_of(handle)
        callback = _reference(handle if by_handle else task)
        if unnamed and stack.frames:
            callback = object() if stack.fresh or not before else before[-1].callback
        sample = Sample(now, late, stack, callback, waiting=len(getattr(target, "_ready", ())) if by_handle else None)
        attempt = self._faults.attempt
        sample.task, sample.coroutine = attempt("task", lambda: task_info.names_of(task), (None, None))
        context = attempt("task", lambda: task_info.context_of(task, handle), None)
        # A copy: by the time it is read the callback may have moved on and reset its variables.
        sample.context = context.copy() if context is not None else None
        return sample

    def _identify(self, episode: Episode, sample: Sample, config: Config) -> None:
        """Note who the sampled callback is, once a callback."""
        context, sample.context = sample.context, None  # kept, it would keep the program's objects
        if sample.callback in episode.callers or len(episode.callers) >= MAX_CALLERS:
            return
        episode.callers[sample.callback] = caller = Caller(sample.task, sample.coroutine)
        if context is not None:
            attempt = self._faults.attempt
            caller.span = attempt("trace", lambda: task_info.span_of(context), None)
            caller.context = task_info.labels(context, (*config.context, *self.sources), attempt)

    def _ask_kernel(self, loop: WatchedLoop, sample: Sample) -> None:
        if loop.thread is not None and not sample.stack.starts_ours:
            # Each file gives up the GIL: where that is hard to get back one must do, or there are no further samples.
            easy = sample.late < LATE
            sample.syscall, sample.wait_channel = loop.thread.waiting_in(channel=easy)
            sample.clocks = loop.thread.clocks(files=easy)

    def _contended(self, late: float, taken: list[tuple[WatchedLoop, float, Sample]]) -> bool:
        """Whether the GIL seems to be taken: for the watcher, or, by its last sample, for a loop's thread."""
        if late >= sys.getswitchinterval() / 2:
            return True
        known = (loop.episodes.get(since) for loop, since, _ in taken)
        return any(episode and episode.samples and episode.samples[-1].syscall in LOCK_CALLS for episode in known)

    # -- handing on -----------------------------------------------------------------------------------------------

    def _announce(self, loop: WatchedLoop, since: float, episode: Episode) -> None:
        episode.announced = True
        now = time.monotonic()
        block = Block(key=since, start=since, end=now, shared=loop.probe.handles)
        if episode.samples:
            block.victims = episode.samples[-1].waiting
        self._hand_on(loop, block, episode, ongoing=True)

    def _finish(self, loop: WatchedLoop, block: Block) -> None:
        """A block is over: complete what was seen of it and hand it on."""
        episode = _episode_of(loop, block) or Episode(os.urandom(5).hex())
        if block.end < self._grace_until:
            return
        reached = None
        if self.victims is not None and self.victims.in_use:  # whose traces may be told of it later than now
            case = loop.case_of(block.key, episode.id)
            episode.id, reached = case.id, case.reached
        if episode.samples and block.victims is not None:
            # What stood behind the blocking callback in its own pass has run by the time the pass ends.
            block.victims += episode.samples[-1].stack.behind
            if reached is not None and loop.probe.handles:
                block.victims -= 1  # ours ran there, so that one of them was left for the next pass, and counted
        if reached is not None and not loop.probe.handles:
            block.end = max(min(block.end, reached), block.start)  # what came then was the wait for its victims' traces
        expectation = None if episode.announced else loop.expectations.of(block.start, block.end)
        if expectation is None and not episode.announced and _is_typed(episode):
            expectation = loop.expectations.always(prompts.REASON, loop.name)
        if expectation is None:
            loop.count(block)
        self._hand_on(loop, block, episode, ongoing=False, expectation=expectation)

    def _hand_on(
        self,
        loop: WatchedLoop,
        block: Block,
        episode: Episode,
        *,
        ongoing: bool,
        expectation: Expectation | None = None,
    ) -> None:
        seen = self._observation(loop, block, episode, ongoing=ongoing)
        seen.expectation = expectation
        self._tell(seen)

    def _observation(self, loop: WatchedLoop, block: Block, episode: Episode, *, ongoing: bool) -> Observation:
        hindrance = self._contention.during(block)
        caller = _main_caller(episode)
        return Observation(
            id=episode.id,
            loop=loop.name,
            thread=loop.thread.name if loop.thread is not None else "",
            started_at=time.time() - (time.monotonic() - block.start),
            start=block.start,
            end=block.end,
            evidence=self._evidence(loop, block, episode.samples, hindrance),
            uncertainty=block.uncertainty,
            shared=block.shared,
            asleep=block.asleep,
            ongoing=ongoing,
            victims=block.victims,
            samples=list(episode.samples),
            hog=hindrance.hog.stack if hindrance.hog is not None else None,
            task=caller.task,
            coroutine=caller.coroutine,
            context=caller.context,
            span=caller.span,
            pid=os.getpid(),
        )

    def _evidence(self, loop: WatchedLoop, block: Block, samples: list[Sample], hindrance: Hindrance) -> Evidence:
        length = block.end - block.start
        clocks = [sample.clocks for sample in samples if sample.clocks is not None]
        # Each is read after its sample, and by then the block may have been over.
        used = usage(loop, block, [item for item in clocks if item.at <= block.end])
        syscall, share = _where(samples)
        return Evidence(
            wall=used.wall,
            cpu=used.cpu,
            process_cpu=used.process_cpu,
            run_queue=used.run_queue,
            throttled=hindrance.throttled,
            gc=self.gc.within(block.start, block.end),
            watcher_late=hindrance.late,
            watcher_starved=hindrance.starved,
            gil_wait=median(sample.late for sample in samples) if samples else None,
            samples=len(samples),
            syscall=syscall,
            syscall_share=share,
            wait_channel=_most_common([sample.wait_channel for sample in samples if sample.wait_channel]),
            hog=None if hindrance.hog is None else min(hindrance.hog.cpu / length, 1.0),
            asleep=block.asleep,
            switch_interval=sys.getswitchinterval(),
            traced=len(samples) < 2 and facts.traced(),  # a file, and of interest only where nobody could look
        )

    def _forget_ended(self, loop: WatchedLoop, now: float) -> None:
        """Drop what was collected of callbacks that ended below the threshold.

        A while after they ended: the block of one that did not is handed out by its probe only when the events that
        waited for it are counted, and ticks may follow each other at once.
        """
        since = loop.probe.busy_since(now) if loop.is_running else IDLE
        for key, episode in list(loop.episodes.items()):
            if key != since and episode.ended is None:
                episode.ended = now
            elif key != since and episode.ended is not None and now - episode.ended > FORGET_AFTER:
                loop.episodes.pop(key, None)


def _reference(owner: Any) -> object:
    """Return what is equal for two samples of one handle or task, and keeps nothing alive."""
    if owner is None:
        return None
    try:
        reference = weakref.ref(owner)
        hash(reference)  # kept by the reference from now on; that of a dead object could not be made
    except TypeError:
        return id(owner)
    return reference


def _episode_of(loop: WatchedLoop, block: Block) -> Episode | None:
    """Take out what was collected of ``block``: under its key, else what was sampled while it lasted.

    A block that only a late beat proved has a key of its own.
    """
    own = loop.episodes.pop(block.key, None)
    if own is not None and own.samples:
        return own
    for key, episode in list(loop.episodes.items()):
        if any(block.start <= sample.at <= block.end for sample in episode.samples):
            found = loop.episodes.pop(key)
            found.id = found.id if own is None else own.id  # under which its victims were told
            return found
    return own


def _own_threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("loopwatch-")}


def _is_typed(episode: Episode | None) -> bool:
    """Whether most of a block was found to be code of a prompt, where that is expected."""
    return episode is not None and 2 * sum(sample.typed for sample in episode.samples) > len(episode.samples)


def _main_caller(episode: Episode) -> Caller:
    """Return who was seen most often."""
    seen = Counter(sample.callback for sample in episode.samples if sample.callback in episode.callers)
    return episode.callers[seen.most_common(1)[0][0]] if seen else Caller(None, None)


def _where(samples: list[Sample]) -> tuple[str | None, float]:
    """Return the system call that stands for all, and the share of samples in calls of its kind."""
    kinds = Counter(kind_of(sample.syscall) for sample in samples if sample.syscall is not None)
    if not kinds:
        return None, 0.0
    kind, count = kinds.most_common(1)[0]
    return _most_common([sample.syscall for sample in samples if kind_of(sample.syscall) == kind]), count / len(samples)


def _most_common(values: list[str | None]) -> str | None:
    return Counter(values).most_common(1)[0][0] if values else None
