"""What a kind of executor is: which modules it comes from, how it is hooked, and what watches one of its pools.

A new kind is one module here and one line in :data:`loopwatch.health.kinds.KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.patches import loaded
from loopwatch.health.hooks import PART, Hooks
from loopwatch.health.in_worker import Notes, Target
from loopwatch.health.lost_errors import LostErrors
from loopwatch.health.naming import pool_name
from loopwatch.health.task_board import TaskBoard
from loopwatch.health.watched_pool import Identity, Terms, Watched


@dataclass(frozen=True, slots=True)
class Tools:
    """What the discovery of executors gives to a kind.

    Attributes:
        hooks: how methods are replaced.
        found: returns what watches a pool, None for one that is not watched; watches it from then on if it can be.
        each: returns everything that is watched.
        made: to be called, as a note after ``__init__``, with each pool that was made.
        noted: takes a pool that was there before us.
        target: makes what stands for a module's function for workers: (function, its place, notes of a thread).
        board: returns where worker processes note what they do, None if they cannot.
        lost_errors: follows results that have failed until somebody asks for their error.
        thread_identity: returns what a thread pool is called, which may be the default executor of a loop.
    """

    hooks: Hooks
    found: Callable[[Any], Watched | None]
    each: Callable[[], Sequence[Watched]]
    made: Callable[[Any, None], object]
    noted: Callable[[Any], object]
    target: Callable[[Any, str, Callable[[Any], Notes | None] | None], Target]
    board: Callable[[], TaskBoard | None]
    lost_errors: LostErrors
    thread_identity: Callable[[Any, str, Container[str]], Identity]


class ExecutorKind:
    """One kind of executors.

    Attributes:
        modules: names of the modules that it comes from; none of them is imported by us.
        class_name: of its class in them, subclasses included.
        needs: attributes that a pool has once its base class has made it; without them it is not watched.
        part: under whose name faults of the hooking are counted, and which is switched off by them.
    """

    modules: tuple[str, ...] = ()
    class_name = ""
    needs: tuple[str, ...] = ()
    part = PART

    def start(self, tools: Tools, module: Any) -> None:
        """Hook ``module``, which the program has just imported or had imported before; note the pools that it has."""
        raise NotImplementedError

    def name(self, pool: Any) -> str:
        """Return the kind of ``pool`` as in :class:`~loopwatch.events.PoolStats`."""
        raise NotImplementedError

    def identity(self, pool: Any, place: str, taken: Container[str], _tools: Tools) -> Identity:
        """Return what ``pool`` is called, which was made at ``place``, unlike those ``taken``."""
        return Identity(pool_name(type(pool).__name__, place, taken), self.name(pool), place)

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        """Return what watches ``pool``.

        Raises:
            TypeError: it cannot be watched.
        """
        raise NotImplementedError

    def owns(self, pool: Any) -> bool:
        """Whether ``pool`` is of this kind: what a mock says of its class is not asked."""
        kinds = (getattr(loaded(module), self.class_name, None) for module in self.modules)
        return any(isinstance(kind, type) and issubclass(type(pool), kind) for kind in kinds)

    def is_made(self, pool: Any) -> bool:
        """Whether its base class has made ``pool``."""
        return all(hasattr(pool, name) for name in self.needs)
