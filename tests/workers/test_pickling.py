"""Pickling of calls and results: every value arrives unchanged, pickled at once or in slices."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import sys
import threading
import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwatch.errors import NotPicklable
from loopwatch.offloading.remote_call import Reference
from loopwatch.workers import descriptor_passing, pickling, protocol
from loopwatch.workers.pickling import Payload


def there(packed: Payload) -> Any:
    """Unpickle as the receiver does, with its own copies of the buffers."""
    buffers = [bytes(each) if each.readonly else bytearray(each) for each in packed.buffers]
    received = [os.dup(each) for each in packed.descriptors.numbers]
    if packed.flags & protocol.SLICED:
        return pickling.finished(pickling.decode_sliced(bytes(packed.pickle), buffers, received))
    if packed.flags & protocol.NAMED:
        return pickling.decode_call(bytes(packed.pickle), buffers, received, packed.flags)
    return pickling.decode(bytes(packed.pickle), buffers, received)


def call(*args: Any, by_value: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """Send a call's arguments; return them as received."""
    packed = pickling.encode_call(print, args, kwargs, None, by_value=by_value)
    if not isinstance(packed, Payload):
        packed = pickling.finished(packed)
    function, args, kwargs, extras = there(packed)
    assert function is print and extras is None
    return args, kwargs


def result(value: Any) -> Any:
    """Send a result; return it as received."""
    return there(pickling.encode_result(value, by_value=False))


values = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.builds(bytearray, st.binary()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(st.lists(values, max_size=4), st.dictionaries(st.text(), values, max_size=3), values)
@settings(max_examples=50)
def test_any_value(args: list[Any], kwargs: dict[str, Any], big: Any) -> None:
    """Any values arrive equal, alone and beside large containers that hold them too."""
    assert call(*args, **kwargs) == (tuple(args), kwargs)
    many = (big,) * pickling.LARGE
    assert call(*args, list(many), many, **kwargs) == ((*args, list(many), many), kwargs)
    assert call(*args, many, [many, args], **kwargs) == ((*args, many, [many, args]), kwargs)
    assert result(many) == many
    assert result(dict.fromkeys(range(pickling.LARGE), big)) == dict.fromkeys(range(pickling.LARGE), big)


@pytest.mark.parametrize("size", [pickling.LARGE - 1, pickling.LARGE, pickling.LARGE + pickling.ITEMS + 1, 10_000])
def test_identity_and_cycles(size: int) -> None:
    """Object identity is preserved across slices, arguments, and cycles through lists and dicts."""
    item = {"x": 1}
    items: list[Any] = [item] * size
    table: dict[Any, Any] = dict.fromkeys(range(size), item)
    items[5] = table
    table["items"], table["itself"] = items, table
    (a, b, c), kwargs = call(items, table, item, again=items)
    assert a is kwargs["again"] and b["items"] is a and a[5] is b and b["itself"] is b
    assert a[0] is a[size - 1] is b[size - 1] is c and len(a) == size and len(b) == size + 2
    back = result(items)
    assert back[5]["items"] is back and back[0] is back[5][3]


def steps_of(value: Any) -> tuple[int, int]:
    """Return the number of steps to encode and to decode a result."""
    steps, encoding = pickling.encode_sliced(pickling.Sliced(0), [value], value), 0
    while True:
        try:
            next(steps)
            encoding += 1
        except StopIteration as end:
            packed = end.value
            break
    if not packed.flags & protocol.SLICED:
        return encoding, 0
    return encoding, sum(1 for _ in pickling.decode_sliced(packed.pickle, packed.buffers))


def test_large_tuples() -> None:
    """A tuple is encoded and decoded in slices, and arrives as one object, with the identity of its items."""
    item: dict[str, Any] = {}
    items = (item,) * 10_000
    assert steps_of(items) == (10_000 // pickling.ITEMS,) * 2
    (a, b, c, d), kwargs = call(items, item, [item] * 3000, items, again=items)
    assert type(a) is tuple and a == items and a[0] is a[9999] is b is c[2999] and a is d is kwargs["again"]
    back = result(items)
    assert type(back) is tuple and back == items and back[0] is back[9999]
    nested = ((1, (2, (3, [4]))),)
    assert call(nested, list(range(3000)), tuple(range(3000))) == ((nested, list(range(3000)), tuple(range(3000))), {})
    packed = pickling.encode_call(print, (items, [1] * 3000), {}, None, by_value=False)
    assert pickling.finished(packed).flags & protocol.SLICED


@pytest.mark.parametrize("where", [0, pickling.ITEMS, 9999])
def test_tuples_that_are_referred_to(where: int) -> None:
    """A tuple that contains itself, or is in another container, stays one object and is not sliced, unlike others."""
    held: list[Any] = []
    knot: Any = (*[0] * where, held, *[0] * (9999 - where))
    held.append(knot)
    assert steps_of(knot)[1] == 0
    back = result(knot)
    assert type(back) is tuple and len(back) == 10_000 and back[where][0] is back
    (a, b, c), _ = call(knot, held, [knot] * 3000)
    assert a[where] is b and b[0] is a is c[0] is c[2999] and len(a) == 10_000
    numbers = tuple(range(5000))
    (d, e, f), kwargs = call(numbers, [numbers], [numbers] * 3000, key={"x": numbers})
    assert type(d) is tuple and d == numbers and d is e[0] is f[2999] is kwargs["key"]["x"]
    other: Any = (*range(3000), numbers)
    (g, h), _ = call(other, numbers)
    assert g[3000] is h and (g, h) == (other, numbers)
    packed = pickling.finished(pickling.encode_call(print, (numbers, [numbers] * 3000), {}, None, by_value=False))
    assert packed.flags & protocol.SLICED


def test_bytes_that_look_like_a_reference() -> None:
    """Bytes that look like a reference to a tuple are sent as bytes."""
    value = (pickling.TO_NOWHERE,) * 3000
    assert result(value) == value and call(value, [1] * 3000)[0] == (value, [1] * 3000)


def test_tuple_beside_a_list_that_changes() -> None:
    """A list is copied at once even if a tuple found in it late is encoded another way."""
    numbers = tuple(range(3000))
    items: list[Any] = [*range(3000), numbers]
    steps = pickling.encode_call(print, (items, numbers), {}, None, by_value=False)
    next(steps)
    items[0] = "changed"
    _, (a, b), _, _ = there(pickling.finished(steps))
    assert a[0] == 0 and a[3000] is b and b == numbers


def test_ordered_and_subclassed() -> None:
    """Dicts keep their order; subclasses are not sliced and keep their class."""

    table = {n: str(n) for n in range(5000, 0, -1)}
    assert list(result(table)) == list(table)
    assert not pickling.is_large(Special(range(5000)))
    back = result(Special(range(5000)))
    assert type(back) is Special and back == list(range(5000))


class Special(list[int]):
    """A subclass of list."""


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 10, protocol.LEAST_APART - 1, protocol.LEAST_APART, 1_000_000])
def test_bytes(kind: type[Any], size: int) -> None:
    """Bytes keep type and content; from 64 KB on they are sent beside the pickle, once, however often they occur."""
    value = kind(os.urandom(size))
    packed = pickling.encode_call(print, (value, value), {"key": value}, None, by_value=False)
    assert len(packed.buffers) == (size >= protocol.LEAST_APART)
    _, (a, b), kwargs, _ = there(packed)
    assert type(a) is kind and a == value and (a is b is kwargs["key"] or not size)
    back = result(value)
    assert type(back) is kind and back == value
    (c, d, items), _ = call(value, value, [1] * 3000)
    assert type(c) is kind and c == value and (c is d or not size) and len(items) == 3000


def test_arrays() -> None:
    """Large contiguous arrays are sent beside the pickle; all arrays arrive equal and writable."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000.0).reshape(100, 1000)
    assert len(pickling.encode(array).buffers) == 1 and len(pickling.encode(array[:2, :2]).buffers) == 0
    for each in (array, array.T, array[::2, ::3], array[:0], numpy.array(["a", None], dtype=object)):
        back = result(each)
        assert (back == each).all() and back.dtype == each.dtype and back.flags.writeable
    (a, b), _ = call(array, array)
    assert a is b


def test_encoding_pauses() -> None:
    """10,000 items are encoded and decoded in 50 steps each, with the collector in its usual state between them."""
    was_on = gc.isenabled()
    packed = None
    steps, pauses = pickling.encode_sliced(pickling.Sliced(0), [list(range(10_000))], None), 0
    while packed is None:
        try:
            next(steps)
            pauses += 1
            assert gc.isenabled() == was_on
        except StopIteration as end:
            packed = end.value
    assert pauses == 10_000 // pickling.ITEMS
    assert sum(1 for _ in pickling.decode_sliced(packed.pickle, packed.buffers)) == pauses


def test_changed_meanwhile() -> None:
    """Items added to a container while it is encoded are not sent, and cause no error."""
    items = list(range(10_000))
    steps = pickling.encode_sliced(pickling.Sliced(0), [items], items)
    next(steps)
    items.clear()
    assert there(pickling.finished(steps)) == list(range(10_000))


def test_unpicklable_values() -> None:
    """An unpicklable value raises NotPicklable, whole or in slices; a NotPicklable of the object is propagated."""
    for value in (threading.Lock(), [threading.Lock()] * 3000, {"x": threading.Lock()}):
        with pytest.raises(NotPicklable, match="cannot pickle"):
            call(value)
    with pytest.raises(NotPicklable, match=r"^mine$"):
        call(Mine())


class Mine:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise NotPicklable("mine")


class InMain:
    """Pretends to belong to a ``__main__`` that cannot be imported."""


def test_main_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``by_value`` only objects of ``__main__`` go through cloudpickle."""
    cloudpickle = pytest.importorskip("cloudpickle")
    used: list[Any] = []
    dumps = cloudpickle.dumps
    monkeypatch.setattr(cloudpickle, "dumps", lambda *args, **kw: used.append(args) or dumps(*args, **kw))
    assert call([1], len, by_value=True) == (([1], len), {})
    assert call(list(range(3000)), by_value=True) == ((list(range(3000)),), {})
    assert used == []
    import __main__

    monkeypatch.setattr(InMain, "__module__", "__main__")
    monkeypatch.setattr(__main__, "InMain", InMain, raising=False)
    for arguments in ((InMain(),), ([InMain()] * 3000,)):
        used.clear()
        call(*arguments, by_value=True)
        assert len(used) == 1


def test_descriptors_belong_to_the_payload() -> None:
    """Descriptors of a payload stay open while the payload lives, whatever their owner does."""
    read, write = os.pipe()
    packed = pickling.encode([Owner(read), Owner(write), Owner(read)])
    assert len(packed.descriptors) == 2
    os.close(read)
    os.close(write)
    again = packed.descriptors.numbers[1]
    os.write(again, b"x")
    del packed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(again, b"x")


class Owner:
    """Owns a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        passage = descriptor_passing.current()
        if passage is None:
            raise NotPicklable("only beside a call")
        return int, (passage.add(self.descriptor),)


def test_nothing_beside() -> None:
    """encode_whole() puts everything into the pickle, and refuses values that cannot be in it."""
    value = bytearray(1_000_000)
    assert pickle.loads(pickling.encode_whole(value)) == value
    with pytest.raises(NotPicklable, match="only beside a call"):
        pickling.encode_whole(Owner(0))


def module_function() -> None:
    """Is found by its name."""


@pytest.mark.parametrize("function", [module_function, len, os.getpid, Reference("os", "getpid")])
def test_function_is_known_by_its_name(function: Any) -> None:
    """A function of a module is pickled once, whatever the arguments, and the receiver gets the same function."""
    packs = [pickling.encode_call(function, args, {}, None, by_value=False) for args in ((), (1, "a"), ([1],), (b"x",))]
    size = int.from_bytes(packs[0].pickle[:2], "little")
    assert len({pack.pickle[: size + 2] for pack in packs}) == 1
    plain = os.getpid if isinstance(function, Reference) else function
    assert pickle.loads(packs[0].pickle[2 : size + 2]) is plain
    assert [there(pack)[:2] for pack in packs] == [(plain, args) for args in ((), (1, "a"), ([1],), (b"x",))]


def test_functions_without_a_name() -> None:
    """Bound methods, partials and lambdas have no cached name, nor do functions of an unimportable ``__main__``."""
    for function in ([].append, functools.partial(print), lambda: None):
        packed = pickling.encode_call(function, (1,), {}, None, by_value=False)
        assert not packed.flags & protocol.NAMED
    made = types.FunctionType(module_function.__code__, {"__name__": "__main__"}, "made")
    made.__qualname__ = "made"
    sys.modules["__main__"].made = made  # type: ignore[attr-defined]
    try:
        for by_value in (True, False, True):
            packed = pickling.encode_call(made, (), {}, None, by_value=by_value)
            assert bool(packed.flags & protocol.NAMED) is not by_value
    finally:
        del sys.modules["__main__"].made  # type: ignore[attr-defined]


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of names stays bounded in a program with ever new functions."""
    monkeypatch.setattr(pickling, "MOST_NAMES", 3)
    pickling._NAMES[False].clear()
    for function in (len, print, abs, max, min, sum):
        pickling.encode_call(function, (), {}, None, by_value=False)
        assert len(pickling._NAMES[False]) <= 3
