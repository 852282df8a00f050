"""One worker as its parent sees it: the socket on the loop, the calls under way, life and death.

Everything runs on the loop's thread, in slices: a turn sends or receives at most :data:`wire.SLICE` bytes and handles
answers for at most :data:`TURN` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from loopwatch.workers import wire
from loopwatch.workers.wire import Frame, Kind
from loopwatch.workers.worker import SKIPS, STARTED

if TYPE_CHECKING:
    from loopwatch.workers.launch import Launched

TURN = 0.001
"""s of one turn of the loop that answers of one worker are handled for."""
FEW_CODES = 25
"""Times that the exit code of a dead worker is asked for, 2 ms apart: the fork server tells it a little later."""


class State(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    """It ends after the call that it is in."""
    DEAD = "dead"


class Link:
    """The parent's end of one worker.

    Args:
        launched: the process.
        loop: the loop that the pool belongs to.
        on_frame: called with (link, frame) for each frame that arrives.
        on_death: called with (link, exit code or None) once the worker has ended and all it had sent was handled.
        exit_code: returns the exit code of a pid, None while unknown.
    """

    def __init__(
        self,
        launched: Launched,
        loop: asyncio.AbstractEventLoop,
        on_frame: Callable[[Link, Frame], None],
        on_death: Callable[[Link, int | None], None],
        exit_code: Callable[[int], int | None],
    ) -> None:
        self.pid = launched.pid
        self.state = State.STARTING
        self.calls: dict[int, Any] = {}
        """Calls that were sent and not answered, in the order in which they run, by id."""
        self.started_at = time.monotonic()
        self.idle_since = 0.0
        self.done = 0
        self.cause: str | None = None
        """Why we killed it, None if we did not."""
        self._channel, self._lifeline, self._shared = launched.channel, launched.lifeline, launched.shared
        self._loop = loop
        self._on_frame, self._on_death, self._exit_code = on_frame, on_death, exit_code
        self._out: deque[tuple[memoryview, list[int] | None]] = deque()
        self._writing = False
        self._frames: deque[Frame] = deque()
        self._receiver = wire.Receiver(self._frames.append)
        self.received: deque[int] = deque()
        self._handling = False
        self._skips = 0
        self._ended = False
        self._pidfd: int | None = None
        loop.add_reader(self._channel.fileno(), self._readable)
        if hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:  # it has ended already
                loop.call_soon(self._exited)
            else:
                loop.add_reader(self._pidfd, self._exited)

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, parts: list[memoryview], descriptors: list[int] | None = None) -> None:
        """Send a frame, in slices, after those that wait already."""
        first = True
        for part in parts:
            view = part if part.format == "B" and part.ndim == 1 else part.cast("B")
            self._out.append((view, descriptors if first else None))
            first = False
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        try:
            view, descriptors = out[0]
            if descriptors:
                sent = socket.send_fds(self._channel, [view[: wire.SLICE]], descriptors)
                out[0] = (view, None)
            elif len(out) == 1 or len(view) >= wire.SLICE:
                sent = self._channel.send(view[: wire.SLICE])
            else:
                sent = self._channel.sendmsg(self._some())
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:  # it is dying: what was not sent is given to another worker
            out.clear()
            sent = 0
        while sent:
            view, descriptors = out[0]
            if sent < len(view):
                out[0] = (view[sent:], descriptors)
                break
            sent -= len(view)
            out.popleft()
        if bool(out) != self._writing and not self._ended:
            self._writing = bool(out)
            if out:
                self._loop.add_writer(self._channel.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._channel.fileno())

    def _some(self) -> list[memoryview]:
        """Return the next parts, up to the first with descriptors of its own, of a slice in all."""
        parts: list[memoryview] = []
        size = 0
        for view, descriptors in self._out:
            if (descriptors and parts) or size >= wire.SLICE or len(parts) >= 64:
                break
            parts.append(view[: wire.SLICE - size])
            size += len(parts[-1])
        return parts

    # -- receiving ------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._receive() and self._frames and not self._handling:
            self._handle()

    def _receive(self) -> bool:
        """Receive one slice; return False at the end of the stream."""
        try:
            target = self._receiver.target
            if target is not None:
                count = self._channel.recv_into(target[: wire.SLICE])
                if count:
                    self._receiver.filled(count)
            else:
                data, descriptors, _, _ = socket.recv_fds(self._channel, wire.FEED, 64)
                self.received.extend(descriptors)
                count = len(data)
                if count:
                    self._receiver.feed(data)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            count = 0
        if not count:
            self._loop.remove_reader(self._channel.fileno())
            if self._pidfd is None:
                self._exited()
            return False
        return True

    def _handle(self) -> None:
        """Handle answers for a turn; what is left is handled in the next."""
        self._handling = False
        ends = time.perf_counter() + TURN
        while self._frames and self.state is not State.DEAD:
            self._on_frame(self, self._frames.popleft())
            if self._frames and time.perf_counter() >= ends:
                self._handling = True
                self._loop.call_soon(self._handle)
                return

    # -- calls ----------------------------------------------------------------------------------------------------

    @property
    def started(self) -> int:
        """The id of the call that the worker has begun last."""
        return int(STARTED.unpack_from(self._shared, 0)[0])

    def skip(self, call: int) -> None:
        """Tell the worker not to begin ``call``; it may just have begun it, see :attr:`started` a turn later."""
        struct.pack_into("<Q", self._shared, STARTED.size * (1 + self._skips % SKIPS), call)
        self._skips += 1

    # -- ending ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Have the worker end after what it was sent."""
        self.state = State.STOPPING
        self.send(wire.frame(Kind.STOP))

    def kill(self, cause: str) -> None:
        """End the worker now."""
        if self.cause is None and not self._ended:
            self.cause = cause
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _exited(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._loop.remove_writer(self._channel.fileno())
        self._bury(FEW_CODES)

    def _bury(self, tries: int) -> None:
        """Wait for the exit code, handle what the worker had still sent, and report its death."""
        code = self._exit_code(self.pid)
        if code is None and tries and not self._loop.is_closed():
            self._loop.call_later(0.002, self._bury, tries - 1)
            return
        self._drain()
        while self._frames:
            self._on_frame(self, self._frames.popleft())
        self._loop.remove_reader(self._channel.fileno())
        self.state = State.DEAD
        try:
            self._on_death(self, code)
        finally:
            self.release()

    def _drain(self) -> None:
        """Receive what lies in the socket: answers that were complete before the worker died."""
        while True:
            try:
                if not self._channel.recv(1, socket.MSG_PEEK):
                    return
            except OSError:
                return
            self._receive()

    def release(self) -> None:
        """Close our ends: the worker, if it lives, is killed by the kernel."""
        self._channel.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            self._shared.close()
        while self.received:
            os.close(self.received.popleft())

    def abandon(self) -> None:
        """Let go without the loop: it is closed, the interpreter ends, or this is a forked child."""
        if not self._ended:
            self._ended = True
            if self._pidfd is not None:
                os.close(self._pidfd)
        self.release()
