"""Replaces methods of other libraries' pools by plain functions, as subclasses call ``Base.method(self)`` unbound."""

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
"""What the watching of foreign pools is called among the parts that may fail."""
ONE = "executor"
"""What a single one is called that fails, which is no matter for the others."""


class Hooks:
    """Puts notes before and after methods, and takes care that none of them harms the program.

    Args:
        patches: where the replaced attributes are kept.
        faults: where failures are counted.
        drop: called with an object of the program that has failed, and of which nothing is noted any more.
    """

    def __init__(self, patches: PatchSet, faults: Faults, drop: Callable[[Any], object] = lambda _thing: None) -> None:
        self.patches, self._faults, self._drop = patches, faults, drop
        self._isolation = Isolation(faults, ONE)
        self._items: list[ListItem] = []

    @property
    def is_off(self) -> bool:
        """Whether the part as a whole has failed, as for a version of a module that is not known."""
        return self._faults.is_off(PART)

    def is_left_alone(self, thing: object) -> bool:
        """Whether nothing is to be noted of ``thing``."""
        return self._isolation.has(thing) or self.is_off

    def failed(self, thing: object, exc: Exception) -> None:
        """Note that ``thing`` has failed: an executor, a future, whatever it is that the program has given us."""
        if self._isolation.add(thing, exc):
            self._drop(thing)

    def after(self, owner: Any, name: str, note: Note) -> None:
        """Have ``note(instance, result)`` called after each call of a method."""
        self._around(owner, name, None, note)

    def before(self, owner: Any, name: str, note: Note) -> None:
        """Have ``note(instance, *args, **kwargs)`` called before each call of a method."""
        self._around(owner, name, note, None)

    def both(self, owner: Any, name: str, before: Note, after: Note, *, always: bool = True) -> None:
        """Do both.

        Args:
            owner, name: of the method.
            before, after: as above.
            always: whether ``after`` is called, with None, if the method has raised.
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
        """Return ``note`` such that it harms nobody: what it raises is counted, once for each object.

        Args:
            note: what is to be called.
            whose: the object that fails if it raises; None for one of its arguments.
            at: which of them.
        """

        def guarded(*args: Any, **kwargs: Any) -> Any:
            thing = args[at] if whose is None else whose
            if not self.is_left_alone(thing):
                try:
                    return note(*args, **kwargs)
                except Exception as exc:  # noqa: BLE001 - the seam between the program and what is noted of it
                    self.failed(thing, exc)
            return None

        return guarded

    def when_imported(self, name: str, callback: Callable[[Any], object], part: str = PART) -> None:
        """Have ``callback`` called with a module as soon as the program has imported it; we never do.

        Args:
            name: of the module.
            callback: what to call.
            part: what is switched off if that fails, such as for a version of the module that is not known.
        """

        def guarded(module: ModuleType) -> None:
            with self._faults.guard(part):
                callback(module)

        self._items += when_imported(name, guarded)

    def stop(self) -> None:
        """Take back what is in lists; patches are undone by their owner."""
        for item in self._items:
            item.undo()
        self._items.clear()
