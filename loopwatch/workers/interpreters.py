"""A backend of subinterpreters (PEP 734) in this process: each has its own GIL, so that they compute in parallel.

What a thread of :class:`~loopwatch.workers.thread_backend.ThreadBackend` runs here, it has its interpreter run instead.
There is no :class:`concurrent.futures.InterpreterPoolExecutor` beneath: the interpreter waits for that one's threads at
its end, so that one call that hangs would keep the program from ending.
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
"""s after which an interpreter with nothing to do is closed: the next one has to import everything anew."""
ENDS_WITHIN = 1.0
"""s in which an interpreter that has nothing to do is closed at the end of the program, else it is left."""


def gil_enabled() -> bool:
    """Whether threads of this interpreter take turns; not so in a free-threaded one: there, they are parallel."""
    asked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return asked()


@functools.cache
def has_interpreters() -> bool:
    """Whether this Python has interpreters to offer: :class:`InterpreterBackend` can be used."""
    return importlib.util.find_spec(MODULE) is not None


def _library() -> Any:
    if not has_interpreters():
        have = ".".join(map(str, sys.version_info[:2]))
        raise OffloadError(f"InterpreterBackend needs Python 3.14 or newer, this is {have}: use to='process' instead")
    return importlib.import_module(MODULE)


class InterpreterBackend(ThreadBackend):
    """Runs calls in interpreters of their own, one for each of its threads: parallel, without other processes.

    Functions, arguments and results are pickled, as for a :class:`loopwatch.WorkerPool`: functions by their name, with
    the extra ``loopwatch[closures]`` also lambdas and closures. They see modules of their own, imported anew; C
    extensions that do not support that (many) raise an ImportError, which arrives. Context variables do not travel, and
    what is logged there is handled there. Time-outs, ``max_concurrency`` and ``retries`` are as those of threads: an
    interpreter cannot be stopped either; a call that ends it all, such as a fault in C code, ends the program.

    Args:
        workers: interpreters at most; None for as many as processors may be used.
        max_queue: calls that may wait for one; None for no limit.
        name: for figures and thread names.

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
        # Importing the program's __main__ once more may cost a lot: only for those who need it.
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
    """Return what an interpreter needs to import the program's ``__main__``; it shares the current directory."""
    data = launch.main_data()
    data.pop("dir", None)
    return pickle.dumps(data)


def _opened(answer: bytes) -> Any:
    """Return the result that an interpreter has sent, or raise what it has sent."""
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


# -- in an interpreter of its own -------------------------------------------------------------------------------------


def _enter() -> None:
    """What is offloaded runs inline here."""
    worker.here.is_worker = True


@functools.cache
def _prepare(main: bytes) -> None:
    worker.here.is_preparing = True
    try:
        worker._prepare_main(pickle.loads(main))
    finally:
        worker.here.is_preparing = False


def _answer(data: bytes, by_value: bool, main: bytes | None, carrier: Mapping[str, str] | None) -> bytes:
    """Run a call, and return what :func:`_opened` makes its result or error of."""
    try:
        if main is not None:
            _prepare(main)
        function, args, kwargs = pickle.loads(data)
        function = worker.undecorated(function)
    except BaseException as exc:  # noqa: BLE001 - told to the caller
        return _failed(f"the call could not be read in the interpreter: {worker._words(exc)}")
    try:
        errand = Errand(function, args, kwargs)
        if carrier is not None:
            errand.context.run(tracing.receive, carrier)
        result = errand.run()
    except BaseException as exc:  # noqa: BLE001 - it is the call's
        packed = worker._pack_error(exc, by_value=by_value)
        return pickle.dumps(("error", bytes(packed.pickle), [bytes(each) for each in packed.buffers]))
    try:
        return pickle.dumps(("result", pickling.encode_whole(result, by_value=by_value), None))
    except BaseException as exc:  # noqa: BLE001 - told to the caller
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        return _failed(f"the result ({kind}) cannot be sent back: {exc}")


def _failed(words: str) -> bytes:
    return pickle.dumps(("failed", words, traceback.format_exc()))


# -- at the end of the program ----------------------------------------------------------------------------------------


def _close_idle() -> None:
    """Python complains at its end of interpreters that are left."""
    idle = [thread for backend in list(living(InterpreterBackend)) for thread in backend.dismiss()]
    for thread in idle:
        thread.join(ENDS_WITHIN)


atexit.register(_close_idle)
