"""The worker process, which runs one call after the other, and the fork server that makes such processes.

Nothing here starts a thread or an event loop before a call needs one. The process ends when its parent does: the kernel
kills it when the write end of its lifeline closes (``F_SETSIG`` in fcntl(2)), even inside C code.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import importlib
import logging
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopwatch.core.originals import time

try:
    import fcntl
except ImportError:  # Windows, which has threads only
    pass

from loopwatch.core.process_state import one
from loopwatch.errors import OffloadError
from loopwatch.workers import descriptor_passing, pickling, protocol, tracing
from loopwatch.workers.protocol import Frame, Kind

STARTED = struct.Struct("<Q")
"""Id of the call that was begun last, at the start of the memory shared with the parent."""
SKIPS = 7
"""Capacity of the shared list of cancelled call ids."""
UNWANTED = struct.Struct(f"<{SKIPS}Q")
"""That list, behind :data:`STARTED`: ids of calls that were cancelled or taken back."""
_NO_SKIPS = bytes(UNWANTED.size)
FINISHED_AT = STARTED.size * (1 + SKIPS)
"""Offset of the id of the call whose result was ready last, though it may still be in transit."""
SHARED_SIZE = FINISHED_AT + STARTED.size
STATUS = struct.Struct("<ii")
"""The fork server's report of a worker that has ended: pid, wait status."""
MOMENT = 0.0002
"""Seconds that a worker polls for the next call, if the last one came as soon."""
BROKEN = 70
"""Exit code of a worker that cannot go on: its socket is gone (``EX_SOFTWARE`` in sysexits.h)."""
OFFLOADED = "__loopwatch_offloaded__"
"""Attribute of a function made by ``@offload``: that function itself."""


class Here:
    """The role of this process.

    Attributes:
        is_worker: whether it is a worker, in which offloaded functions run inline.
        is_preparing: whether it is importing the program's ``__main__``, which must not start anything.
    """

    def __init__(self) -> None:
        self.is_worker = self.is_preparing = False


here = one(Here)


def refuse_while_preparing() -> None:
    """Raise while a worker imports the program's ``__main__``: a script without the usual guard runs the program."""
    if here.is_preparing:
        raise OffloadError(
            "a worker is importing this program's main module, which runs the program at once: "
            "put what starts it under  if __name__ == '__main__':"
        )


class RemoteTraceback(Exception):  # noqa: N818 - it is a cause, not an error by itself
    """The traceback of an exception as it was in the worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# ------------------------------------------------------------------------------------------------ the fork server


def serve_forks(control: int, status: int, preload: list[str]) -> None:
    """Fork a worker for each request, which carries its descriptors; report each that ends; end with the parent.

    Args:
        control: socket for requests.
        status: socket to which :data:`STATUS` is written.
        preload: modules to import first; a failing import is left to the workers, which report it.
    """
    _ignore_interrupts()
    _fill_standard_streams()
    channel = socket.socket(fileno=control)
    for name in preload:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    die_with = _death_signal()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    server = os.getpid()
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == woken:
                    os.read(woken, 4096)
                    _reap(status)
                    continue
                try:
                    data, descriptors, _, _ = socket.recv_fds(channel, 1, 3)
                except OSError:  # the parent has ended in the midst of a request
                    data = b""
                if not data:
                    os._exit(0)
                try:
                    pid = os.fork()
                except OSError as exc:  # RLIMIT_NPROC, or no memory
                    pid = -(exc.errno or errno.EAGAIN)
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for descriptor in (status, woken, waker):
                        os.close(descriptor)
                    channel.close()
                    die_with(server)
                    run(*descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                try:
                    channel.sendall(struct.pack("<i", pid))
                except OSError:  # the parent is gone
                    os._exit(0)


def _reap(status: int) -> None:
    with contextlib.suppress(OSError):  # there are no children, or the parent is gone
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            os.write(status, STATUS.pack(*ended))


def _death_signal() -> Callable[[int], None]:
    """Return a function that has the kernel kill a fork when this process ends (``PR_SET_PDEATHSIG`` in prctl(2))."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):  # not Linux
        return lambda _server: None

    def die_with(server: int) -> None:
        prctl(1, signal.SIGKILL)
        if os.getppid() != server:  # the server was gone before
            os._exit(BROKEN)

    return die_with


# ---------------------------------------------------------------------------------------------------- the worker


def tie_life_to(descriptor: int) -> None:
    """Make the kernel kill this process on any event of ``descriptor``, such as its other end closing.

    Works while C code keeps the GIL or the process is stopped. Where the system cannot do it (only Linux can), a worker
    notices at its next read.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def _fill_standard_streams() -> None:
    """Open ``os.devnull`` for closed standard streams, so that no file of a worker takes their numbers.

    What is then written to them by number is lost, as it would be in the parent.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which the terminal sends to every process in the foreground, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see launch


def run(channel: int, lifeline: int, shared: int) -> None:
    """Run a worker until the parent closes the socket; never returns.

    Args:
        channel: socket for frames.
        lifeline: read end of a pipe that is never written to.
        shared: file of :data:`SHARED_SIZE` bytes that the parent has mapped too.
    """
    here.is_worker = True
    tie_life_to(lifeline)
    _ignore_interrupts()
    code = BROKEN
    try:
        with socket.socket(fileno=channel) as connected, mmap.mmap(shared, SHARED_SIZE) as memory:
            os.close(shared)
            code = Worker(connected, memory).serve()
    except BaseException:  # noqa: BLE001 - the outermost frame of a process
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


class Worker:
    """Receives frames, runs calls, and sends results, in one thread.

    Args:
        channel: the socket, blocking.
        shared: memory in which the parent sees which call was begun.
    """

    def __init__(self, channel: socket.socket, shared: mmap.mmap) -> None:
        self._channel = channel
        self._shared = shared
        self._frames: deque[Frame] = deque()
        self._receiver = protocol.Receiver(self._frames.append)
        self._received: deque[int] = deque()
        self._out: deque[tuple[list[memoryview], list[int]]] = deque()
        self._sending = threading.Lock()
        self._pid = os.getpid()
        self._is_pressed = False
        """Whether the last frame came within :data:`MOMENT` seconds."""
        self._max_memory: int | None = None
        self._runner: Any = None
        self._by_value = self._traced = False
        self._to_prepare = 0
        """Number of calls before the first: initializer and warm-up."""

    def serve(self) -> int:
        """Handle frames until there are no more to come; return the exit code."""
        while True:
            frame = self._next()
            if frame is None or frame.head.kind == Kind.STOP:
                self._flush(wait=True)
                if self._traced:
                    tracing.flush()
                return 0
            if frame.head.kind == Kind.CALL:
                self._answer(frame)
            elif not self._get_ready(frame):
                return 1
            del frame

    def _next(self) -> Frame | None:
        while not self._frames:
            target = self._receiver.target
            if target is not None:
                count = self._channel.recv_into(target)
                if not count:
                    return None
                self._receiver.filled(count)
                continue
            data, ancillary, flags, _ = self._receive()
            if not data:
                return None
            if ancillary:
                self._received.extend(descriptor_passing.received(ancillary))
            if flags & descriptor_passing.TRUNCATED:
                raise OSError(errno.EMFILE, "descriptors that came with a call were lost: too many are open")
            self._receiver.feed(data)
        return self._frames.popleft()

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """Receive some bytes; if calls come in quick succession, poll briefly for the next one before sleeping.

        Waking up takes longer than a short call. After a poll in vain, at the end of a burst, there is none before
        calls come quickly once more; polling yields the processor to others.
        """
        began = time.perf_counter()
        while self._is_pressed and time.perf_counter() - began < MOMENT:
            try:
                return self._channel.recvmsg(protocol.FEED, descriptor_passing.ANCILLARY, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
        received = self._channel.recvmsg(protocol.FEED, descriptor_passing.ANCILLARY)
        self._is_pressed = time.perf_counter() - began < MOMENT
        return received

    # -- preparing ------------------------------------------------------------------------------------------------

    def _get_ready(self, frame: Frame) -> bool:
        """Handle a frame that comes before the first call; after the last of these report ``READY``."""
        try:
            descriptors = [self._received.popleft() for _ in range(frame.head.descriptors)]
            if frame.head.kind == Kind.SETUP:
                _redirect(descriptors)
                self._set_up(pickle.loads(frame.pickle))
            else:
                self._to_prepare -= 1
                function, args = pickling.decode(frame.pickle, frame.buffers, descriptors)
                function(*args)
        except BaseException as exc:  # noqa: BLE001 - reported to the parent, whatever it is
            self._send(protocol.frame(Kind.READY, 1, pickle.dumps((_words(exc), traceback.format_exc()))))
            self._flush(wait=True)
            return False
        if not self._to_prepare:
            self._send(protocol.frame(Kind.READY))
        return True

    def _set_up(self, setup: dict[str, Any]) -> None:
        os.environ.update(setup["env"])
        if setup["nice"]:
            os.nice(setup["nice"])
        self._max_memory = setup["max_memory"]
        self._by_value = setup["by_value"]
        self._to_prepare = setup["to_prepare"]
        if setup["log_level"] is not None:
            root = logging.getLogger()
            root.handlers[:] = [_ToParent(self)]
            root.setLevel(setup["log_level"])
        self._traced = setup["traced"]
        if self._traced:
            tracing.prepare()
        here.is_preparing = True
        try:
            _prepare_main(setup["main"])
        finally:
            here.is_preparing = False

    # -- calls ----------------------------------------------------------------------------------------------------

    def _answer(self, frame: Frame) -> None:
        head = frame.head
        descriptors = [self._received.popleft() for _ in range(head.descriptors)] if head.descriptors else []
        if not self._skips(head.id):
            STARTED.pack_into(self._shared, 0, head.id)
        if self._skips(head.id):  # the worker sees that it is cancelled, or the parent that it has begun
            for descriptor in descriptors:
                os.close(descriptor)
            self._send(protocol.frame(Kind.SKIPPED, head.id))
            return
        try:
            function, args, kwargs, extras = pickling.decode_call(frame.pickle, frame.buffers, descriptors, head.flags)
            del frame
        except BaseException as exc:  # noqa: BLE001 - reported to the parent
            self._fail(head.id, f"the call could not be read in the worker: {_words(exc)}", exc)
            return
        is_traced = extras is not None
        cpu = time.thread_time_ns() if is_traced else 0  # a system call, only for the span
        began = time.perf_counter_ns()
        try:
            result = self._call(function, args, kwargs, extras)
            kind = Kind.RESULT
        except BaseException as exc:  # noqa: BLE001 - raised by the call
            result, kind = exc, Kind.ERROR
        run = time.perf_counter_ns() - began
        if is_traced:
            cpu = time.thread_time_ns() - cpu
        if os.getpid() != self._pid:  # the call has forked, and this is its child
            os._exit(0)
        del args, kwargs
        try:
            if kind == Kind.ERROR:
                packed = _pack_error(result, by_value=self._by_value)
            else:
                packed = pickling.encode_result(result, by_value=self._by_value)
        except BaseException as exc:  # noqa: BLE001 - reported to the parent
            what = f"the result ({type(result).__module__}.{type(result).__qualname__}) cannot be sent back: {exc}"
            self._fail(head.id, what, exc, began, run)
            return
        STARTED.pack_into(self._shared, FINISHED_AT, head.id)
        self._send(
            protocol.frame(
                kind,
                head.id,
                packed.pickle,
                packed.buffers,
                began=began,
                run=run,
                cpu=cpu,
                flags=packed.flags | self._grown(),
                descriptors=len(packed.descriptors),
            ),
            packed.descriptors.numbers,
        )
        if packed.descriptors:  # they are closed with ``packed``
            self._flush(wait=True)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any, extras: Any) -> Any:
        function = undecorated(function)
        if extras is None:
            return self._finish(function(*args, **kwargs))
        variables, carrier = extras
        context = contextvars.copy_context()
        if carrier is not None:
            self._traced = True
            context.run(tracing.receive, carrier)
        for module, name, value in variables:
            context.run(getattr(importlib.import_module(module), name).set, value)
        return context.run(lambda: self._finish(function(*args, **kwargs)))

    def _finish(self, result: Any) -> Any:
        """Return ``result``; a coroutine is run to its end, on a loop that this process keeps."""
        if not hasattr(result, "__await__") or not hasattr(result, "send"):
            return result
        import asyncio

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(result, context=contextvars.copy_context())

    def _skips(self, call: int) -> bool:
        skips = self._shared[STARTED.size : FINISHED_AT]
        return skips != _NO_SKIPS and call in UNWANTED.unpack(skips)

    def _grown(self) -> int:
        if self._max_memory is None:
            return 0
        return protocol.PLEASE_RECYCLE if resident(self._pid) > self._max_memory else 0

    def _fail(self, call: int, words: str, exc: BaseException, began: int = 0, run: int = 0) -> None:
        where = "".join(traceback.format_exception(exc))
        self._send(
            protocol.frame(Kind.FAILED, call, pickle.dumps((words, where)), began=began, run=run, flags=self._grown())
        )

    def log(self, record: logging.LogRecord) -> None:
        """Send a log record to the parent."""
        if os.getpid() == self._pid:
            self._send(protocol.frame(Kind.LOG, 0, _pack_record(record)))

    def _send(self, parts: list[memoryview], descriptors: list[int] | None = None) -> None:
        if not self._out and self._sending.acquire(blocking=False):  # nothing is being sent: no need to queue
            try:
                self._write(parts, descriptors or [])
            finally:
                self._sending.release()
        else:
            self._out.append((parts, descriptors or []))
        if self._out:
            self._flush()

    def _flush(self, *, wait: bool = False) -> None:
        """Send queued frames, unless that is in progress: in another thread, or in this one below a logging finalizer.

        Args:
            wait: return only when all is sent, in any thread.
        """
        while (wait or self._out) and self._sending.acquire(blocking=wait):
            try:
                while self._out:
                    self._write(*self._out.popleft())
            finally:
                self._sending.release()
            wait = False

    def _write(self, parts: list[memoryview], descriptors: list[int]) -> None:
        try:
            if len(parts) == 1 and not descriptors:
                sent = self._channel.send(parts[0])
                if sent == len(parts[0]):
                    return
                parts = [parts[0][sent:]]
            views = [part.cast("B") for part in parts]
            if descriptors:
                sent = socket.send_fds(self._channel, views[:1], descriptors)
                views[0] = views[0][sent:]
            while views:
                sent = self._channel.sendmsg(views[:64])
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except OSError:  # the parent is gone, or the call has closed every descriptor
            os._exit(BROKEN)


def _redirect(descriptors: list[int]) -> None:
    """Redirect standard output and error, also of child processes; Python writes line by line, as to a terminal."""
    for number, stream, descriptor in zip((1, 2), (sys.stdout, sys.stderr), descriptors, strict=False):
        if stream is not None:  # else the number is not of a standard stream here
            stream.flush()
            os.dup2(descriptor, number)
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True)
        os.close(descriptor)


def undecorated(function: Any) -> Any:
    """Return the plain function behind one made by ``@offload``; anything else as it is."""
    decorated, plain = getattr(function, "__func__", function), getattr(function, "inline", function)
    # A wrapper may have copied its attributes, as functools.wraps does: the wrapper must not be skipped.
    if getattr(function, OFFLOADED, None) is not decorated:
        return function
    return plain if decorated is function else types.MethodType(plain, function.__self__)


def _prepare_main(data: dict[str, Any]) -> None:
    """Import the program's ``__main__`` as multiprocessing does, so that its definitions can be unpickled."""
    from multiprocessing import process, spawn

    # A script without the usual guard would start processes of its own while it is imported: this prevents it.
    process.current_process()._inheriting = True  # type: ignore[attr-defined]
    try:
        spawn.prepare(data)
    finally:
        del process.current_process()._inheriting  # type: ignore[attr-defined]


def _pack_error(error: BaseException, *, by_value: bool) -> pickling.Payload:
    """Pickle the call's exception with its traceback; one that cannot be sent is replaced by a description."""
    where = "".join(traceback.format_exception(error))
    if isinstance(error, SystemExit):
        error = OffloadError(f"the call ended with sys.exit({error.code!r})")
    elif not isinstance(error, Exception) or isinstance(error, StopIteration):
        error = OffloadError(f"the call raised {_words(error)}, which would end or confuse the caller")
    try:
        packed = pickling.encode((error, where), by_value=by_value)
        again, _ = pickle.loads(packed.pickle, buffers=packed.buffers)
        if type(again) is not type(error):
            raise TypeError(f"it comes back as {type(again).__qualname__}")
        again.__cause__ = None  # as the parent will
    except BaseException as exc:  # noqa: BLE001 - its class may raise anything when pickled or unpickled
        words = f"the call raised {_words(error)}, which cannot be sent as it is: {_words(exc)}"
        packed = pickling.encode((OffloadError(words), where))
    return packed


def _words(exc: BaseException) -> str:
    try:
        return f"{type(exc).__qualname__}: {exc}"
    except Exception:  # noqa: BLE001 - a foreign __str__
        return type(exc).__qualname__


def _pack_record(record: logging.LogRecord) -> bytes:
    """Pickle a log record, prepared as by ``logging.handlers.QueueHandler``: formatted, without unpicklable parts."""
    message = record.getMessage()
    fields = dict(record.__dict__, msg=message, args=None, exc_info=None)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    try:
        return pickle.dumps(fields)
    except Exception:  # noqa: BLE001 - an extra field set by the program
        known = logging.LogRecord("", 0, "", 0, "", None, None).__dict__
        return pickle.dumps({key: value for key, value in fields.items() if key in known or key == "message"})


class _ToParent(logging.Handler):
    """Log handler that sends records to the parent."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record to the parent."""
        try:
            self._worker.log(record)
        except Exception:  # noqa: BLE001 - as every handler of the standard library does
            self.handleError(record)


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 where it cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0
