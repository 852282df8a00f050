"""Pickling for the trip: what a call and its result look like inside a frame. See PEP 574 for buffers out of band.

A large list, tuple or dict would hold the loop while it is pickled or unpickled (100,000 small dicts: 150 ms). It is
therefore encoded in slices by one pickler and decoded in slices by one unpickler, whose memos span all of them, so that
an object that occurs in two slices is one object again. The garbage collector is held off within each slice: each
would make it run many times over ever more objects.
"""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from loopwatch.errors import NotPicklable
from loopwatch.workers import handles
from loopwatch.workers.wire import LEAST_APART, SLICED

PROTOCOL = 5
LARGE = 2000
"""Items from which on a container is sliced."""
ITEMS = 200
"""Items of one slice: far below a millisecond for small items; larger items are bound to be fewer."""
Steps = Generator[None, None, "Payload"]


class Payload(NamedTuple):
    """What a frame carries: a pickle, buffers beside it, flags, and descriptors to pass along."""

    pickle: Any
    buffers: list[memoryview]
    flags: int
    descriptors: list[int]


class Sliced:
    """Stands for the container with this index in the message around it."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def encode(value: Any, *, by_value: bool = False) -> Payload:
    """Pickle ``value`` in one go.

    Args:
        value: anything.
        by_value: pickle functions and classes of ``__main__`` by value: the other side cannot import it.

    Raises:
        NotPicklable: neither pickle nor cloudpickle can.
    """
    with handles.passing(handles.Passage()) as passage:
        buffers: list[memoryview] = []
        try:
            if by_value:
                raise pickle.PicklingError("not importable from there")
            data = pickle.dumps(value, PROTOCOL, buffer_callback=_aside(buffers))
        except NotPicklable:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a foreign __reduce__ raises, the same remedy is tried
            buffers.clear()
            data = _by_value(value, buffers, exc)
        return Payload(data, buffers, 0, passage.sent)


def _by_value(value: Any, buffers: list[memoryview], failure: BaseException) -> bytes:
    """Pickle with cloudpickle, which also takes lambdas, closures and what ``__main__`` defines."""
    try:
        import cloudpickle
    except ImportError:
        raise NotPicklable(f"{failure} (lambdas and closures: pip install 'loopwatch[closures]')") from failure
    try:
        data: bytes = cloudpickle.dumps(value, PROTOCOL, buffer_callback=_aside(buffers))
    except Exception as exc:
        raise NotPicklable(str(exc)) from exc
    return data


def _aside(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a callback that keeps small buffers inside the pickle and collects the others."""

    def take(buffer: pickle.PickleBuffer) -> bool:
        view = memoryview(buffer)
        if view.nbytes < LEAST_APART or not view.contiguous:
            return True
        buffers.append(buffer.raw())
        return False

    return take


def wrap(value: Any) -> Any:
    """Have a large ``bytes`` or ``bytearray`` travel beside the pickle, not copied into it."""
    return pickle.PickleBuffer(value) if type(value) in (bytes, bytearray) and len(value) >= LEAST_APART else value


def is_large(value: Any) -> bool:
    """Whether ``value`` is a container that is worth slicing."""
    return type(value) in (list, tuple, dict) and len(value) >= LARGE


def encode_sliced(around: Any, containers: list[Any]) -> Steps:
    """Pickle a message around large containers; a generator that pauses after each slice.

    Args:
        around: the message, in which ``Sliced(index)`` stands for a container.
        containers: lists, tuples and dicts, in order. They are copied (not deeply) before the first pause.

    Returns:
        The payload, as the generator's value.

    Raises:
        NotPicklable: something in them cannot be pickled.
    """
    copies: list[Any] = [list(each.items()) if type(each) is dict else list(each) for each in containers]
    shapes = [(type(each) is tuple, len(each)) for each in containers]
    buffers: list[memoryview] = []
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, PROTOCOL, buffer_callback=_aside(buffers))
    # Both sides begin with the containers, still empty: items that refer to theirs find it in the memo.
    pickler.dump(len(containers))
    for each in containers:
        pickler.dump({} if type(each) is dict else [])
    pickler.memo = {id(each): (index, each) for index, each in enumerate(containers)}
    passage = handles.Passage()
    try:
        with handles.passing(passage), uncollected():
            pickler.dump((around, shapes))
        for copy in copies:
            for start in range(0, len(copy), ITEMS):
                with handles.passing(passage), uncollected():
                    pickler.dump(copy[start : start + ITEMS])
                yield
    except NotPicklable:
        raise
    except Exception as exc:
        raise NotPicklable(str(exc)) from exc
    return Payload(stream.getbuffer(), buffers, SLICED, passage.sent)


def refers_to_itself(value: Any) -> bool:
    """Whether a tuple may contain, somewhere inside, a reference to itself: then it cannot be put together later."""
    return type(value) is tuple and not _ATOMIC.issuperset(map(type, value)) and _leads_back(value)


_ATOMIC = frozenset((int, float, complex, bool, str, bytes, type(None)))


def _leads_back(value: tuple[Any, ...]) -> bool:
    # Only what the collector tracks can be part of a cycle; it unties tuples of plain values when it comes by.
    pickler = pickle.Pickler(io.BytesIO(), PROTOCOL, buffer_callback=lambda _buffer: None)
    try:
        pickler.dump(list(value))
    except Exception:  # noqa: BLE001 - it will fail again where that is reported
        return True
    return id(value) in pickler.memo.copy()


def decode(data: Any, buffers: list[Any], received: list[int] | None = None) -> Any:
    """Unpickle what :func:`encode` made."""
    if received:
        with handles.passing(handles.Passage(received)) as passage:
            try:
                return pickle.loads(data, buffers=buffers)
            finally:
                passage.close()
    return pickle.loads(data, buffers=buffers)


def decode_sliced(data: Any, buffers: list[Any], received: list[int] | None = None) -> Generator[None, None, Any]:
    """Unpickle what :func:`encode_sliced` made; a generator that pauses after each slice and returns the message."""
    unpickler = pickle.Unpickler(io.BytesIO(data), buffers=buffers)
    passage = handles.Passage(received or ())
    try:
        with handles.passing(passage):
            targets = [unpickler.load() for _ in range(unpickler.load())]
            around, shapes = unpickler.load()
        for index, (is_tuple, length) in enumerate(shapes):
            target, done = targets[index], 0
            while done < length:
                with handles.passing(passage), uncollected():
                    items = unpickler.load()
                    done += len(items)
                    (target.update if type(target) is dict else target.extend)(items)
                yield
            if is_tuple:
                targets[index] = tuple(target)
        return _put_in(around, targets)
    finally:
        passage.close()


def _put_in(around: Any, containers: list[Any]) -> Any:
    """Return the message with the containers in place: they stand in it by themselves, or as arguments."""
    if type(around) is Sliced:
        return containers[around.index]
    if type(around) is tuple:
        return tuple(_put_in(each, containers) for each in around)
    if type(around) is dict:
        return {key: containers[each.index] if type(each) is Sliced else each for key, each in around.items()}
    return around


def finished(steps: Generator[None, None, Any]) -> Any:
    """Run a generator to its end, where nothing waits meanwhile, and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold off the garbage collector."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
