"""Process-wide state: single instances, and registries of live objects. No other module holds global state.

For a variable of the whole process, write a class and get its only instance from :func:`one`. To enumerate the live
objects of a class, register them in :func:`living`, which holds weak references only.

What is held here, and why no agent or pool can hold it:

- ``_installed``: the installed agent, with its lock and its deferred start.
- ``core.log``: the original stderr, a fact about the process.
- ``telemetry``: the instruments on the application's providers, which outlive agents as those providers do; the number
  of this worker process, which is a socket name of the kernel.
- ``health.task_board``: memory maps that must not be closed, as a descriptor of other code could be closed with them.
- ``watch.expected_code``: the context variable that marks expected code, which programs use without an agent at hand.
- ``workers``, ``offloading``: ``@offload`` works without an agent. Its settings and its default pool; the pools,
  threads, launchers and writers that a forked child or the exit of the process must close; the shared buffers and the
  locks held on them; the totals of calls; whether this process is itself a worker.

Besides, modules keep caches of their own: of facts that do not change (``functools.cache``), and in
``workers.pickling`` the pickles of functions, which are sent repeatedly.
"""

from __future__ import annotations

import weakref

TYPE_CHECKING = False  # recognised by type checkers; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import Any, TypeVar

    Kind = TypeVar("Kind")

_ones: dict[type[Any], Any] = {}
_living: dict[type[Any], weakref.WeakSet[Any]] = {}


def one(kind: type[Kind]) -> Kind:
    """Return the only instance of ``kind`` in this process; the first call makes it, without arguments.

    Example:
        >>> class Names(set): pass
        >>> one(Names) is one(Names)
        True
    """
    found: Kind | None = _ones.get(kind)
    if found is None:
        found = _ones.setdefault(kind, kind())  # if two threads race, the first one's
    return found


def living(kind: type[Kind]) -> weakref.WeakSet[Kind]:
    """Return the live objects of ``kind``: a weak set to which their owner adds them."""
    found = _living.get(kind)
    return _living.setdefault(kind, weakref.WeakSet()) if found is None else found
