"""A backend of subinterpreters (PEP 734) in this process: each has its own GIL, so that they compute in parallel.

Each thread of :class:`~loopwatch.workers.thread_backend.ThreadBackend` runs its calls in an interpreter of its own
here. :class:`concurrent.futures.InterpreterPoolExecutor` is not used: Python waits for its threads at exit, so that one
call that hangs would keep the program from ending.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loopwatch.core.process_state import living
from loopwatch.errors import NotPicklable, OffloadError
from loopwatch.workers import launch, pickling, tracing, worker
from loopwatch.workers.call import blame
from loopwatch.workers.options import check_count, usable_cpus
from loopwatch.workers.thread_backend import Errand, ThreadBackend

MODULE = "concurrent.interpreters"
IDLE_FOR = 60.0
"""Seconds after which an idle interpreter is closed: a new one has to import everything again."""
ENDS_WITHIN = 1.0
"""Seconds in which an idle interpreter is closed at the end of the program; after that it is left."""


def gil_enabled() -> bool:
    """Whether threads of this interpreter share a GIL; in a free-threaded build they run in parallel."""
    asked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return asked()


@functools.cache
def has_interpreters() -> bool:
    """Whether this Python has subinterpreters, so that :class:`InterpreterBackend` can be used."""
    return importlib.util.find_spec(MODULE) is not None


def _library() -> Any:
    if not has_interpreters():
        have = ".".join(map(str, sys.version_info[:2]))
        raise OffloadError(f"InterpreterBackend needs Python 3.14 or newer, this is {have}: use to='process' instead")
    return importlib.import_module(MODULE)


class InterpreterBackend(ThreadBackend):
    """Runs calls in subinterpreters, one for each of its threads: parallel, without other processes.

    Functions, arguments and results are pickled, as for a :class:`loopwatch.WorkerPool`: functions by name, with the
    extra ``loopwatch[closures]`` also lambdas and closures. Each interpreter imports modules anew; C extensions that do
    not support that (many) raise an ImportError, which reaches the caller. Context variables are not passed on, and log
    records are handled in the interpreter. Timeouts, ``max_concurrency`` and ``retries`` work as with threads: an
    interpreter cannot be stopped either; a call that crashes it, such as by a fault in C code, ends the program.

    Args:
        workers: interpreters at most; None for one per usable processor.
        max_queue: calls that may wait for one; None for no limit.
        name: in statistics and thread names.

    Raises:
        ConfigError: a value that cannot be used.
        OffloadError: this Python is older than 3.14.

    Example:
        ``to = InterpreterBackend(workers=2) if has_interpreters() else "process"`` and then ``@offload(to=to)``
    """

    _idle_for = IDLE_FOR

    def __init__(self, workers: int | None = None, *, max_queue: int | None = None, name: str = "interpreters") -> None:
        if workers is not None:
            check_count("workers", workers, 1, "4")
        self._interpreters = _library()
        super().__init__(workers or usable_cpus(), max_queue=max_queue, name=name)
        living(InterpreterBackend).add(self)

    def _pack(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], trip: tracing.Trip | None
    ) -> Any:
        by_value = not launch.main_is_importable()
        try:
            data = pickling.encode_whole((function, args, dict(kwargs)), by_value=by_value)
        except NotPicklable as exc:
            raise blame(function, args, kwargs, exc) from exc.__cause__
        # Importing the program's __main__ again may be slow: only for calls that need it.
        main = _main() if b"__main__" in data and not by_value else None
        return data, by_value, main, None if trip is None else trip.carrier

    @contextlib.contextmanager
    def _place(self) -> Iterator[Callable[[Any], Any]]:
        interpreter = self._interpreters.create()
        try:
            try:
                interpreter.exec(f"import sys\nsys.path[:] = {sys.path!r}")
                interpreter.call(_enter)
            except Exception as exc:
                raise OffloadError(f"{self.name}: an interpreter could not be prepared: {exc}") from exc
            yield functools.partial(self._ask, interpreter)
        finally:
            interpreter.close()

    def _ask(self, interpreter: Any, sent: tuple[Any, ...]) -> Any:
        try:
            answer = interpreter.call(_answer, *sent)
        except Exception as exc:
            raise OffloadError(f"{self.name}: an interpreter could not run the call: {exc}") from exc
        return _opened(answer)


def _main() -> bytes:
    """Return data to import the program's ``__main__`` in an interpreter, which shares the current directory."""
    data = launch.main_data()
    data.pop("dir", None)
    return pickle.dumps(data)


def _opened(answer: bytes) -> Any:
    """Return the result that an interpreter has sent, or raise the exception that it has sent."""
    kind, data, more = pickle.loads(answer)
    if kind == "failed":
        raise NotPicklable(data) from worker.RemoteTraceback(more)
    try:
        value = pickle.loads(data, buffers=more)
    except BaseException as exc:
        raise OffloadError(f"the result cannot be unpickled here: {type(exc).__name__}: {exc}") from exc
    if kind == "result":
        return value
    error, where = value
    raise error from worker.RemoteTraceback(where)


# -- in the interpreter -----------------------------------------------------------------------------------------------


def _enter() -> None:
    """Mark this interpreter as a worker: offloaded functions run inline here."""
    worker.here.is_worker = True


@functools.cache
def _prepare(main: bytes) -> None:
    worker.here.is_preparing = True
    try:
        worker._prepare_main(pickle.loads(main))
    finally:
        worker.here.is_preparing = False


def _answer(data: bytes, by_value: bool, main: bytes | None, carrier: Mapping[str, str] | None) -> bytes:
    """Run a call, and return bytes from which :func:`_opened` makes its result or error."""
    try:
        if main is not None:
            _prepare(main)
        function, args, kwargs = pickle.loads(data)
        function = worker.undecorated(function)
    except BaseException as exc:  # noqa: BLE001 - reported to the caller
        return _failed(f"the call could not be read in the interpreter: {worker._words(exc)}")
    try:
        errand = Errand(function, args, kwargs)
        if carrier is not None:
            errand.context.run(tracing.receive, carrier)
        result = errand.run()
    except BaseException as exc:  # noqa: BLE001 - raised by the call
        packed = worker._pack_error(exc, by_value=by_value)
        return pickle.dumps(("error", bytes(packed.pickle), [bytes(each) for each in packed.buffers]))
    try:
        return pickle.dumps(("result", pickling.encode_whole(result, by_value=by_value), None))
    except BaseException as exc:  # noqa: BLE001 - reported to the caller
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        return _failed(f"the result ({kind}) cannot be sent back: {exc}")


def _failed(words: str) -> bytes:
    return pickle.dumps(("failed", words, traceback.format_exc()))


# -- at the end of the program ----------------------------------------------------------------------------------------


def _close_idle() -> None:
    """Close idle interpreters at exit, as Python complains about those that are left."""
    idle = [thread for backend in list(living(InterpreterBackend)) for thread in backend.dismiss()]
    for thread in idle:
        thread.join(ENDS_WITHIN)


atexit.register(_close_idle)
