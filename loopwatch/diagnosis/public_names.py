"""Public names of functions: a frame carries the module that defines a function, a reader knows another one. Pure."""

from __future__ import annotations

_PUBLIC = {
    "posix": "os",
    "builtins": "",
    "_thread": "threading",
    "threading._RLock": "threading.RLock",
    "_io": "io",
    "io.open": "open",
    "_io.open": "open",
    "pathlib._local": "pathlib",
    "requests.api": "requests",
    "requests.sessions": "requests",
    "requests.models": "requests",
    "concurrent.futures.thread": "concurrent.futures",
    "concurrent.futures.process": "concurrent.futures",
    "asyncio.base_events.BaseEventLoop": "loop",
    "asyncio.tasks": "asyncio",
    "asyncio.queues": "asyncio",
    "asyncio.locks": "asyncio",
    "asyncio.runners": "asyncio",
    "asyncio.taskgroups": "asyncio",
    "multiprocessing.connection._ConnectionBase": "multiprocessing.connection.Connection",
    "multiprocessing.queues": "multiprocessing",
    "multiprocessing.process.BaseProcess": "multiprocessing.Process",
    "redis.client": "redis",
    "redis.commands.core": "redis",
    "pymongo.synchronous.collection": "pymongo.collection",
    "psycopg.connection": "psycopg",
    "psycopg.cursor": "psycopg",
    "sqlalchemy.orm.session": "sqlalchemy.orm",
    "sqlalchemy.ext.asyncio.session": "sqlalchemy.ext.asyncio",
    "jinja2.environment": "jinja2",
    "pandas.core.frame": "pandas",
    "pandas.core.series": "pandas",
    "json.decoder": "json",
    "json.encoder": "json",
}
"""Public spelling of modules, and of some functions; the longest one counts."""


def public(name: str) -> str:
    """Return the name by which a reader knows the function ``name``.

    Private modules are left out, the methods that a call of a class runs give the class.

    Example:
        >>> public("httpx._client.AsyncClient.__init__"), public("posix.stat"), public("httpx._api.get")
        ('httpx.AsyncClient', 'os.stat', 'httpx.get')
        >>> public("concurrent.futures._base.Future.result"), public("builtins.print"), public(".recv")
        ('concurrent.futures.Future.result', 'print', '.recv')
    """
    if not name or name.startswith(".") or "<" in name:
        return name.removeprefix("builtins.")
    parts = _spelled(name).split(".")
    *path, last = parts
    kept = [part for part in path if not part.startswith("_")] if path else []
    if last in ("__init__", "__new__", "__call__") and kept:
        return ".".join(kept)
    return ".".join([*kept, last])


def _spelled(name: str) -> str:
    head, tail = name, ""
    while head:
        known = _PUBLIC.get(head)
        if known is not None:
            return f"{known}{tail}" if known else tail.removeprefix(".")
        head, dot, last = head.rpartition(".")
        tail = f"{dot}{last}{tail}"
    first, dot, rest = name.partition(".")
    # An extension module such as `_socket` or `_pickle` implements the module of that name.
    return f"{first.removeprefix('_') or first}{dot}{rest}" if rest else name
