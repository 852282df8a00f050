"""Hooks methods of other libraries' pools with plain functions, as subclasses call ``Base.method(self)`` unbound."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from loopwatch.core.faults import Faults
from loopwatch.core.patches import ListItem, Patch, PatchSet, when_imported
from loopwatch.health.isolation import Isolation

Note = Callable[..., Any]

PART = "executors"
"""Name of pool discovery among the parts whose faults are counted."""
ONE = "executor"
"""Name under which a fault of a single pool is counted; it does not affect the others."""


class Hooks:
    """Calls hooks before and after methods; an exception of a hook never reaches the program.

    Args:
        patches: registry of replaced attributes.
        faults: counter of failures.
        drop: called with an object of the program on which a hook has failed, and which is no longer watched.
    """

    def __init__(self, patches: PatchSet, faults: Faults, drop: Callable[[Any], object] = lambda _thing: None) -> None:
        self.patches, self._faults, self._drop = patches, faults, drop
        self._isolation = Isolation(faults, ONE)
        self._items: list[ListItem] = []

    @property
    def is_off(self) -> bool:
        """Whether the whole part is switched off, for instance after faults with an unknown version of a module."""
        return self._faults.is_off(PART)

    def is_left_alone(self, thing: object) -> bool:
        """Whether hooks skip ``thing``."""
        return self._isolation.has(thing) or self.is_off

    def failed(self, thing: object, exc: Exception) -> None:
        """Record that a hook failed on ``thing``, such as an executor or future, and exclude it from now on."""
        if self._isolation.add(thing, exc):
            self._drop(thing)

    def after(self, owner: Any, name: str, note: Note) -> None:
        """Call ``note(instance, result)`` after each call of a method."""
        self._around(owner, name, None, note)

    def before(self, owner: Any, name: str, note: Note) -> None:
        """Call ``note(instance, *args, **kwargs)`` before each call of a method."""
        self._around(owner, name, note, None)

    def both(self, owner: Any, name: str, before: Note, after: Note, *, always: bool = True) -> None:
        """Call one hook before and one after each call of a method.

        Args:
            owner, name: the method.
            before, after: as for :meth:`before` and :meth:`after`.
            always: whether ``after`` is called, with None, if the method raises.
        """
        self._around(owner, name, before, after, always=always)

    def _around(self, owner: Any, name: str, before: Note | None, after: Note | None, *, always: bool = False) -> None:
        def make(original: Any, patch: Patch) -> Any:
            @functools.wraps(original)
            def method(instance: Any, *args: Any, **kwargs: Any) -> Any:
                if not patch.active:
                    return original(instance, *args, **kwargs)
                before, after, always = patch.state
                if before is not None:
                    before(instance, *args, **kwargs)
                result = None
                try:
                    result = original(instance, *args, **kwargs)
                except BaseException:
                    if not always:
                        after = None
                    raise
                finally:
                    if after is not None:
                        after(instance, result)
                return result

            return method

        state = [None if note is None else self.guarded(note) for note in (before, after)]
        self.patches.replace(owner, name, make).state = (*state, always)

    def guarded(self, note: Note, whose: object = None, at: int = 0) -> Note:
        """Return ``note`` wrapped so that it never raises: an exception is counted, once for each object.

        Args:
            note: the hook.
            whose: the object to exclude if the hook raises; None for one of its arguments.
            at: index of that argument.
        """

        def guarded(*args: Any, **kwargs: Any) -> Any:
            thing = args[at] if whose is None else whose
            try:
                return None if self.is_left_alone(thing) else note(*args, **kwargs)
            except Exception as exc:  # noqa: BLE001 - the boundary between the program and its hooks
                self.failed(thing, exc)
                return None

        return guarded

    def when_imported(self, name: str, callback: Callable[[Any], object], part: str = PART) -> None:
        """Call ``callback`` with a module as soon as the program has imported it; loopwatch never imports it.

        Args:
            name: of the module.
            callback: called with the module.
            part: the part to which a failure is counted, for instance with an unknown version of the module.
        """

        def guarded(module: ModuleType) -> None:
            with self._faults.guard(part):
                callback(module)

        self._items += when_imported(name, guarded)

    def stop(self) -> None:
        """Remove the import hooks; the owner of the patches undoes them."""
        for item in self._items:
            item.undo()
        self._items.clear()
