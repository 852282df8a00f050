"""Samples blocked loops: stacks, tasks, contexts, system calls and clocks, read in the watcher's thread.

Order matters: stacks are read first, in one go; files of ``/proc`` only afterwards.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.frames import current_frames
from loopwatch.core.originals import time
from loopwatch.core.threads.own_thread import OWN_THREADS
from loopwatch.system.syscalls import LOCK_CALLS
from loopwatch.watch import prompts, stacks, task_info
from loopwatch.watch.contention import LATE, Contention, Lateness
from loopwatch.watch.expected_code import marked
from loopwatch.watch.lapse import Waited
from loopwatch.watch.limits import lowest
from loopwatch.watch.observation import Caller, Episode, Sample
from loopwatch.watch.routes import finder
from loopwatch.watch.routes.finder import Request
from loopwatch.watch.routes.route import labels
from loopwatch.watch.watched_loop import WatchedLoop

PROMPT = 0.004
"""Seconds within which a thread that has just got the GIL cannot have lost it again: less than a switch interval."""
MAX_CALLERS = 50
"""Callbacks of one block whose task and labels are read."""
MAX_SAMPLES = 200
"""Samples kept of one block; beyond that, every second one is dropped and the gap doubles."""


class Suspect(NamedTuple):
    """A loop that may be blocked, and the start of its busy span, ``time.monotonic`` seconds."""

    loop: WatchedLoop
    since: float


class Moment(NamedTuple):
    """One tick of the watcher, or another step of a thread of the agent.

    Attributes:
        now, planned: when it is, and when it was due (``time.monotonic`` seconds).
        late: seconds between them.
        waited: what the thread waited for meanwhile; nothing is known of a thread that is on time.
    """

    now: float
    planned: float
    late: float
    waited: Waited = Waited()

    @property
    def kept(self) -> float:
        """Seconds before ``now`` in which one call kept the GIL; 0 where it is not known.

        A thread that requests the GIL wakes up once each switch interval. The holder releases it one interval after the
        request, at the end of the current call: nothing else can have run meanwhile.
        """
        known = self.waited.run_queue is not None and self.waited.runs is not None
        waited = self.waited.for_gil(self.late) if known else None
        return 0.0 if waited is None else max(waited - 2 * sys.getswitchinterval(), 0.0)


class Glimpse(NamedTuple):
    """What the thread of a loop was doing at one moment, as far as it can be read at once.

    Attributes:
        loop: the loop.
        at: when (``time.monotonic`` seconds).
        mark: of its probe by then.
        task: the running task, None if there is none.
        stack: its stack.
        handle: asyncio's running handle, None if not seen.
        requests: that the thread was serving.
    """

    loop: WatchedLoop
    at: float
    mark: Any
    task: Any
    stack: stacks.RawStack
    handle: Any
    requests: Sequence[Request] = ()


Samples = Mapping[Suspect, Sample]


class Sampler:
    """Takes samples for one watcher.

    Args:
        config: returns the current settings.
        faults: of the agent.
        contention: records the watcher's delays and their causes.
        sources: sources of a callback's labels, beside those of the settings.
        step: called between two steps of some length: the thread may have lost the GIL, and now have it again.

    Attributes:
        expects_typed: whether code typed at a prompt is marked as such.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        faults: Faults,
        contention: Contention,
        sources: Sequence[Any],
        step: Callable[[], object] = lambda: None,
    ) -> None:
        self._config, self._faults, self._contention, self._sources = config, faults, contention, sources
        self._step = step
        self._is_without_stacks = False
        self.expects_typed = False

    def glimpse(self, loops: Iterable[WatchedLoop]) -> list[Glimpse]:
        """Take the stacks of all loops at once, when this thread had to wait for the GIL and will not have it for long.

        The thread that released it is waiting and demands it back after 5 ms (``sys.getswitchinterval``), of which the
        system may take several to wake this thread and to provide its memory: the first step may be the only one inside
        a call. Besides, the thread that had it is looked for: it may end now.
        """
        begun, loops = time.monotonic(), tuple(loops)
        with stacks.uncollected():
            marks = [(loop, loop.probe.mark()) for loop in loops if loop.is_running]
            frames = current_frames()
            is_prompt = time.monotonic() - begun < PROMPT  # else the loop's thread may have run in between
            found = [
                Glimpse(loop, begun, mark, *taken)
                for loop, mark in marks
                if (is_prompt or loop.probe.mark() == mark) and (taken := self._stack_of(loop, frames)) is not None
            ]
            self._contention.keep_hog(frames, _innocent(loops), self._config().max_frames, begun)
            frames.clear()  # this frame is one of them: they would keep each other, and the program's objects, alive
            return found

    def judge(self, glimpses: Iterable[Glimpse], moment: Moment, found: dict[Suspect, Sample]) -> None:
        """Make samples of the glimpses of blocked loops.

        Args:
            glimpses: taken a moment ago.
            moment: when, and why it was late.
            found: takes the samples, so that those before a failure are kept.
        """
        least, now = lowest(self._config()) / 2, moment.now
        for glimpse in glimpses:
            loop = glimpse.loop
            overdue = max(now - loop.heart.due, 0.0)
            since = loop.probe.busy_since(now, moment.late, overdue, moment.kept, glimpse.mark)
            suspect = Suspect(loop, since)
            if glimpse.at - since >= least and suspect not in found:  # the earliest is nearest to the call
                found[suspect] = self._sample_of(suspect, glimpse, moment)

    def complete(self, suspect: Suspect, sample: Sample) -> None:
        """Add a sample that was taken a while ago to its block, which may be over."""
        self._note(suspect, sample, is_fresh=False)

    def sample(
        self, loops: Sequence[WatchedLoop], suspects: Iterable[Suspect], moment: Moment, known: Samples
    ) -> tuple[list[tuple[Suspect, Episode]], Lateness | None]:
        """Sample loops that may be blocked, and search for the thread that kept the watcher from running.

        Args:
            loops: all watched loops.
            suspects: loops that may be blocked.
            moment: this tick.
            known: samples taken earlier in this tick.

        Returns:
            Each suspect with its episode, and the watcher's lateness, None if no search was due.
        """
        hog = None
        glimpsed = {suspect: sample for suspect, sample in known.items() if suspect.since != suspect.loop.finished}
        recent = moment.now - 2 * sys.getswitchinterval()
        taken: dict[Suspect, Sample] = {}
        with stacks.uncollected():
            frames = current_frames()
            if not frames:
                self._say_without_stacks()
            for suspect in suspects:
                if suspect not in glimpsed or glimpsed[suspect].at < recent:
                    self._add(taken, suspect, frames, moment)
            if self._is_search_due(moment, (*glimpsed, *taken)):
                hog = self._contention.find_hog(frames, _innocent(loops), self._config().max_frames, moment.now)
            del frames
        self._step()
        if moment.late < LATE and (taken or hog is not None):
            moment = moment._replace(waited=self._contention.waited(moment.now))
        for sample in taken.values():
            sample.gil_wait = moment.waited.for_gil_each(moment.late)
        lateness = None
        if hog is not None:
            lateness = self._contention.note(hog, moment.planned, moment.now, moment.waited)
        episodes = {
            suspect: self._note(suspect, sample, is_fresh=sample.at >= recent)
            for samples in (glimpsed, taken)
            for suspect, sample in samples.items()
        }
        return list(episodes.items()), lateness

    def _add(
        self, taken: dict[Suspect, Sample], suspect: Suspect, frames: Mapping[int, FrameType], moment: Moment
    ) -> None:
        """Sample ``suspect``, unless its busy span has ended meanwhile."""
        stack = self._stack_of(suspect.loop, frames)
        if stack is None:
            return
        sample = self._sample_of(suspect, Glimpse(suspect.loop, moment.now, None, *stack), moment)
        if suspect.loop.probe.busy_since(time.monotonic()) == suspect.since:
            taken[suspect] = sample

    def _stack_of(
        self, loop: WatchedLoop, frames: Mapping[int, FrameType]
    ) -> tuple[Any, stacks.RawStack, Any, list[Request]] | None:
        """Return the running task, stack, running handle and requests of the loop's thread; None in a heartbeat."""
        thread, target = loop.thread, loop.ref()
        frame = frames.get(thread.ident) if thread is not None else None
        if thread is None or target is None or (frame is None and frames):
            return None
        task = task_info.running_task(target)
        if frame is None:
            return task, stacks.RawStack(()), None, []
        # On asyncio the base of the heartbeat is the frame of a handle, like that of any other callback.
        by_handle = loop.probe.traits.shows_handles
        base = None if by_handle else loop.heart.base
        config, requests = self._config(), list[Request]()
        searched = requests if config.routes and not self._faults.is_off(finder.PART) else None
        stack, handle = stacks.take(
            frame, base, config.max_frames, mark_calls=True, root=loop.greenlet, requests=searched
        )
        if stack.is_heartbeat:
            return None  # what held the loop before it is over
        return task, stack, handle, requests

    def _sample_of(self, suspect: Suspect, glimpse: Glimpse, moment: Moment) -> Sample:
        loop, task, stack, handle = suspect.loop, glimpse.task, glimpse.stack, glimpse.handle
        by_handle = loop.probe.traits.shows_handles
        unnamed = task is None and not by_handle
        task = task if task is not None else task_info.task_of(handle)
        callback = _reference(handle if by_handle else task)
        if by_handle and handle is None and stack.position is not None:
            callback = ("position", stack.position)  # the handle was done by the time that its frame was read
        if unnamed and stack.frames:
            episode = loop.episodes.get(suspect.since)
            is_new = stack.fresh or episode is None or not episode.samples
            callback = object() if is_new or episode is None else episode.samples[-1].callback
        waiting = len(getattr(loop.ref(), "_ready", ())) if by_handle else None
        gil_wait = moment.waited.for_gil_each(moment.late)
        sample = Sample(glimpse.at, moment.late, stack, callback, waiting=waiting, gil_wait=gil_wait)
        attempt = self._faults.attempt
        sample.task, sample.coroutine = attempt("task", lambda: task_info.names_of(task), (None, None))
        context = attempt("task", lambda: task_info.context_of(task, handle), None)
        # A copy: by the time it is read the callback may have gone on and reset its variables.
        sample.context = context.copy() if context is not None else None
        if self._config().routes:
            sample.requests = requests = list(glimpse.requests)
            attempt(finder.PART, lambda: finder.see_parents(task, requests), None)
        return sample

    def _note(self, suspect: Suspect, sample: Sample, *, is_fresh: bool) -> Episode:
        """Complete ``sample``, reading files and calling label sources, and add it to the episode of its block.

        Args:
            suspect: the block.
            sample: of it.
            is_fresh: whether it was taken just now: else the thread may be doing something else.
        """
        episode = suspect.loop.open_episode(suspect.since)
        self._identify(episode, sample)
        if is_fresh and suspect.loop.probe.busy_since(time.monotonic()) == suspect.since:
            _ask_kernel(suspect.loop, sample)
            if suspect.loop.probe.busy_since(time.monotonic()) != suspect.since:  # it ended while files were read
                sample.syscall = sample.wait_channel = None
        if self.expects_typed and prompts.is_typed(sample.stack.frames):
            sample.expected = prompts.REASON
        self._step()
        episode.samples.append(sample)
        if len(episode.samples) > MAX_SAMPLES:
            del episode.samples[1::2]
        return episode

    def _identify(self, episode: Episode, sample: Sample) -> None:
        """Record whether a block by the sampled callback is expected; and, once a callback, its identity."""
        context, sample.context = sample.context, None  # they would keep the program's objects alive
        requests, sample.requests = sample.requests, ()
        sample.is_known, sample.expected = context is not None, marked(context, sample.at)
        attempt, caller = self._faults.attempt, episode.callers.get(sample.callback)
        if caller is None:
            if len(episode.callers) >= MAX_CALLERS:
                return
            episode.callers[sample.callback] = caller = Caller(sample.task, sample.coroutine)
            if context is not None:
                caller.span = attempt("trace", lambda: task_info.span_of(context), None)
                caller.context = task_info.labels(context, (*self._config().context, *self._sources), attempt)
        if requests and caller.endpoint is None:  # the request may have been routed since the sample before
            route = attempt(finder.PART, lambda: finder.resolve(requests), None)
            if route is not None:
                caller.context = {**labels(route), **caller.context}  # the program's own labels take precedence
                caller.endpoint = route.endpoint

    def _is_search_due(self, moment: Moment, taken: Iterable[Suspect]) -> bool:
        """Whether to search for the holder of the GIL: the watcher waited for it, or a loop by its last sample."""
        if moment.late >= LATE:
            return True
        if self._contention.searched_lately(moment.now):
            return False
        known = (suspect.loop.episodes.get(suspect.since) for suspect in taken)
        return moment.late >= sys.getswitchinterval() / 2 or any(
            episode and episode.samples and episode.samples[-1].syscall in LOCK_CALLS for episode in known
        )

    def _say_without_stacks(self) -> None:
        if not self._is_without_stacks:
            self._is_without_stacks = True
            self._faults.say(
                logging.WARNING,
                "loopwatch: stalls are reported without their code while there are sub-interpreters with a GIL of "
                "their own: stacks cannot be read beside them without harm",
            )


def _ask_kernel(loop: WatchedLoop, sample: Sample) -> None:
    if loop.thread is not None and not sample.stack.starts_ours:
        sample.syscall, sample.wait_channel = loop.thread.waiting_in(channel=sample.late < LATE)
        sample.clocks = loop.thread.clocks()


def _reference(owner: Any) -> object:
    """Return a value that is equal for two samples of one handle or task, and keeps nothing alive."""
    if owner is None:
        return None
    try:
        reference = weakref.ref(owner)
        hash(reference)  # the reference keeps it; the hash of a dead object cannot be computed
    except TypeError:
        return id(owner)
    return reference


def _innocent(loops: Iterable[WatchedLoop]) -> set[int | None]:
    """Return the threads of the loops and of the agent, which are no hogs."""
    own = {thread.ident for thread in threading.enumerate() if thread.name.startswith(OWN_THREADS)}
    return own | {loop.thread.ident for loop in loops if loop.thread is not None}
