"""Pickles calls and results for transport, in slices if they are large; buffers go out of band (PEP 574).

A large list, dict or tuple would hold the loop while it is pickled or unpickled (100,000 small dicts: 150 ms). It is
therefore encoded in slices by one pickler and decoded in slices by one unpickler, whose memos span all of them, so that
an object that occurs in two slices is one object again. The garbage collector is held off within each slice: each
would make it run many times over ever more objects.

A tuple is made when all of its items are there, so nothing that arrives before can refer to it. Whether anything does
is seen in the pickle, where such a reference would carry an index that nothing else has: then it is pickled in one go.
"""

from __future__ import annotations

import gc
import io
import pickle
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from loopwatch.errors import NotPicklable
from loopwatch.workers import descriptor_passing
from loopwatch.workers.protocol import LEAST_APART, MOST_BUFFERS, NAMED, SLICED

PROTOCOL = 5
LARGE = 2000
"""Items from which on a container is sliced."""
ITEMS = 200
"""Items of one slice: far below a millisecond for small items; larger items are bound to be fewer."""
NOWHERE = 0xFD9C3BA7
"""Index in the pickler's memo of a tuple that is sliced: as high as no other will ever be."""
TO_NOWHERE = pickle.LONG_BINGET + NOWHERE.to_bytes(4, "little")
"""What a reference to such a tuple looks like in the pickle (``memo_get`` in CPython's Modules/_pickle.c)."""
MOST_NAMES = 1000
"""Functions whose pickles are kept."""
_NAMES: tuple[dict[Any, bytes], dict[Any, bytes]] = ({}, {})
"""What :func:`_name_of` returns, by whether functions of ``__main__`` are pickled by value."""
_FUNCTIONS: dict[bytes, Any] = {}
_LENGTH = struct.Struct("<H")
_SIMPLE = frozenset((type(None), bool, int, float, str))
"""Types of which nothing is wrapped, passed along or sent beside the pickle."""
Steps = Generator[None, None, "Payload"]


class Payload(NamedTuple):
    """What a frame carries: a pickle, buffers beside it, flags, and descriptors to pass along."""

    pickle: Any
    buffers: list[memoryview]
    flags: int
    descriptors: descriptor_passing.Duplicates


class Sliced:
    """Stands for the container with this index in the message around it."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class _Apart:
    """A large ``bytes`` or ``bytearray`` that travels beside the pickle, once, however often the message has it."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (pickle.PickleBuffer(self.value),)


def _itself(value: Any) -> Any:
    return value


def encode_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], extras: Any, *, by_value: bool) -> Any:
    """Pickle a call: return its payload, or the steps to it (see :func:`encode_sliced`) if it has large containers."""
    name = _name_of(function, by_value=by_value)
    if name is not None and not kwargs and extras is None and all(type(each) in _SIMPLE for each in args):
        return Payload(name + pickle.dumps((args, {}, None), PROTOCOL), [], NAMED, descriptor_passing.NONE)
    values = (*args, *kwargs.values())
    containers = list({id(each): each for each in values if is_large(each)}.values())
    known: dict[int, Any] = {id(each): Sliced(index) for index, each in enumerate(containers)}
    wrapped = (
        tuple(_wrap(each, known) for each in args),
        {key: _wrap(each, known) for key, each in kwargs.items()} if kwargs else {},
        extras,
    )
    if containers:
        message, whole = (function, *wrapped), (function, args, dict(kwargs), extras)
        return encode_sliced(message, containers, whole, by_value=by_value)
    if name is None:
        return encode((function, *wrapped), by_value=by_value)
    packed = encode(wrapped, by_value=by_value)
    return packed._replace(pickle=name + packed.pickle, flags=NAMED)


def _name_of(function: Any, *, by_value: bool) -> bytes | None:
    """Return the pickle of a function that is found by its name, with its length in front; None for any other.

    It stands in front of that of the arguments: both sides make it once, and know it again.
    """
    kind = type(function)
    if kind is not FunctionType and kind is not BuiltinFunctionType and not getattr(kind, "is_by_name", False):
        return None
    names = _NAMES[by_value]
    name = names.get(function)
    if name is None:
        if kind is BuiltinFunctionType and not isinstance(function.__self__, ModuleType):
            return None
        try:
            data = pickle.dumps(function, PROTOCOL)
        except Exception:  # noqa: BLE001 - a lambda, a function of a function: it is pickled as anything else is
            return None
        if by_value and _of_main(data):
            return None
        if len(names) >= MOST_NAMES:
            names.clear()
        name = names[function] = _LENGTH.pack(len(data)) + data
    return name


def decode_call(data: Any, buffers: list[Any], received: Sequence[int], flags: int) -> Any:
    """Unpickle what :func:`encode_call` made: return function, arguments, keyword arguments and extras."""
    if flags & SLICED:
        return finished(decode_sliced(data, buffers, received))
    if not flags & NAMED:
        return decode(data, buffers, received)
    (size,) = _LENGTH.unpack_from(data)
    rest = _LENGTH.size + size
    name = bytes(data[_LENGTH.size : rest])
    function = _FUNCTIONS.get(name)
    if function is None:
        try:
            function = _FUNCTIONS[name] = pickle.loads(name)
        except BaseException:
            descriptor_passing.Passage(received).close()
            raise
    return function, *decode(memoryview(data)[rest:], buffers, received)


def encode_result(value: Any, *, by_value: bool) -> Payload:
    """Pickle a result."""
    if type(value) in _SIMPLE:
        return Payload(pickle.dumps(value, PROTOCOL), [], 0, descriptor_passing.NONE)
    if is_large(value):
        payload: Payload = finished(encode_sliced(Sliced(0), [value], value, by_value=by_value))
        return payload
    return encode(_wrap(value, {}), by_value=by_value)


def _wrap(value: Any, known: dict[int, Any]) -> Any:
    if type(value) in (bytes, bytearray) and len(value) >= LEAST_APART:
        return known.setdefault(id(value), _Apart(value))
    return known.get(id(value), value) if known else value


def encode(value: Any, *, by_value: bool = False) -> Payload:
    """Pickle ``value`` in one go.

    Args:
        value: anything.
        by_value: pickle functions and classes of ``__main__`` by value: the other side cannot import it.

    Raises:
        NotPicklable: neither pickle nor cloudpickle can.
    """
    buffers: list[memoryview] = []
    descriptors = descriptor_passing.NONE
    with descriptor_passing.passing(descriptor_passing.Passage()) as passage:
        data = _dumps(value, by_value, _aside(buffers), buffers.clear)
    if passage.sent:
        descriptors = descriptor_passing.Duplicates()
        descriptors.follow(passage.sent)
    return Payload(data, buffers, 0, descriptors)


def encode_whole(value: Any, *, by_value: bool = False) -> bytes:
    """Pickle ``value`` with nothing beside the pickle."""
    return _dumps(value, by_value, None, lambda: None)


def _dumps(value: Any, by_value: bool, aside: Any, anew: Callable[[], None]) -> bytes:
    try:
        plain = pickle.dumps(value, PROTOCOL, buffer_callback=aside)
        if not (by_value and _of_main(plain)):
            return plain
        failure: Exception = pickle.PicklingError("__main__ cannot be imported by a worker")
    except NotPicklable:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever a foreign __reduce__ raises, the same remedy is tried
        failure = exc
    anew()
    try:
        return _by_cloudpickle(value, aside, failure)
    finally:
        del failure  # it knows of this frame


def _by_cloudpickle(value: Any, aside: Any, failure: Exception) -> bytes:
    """Pickle what pickle alone cannot: ``failure`` says why."""
    try:
        import cloudpickle
    except ImportError:
        words = f"{failure} (lambdas, closures and what is typed in: pip install 'loopwatch[closures]')"
        raise NotPicklable(words) from failure
    try:
        data: bytes = cloudpickle.dumps(value, PROTOCOL, buffer_callback=aside)
    except NotPicklable:
        raise
    except Exception as exc:
        raise NotPicklable(str(exc)) from exc
    return data


def _of_main(data: bytes | memoryview) -> bool:
    """Whether a pickle refers to ``__main__``, or just has the word in it, which does no harm."""
    return b"__main__" in bytes(data)


def _aside(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a callback that keeps small buffers inside the pickle and collects the others."""

    def take(buffer: pickle.PickleBuffer) -> bool:
        view = memoryview(buffer)
        if view.nbytes < LEAST_APART or not view.contiguous or len(buffers) == MOST_BUFFERS:
            return True
        buffers.append(buffer.raw())
        return False

    return take


def is_large(value: Any) -> bool:
    """Whether ``value`` is a container that is worth slicing."""
    return type(value) in (list, dict, tuple) and len(value) >= LARGE


def has_large(values: Iterable[Any]) -> bool:
    """Whether one of ``values`` is worth slicing."""
    for each in values:  # noqa: SIM110 - a generator costs more than the loop
        if is_large(each):
            return True
    return False


def encode_sliced(around: Any, containers: list[Any], whole: Any, *, by_value: bool = False) -> Steps:
    """Pickle a message around large containers; a generator that pauses after each slice.

    Args:
        around: the message, in which ``Sliced(index)`` stands for a container.
        containers: lists, dicts and tuples, in order. They are copied (not deeply) before the first pause.
        whole: the message itself, pickled in one go if pickle alone cannot do it.
        by_value: as in :func:`encode`.

    Returns:
        The payload, as the generator's value.

    Raises:
        NotPicklable: something in them cannot be pickled.
    """
    return _encode_sliced(around, containers, list(map(_snapshot, containers)), whole, by_value)


def _snapshot(container: Any) -> Any:
    return list(container.items()) if type(container) is dict else container[:]


def _encode_sliced(around: Any, containers: list[Any], copies: list[Any], whole: Any, by_value: bool) -> Steps:
    buffers: list[memoryview] = []
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, PROTOCOL, buffer_callback=_aside(buffers))
    # Both sides begin with the containers, still empty: items that refer to theirs find it in the memo.
    pickler.dump(len(containers))
    for each in containers:
        pickler.dump({} if type(each) is dict else [])
    tuples = [index for index, each in enumerate(containers) if type(each) is tuple]
    pickler.memo = {id(each): (NOWHERE if i in tuples else i, each) for i, each in enumerate(containers)}
    passage, descriptors = descriptor_passing.Passage(), descriptor_passing.Duplicates()

    def dump(value: Any) -> bool:
        """Return whether all that was dumped can be found on the other side."""
        start = stream.tell()
        with descriptor_passing.passing(passage), uncollected():
            pickler.dump(value)
        descriptors.follow(passage.sent)  # before a pause in which their owner may close them
        return not tuples or TO_NOWHERE not in bytes(stream.getbuffer()[start:])

    try:
        found = dump((around, list(map(len, copies)), tuples))
        for copy in copies:
            for start in range(0, len(copy), ITEMS):
                found = found and dump(copy[start : start + ITEMS])
                if not found:
                    return (yield from _encode_but_tuples(around, containers, copies, whole, by_value))
                yield
    except (NotPicklable, OSError):
        raise
    except Exception:  # noqa: BLE001 - as in _dumps
        return encode(whole, by_value=by_value)
    if by_value and _of_main(stream.getbuffer()):
        return encode(whole, by_value=True)
    return Payload(stream.getbuffer(), buffers, SLICED, descriptors)


def _encode_but_tuples(around: Any, containers: list[Any], copies: list[Any], whole: Any, by_value: bool) -> Steps:
    """Slice all but the tuples: something refers to one of them."""
    kept = [index for index, each in enumerate(containers) if type(each) is not tuple]
    places = [Sliced(kept.index(index)) if index in kept else each for index, each in enumerate(containers)]
    around = _put_in(around, places)
    if not kept:
        return encode(around, by_value=by_value)
    left, copies = [containers[index] for index in kept], [copies[index] for index in kept]
    return (yield from _encode_sliced(around, left, copies, whole, by_value))


def decode(data: Any, buffers: list[Any], received: Sequence[int] = ()) -> Any:
    """Unpickle what :func:`encode` made."""
    if received:
        with descriptor_passing.passing(descriptor_passing.Passage(received)) as passage:
            try:
                return pickle.loads(data, buffers=buffers)
            finally:
                passage.close()
    return pickle.loads(data, buffers=buffers)


def decode_sliced(data: Any, buffers: list[Any], received: Sequence[int] = ()) -> Generator[None, None, Any]:
    """Unpickle what :func:`encode_sliced` made; a generator that pauses after each slice and returns the message."""
    passage = descriptor_passing.Passage(received)
    try:
        unpickler = pickle.Unpickler(io.BytesIO(data), buffers=buffers)
        with descriptor_passing.passing(passage):
            targets = [unpickler.load() for _ in range(unpickler.load())]
            around, lengths, tuples = unpickler.load()
        for target, length in zip(targets, lengths, strict=True):
            done = 0
            while done < length:
                with descriptor_passing.passing(passage), uncollected():
                    items = unpickler.load()
                    done += len(items)
                    (target.update if type(target) is dict else target.extend)(items)
                yield
        for index in tuples:
            targets[index] = tuple(targets[index])
        return _put_in(around, targets)
    finally:
        passage.close()


def _put_in(around: Any, containers: list[Any]) -> Any:
    """Return the message with the containers in place: a result is one by itself, a call has them as arguments."""

    def real(value: Any) -> Any:
        return containers[value.index] if type(value) is Sliced else value

    if type(around) is Sliced:
        return real(around)
    function, args, kwargs, extras = around
    return function, tuple(map(real, args)), {key: real(value) for key, value in kwargs.items()}, extras


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
