"""The parent's side of one worker process: its socket on the loop, its calls in flight, its lifetime.

Everything runs on the loop's thread, in slices: a turn sends or receives at most :data:`protocol.SLICE` bytes and
handles answers for at most :data:`TURN` seconds.
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
"""Descriptors that may have come with what was not handled yet: a worker is never sent more than so many calls."""
TURN = 0.001
"""s of one turn of the loop that answers of one worker are handled for."""
FIRST_LOOK, LAST_LOOK = 0.002, 0.5
"""s between two looks for the exit code of a dead worker, doubled each time: the fork server tells it a little later.
"""


class State(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"
    """It ends after the call that it is in."""
    DEAD = "dead"


IDLE, BUSY = State.IDLE, State.BUSY  # looked up for each call


class Connection:
    """The parent's end of one worker.

    Args:
        launched: the process.
        loop: the loop that the pool belongs to.
        on_frame: called with (link, frame) for each frame that arrives.
        on_death: called with (link, exit code or None) once the worker has ended and all it had sent was handled.
        launcher: what has started it, and knows how it ended.
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
        """What was sent and not answered, in the order in which it runs, by number; None if it was taken back."""
        self.started_at = time.monotonic()
        self.idle_since = 0.0
        self.done = 0
        self.cause: str | None = None
        """Why we killed it, None if we did not."""
        self.over_memory = False
        """Whether that was for its memory."""
        self.failure: OffloadError | None = None
        """Why it could not get ready, if it said so."""
        self.timer: asyncio.TimerHandle | None = None
        """Ends it if it does not get ready."""
        self.received: deque[int] = deque()
        """Descriptors that came with frames, in the order of the frames."""
        self._launched, self._channel, self._shared = launched, launched.channel, launched.shared
        self._loop = loop
        self._on_frame, self._on_death, self._launcher = on_frame, on_death, launcher
        self._numbers = itertools.count(1)
        self._out: deque[tuple[memoryview, descriptor_passing.Duplicates | None]] = deque()
        self._writing = False
        self._held = False
        """Whether what is sent waits for more, to go with it."""
        self._frames: deque[Frame] = deque()
        self._receiver = protocol.Receiver(self._frames.append)
        self._handling = False
        self._skips = 0
        self._ended = False
        self._broken = False
        """Whether what it sends is no frames, and not read any more."""
        loop.add_reader(self._channel.fileno(), self._readable)
        if launched.pidfd is not None:
            loop.add_reader(launched.pidfd, self._exited)

    # -- sending --------------------------------------------------------------------------------------------------

    def send(self, parts: list[memoryview], descriptors: descriptor_passing.Duplicates | None = None) -> None:
        """Send a frame, in slices, after those that wait already; ``descriptors`` live until they are sent."""
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
        """Send what is small; return what is left of it, None for nothing."""
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
        """It is dying, or made to: what was not sent is given to another worker then."""
        self._out.clear()
        if not isinstance(exc, ConnectionError):  # but, say, ENOBUFS
            self.kill(f"nothing could be sent to it: {exc}")

    def _some(self) -> list[memoryview]:
        """Return the next parts, up to the first with descriptors of its own, of a slice in all."""
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
        """Receive and handle what has arrived, which the loop, if it was held, may not have told yet."""
        if self._receive():
            self._handle()

    def _readable(self) -> None:
        if self._handling:
            return  # first what is there: a worker must not fill the memory of its parent
        if self._receive() and self._frames and not self._handling:
            self._handle()

    def _receive(self) -> bool:
        """Receive one slice; return False at the end of what can be received."""
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
        """Receive one slice; return its size, 0 at the end."""
        target = self._receiver.target
        if target is not None:
            count = self._channel.recv_into(target[: protocol.SLICE])
            if count:
                self._receiver.filled(count)
            return count
        data, ancillary, flags, _ = self._channel.recvmsg(protocol.FEED, descriptor_passing.ANCILLARY)
        if ancillary:
            self.received.extend(descriptor_passing.received(ancillary))
        if flags & descriptor_passing.TRUNCATED:  # nobody can tell which are missing
            return self._break_with("descriptors that it had sent were lost: too many are open here")
        if len(self.received) > MOST_DESCRIPTORS:
            return self._break_with("it has sent descriptors that belong to nothing")
        if data:
            self._receiver.feed(data)
        return len(data)

    def _break_with(self, why: str) -> int:
        """Kill the worker, and read nothing more of it; return 0, as if it had sent no more."""
        self._broken = True
        self.kill(why)
        return 0

    def take(self, count: int) -> list[int]:
        """Return the next ``count`` of the descriptors that came with frames.

        Raises:
            BrokenFrame: there are not as many.
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
        """Handle answers for a turn; what is left is handled in the next."""
        self._handling = False
        if len(self._frames) > 1:
            self._handle_several()
        elif self._frames and self.state is not State.DEAD:
            self._hand_on()

    def _handle_several(self) -> None:
        """As above; the calls that take the place of what was answered are sent together."""
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
        """Send a call."""
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
        """The number of what the worker has begun last; 0 if nothing."""
        return int(STARTED.unpack_from(self._shared, 0)[0])

    def has_begun(self, call: Call) -> bool:
        """Whether the worker has begun ``call``, which it has not answered, as far as is known here."""
        return call.number in self.calls and self.started >= call.number

    def is_in(self, call: Call) -> bool:
        """Whether the worker is in ``call``, and not in a later one."""
        return call.number in self.calls and self.started == call.number

    def running(self) -> Call | None:
        """Return the call that the worker is in, None if it is in none; any thread may ask."""
        return None if self.state is State.DEAD else self.calls.get(self.started)

    @property
    def finished(self) -> int:
        """The number of the call whose result was ready last, though it may still be on its way; 0 if none."""
        return int(STARTED.unpack_from(self._shared, FINISHED_AT)[0])

    @property
    def first(self) -> Call | None:
        """The call that the worker runs, or runs next; None if there is none or it was taken back."""
        return next(iter(self.calls.values()), None)

    def skip(self, call: Call) -> None:
        """Tell the worker not to begin ``call``; it may just have begun it: see :meth:`has_begun` a turn later.

        There is room for as many as a worker is ever sent, each once: it answers what it skips, in its turn.
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
        """Have the worker end after what it was sent."""
        self.state = State.STOPPING
        self.send(protocol.frame(Kind.STOP))

    def kill(self, cause: str) -> None:
        """End the worker now."""
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
        """Wait for the exit code, handle what the worker had still sent, and report its death."""
        code = self._launcher.exit_code(self.pid)
        if code is None and look_again < LAST_LOOK and self._launcher.can_tell():
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
        """Receive what lies in the socket: answers that were complete before the worker died."""
        while not self._broken:
            try:
                if not self._channel.recv(1, socket.MSG_PEEK):
                    return
            except OSError:
                return
            self._receive()

    def detach(self) -> None:
        """Have the loop watch our descriptors no longer."""
        if not self._ended:
            if self._launched.pidfd is not None:
                self._loop.remove_reader(self._launched.pidfd)
            self._loop.remove_writer(self._channel.fileno())
        self._loop.remove_reader(self._channel.fileno())

    def release(self) -> None:
        """Close our ends: the worker, if it lives, is killed by the kernel."""
        self._ended = True
        self.calls.clear()
        self._launched.close()
        while self.received:
            os.close(self.received.popleft())
