"""The state of the process: everything that belongs to no agent, pool or call. No other module keeps any.

Who needs a variable of the whole process writes a class, and asks for its only instance here: :func:`one`. Who needs to
know all objects of a class that are in use registers them in :func:`living`, which does not keep them alive.

What there is, and why no agent and no pool can hold it:

- ``_installed``: the agent that is installed, with its lock and the waiting for a first use.
- ``core.log``: the original stderr, a fact about the process.
- ``telemetry``: the instruments on the application's providers, which outlive agents as those providers do; the number
  of this worker process, which is a socket name of the kernel.
- ``health.task_board``: memory maps that must not be closed, as somebody else's descriptor would be closed with them.
- ``workers``, ``offloading``: ``@offload`` works without an agent. Its settings and its default pool; the pools,
  threads, launchers and writers that a forked child or the end of the process must close; the shared buffers and the
  locks held on them; what calls took; whether this process is itself a worker.

Apart from it there are caches, in the modules that use them: of facts that do not change (``functools.cache``), and in
``workers.pickling`` the pickles of functions, which are sent again and again.
"""

from __future__ import annotations

import weakref

TYPE_CHECKING = False  # as type checkers know it; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import Any, TypeVar

    Kind = TypeVar("Kind")

_ones: dict[type[Any], Any] = {}
_living: dict[type[Any], weakref.WeakSet[Any]] = {}


def one(kind: type[Kind]) -> Kind:
    """Return the only instance of ``kind`` in this process; made without arguments by the first call.

    Example:
        >>> class Names(set): pass
        >>> one(Names) is one(Names)
        True
    """
    found: Kind | None = _ones.get(kind)
    if found is None:
        found = _ones.setdefault(kind, kind())  # of two threads, the first one's
    return found


def living(kind: type[Kind]) -> weakref.WeakSet[Kind]:
    """Return the objects of ``kind`` that are in use: a set that their owner adds them to."""
    found = _living.get(kind)
    return _living.setdefault(kind, weakref.WeakSet()) if found is None else found
