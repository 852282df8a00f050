"""Resource attributes of this process (service, instance, worker), named by the OpenTelemetry conventions.

Never command lines: arguments may hold secrets.
"""

from __future__ import annotations

import functools
import os
import platform
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import unquote

from loopwatch.core import descriptors
from loopwatch.core.patches import loaded
from loopwatch.core.process_state import one
from loopwatch.telemetry.metrics.attributes import utf8
from loopwatch.telemetry.ports import is_worker

Attributes = Mapping[str, str | int]

SERVERS = frozenset({"daphne", "granian", "gunicorn", "hypercorn", "uvicorn"})
"""Programs that run an application that is given as ``module:name``; it is that, and not they, which is the service."""
MOST_WORKERS = 256
"""Workers of one parent that are numbered."""
_LAUNCHERS = frozenset({"opentelemetry-instrument"})
_UNKNOWN = "python"


def attributes(environ: Mapping[str, str] | None = None) -> Attributes:
    """Return the attributes of this process, as it is now: after a fork they are others.

    Args:
        environ: where ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` stand, default ``os.environ``; they win.

    Example:
        >>> attributes({"OTEL_SERVICE_NAME": "shop"})["service.name"]
        'shop'
    """
    environ = os.environ if environ is None else environ
    given = given_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    name = environ.get("OTEL_SERVICE_NAME", "").strip() or given.get("service.name")
    own: dict[str, str | int] = {
        "service.name": name or program_name(getattr(sys, "argv", None) or sys.orig_argv),
        "service.instance.id": _instance(os.getpid()),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "process.parent_pid": os.getppid(),
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        "telemetry.distro.name": "loopwatch",
        "telemetry.distro.version": _version(),
    }
    index = worker_index()
    if index is not None:
        own["loopwatch.worker.index"] = index
    worker = _worker_name()
    if worker:
        own["loopwatch.worker.name"] = worker
    if "service.instance.id" in given and is_worker():  # all workers have inherited the same
        given["service.instance.id"] += f"/{os.getpid()}"
    told = {**own, **{key: value for key, value in given.items() if key != "service.name"}}
    return {utf8(key): utf8(value) if isinstance(value, str) else value for key, value in told.items()}


def given_attributes(text: str) -> dict[str, str]:
    """Return what ``OTEL_RESOURCE_ATTRIBUTES`` says; pairs that are none are passed over.

    Example:
        >>> given_attributes("deployment.environment.name=prod,team=a%2Cb")
        {'deployment.environment.name': 'prod', 'team': 'a,b'}
    """
    pairs = (pair.partition("=") for pair in text.split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if key.strip() and equals}


def program_name(argv: Sequence[str]) -> str:
    """Return what to call a program after what it was started with: its application, script or module.

    Example:
        >>> program_name(["/usr/bin/uvicorn", "shop.web:app", "--workers", "2"]), program_name(["jobs/worker.py"])
        ('shop.web', 'worker')
    """
    name = _name_of(argv[0]) if argv else ""
    if name in _LAUNCHERS:
        return program_name(argv[1:])
    if name in SERVERS:
        for word in argv[1:]:
            module, colon, attribute = word.partition(":")
            if colon and attribute[:1].isidentifier() and module.replace(".", "").isidentifier():
                return module
    return name or _UNKNOWN


def _name_of(program: str) -> str:
    path = PurePath(program)
    if path.name == "__main__.py":  # python -m PACKAGE
        return path.parent.name
    return "" if program in ("-c", "-m", "-") else path.stem


@functools.lru_cache(maxsize=1)
def _instance(_pid: int) -> str:
    """Return an id that is this process's alone; a forked child asks with another number and gets another one."""
    return str(uuid.uuid4())


class _Slot(NamedTuple):
    """Number of a worker among those of its parent, for as long as the socket is open."""

    number: int
    holder: socket.socket
    mark: descriptors.Mark

    def close(self) -> None:
        """Let go of it, which in a forked child does not take it from the parent."""
        descriptors.close_socket(self.holder, self.mark)


class _Slots(dict[int, _Slot]):
    """That of this process by its pid, if it has one; in a forked child first that of its parent."""


def worker_index() -> int | None:
    """Return which of its parent's worker processes this is, from 0; None if it is none, or that cannot be told.

    The first number that no other has: one that is started in place of another gets that one's. The kernel keeps the
    list, as names of sockets (abstract ones, unix(7)), from which each goes with its process; so on Linux only.
    """
    pid, slots = os.getpid(), one(_Slots)
    if pid in slots:
        return slots[pid].number
    while slots:
        slots.popitem()[1].close()
    if sys.platform != "linux" or not is_worker():
        return None
    for number in range(MOST_WORKERS):
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0loopwatch.worker.{os.getuid()}.{os.getppid()}.{number}")
        except OSError:  # another has it
            holder.close()
            continue
        kept = slots.setdefault(pid, _Slot(number, holder, descriptors.mark(holder.fileno())))
        if kept.holder is not holder:  # another thread was faster
            holder.close()
        return kept.number
    return None


def _worker_name() -> str:
    """Return what multiprocessing calls this process, "" if it is none of its children."""
    process = loaded("multiprocessing.process")
    if process is None:
        return ""
    name = process.current_process().name
    return "" if name == "MainProcess" else str(name)


@functools.cache
def _version() -> str:
    package = sys.modules["loopwatch"]
    return str(package.__version__)
