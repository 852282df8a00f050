"""Pickles calls and results for transport, in slices if they are large; buffers go out of band (PEP 574).

A large list, dict or tuple would block the loop while it is pickled or unpickled (100,000 small dicts: 150 ms). It is
therefore encoded in slices by one pickler and decoded in slices by one unpickler, whose memos span all of them, so that
an object that occurs in two slices is one object again. The garbage collector is disabled within each slice: it would
otherwise run many times over ever more objects.

A tuple is made once all of its items have arrived, so nothing that arrives earlier can refer to it. Such a reference
shows in the pickle, by an index that nothing else has: then the tuple is pickled in one go.
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
"""Index of a sliced tuple in the pickler's memo: higher than any real index."""
TO_NOWHERE = pickle.LONG_BINGET + NOWHERE.to_bytes(4, "little")
"""Opcode of a reference to such a tuple in the pickle (``memo_get`` in CPython's Modules/_pickle.c)."""
MOST_NAMES = 1000
"""Functions whose pickles are cached."""
_NAMES: tuple[dict[Any, bytes], dict[Any, bytes]] = ({}, {})
"""Cached results of :func:`_name_of`, by whether functions of ``__main__`` are pickled by value."""
_FUNCTIONS: dict[bytes, Any] = {}
_LENGTH = struct.Struct("<H")
_SIMPLE = frozenset((type(None), bool, int, float, str))
"""Types whose values are never wrapped, sent as descriptors or sent out of band."""
Steps = Generator[None, None, "Payload"]


class Payload(NamedTuple):
    """Contents of a frame: a pickle, out-of-band buffers, flags, and descriptors to pass."""

    pickle: Any
    buffers: list[memoryview]
    flags: int
    descriptors: descriptor_passing.Duplicates


class Sliced:
    """Placeholder for the container with this index in the message around it."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class _Apart:
    """A large ``bytes`` or ``bytearray`` that is sent out of band, once, however often the message contains it."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (pickle.PickleBuffer(self.value),)


def _itself(value: Any) -> Any:
    return value


def encode_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], extras: Any, *, by_value: bool) -> Any:
    """Pickle a call: return a :class:`Payload`, or :data:`Steps` (see :func:`encode_sliced`) for large containers."""
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
    """Return the pickle of a function that is importable by name, with its length in front; None for any other.

    It precedes the pickle of the arguments, so that each side makes it once and caches it.
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
        except Exception:  # noqa: BLE001 - a lambda or a nested function: pickled as any other object
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
        by_value: pickle functions and classes of ``__main__`` by value, as the other side cannot import it.

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
    """Pickle ``value`` in band: without buffers or descriptors beside the pickle."""
    return _dumps(value, by_value, None, lambda: None)


def _dumps(value: Any, by_value: bool, aside: Any, anew: Callable[[], None]) -> bytes:
    try:
        plain = pickle.dumps(value, PROTOCOL, buffer_callback=aside)
        if not (by_value and _of_main(plain)):
            return plain
        failure: Exception = pickle.PicklingError("__main__ cannot be imported by a worker")
    except NotPicklable:
        raise
    except Exception as exc:  # noqa: BLE001 - a foreign __reduce__ may raise anything: cloudpickle is tried
        failure = exc
    anew()
    try:
        return _by_cloudpickle(value, aside, failure)
    finally:
        del failure  # it refers to this frame


def _by_cloudpickle(value: Any, aside: Any, failure: Exception) -> bytes:
    """Pickle with cloudpickle an object that pickle cannot; ``failure`` is the error of pickle."""
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
    """Whether a pickle refers to ``__main__``, or merely contains the word, which does no harm."""
    return b"__main__" in bytes(data)


def _aside(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a buffer callback that keeps small buffers inside the pickle and collects the others."""

    def take(buffer: pickle.PickleBuffer) -> bool:
        view = memoryview(buffer)
        if view.nbytes < LEAST_APART or not view.contiguous or len(buffers) == MOST_BUFFERS:
            return True
        buffers.append(buffer.raw())
        return False

    return take


def is_large(value: Any) -> bool:
    """Whether ``value`` is a container that is large enough to slice."""
    return type(value) in (list, dict, tuple) and len(value) >= LARGE


def has_large(values: Iterable[Any]) -> bool:
    """Whether one of ``values`` is large enough to slice."""
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
        The :class:`Payload`, as the generator's value.

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
    # Both sides start with the containers, still empty: items that refer to their container find it in the memo.
    pickler.dump(len(containers))
    for each in containers:
        pickler.dump({} if type(each) is dict else [])
    tuples = [index for index, each in enumerate(containers) if type(each) is tuple]
    pickler.memo = {id(each): (NOWHERE if i in tuples else i, each) for i, each in enumerate(containers)}
    passage, descriptors = descriptor_passing.Passage(), descriptor_passing.Duplicates()

    def dump(value: Any) -> bool:
        """Pickle ``value``; return whether the other side can resolve all of its references."""
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
    """Slice all containers but the tuples, as something refers to one of them."""
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
    """Return the message with its containers filled in: a result is one itself, a call has them as arguments."""

    def real(value: Any) -> Any:
        return containers[value.index] if type(value) is Sliced else value

    if type(around) is Sliced:
        return real(around)
    function, args, kwargs, extras = around
    return function, tuple(map(real, args)), {key: real(value) for key, value in kwargs.items()}, extras


def finished(steps: Generator[None, None, Any]) -> Any:
    """Run a generator to its end without pausing, and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@contextmanager
def uncollected() -> Iterator[None]:
    """Context manager that disables the garbage collector."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
