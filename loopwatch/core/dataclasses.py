"""A lazy ``dataclass(slots=True)``, compatible with the standard one; most of a class is generated on first use.

The standard decorator takes 0.5 to 1 ms a class, which would be half of the agent's load time, and most records are not
needed before something happens. Here methods are compiled at the second instance. The attributes that
``dataclasses.fields`` and similar functions read are made by the standard decorator on first access; until then its
module is not even loaded.
"""

from __future__ import annotations

import functools

TYPE_CHECKING = False  # recognised by type checkers
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - exported
    from dataclasses import field as field  # noqa: PLC0414
    from typing import Any, Literal, TypeVar

    Record = TypeVar("Record")
else:

    def dataclass(
        *,
        slots: Literal[True],  # noqa: ARG001 - for type checkers
        frozen: bool = False,
        kw_only: bool = False,
    ) -> Callable[[type], type]:
        """Make a class a dataclass; takes those arguments of the standard decorator that this package uses.

        Args:
            slots: instances have no attributes but the fields.
            frozen: instances are immutable and hashable.
            kw_only: fields are keyword-only.

        Example:
            >>> import dataclasses
            >>> @dataclass(frozen=True, slots=True)
            ... class Point:
            ...     x: int
            ...     y: int = 0
            >>> Point(1), Point(1) == Point(1, 0), dataclasses.replace(Point(1), y=2)
            (Point(x=1, y=0), True, Point(x=1, y=2))
        """

        def make(cls: type) -> type:
            namespace = dict(vars(cls))
            names = tuple(cls.__annotations__)
            spec = _Spec(names, {name: namespace.pop(name) for name in names if name in namespace}, frozen, kw_only)
            for name in ("__dict__", "__weakref__"):
                namespace.pop(name, None)
            made = type(cls)(cls.__name__, cls.__bases__, (_FROZEN if frozen else _PLAIN) | namespace | {
                "__slots__": names,
                "__own_fields__": names,
                "__match_args__": () if kw_only else names,
                "__init__": _Init(spec),
                "__dataclass_fields__": _Standard("__dataclass_fields__", spec),
                "__dataclass_params__": _Standard("__dataclass_params__", spec),
            })  # fmt: skip
            made.__qualname__ = cls.__qualname__
            spec.cls = made
            return made

        return make

    def field(*, default_factory: Callable[[], Any]) -> Any:
        """Declare a field whose default is made anew for each instance, as ``dataclasses.field`` does."""
        return _Factory(default_factory)


def compile_now(*classes: Any) -> None:
    """Compile the methods of ``classes`` now, where that must not happen while instances are made."""
    for cls in classes:
        cls.__init__  # noqa: B018 - the access compiles them, see _Init


def field_names(cls: Any) -> tuple[str, ...]:
    """Return the field names of a class made by this module."""
    names: tuple[str, ...] = cls.__slots__
    return names


def replace(record: Record, **changes: Any) -> Record:
    """Return a copy of ``record`` with ``changes`` applied, as ``dataclasses.replace`` does."""
    values = {name: getattr(record, name) for name in _names(record)}
    return type(record)(**(values | changes))


def asdict(record: Any) -> dict[str, Any]:
    """Return ``{field: value}``, nested records converted too, as ``dataclasses.asdict`` does."""
    import dataclasses

    return dataclasses.asdict(record)


class _Factory:
    """A field's default that is made anew for each instance."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class _Spec:
    """Definition of a class: names and defaults of its fields, its options, and the class once it is made."""

    def __init__(self, names: tuple[str, ...], defaults: dict[str, Any], frozen: bool, kw_only: bool) -> None:
        self.cls: Any = None
        self.names, self.defaults, self.frozen, self.kw_only = names, defaults, frozen, kw_only


class _Init:
    """Stand-in for ``__init__`` until a second instance is made or it is accessed, as by ``inspect.signature``."""

    def __init__(self, spec: _Spec) -> None:
        self._spec = spec
        self._has_made_one = False

    def __get__(self, instance: object, owner: type) -> Any:
        if isinstance(instance, self._spec.cls) and not self._has_made_one:
            self._has_made_one = True
            return functools.partial(self._first, instance)
        return self._compile(instance)

    def _first(self, instance: object, *args: Any, **kwargs: Any) -> None:
        """Initialise the first instance without compiling: many records never get a second one."""
        spec = self._spec
        values = dict(zip(spec.names, args, strict=False)) if not spec.kw_only else {}
        if len(values) == len(args) and not values.keys() & kwargs.keys():
            values |= kwargs
            for name, default in spec.defaults.items():
                if name not in values:
                    values[name] = default.make() if type(default) is _Factory else default
            if values.keys() == set(spec.names):
                for name in spec.names:
                    object.__setattr__(instance, name, values[name])
                if (then := getattr(instance, "__post_init__", None)) is not None:
                    then()
                return
        self._compile(instance)(*args, **kwargs)  # raises the TypeError for the arguments

    def _compile(self, instance: object) -> Any:
        cls = self._spec.cls
        for name, method in _compiled(self._spec).items():
            setattr(cls, name, method)
        return cls.__init__ if instance is None else cls.__init__.__get__(instance)


class _Standard:
    """Stand-in for an attribute that the standard decorator gives a class, until its first access."""

    def __init__(self, name: str, spec: _Spec) -> None:
        self._name, self._spec = name, spec

    def __get__(self, instance: object, owner: type) -> Any:
        import dataclasses

        spec = self._spec
        given: dict[str, Any] = {
            name: dataclasses.field(default_factory=value.make) if type(value) is _Factory else value
            for name, value in spec.defaults.items()
        }
        namespace = {"__annotations__": spec.cls.__annotations__, "__module__": spec.cls.__module__, "__doc__": ""}
        made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=spec.kw_only)(
            type(spec.cls.__name__, (), namespace | given)
        )
        params = made.__dataclass_params__  # read when a dataclass inherits from this one
        params.frozen, params.init, params.repr, params.eq = spec.frozen, True, True, True
        spec.cls.__dataclass_fields__, spec.cls.__dataclass_params__ = made.__dataclass_fields__, params
        return getattr(spec.cls, self._name)


def _compiled(spec: _Spec) -> dict[str, Any]:
    """Return ``__init__``, and ``__eq__`` and ``__hash__`` unless the class defines them itself."""
    cls = spec.cls
    given: dict[str, Any] = {"_set": object.__setattr__, "_anew": _ANEW}
    parameters = ["self", "*"] if spec.kw_only and spec.names else ["self"]
    lines: list[str] = []
    for name in spec.names:
        parameter = value = name
        if name in spec.defaults:
            default = spec.defaults[name]
            if type(default) is _Factory:
                given[f"_factory_{name}"], parameter = default.make, f"{name}=_anew"
                value = f"_factory_{name}() if {name} is _anew else {name}"
            else:
                given[f"_default_{name}"], parameter = default, f"{name}=_default_{name}"
        parameters.append(parameter)
        lines.append(f"_set(self, {name!r}, {value})" if cls.__setattr__ is _setattr else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    own, others = ("(" + "".join(f"{item}.{name}, " for name in spec.names) + ")" for item in ("self", "other"))
    sources = {
        "__init__": f"({', '.join(parameters)}):\n {'; '.join(lines) or 'pass'}",
        "__eq__": f"(self, other):\n return {own} == {others} if type(other) is type(self) else NotImplemented",
        "__hash__": f"(self):\n return hash({own})",
    }
    wanted = ["__init__", *(name for name, generic in _GENERIC.items() if vars(cls).get(name) is generic)]
    # After Ctrl-C the interpreter kills itself by SIGINT as its last act, unless source text is executed before: that
    # resets ``unhandled_keyboard_interrupt`` (Python/pythonrun.c, run_eval_code_obj). Compiled code does not.
    code = compile("\n".join(f"def {name}{sources[name]}" for name in wanted), "<string>", "exec")
    exec(code, given)
    for name in wanted:
        given[name].__module__, given[name].__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"
    given["__init__"].__annotations__ = {**cls.__annotations__, "return": None}
    return {name: given[name] for name in wanted}


class _Anew:
    def __repr__(self) -> str:
        return "<factory>"


_ANEW = _Anew()


def _names(record: Any) -> tuple[str, ...]:
    own: tuple[str, ...] | None = vars(type(record)).get("__own_fields__")
    return tuple(type(record).__dataclass_fields__) if own is None else own  # a subclass made by the program


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in _names(record))


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name in _names(self))
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _setattr(_self: Any, name: str, _value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(_self: Any, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return list(_values(self))


def _setstate(self: Any, state: list[Any]) -> None:
    for name, value in zip(_names(self), state, strict=True):
        object.__setattr__(self, name, value)


def _replace(self: Any, /, **changes: Any) -> Any:
    return replace(self, **changes)


_PLAIN: dict[str, Any] = {"__repr__": _repr, "__eq__": _eq, "__hash__": None, "__replace__": _replace}
_FROZEN: dict[str, Any] = {
    "__repr__": _repr, "__eq__": _eq, "__hash__": _hash, "__setattr__": _setattr, "__delattr__": _delattr,
    "__getstate__": _getstate, "__setstate__": _setstate, "__replace__": _replace,
}  # fmt: skip
_GENERIC = {"__eq__": _eq, "__hash__": _hash}
