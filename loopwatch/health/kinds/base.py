"""The base class of executor kinds: the modules to hook, the hooks, and the :class:`Watched` of a pool.

A new kind is one module here and one entry in :data:`loopwatch.health.kinds.KINDS`. The name of its workers also stands
in ``PROCESSES`` or ``THREADS`` of :mod:`loopwatch.health.history` (a test asks), and where its package makes pools for
the program: in ``naming._MACHINERY``, so that the program's line is shown and not that package's, and, where a process
should load the agent only on first use, in :mod:`loopwatch.core.deferred`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.patches import loaded
from loopwatch.health.exit_waits import ExitWaits
from loopwatch.health.hooks import PART, Hooks
from loopwatch.health.in_worker import Notes, Target
from loopwatch.health.lost_errors import LostErrors
from loopwatch.health.naming import pool_name
from loopwatch.health.submitters import Submitters
from loopwatch.health.task_board import TaskBoard
from loopwatch.health.watched_pool import Identity, Terms, Watched


@dataclass(frozen=True, slots=True)
class Tools:
    """The services of executor discovery that a kind uses.

    Attributes:
        hooks: method hooks.
        found: returns the :class:`Watched` of a pool, watching it if it is not yet; None if it cannot be watched.
        each: returns all watched pools.
        made: hook to install after ``__init__``; registers a new pool.
        noted: registers a pool that existed before the agent.
        target: creates the replacement of a worker function: (function, import path, recorder of a thread).
        board: returns the task board of worker processes, None if there is none.
        lost_errors: follows failed results until their error is retrieved or lost.
        thread_identity: returns the identity of a thread pool, which may be the default executor of a loop.
        exits: notes who waits for the end of a pool.
        submitters: notes who submits to a process pool.
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
    exits: ExitWaits
    submitters: Submitters


class ExecutorKind:
    """One kind of executor.

    Attributes:
        modules: names of the modules that define it; loopwatch imports none of them.
        class_name: name of its class in them; subclasses are included.
        needs: attributes that the base class's ``__init__`` sets; a pool without them is not watched.
        part: the part to which faults of its hooks are counted, and which they switch off.
    """

    modules: tuple[str, ...] = ()
    class_name = ""
    needs: tuple[str, ...] = ()
    part = PART

    def start(self, tools: Tools, module: Any) -> None:
        """Hook ``module``, which the program has imported, and register its existing pools."""
        raise NotImplementedError

    def name(self, pool: Any) -> str:
        """Return the kind of ``pool`` as in :class:`~loopwatch.events.PoolStats`."""
        raise NotImplementedError

    def identity(self, pool: Any, place: str, taken: Container[str], _tools: Tools) -> Identity:
        """Return the identity of ``pool``, created at ``place``, with a name that is not in ``taken``."""
        return Identity(pool_name(type(pool).__name__, place, taken), self.name(pool), place)

    def watch(self, pool: Any, terms: Terms, tools: Tools) -> Watched:
        """Return a new :class:`Watched` of ``pool``.

        Raises:
            TypeError: ``pool`` cannot be watched.
        """
        raise NotImplementedError

    def owns(self, pool: Any) -> bool:
        """Whether ``pool`` is of this kind; decided by its type, not by the ``__class__`` that a mock claims."""
        kinds = (getattr(loaded(module), self.class_name, None) for module in self.modules)
        return any(isinstance(kind, type) and issubclass(type(pool), kind) for kind in kinds)

    def is_made(self, pool: Any) -> bool:
        """Whether the base class's ``__init__`` of ``pool`` has run."""
        return all(hasattr(pool, name) for name in self.needs)
