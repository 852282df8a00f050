"""The thread that exports over OTLP from private providers: metrics each interval, spans and log records soon.

One thread for all signals, with one connection each. Undelivered items wait in bounded memory, and are retried
with exponential back-off; the program gets one log line when that begins and one when it is over. Encoding is done in
small pieces, yielding the GIL in between, so that a loop never waits long for it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.originals import time
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.telemetry.metrics.account import NAP
from loopwatch.telemetry.otel.otlp import Answer, Sender
from loopwatch.telemetry.otel.otlp_config import Signal, Targets, Temporality

PART = "export"
"""Part name under which its faults are counted."""
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two attempts after the first failure, and after many."""
LEAST_TO_SAY = 300.0
"""Seconds between two log lines about failures at least, for a receiver that comes and goes."""
KEPT_METRICS = 8
"""Exports of metrics that may wait if they are differences, which would be lost; of totals the latest is enough."""
LONGEST_SLEEP = 60.0
AFTER_FAULT = 1.0
"""Seconds without an attempt after a fault of the exporter."""

Encode = Callable[[Sequence[Any]], bytes]


def nap() -> None:
    """Yield the GIL between two pieces of work, for long enough that a waiting thread gets it."""
    time.sleep(NAP)


class Outbox:
    """The queue of items to export to one target.

    Args:
        sender: sends the messages.
        shown: the URL for logs.
        encode: encodes some items as one message.
        limit: items that may wait.
        batch: items in one message at most.

    Attributes:
        signal: the kind of the items.
        dropped: number of items that will never be exported.
    """

    def __init__(self, signal: Signal, sender: Sender, *, shown: str, encode: Encode, limit: int, batch: int) -> None:
        self.signal, self.sender, self.shown, self.encode = signal, sender, shown, encode
        self.limit, self.batch = limit, batch
        self.waiting: deque[Any] = deque()
        self.dropped = 0
        self.due = float("inf")
        """When to send next, ``time.monotonic`` seconds."""
        self.not_before = 0.0
        self.failures = 0
        self._message: tuple[int, bytes] | None = None

    def put(self, item: Any) -> bool:
        """Queue an item; if the queue is full, drop it and return False."""
        if len(self.waiting) >= self.limit:
            self.dropped += 1
            return False
        self.waiting.append(item)
        return True

    def forget(self) -> None:
        """Drop waiting items: the next one includes their values."""
        if self.waiting:
            self.dropped += len(self.waiting)
            self.waiting.clear()
            self._message = None

    def attempt(self) -> Answer | None:
        """Send one message of waiting items; None if there are none. Items that may be sent again stay."""
        if self._message is None:
            items = [self.waiting[i] for i in range(min(self.batch, len(self.waiting)))]
            if not items:
                return None
            try:
                self._message = len(items), self.encode(items)
            except Exception as exc:  # noqa: BLE001 - whatever is wrong with them, others are still exported
                self._leave(len(items))
                self.dropped += len(items)
                return Answer(f"cannot be encoded: {type(exc).__name__}: {exc}"[:200])
        count, body = self._message
        answer = self.sender.send(body)
        if not answer.reason or not answer.again:
            self._message = None
            self._leave(count)
            if answer.reason:
                self.dropped += count
        return answer

    def _leave(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            self.waiting.popleft()


class Exporter:
    """The export thread, and the outboxes that it empties.

    Args:
        targets: interval, queue and batch sizes.
        faults: the agent's fault handling.
        collect: returns the message of the current metrics, None if there are none; it may take its time, and calls
            :func:`nap` in between.
    """

    def __init__(self, targets: Targets, faults: Faults, collect: Callable[[], bytes | None]) -> None:
        self._targets, self._faults, self._collect = targets, faults, collect
        self._boxes: dict[Signal, Outbox] = {}
        self._gone: list[Outbox] = []
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self.thread = OwnThread("export", self._run, self._wake.set)
        self._stopping = False
        self._ends = float("inf")
        self._ended: set[Signal] = set()
        self._failing: set[Signal] = set()
        self._said_at = -LEAST_TO_SAY
        self._said = False
        self._metrics_due = float("inf")
        self.exported = 0
        """Messages that were delivered."""

    def add(self, signal: Signal, sender: Sender, shown: str, encode: Encode) -> Outbox:
        """Export ``signal`` too; return its outbox."""
        targets = self._targets
        if signal is Signal.METRICS:
            limit, batch = KEPT_METRICS if targets.temporality is not Temporality.CUMULATIVE else 1, 1
        else:
            limit, batch = targets.queue, min(targets.batch, targets.queue)
        box = Outbox(signal, sender, shown=shown, encode=encode, limit=limit, batch=batch)
        self._boxes[signal] = box
        return box

    def has(self, signal: Signal) -> bool:
        """Whether ``signal`` is exported here."""
        return signal in self._boxes and signal not in self._ended

    def put(self, signal: Signal, item: Any) -> None:
        """Queue a span or a log record; from any thread, never waits for the network."""
        box = self._boxes.get(signal)
        if box is None or self._stopping or not box.put(item):
            return
        if box.due == float("inf") or len(box.waiting) == box.batch:
            box.due = time.monotonic() + (self._targets.delay if len(box.waiting) < box.batch else 0.0)
            self.start()
            self._wake.set()

    def start(self) -> None:
        """Start the thread unless it runs."""
        with self._lock:
            if not self.thread.exists and not self._stopping and self._boxes:
                self._metrics_due = time.monotonic() + self._targets.interval
                with contextlib.suppress(RuntimeError):  # the interpreter is about to exit
                    self.thread.start()

    def end(self, signal: Signal) -> None:
        """Export the waiting items of ``signal`` and then no more: the application exports it now."""
        with self._lock:
            self._ended.add(signal)
        self._wake.set()

    def stop(self, timeout: float, *, wait: bool = True) -> None:
        """Export waiting items once, and end; waits at most ``timeout`` seconds, then aborts requests under way.

        Args:
            timeout: seconds.
            wait: False to leave that to the thread: the caller may be a loop.
        """
        self._ends = time.monotonic() + timeout
        self._stopping = True
        if not self.thread.end(timeout if wait else 0.0) and wait:
            for box in list(self._boxes.values()):
                with self._faults.guard(PART):
                    box.sender.abort()
            self.thread.end(0.1)

    def abandon(self) -> None:
        """Release the connections in a forked child, where the thread does not exist and locks may be held for ever."""
        self._stopping = True
        for box in list(self._boxes.values()):
            box.sender.abandon()
        self._boxes = {}

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self.thread.exists

    @property
    def cpu(self) -> float:
        """CPU time of the thread, seconds."""
        return self.thread.cpu

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is the exporter's."""
        return threading.get_ident() == self.thread.ident

    @property
    def dropped(self) -> dict[Signal, int]:
        """Items that will never be exported, by signal."""
        return {box.signal: box.dropped for box in (*self._gone, *list(self._boxes.values()))}

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._faults.guard(PART):
                self._silence_instrumentation()
            while self.thread.stays():
                has_work = self._faults.attempt(PART, self._turn, None)
                if has_work is None:
                    self._sit_out()
                elif not has_work:
                    return
            if not self._stopping:
                return  # away during a fork
            with self._faults.guard(PART):
                self._round(last=True)
        finally:
            if self._stopping or not self._boxes:  # else connections stay open
                for box in list(self._boxes.values()):
                    with self._faults.guard(PART):
                        box.sender.close()

    def _turn(self) -> bool:
        """Wait until something is due and send it; return whether there is anything left to export."""
        self._wake.wait(min(max(self._next() - time.monotonic(), 0.0), LONGEST_SLEEP))
        self._wake.clear()
        if not self.thread.is_asked:
            self._round()
        return bool(self._boxes)

    def _sit_out(self) -> None:
        """Send nothing for a moment after a fault, and while exporting is switched off."""
        ends = time.monotonic() + AFTER_FAULT
        while not self.thread.is_asked and (time.monotonic() < ends or self._faults.is_off(PART)):
            self._wake.wait(AFTER_FAULT)
            self._wake.clear()

    @staticmethod
    def _silence_instrumentation() -> None:
        """Keep the program's instrumentation of http and grpc, if any, from making spans of the exporter's requests."""
        from opentelemetry import context

        for key in ("suppress_instrumentation", "suppress_http_instrumentation"):
            context.attach(context.set_value(key, True))

    def _next(self) -> float:
        due = [max(box.due, box.not_before) for box in list(self._boxes.values())]
        if Signal.METRICS in self._boxes:
            due.append(self._metrics_due)
        return min(due, default=float("inf"))

    def _round(self, *, last: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            ended, self._ended = self._ended, set()
        metrics = self._boxes.get(Signal.METRICS)
        if metrics is not None and (last or now >= self._metrics_due or Signal.METRICS in ended):
            self._metrics_due = max(self._metrics_due + self._targets.interval, now + self._targets.interval / 2)
            if last or not metrics.waiting or metrics.limit > 1 or now >= metrics.not_before:
                self._collect_metrics(metrics)
        for box in list(self._boxes.values()):
            once = last or box.signal in ended
            if once or (box.waiting and time.monotonic() >= max(box.due, box.not_before)):
                self._deliver(box, once=once)
            if box.signal in ended:
                self._gone.append(self._boxes.pop(box.signal))
                box.sender.close()

    def _collect_metrics(self, box: Outbox) -> None:
        message = self._collect()
        if message is None:
            return
        if box.limit == 1:
            box.forget()
        box.put(message)
        box.due = time.monotonic()

    def _deliver(self, box: Outbox, *, once: bool) -> None:
        """Send waiting items, message by message, until one fails."""
        while not self._broken_off():
            answer = box.attempt()
            if answer is None:
                box.due = float("inf")
                if box.waiting:  # put() has seen the old due time
                    box.due = time.monotonic() + self._targets.delay
                return
            if answer.reason:
                self._failed(box, answer)
                return
            self._delivered(box)
            if once and time.monotonic() >= self._ends:
                return
            nap()

    def _broken_off(self) -> bool:
        return self._stopping and time.monotonic() >= self._ends

    def _failed(self, box: Outbox, answer: Answer) -> None:
        box.failures += 1
        pause = min(SHORTEST_PAUSE * 2 ** (box.failures - 1), LONGEST_PAUSE) * random.uniform(0.8, 1.2)
        box.not_before = time.monotonic() + max(pause, answer.after or 0.0)
        box.due = time.monotonic() if box.waiting else float("inf")
        first = not self._failing
        self._failing.add(box.signal)
        now = time.monotonic()
        if first and not self._broken_off() and now - self._said_at >= LEAST_TO_SAY:
            self._said_at, self._said = now, True
            then = "this was the last attempt" if self._stopping else "it goes on trying"
            self._faults.say(
                logging.WARNING,
                "loopwatch: cannot export %s to %s: %s; %s (the program is not affected)",
                box.signal.value, box.shown, answer.reason, then,
            )  # fmt: skip

    def _delivered(self, box: Outbox) -> None:
        self.exported += 1
        box.failures = 0
        box.not_before = 0.0
        if box.signal in self._failing:
            self._failing.discard(box.signal)
            if not self._failing and self._said:
                self._said = False
                self._faults.say(logging.INFO, "loopwatch: exports to %s again", box.shown)
