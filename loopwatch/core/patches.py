"""Reversible patches. No other module of the agent replaces or restores attributes that the agent does not own.

Undo works in any order. A replacement that other code has wrapped meanwhile cannot be removed without removing their
wrapper too: it stays as a residue, only calls the original, and is reused by the next patch of the same attribute, so
that layers never stack.

A warning or log record that names its caller never names a wrapper: see :mod:`loopwatch.core.unseen` and
:meth:`PatchSet.beside`.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.import_hooks import WhenImported
from loopwatch.core.stand_in import StandIn, called
from loopwatch.core.unseen import unseen, unseen_code

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Called with the original (bound), the positional and the keyword arguments; returns the result for the caller."""

_ABSENT = object()


class Patch:
    """One reversible replacement of ``owner.name``.

    Attributes:
        active: False once undone; the replacement must then act as the original does.
        lives_with_owner: whether only the replacement keeps the patch alive, and only the owner the replacement; no
            cycle is made.
        state: data of the replacement, kept for a later patch that finds it as a residue.
    """

    __slots__ = (
        "__weakref__", "_before", "_owner", "_replacement", "_strong", "active", "lives_with_owner", "name", "state",
    )  # fmt: skip

    def __init__(
        self,
        owner: Any,
        name: str,
        make: Callable[[Any, Patch], Any],
        state: Any = None,
        *,
        lives_with_owner: bool = False,
    ) -> None:
        self.name = name
        self.active = True
        self.state = state
        self.lives_with_owner = lives_with_owner
        self._before = vars(owner).get(name, _ABSENT)
        self._owner, self._strong = _reference(owner)
        replacement = unseen(make(getattr(owner, name), self))
        setattr(owner, name, replacement)
        self._replacement = weakref.ref(replacement) if lives_with_owner else replacement

    @property
    def replacement(self) -> Any:
        """The replacement, None if it is gone."""
        return self._replacement() if self.lives_with_owner else self._replacement

    @property
    def owner(self) -> Any:
        """The patched object, None if it is gone."""
        return self._strong if self._owner is None else self._owner()

    @property
    def in_place(self) -> bool:
        """Whether the attribute is still the replacement itself, so that it can be restored."""
        owner, replacement = self.owner, self.replacement
        return owner is not None and replacement is not None and vars(owner).get(self.name) is replacement

    def undo(self) -> bool:
        """Stop intercepting; return whether the attribute is now as it was before the patch."""
        self.active = False
        if self.owner is None:
            return True
        if not self.in_place:
            return False
        if self._before is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self._before)
        return True


class CodePatch:
    """One reversible replacement of a Python function's code, effective through every reference to the function.

    The function stays the same object with the same signature. The original is kept as a separate function.

    Attributes:
        name: of the function.
        active: False once undone.
        original: behaves as the function did.
    """

    __slots__ = ("_code", "_function", "_signed", "active", "name", "original")

    def __init__(self, function: FunctionType, around: Around) -> None:
        self.name = function.__qualname__
        self.active = True
        self.original = _copy(function)
        self._function = function
        self._signed = "__signature__" not in function.__dict__
        if self._signed:  # else it is read from the code
            function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        self._code = _passing_on(function, self._around, unseen(around))
        function.__code__ = self._code

    @unseen
    def _around(self, around: Around, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return around(self.original, args, kwargs) if self.active else self.original(*args, **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Restore the original code for a while, for all threads: it may recurse as deep as it ever could."""
        ours = self._function.__code__ is self._code
        if ours:
            self._function.__code__ = self.original.__code__
        try:
            yield
        finally:
            if ours and self.active and self._function.__code__ is self.original.__code__:
                self._function.__code__ = self._code

    def undo(self) -> bool:
        """Stop intercepting; return whether the function is now as it was before the patch."""
        self.active = False
        if self._function.__code__ not in (self._code, self.original.__code__):
            return False
        self._function.__code__ = self.original.__code__
        if self._signed:
            self._function.__dict__.pop("__signature__", None)
        return True


def _copy(function: FunctionType) -> FunctionType:
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__, copy.__module__, copy.__doc__ = function.__qualname__, function.__module__, function.__doc__
    copy.__dict__.update(function.__dict__)
    return copy


def _plain(*args: Any, **kwargs: Any) -> Any:
    return ....__call__(args, kwargs)  # type: ignore[operator]


async def _awaited(*args: Any, **kwargs: Any) -> Any:
    return await ....__call__(args, kwargs)  # type: ignore[operator]


def _passing_on(function: FunctionType, call: Callable[..., Any], around: Around) -> CodeType:
    """Return code that calls ``call(around, args, kwargs)`` in place of the constant ``...`` of the templates above."""
    template = (_awaited if inspect.iscoroutinefunction(function) else _plain).__code__

    @unseen
    def passed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call(around, args, kwargs)

    return unseen_code(template).replace(
        co_consts=tuple(passed if each is ... else each for each in template.co_consts),
        co_name=function.__code__.co_name,
        co_qualname=function.__code__.co_qualname,
        co_freevars=function.__code__.co_freevars,  # as many as the function has cells
    )


@unseen
class _Wrapper(StandIn):
    """Calls the state of a patch directly, which saves the frame of a function in between."""

    __slots__ = ()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        original, args = called(self, args)
        patch: Patch = object.__getattribute__(self, "_call")
        return patch.state(original, args, kwargs) if patch.active else original(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Beside:
    """Hooks at a call of a function that leave no frame below it on the stack; none may raise.

    Attributes:
        before: called before the function.
        over: called as soon as the call has ended, however it ended.
        after: called with the result, after ``over``; not if the function raised.
    """

    before: Callable[[], object]
    over: Callable[[], object]
    after: Callable[[Any], object]


class _OneCall(functools.partial[Any]):
    """One call of a function; calls ``over`` when the chain drops it, right after the call, raised or not."""

    over: Callable[[], object]

    def __del__(self) -> None:
        self.over()


def _chain(original: Callable[[], Any], patch: Patch) -> Any:
    """Return a callable that calls ``original``, which takes no arguments, from C only: see :meth:`PatchSet.beside`."""

    def begin() -> _OneCall:
        call, beside = _OneCall(original), patch.state
        call.over = beside.over if patch.active else _nothing
        if patch.active:
            beside.before()
        return call

    def ended(result: Any) -> Any:
        if patch.active:
            patch.state.after(result)
        return result

    # One step is one call. None of these iterators ever ends, or keeps anything between steps.
    calls = iter(begin, _ABSENT)
    step = map(ended, map(operator.call, calls)).__next__
    chain = type("_Chain", (StandIn,), {"__slots__": (), "__call__": staticmethod(step)})  # without a frame of its own
    return chain(original, _unused)


def _nothing() -> None:
    pass


def _unused(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return original(*args, **kwargs)


class PatchSet:
    """The patches of one agent, and the residues that could not be removed.

    Example:
        >>> import types
        >>> patches, target = PatchSet(), types.SimpleNamespace(f=lambda: "real")
        >>> _ = patches.around(target, "f", lambda original, args, kwargs: f"seen {original(*args, **kwargs)}")
        >>> target.f()
        'seen real'
        >>> patches.undo_all()
        >>> target.f()
        'real'
    """

    def __init__(self) -> None:
        self._active: list[Patch | CodePatch] = []
        self._residues: list[Patch] = []
        self._of_objects: weakref.WeakSet[Patch] = weakref.WeakSet()

    def around(self, owner: Any, name: str, around: Around) -> Patch:
        """Wrap the function or method ``owner.name``; signature and binding are preserved.

        Raises:
            AttributeError, TypeError: the attribute does not exist or cannot be replaced.
        """

        def make(original: Any, patch: Patch) -> Any:
            return _Wrapper(original, patch)

        return self._with(owner, name, make, unseen(around))

    def beside(self, owner: Any, name: str, beside: Beside) -> Patch:
        """Call hooks at each call of ``owner.name``, which takes no arguments, with no frame of the agent below it.

        For functions in C that warn: the warning names the innermost frame, skipped or not (``setup_context`` in
        CPython's Python/_warnings.c with a ``stack_level`` of 1).

        Raises:
            AttributeError, TypeError: the attribute does not exist or cannot be replaced.
        """
        return self._with(owner, name, _chain, beside)

    def _with(self, owner: Any, name: str, make: Callable[[Any, Patch], Any], state: Any) -> Patch:
        """Replace ``owner.name``, or reactivate a residue of an earlier patch, with a new ``state``."""
        patch = self.replace(owner, name, make, state)
        patch.state = state
        return patch

    def replace(
        self,
        owner: Any,
        name: str,
        make: Callable[[Any, Patch], Any],
        state: Any = None,
        *,
        lives_with_owner: bool = False,
    ) -> Patch:
        """Replace ``owner.name`` with ``make(original, patch)``, for callers that need every nanosecond.

        A residue of an earlier patch is reactivated instead, with its own ``state``: read ``patch.state``.

        Args:
            owner, name: the attribute to replace.
            make: must return a function that holds ``patch``.
            state: of the patch.
            lives_with_owner: for short-lived objects: no strong reference is kept here.
        """
        if lives_with_owner:
            patch = self._residue_on(owner, name) or Patch(owner, name, make, state, lives_with_owner=True)
            self._of_objects.add(patch)
        else:
            patch = self._residue_of(owner, name) or Patch(owner, name, make, state)
            self._active.append(patch)
        patch.active = True
        return patch

    def inside(self, function: FunctionType, around: Around) -> CodePatch:
        """Wrap what ``function`` does, also for code that has already imported it by name.

        Args:
            function: a plain function or a coroutine function, written in Python.
            around: as for :meth:`around`; for a coroutine function it is a coroutine function too.
        """
        patch = CodePatch(function, around)
        self._active.append(patch)
        return patch

    def undo(self, patch: Patch | CodePatch) -> None:
        """Undo one patch; a second call does nothing."""
        if patch in self._active:
            self._active.remove(patch)
            if not patch.undo() and isinstance(patch, Patch):
                self._residues.append(patch)

    def undo_all(self) -> None:
        """Undo every patch, last one first."""
        for each in list(self._of_objects):
            each.undo()
        for patch in reversed(list(self._active)):
            self.undo(patch)

    def _residue_of(self, owner: Any, name: str) -> Patch | None:
        self._residues = [patch for patch in self._residues if patch.owner is not None]
        for patch in self._residues:
            if patch.owner is owner and patch.name == name:
                self._residues.remove(patch)
                if _reachable(getattr(owner, name), patch.replacement):
                    return patch
                return None
        return None

    def _residue_on(self, owner: Any, name: str) -> Patch | None:
        """The same, for patches that live with their owner."""
        for patch in list(self._of_objects):
            if not patch.active and patch.owner is owner and patch.name == name:
                replacement = patch.replacement
                if replacement is not None and _reachable(getattr(owner, name), replacement):
                    return patch
        return None


def when_imported(name: str, callback: Callable[[ModuleType], object]) -> list[ListItem]:
    """Call back with a module: now if the program has imported it, else as soon as it does; never imports it.

    Returns:
        The pending import hook, to be undone by a caller that stops waiting; empty where the module was imported
        already.
    """
    module = loaded(name)
    if module is None:
        return [ListItem(sys.meta_path, WhenImported(name, callback), first=True)]
    callback(module)
    return []


def _reference(owner: Any) -> tuple[Callable[[], Any] | None, Any]:
    """Return (weak reference, None), or (None, owner) for an object that has no weak references."""
    try:
        return weakref.ref(owner), None
    except TypeError:
        return None, owner


def _reachable(outer: Any, replacement: Any, depth: int = 20) -> bool:
    """Whether calling ``outer`` still leads to ``replacement``: through wrappers, closures and bound methods.

    A residue that is no longer called (another patcher has restored the original) must not be reused. A wrapper that
    hides what it wraps in an unknown way counts as leading to it: not patching twice is the safer error.
    """
    seen: set[int] = set()
    todo = [outer]
    for _ in range(depth):
        if not todo:
            return False
        item = todo.pop()
        if item is replacement:
            return True
        if id(item) in seen:
            continue
        seen.add(id(item))
        links = (getattr(item, name, None) for name in ("__wrapped__", "__func__", "func"))
        todo.extend(link for link in links if link is not None)
        todo.extend(_cells(item))
        if not hasattr(item, "__code__") and not hasattr(item, "__wrapped__") and not _is_builtin(item):
            return True
    return False


def _cells(item: Any) -> list[Any]:
    found = []
    for cell in getattr(item, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:  # an empty cell
            continue
        if callable(value):
            found.append(value)
    found.extend(value for value in getattr(item, "__defaults__", None) or () if callable(value))
    return found


def _is_builtin(item: Any) -> bool:
    return type(item).__name__ in ("builtin_function_or_method", "method_descriptor", "wrapper_descriptor", "type")


class ListItem:
    """One reversible addition to a list shared with other code, such as ``gc.callbacks`` or ``sys.meta_path``."""

    def __init__(self, target: list[Any], item: Any, *, first: bool = False) -> None:
        self._target, self._item = target, item
        target.insert(0 if first else len(target), item)

    def undo(self) -> None:
        """Remove the item, wherever it is now; a second call does nothing."""
        for index, item in enumerate(self._target):
            if item is self._item:
                del self._target[index]
                return


def loaded(module: str) -> Any:
    """Return ``sys.modules[module]`` if its import is complete, else None."""
    found = sys.modules.get(module)
    spec = getattr(found, "__spec__", None)
    return None if found is None or getattr(spec, "_initializing", False) else found
