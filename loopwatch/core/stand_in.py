"""Transparent proxy for a function: called, bound, inspected, compared, copied and pickled like the original.

Self-contained (standard library only, nothing heavy): also runs in every Python process under ``loopwatch run``. It
implements the part of ``wrapt.FunctionWrapper`` that is needed here: importing wrapt would take a third of the agent's
load time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from loopwatch.core.unseen import unseen

TYPE_CHECKING = False  # recognised by type checkers; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import Any

    Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@unseen
class StandIn:
    """Calls ``call(original, args, kwargs)`` in place of the original.

    Args:
        original: a function, written in Python or not. As an attribute of a class it binds if the original does:
            builtin functions do not.
        call: a :data:`Call`, which receives the original, bound to the object that it was read from; subclasses may use
            it differently.

    Example:
        >>> stand_in = StandIn(len, lambda original, args, kwargs: original(*args) + 1)
        >>> stand_in("abc"), stand_in.__name__, stand_in == len, isinstance(stand_in, type(len))
        (4, 'len', True, True)
    """

    __slots__ = ("__weakref__", "_call", "_is_unbound", "_original")

    def __init__(self, original: Any, call: Any, *, is_unbound: bool = False) -> None:
        _set(self, "_original", original)
        _set(self, "_call", call)
        _set(self, "_is_unbound", is_unbound)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        original, args = called(self, args)
        return _get(self, "_call")(original, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        original = _get(self, "_original")
        bind = getattr(type(original), "__get__", None)
        if bind is None:
            return self
        bound = bind(original, instance, owner)
        return type(self)(bound, _get(self, "_call"), is_unbound=instance is None and bound is original)

    def __getattribute__(self, name: str) -> Any:
        original = _get(self, "_original")
        if name == "__wrapped__":
            return original
        return _get(self, name) if name in _OWN else getattr(original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_get(self, "_original"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_get(self, "_original"), name)

    def __eq__(self, other: object) -> bool:
        if issubclass(type(other), StandIn):
            other = _get(other, "_original")
        return bool(_get(self, "_original") == other)

    def __hash__(self) -> int:
        return hash(_get(self, "_original"))

    def __repr__(self) -> str:
        return repr(_get(self, "_original"))

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name, like the original: programs send ``os.kill`` to processes that run no agent."""
        original = _get(self, "_original")
        bound_to = getattr(original, "__self__", None)
        if bound_to is not None and not isinstance(bound_to, type(functools)):  # of a builtin it is the module
            return getattr, (bound_to, original.__name__)
        import pkgutil

        return pkgutil.resolve_name, (f"{original.__module__}:{original.__qualname__}",)


def called(stand_in: StandIn, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return the original of ``stand_in``, bound, and the arguments to call it with."""
    original = _get(stand_in, "_original")
    if args and _get(stand_in, "_is_unbound"):  # Class.method(instance, ...)
        return original.__get__(args[0], type(args[0])), args[1:]
    return original, args


_get, _set = object.__getattribute__, object.__setattr__
_OWN = frozenset({"__call__", "__copy__", "__deepcopy__", "__get__", "__reduce_ex__"})
"""Attributes of the proxy itself; all others are read from the original."""
