"""The parent's side of one worker process: its socket on the loop, its calls in flight, its lifetime.

Everything runs on the loop's thread, in slices: a turn sends or receives at most :data:`protocol.SLICE` bytes and
handles frames for at most :data:`TURN` seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from loopwatch.core.originals import time
from loopwatch.errors import OffloadError
from loopwatch.workers import descriptor_passing, protocol
from loopwatch.workers.call import Call
from loopwatch.workers.launch import Launched, Launcher
from loopwatch.workers.protocol import Frame, Kind
from loopwatch.workers.worker import FINISHED_AT, SKIPS, STARTED, UNWANTED

MOST_DESCRIPTORS = (SKIPS + 1) * descriptor_passing.MOST
"""Descriptors that may have come with unhandled frames: a worker is never sent more than that many calls."""
TURN = 0.001
"""Seconds of one loop turn in which frames of one worker are handled."""
FIRST_LOOK, LAST_LOOK = 0.002, 0.5
"""Seconds between two polls for a dead worker's exit code, doubled each time: the fork server reports it late."""


class State(StrEnum):
    """State of a worker."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    """It ends after the calls that it was sent."""
    DEAD = "dead"


IDLE, BUSY = State.IDLE, State.BUSY  # used for each call


class Connection:
    """The parent's end of one worker.

    Args:
        launched: the process.
        loop: the loop that the pool belongs to.
        on_frame: called with (connection, frame) for each frame that arrives.
        on_death: called with (connection, exit code or None) once the worker has ended and all its frames were handled.
        launcher: started the process, and provides its exit code.
    """

    def __init__(
        self,
        launched: Launched,
        loop: asyncio.AbstractEventLoop,
        on_frame: Callable[[Connection, Frame], None],
        on_death: Callable[[Connection, int | None], None],
        launcher: Launcher,
    ) -> None:
        self.pid = launched.pid
        self.state = State.STARTING
        self.calls: dict[int, Call | None] = {}
        """Calls in flight by id, in the order in which they run; None for a call that was taken back."""
        self.started_at = time.monotonic()
        self.idle_since = 0.0
        self.done = 0
        self.cause: str | None = None
        """Why the parent killed it, None if it did not."""
        self.over_memory = False
        """Whether it was killed for its memory."""
        self.failure: OffloadError | None = None
        """Why it could not get ready, if it reported that."""
        self.timer: asyncio.TimerHandle | None = None
        """Kills it if it does not get ready."""
        self.received: deque[int] = deque()
        """Descriptors that came with frames, in the order of the frames."""
        self._launched, self._channel, self._shared = launched, launched.channel, launched.shared
        self._loop = loop
        self._on_frame, self._on_death, self._launcher = on_frame, on_death, launcher
        self._numbers = itertools.count(1)
        self._out: deque[tuple[memoryview, descriptor_passing.Duplicates | None]] = deque()
        self._writing = False
        self._held = False
        """Whether sending is deferred, so that several frames are sent together."""
        self._frames: deque[Frame] = deque()
        self._receiver = protocol.Receiver(self._frames.append)
        self._handling = False
        self._skips = 0
        self._ended = False
        self._broken = False
        """Whether it has sent malformed data, and is no longer read."""
        loop.add_reader(self._channel.fileno(), self._readable)
        if launched.pidfd is not None:
            loop.add_reader(launched.pidfd, self._exited)

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, parts: list[memoryview], descriptors: descriptor_passing.Duplicates | None = None) -> None:
        """Send a frame, in slices, after those that are queued; ``descriptors`` stay open until they are sent."""
        if len(parts) == 1 and not self._out and not self._held and not descriptors:
            rest = self._send_now(parts[0])
            if rest is None:
                return
            parts = [rest]
        for part in parts:
            self._out.append((part if part.format == "B" and part.ndim == 1 else part.cast("B"), descriptors))
            descriptors = None
        if not self._writing and not self._held:
            self._flush()

    def _send_now(self, part: memoryview) -> memoryview | None:
        """Send a small part; return the unsent rest, None for nothing."""
        if len(part) > protocol.SLICE:
            return part
        try:
            sent = self._channel.send(part)
        except (BlockingIOError, InterruptedError):
            return part
        except OSError as exc:
            self._cannot_send(exc)
            return None
        return None if sent == len(part) else part[sent:]

    def _flush(self) -> None:
        out = self._out
        try:
            view, descriptors = out[0]
            if descriptors:
                sent = socket.send_fds(self._channel, [view[: protocol.SLICE]], descriptors.numbers)
                out[0] = (view, None)
            elif len(out) == 1 or len(view) >= protocol.SLICE:
                sent = self._channel.send(view[: protocol.SLICE])
            else:
                sent = self._channel.sendmsg(self._some())
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self._cannot_send(exc)
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

    def _cannot_send(self, exc: OSError) -> None:
        """Handle a send error: the worker is dying, or is killed; another worker gets its unsent calls."""
        self._out.clear()
        if not isinstance(exc, ConnectionError):  # such as ENOBUFS
            self.kill(f"nothing could be sent to it: {exc}")

    def _some(self) -> list[memoryview]:
        """Return the next parts, one slice in all, up to the first with descriptors of its own."""
        parts: list[memoryview] = []
        size = 0
        for view, descriptors in self._out:
            if (descriptors and parts) or size >= protocol.SLICE or len(parts) >= 64:
                break
            parts.append(view[: protocol.SLICE - size])
            size += len(parts[-1])
        return parts

    # -- receiving ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Receive and handle pending data, which a blocked loop may not have noticed yet."""
        if self._receive():
            self._handle()

    def _readable(self) -> None:
        if self._handling:
            return  # received frames first: a worker must not fill its parent's memory
        if self._receive() and self._frames and not self._handling:
            self._handle()

    def _receive(self) -> bool:
        """Receive one slice; return False at the end of the stream."""
        try:
            count = self._receive_some()
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            count = 0
        except protocol.BrokenFrame as exc:
            count = self._break_with(f"it has sent what makes no sense: {exc}")
        except MemoryError:
            count = self._break_with("there is not enough memory here for what it has sent")
        if not count:
            self._loop.remove_reader(self._channel.fileno())
            if self._launched.pidfd is None:
                self._exited()
            return False
        return True

    def _receive_some(self) -> int:
        """Receive one slice; return its size, 0 at the end of the stream."""
        target = self._receiver.target
        if target is not None:
            count = self._channel.recv_into(target[: protocol.SLICE])
            if count:
                self._receiver.filled(count)
            return count
        data, ancillary, flags, _ = self._channel.recvmsg(protocol.FEED, descriptor_passing.ANCILLARY)
        if ancillary:
            self.received.extend(descriptor_passing.received(ancillary))
        if flags & descriptor_passing.TRUNCATED:  # it is unknown which are missing
            return self._break_with("descriptors that it had sent were lost: too many are open here")
        if len(self.received) > MOST_DESCRIPTORS:
            return self._break_with("it has sent descriptors that belong to nothing")
        if data:
            self._receiver.feed(data)
        return len(data)

    def _break_with(self, why: str) -> int:
        """Kill the worker, and read nothing more from it; return 0, as at the end of the stream."""
        self._broken = True
        self.kill(why)
        return 0

    def take(self, count: int) -> list[int]:
        """Return the next ``count`` of the descriptors that came with frames.

        Raises:
            BrokenFrame: fewer have come.
        """
        if count > len(self.received):
            raise protocol.BrokenFrame(f"{count} descriptors, of which {len(self.received)} came")
        return [self.received.popleft() for _ in range(count)]

    def _hand_on(self) -> None:
        """Handle the next frame."""
        try:
            self._on_frame(self, self._frames.popleft())
        except protocol.BrokenFrame as exc:
            self._break_with(f"it has sent what makes no sense: {exc}")
            self._loop.remove_reader(self._channel.fileno())
            self._frames.clear()

    def _handle(self) -> None:
        """Handle frames for one turn; the rest is handled in the next."""
        self._handling = False
        if len(self._frames) > 1:
            self._handle_several()
        elif self._frames and self.state is not State.DEAD:
            self._hand_on()

    def _handle_several(self) -> None:
        """Handle frames for one turn; the calls that replace finished ones are sent together."""
        ends = time.perf_counter() + TURN
        self._held = True
        try:
            while self._frames and self.state is not State.DEAD:
                self._hand_on()
                if self._frames and time.perf_counter() >= ends:
                    break
        finally:  # a log handler of the program may raise to end the loop, which may go on later
            self._held = False
            if self._frames and self.state is not State.DEAD:
                self._handling = True
                self._loop.call_soon(self._handle)
            if self._out and not self._writing and not self._ended:
                self._flush()

    # -- calls ----------------------------------------------------------------------------------------------------

    def give(self, call: Call) -> None:
        """Send a call to the worker."""
        number, packed = next(self._numbers), call.payload
        assert packed is not None
        call.connection, call.number = self, number
        self.calls[number] = call
        self.send(
            protocol.frame(
                Kind.CALL,
                number,
                packed.pickle,
                packed.buffers,
                flags=packed.flags,
                descriptors=len(packed.descriptors),
            ),
            packed.descriptors,
        )

    @property
    def started(self) -> int:
        """Id of the call that the worker began last; 0 if none."""
        return int(STARTED.unpack_from(self._shared, 0)[0])

    def has_begun(self, call: Call) -> bool:
        """Whether the worker has begun ``call`` and not finished it, as far as is known here."""
        return call.number in self.calls and self.started >= call.number

    def is_in(self, call: Call) -> bool:
        """Whether the worker is running ``call``, and not a later one."""
        return call.number in self.calls and self.started == call.number

    def running(self) -> Call | None:
        """Return the call that the worker is running, None if there is none; callable from any thread."""
        return None if self.state is State.DEAD else self.calls.get(self.started)

    @property
    def finished(self) -> int:
        """Id of the call whose result was ready last, though it may still be in transit; 0 if none."""
        return int(STARTED.unpack_from(self._shared, FINISHED_AT)[0])

    @property
    def first(self) -> Call | None:
        """The call that the worker runs, or runs next; None if there is none or it was taken back."""
        return next(iter(self.calls.values()), None)

    def skip(self, call: Call) -> None:
        """Ask the worker not to begin ``call``; it may just have begun it: see :meth:`has_begun` a turn later.

        The shared list has room for as many calls as a worker is ever sent, each once: a skipped call is reported in
        its turn.
        """
        if call.number not in UNWANTED.unpack_from(self._shared, STARTED.size):
            struct.pack_into("<Q", self._shared, STARTED.size * (1 + self._skips % SKIPS), call.number)
            self._skips += 1

    # -- ending ---------------------------------------------------------------------------------------------------

    @property
    def accepts(self) -> bool:
        """Whether calls may be sent to it."""
        state = self.state
        return (state is IDLE or state is BUSY) and self.cause is None and not self._ended

    def stop(self) -> None:
        """Ask the worker to end after the calls that it was sent."""
        self.state = State.STOPPING
        self.send(protocol.frame(Kind.STOP))

    def kill(self, cause: str) -> None:
        """Kill the worker now."""
        if self.cause is None and not self._ended:
            self.cause = cause
            self._launched.kill()

    def _exited(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._launched.pidfd is not None:
            self._loop.remove_reader(self._launched.pidfd)
        self._loop.remove_writer(self._channel.fileno())
        self._bury(FIRST_LOOK)

    def _bury(self, look_again: float) -> None:
        """Wait for the exit code, handle the worker's remaining frames, and report its death."""
        code = self._launcher.exit_code(self.pid)
        if code is None and look_again < LAST_LOOK and self._launcher.has_exit_codes():
            self._loop.call_later(look_again, self._bury, 2 * look_again)
            return
        if self.timer is not None:
            self.timer.cancel()
        self._drain()
        while self._frames:
            self._hand_on()
        self._loop.remove_reader(self._channel.fileno())
        try:
            self._on_death(self, code)
        finally:
            self.state = State.DEAD
            self.release()

    def _drain(self) -> None:
        """Receive the data left in the socket: results that were complete before the worker died."""
        while not self._broken:
            try:
                if not self._channel.recv(1, socket.MSG_PEEK):
                    return
            except OSError:
                return
            self._receive()

    def detach(self) -> None:
        """Stop watching the parent's descriptors on the loop."""
        if not self._ended:
            if self._launched.pidfd is not None:
                self._loop.remove_reader(self._launched.pidfd)
            self._loop.remove_writer(self._channel.fileno())
        self._loop.remove_reader(self._channel.fileno())

    def release(self) -> None:
        """Close the parent's ends: the kernel kills the worker if it is alive."""
        self._ended = True
        self.calls.clear()
        self._launched.close()
        while self.received:
            os.close(self.received.popleft())
