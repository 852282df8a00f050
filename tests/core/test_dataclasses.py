"""Lazily made dataclasses behave like the standard ones."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest

from loopwatch import Config, Evidence, Frame
from loopwatch.core import dataclasses as ours

KINDS = [{"frozen": True, "slots": True}, {"slots": True}, {"frozen": True, "slots": True, "kw_only": True}]
FIELDS = ("a", "b", "c")


def made(library: Any, kind: dict[str, bool], rows: int = 2) -> tuple[type, list[Any]]:
    """Return a class with a field of each kind of default, and some instances."""

    @library.dataclass(**kind)
    class Record:
        """A record."""

        a: int
        b: str = "x"
        c: list[int] = library.field(default_factory=list)

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("a")

    return Record, [Record(a=1), Record(a=2, c=[1], b="y")] if rows else []


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_is_as_the_standard_one(kind: dict[str, bool]) -> None:
    """Signature, repr, equality, hash, order, dict, copy, replace and attributes are the same as the standard's."""
    (own, own_rows), (real, real_rows) = made(ours, kind), made(dataclasses, kind)

    def described(cls: Any, rows: list[Any]) -> list[Any]:
        return [
            str(inspect.signature(cls)).replace("<factory>", ""), [field.name for field in dataclasses.fields(cls)],
            getattr(cls, "__match_args__", None), getattr(cls, "__slots__", None), cls.__hash__ is None,
            cls.__dataclass_params__.frozen, cls.__dataclass_params__.eq, cls.__doc__, cls.__qualname__,
            [repr(row) for row in rows], [dataclasses.asdict(row) for row in rows],
            [hasattr(row, "__dict__") for row in rows],
            rows[0] == cls(a=1), rows[0] == rows[1], rows[0] == 1, dataclasses.replace(rows[0], b="z").b,
            copy.deepcopy(rows[1]) == rows[1], rows[0].c is not cls(a=1).c,
        ]  # fmt: skip

    assert described(own, own_rows) == described(real, real_rows)
    with pytest.raises(ValueError, match="a"):
        own(a=-1)
    for wrong in ({}, {"a": 1, "d": 2}):
        with pytest.raises(TypeError, match="__init__"):
            own(**wrong)


@pytest.mark.parametrize("kind", [each for each in KINDS if "frozen" in each], ids=str)
def test_frozen_cannot_be_changed(kind: dict[str, bool]) -> None:
    """An attribute of a frozen record can be neither set nor deleted, with the standard error message."""
    (_, (own, _)), (_, (real, _)) = made(ours, kind), made(dataclasses, kind)
    said = []
    for record in (own, real):
        for change in (lambda record: setattr(record, "a", 2), lambda record: delattr(record, "a")):
            with pytest.raises(dataclasses.FrozenInstanceError) as caught:
                change(record)
            said.append(str(caught.value))
    assert said[:2] == said[2:]
    assert own.a == 1


def test_records_can_be_hashed_pickled_and_copied() -> None:
    """Records are hashed, pickled and copied by their values."""
    frame = Frame("f", "m", "m.py", 3)
    assert pickle.loads(pickle.dumps(frame)) == copy.copy(frame) == frame
    assert len({frame, Frame("f", "m", "m.py", 3)}) == 1
    assert dataclasses.asdict(Evidence(1.0))["wall"] == 1.0
    assert "threshold: 'float' = 0.1" in str(inspect.signature(Config))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_first_instance_is_as_the_others(kind: dict[str, bool]) -> None:
    """Invalid arguments of the first instance raise the usual error, and it can be made after that."""
    for wrong in ({}, {"a": 1, "d": 2}, {"b": 1}):
        cls, _ = made(ours, kind, rows=0)
        for _ in range(2):
            with pytest.raises(TypeError, match="__init__"):
                cls(**wrong)
        assert (cls(a=1).b, cls(a=1).c) == ("x", [])
    cls, _ = made(ours, kind, rows=0)
    with pytest.raises(ValueError, match="a"):
        cls(a=-1)
    if "kw_only" in kind:
        return
    for arguments in ((1, "x", [], 3), ()):
        cls, _ = made(ours, kind, rows=0)
        with pytest.raises(TypeError, match="__init__"):
            cls(*arguments)
    cls, _ = made(ours, kind, rows=0)
    with pytest.raises(TypeError, match="multiple values"):
        cls(1, a=1)
    first = cls(1, "y")
    assert first == cls(1, "y")


def test_standard_module_is_imported_lazily() -> None:
    """The standard module is imported when one of its attributes is used, not before."""
    code = """
import sys
from loopwatch.core.dataclasses import dataclass, field
@dataclass(slots=True)
class Record:
    a: int
    b: list = field(default_factory=list)
assert Record(1) == Record(1) and repr(Record(2)) == "Record(a=2, b=[])"
assert "dataclasses" not in sys.modules
import dataclasses
assert dataclasses.asdict(Record(1)) == {"a": 1, "b": []}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_with_slots_may_inherit() -> None:
    """The fields are those of the record, whatever slots a subclass adds."""

    class Slotted(Config):
        __slots__ = ()

    class More(Config):
        __slots__ = ("extra",)

    for cls in (Slotted, More):
        config = cls(threshold=0.5)
        assert "threshold=0.5" in repr(config)
        assert config.replaced(cpu_budget=0.5).threshold == 0.5
        assert config != cls(threshold=0.6)
        assert copy.copy(config).threshold == 0.5


def test_a_dataclass_may_inherit() -> None:
    """A standard dataclass can inherit from a lazily made one, with its fields."""

    @dataclasses.dataclass(frozen=True)
    class Mine(Config):
        extra: int = 3

    assert (Mine(threshold=0.5).threshold, Mine().extra, Mine(extra=4) == Mine(extra=4)) == (0.5, 3, True)
