"""``dataclass`` as the standard library has it, with methods that are compiled at the first instance.

The standard one compiles six methods a class, 0.5 to 1 ms; half of what it took to load the agent was that. Most of the
records are not needed before something happens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import FrozenInstanceError

TYPE_CHECKING = False  # as type checkers know it
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - it is what this module exports
    from typing import Any
else:

    def dataclass(*, frozen: bool = False, slots: bool = False, kw_only: bool = False) -> Callable[[type], type]:
        """Make a class a dataclass, with the arguments of the standard decorator that are in use here.

        Args:
            frozen: instances cannot be changed, and can be hashed.
            slots: instances have no other attributes than the fields.
            kw_only: fields are given by name.

        Example:
            >>> @dataclass(frozen=True, slots=True)
            ... class Point:
            ...     x: int
            ...     y: int = 0
            >>> Point(1), Point(1) == Point(1, 0), dataclasses.replace(Point(1), y=2)
            (Point(x=1, y=0), True, Point(x=1, y=2))
        """

        def make(cls: type) -> type:
            for name, method in (_FROZEN if frozen else _PLAIN).items():
                if name not in vars(cls):
                    setattr(cls, name, method)
            made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
            made.__init__ = _Init(made)
            params = made.__dataclass_params__  # of interest to a dataclass that inherits from this one
            params.frozen, params.init, params.repr, params.eq = frozen, True, True, True
            return made

        return make


def compile_now(*classes: Any) -> None:
    """Compile the methods of ``classes``, where the first instance is no time to do that."""
    for cls in classes:
        cls.__init__  # noqa: B018 - looked for, see below


class _Init:
    """In place of ``__init__`` until it is looked for: by an instance that is made, or by ``inspect.signature``."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls

    def __get__(self, instance: object, owner: type) -> Any:
        for name, method in _compiled(self._cls).items():
            setattr(self._cls, name, method)
        return self._cls.__init__ if instance is None else self._cls.__init__.__get__(instance)


def _compiled(cls: Any) -> dict[str, Any]:
    """Return ``__init__``, and those of ``__eq__`` and ``__hash__`` that the class has not written itself."""
    given: dict[str, Any] = {"_set": object.__setattr__, "_anew": _ANEW}
    positional: list[str] = []
    by_name: list[str] = []
    lines: list[str] = []
    fields = dataclasses.fields(cls)
    for field in fields:
        name = value = field.name
        parameter = name
        if field.default is not dataclasses.MISSING:
            given[f"_default_{name}"], parameter = field.default, f"{name}=_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            given[f"_factory_{name}"], parameter = field.default_factory, f"{name}=_anew"
            value = f"_factory_{name}() if {name} is _anew else {name}"
        (by_name if field.kw_only else positional).append(parameter)
        lines.append(f"_set(self, {name!r}, {value})" if cls.__setattr__ is _setattr else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    parameters = ", ".join(["self", *positional, *(["*", *by_name] if by_name else [])])
    own, others = ("(" + "".join(f"{item}.{field.name}, " for field in fields) + ")" for item in ("self", "other"))
    sources = {
        "__init__": f"({parameters}):\n {'; '.join(lines) or 'pass'}",
        "__eq__": f"(self, other):\n return {own} == {others} if type(other) is type(self) else NotImplemented",
        "__hash__": f"(self):\n return hash({own})",
    }
    wanted = ["__init__", *(name for name, generic in _GENERIC.items() if vars(cls).get(name) is generic)]
    # A program that ends by Ctrl-C is killed by SIGINT at the very end, unless text is executed on the way there: that
    # resets ``unhandled_keyboard_interrupt`` (Python/pythonrun.c, run_eval_code_obj). Compiled code does not.
    code = compile("\n".join(f"def {name}{sources[name]}" for name in wanted), "<string>", "exec")
    exec(code, given)
    for name in wanted:
        given[name].__module__, given[name].__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"
    given["__init__"].__annotations__ = {field.name: field.type for field in fields} | {"return": None}
    return {name: given[name] for name in wanted}


class _Anew:
    def __repr__(self) -> str:
        return "<factory>"


_ANEW = _Anew()


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__dataclass_fields__)


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _setattr(_self: Any, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(_self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return list(_values(self))


def _setstate(self: Any, state: list[Any]) -> None:
    for name, value in zip(self.__dataclass_fields__, state, strict=True):
        object.__setattr__(self, name, value)


_PLAIN: dict[str, Any] = {"__repr__": _repr, "__eq__": _eq, "__hash__": None}
_FROZEN: dict[str, Any] = {
    "__repr__": _repr, "__eq__": _eq, "__hash__": _hash, "__setattr__": _setattr, "__delattr__": _delattr,
    "__getstate__": _getstate, "__setstate__": _setstate,
}  # fmt: skip
_GENERIC = {"__eq__": _eq, "__hash__": _hash}
