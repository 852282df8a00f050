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
"""Server programs that run an application given as ``module:name``; the service is named after that application."""
MOST_WORKERS = 256
"""Workers of one parent that get a number."""
_LAUNCHERS = frozenset({"opentelemetry-instrument"})
_UNKNOWN = "python"


def attributes(environ: Mapping[str, str] | None = None) -> Attributes:
    """Return the current attributes of this process; they change after a fork.

    Args:
        environ: holds ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES``, which take precedence; default
            ``os.environ``.

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
    if "service.instance.id" in given and is_worker():  # all workers have inherited the same id
        given["service.instance.id"] += f"/{os.getpid()}"
    merged = {**own, **{key: value for key, value in given.items() if key != "service.name"}}
    return {utf8(key): utf8(value) if isinstance(value, str) else value for key, value in merged.items()}


def given_attributes(text: str) -> dict[str, str]:
    """Return the attributes in ``OTEL_RESOURCE_ATTRIBUTES``; malformed pairs are skipped.

    Example:
        >>> given_attributes("deployment.environment.name=prod,team=a%2Cb")
        {'deployment.environment.name': 'prod', 'team': 'a,b'}
    """
    pairs = (pair.partition("=") for pair in text.split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if key.strip() and equals}


def program_name(argv: Sequence[str]) -> str:
    """Return a name for a program from its arguments: its application, script or module.

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
    """Return an id unique to this process; a forked child passes its own pid and gets another id."""
    return str(uuid.uuid4())


class _Slot(NamedTuple):
    """The number of a worker among those of its parent, reserved while the socket is open."""

    number: int
    holder: socket.socket
    mark: descriptors.Mark

    def close(self) -> None:
        """Release the number; in a forked child that does not take it from the parent."""
        descriptors.close_socket(self.holder, self.mark)


class _Slots(dict[int, _Slot]):
    """The slot of this process by its pid, if it has one; in a forked child first the parent's."""


def worker_index() -> int | None:
    """Return the number of this worker process among its parent's, from 0; None if it is no worker, or none is found.

    It is the first free number, so a replacement worker gets that of the one it replaces. The kernel keeps the list as
    names of abstract sockets (unix(7)), each of which disappears with its process; so on Linux only.
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
        except OSError:  # another worker has it
            holder.close()
            continue
        kept = slots.setdefault(pid, _Slot(number, holder, descriptors.mark(holder.fileno())))
        if kept.holder is not holder:  # another thread was faster
            holder.close()
        return kept.number
    return None


def _worker_name() -> str:
    """Return the name that multiprocessing gave this process, "" if it is none of its children."""
    process = loaded("multiprocessing.process")
    if process is None:
        return ""
    name = process.current_process().name
    return "" if name == "MainProcess" else str(name)


@functools.cache
def _version() -> str:
    package = sys.modules["loopwatch"]
    return str(package.__version__)
