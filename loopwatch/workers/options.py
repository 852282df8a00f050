"""Options of a pool and of a call: frozen records, validated when they are made."""

from __future__ import annotations

import contextvars
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwatch.errors import ConfigError
from loopwatch.system import cgroup
from loopwatch.workers.launch import START_METHODS

PREFIX = "[{name} {pid}] "
"""Default prefix of the lines that workers write."""


def usable_cpus() -> int:
    """Return how many whole processors this process may use, by its affinity and the quota of its cgroup."""
    return max(round(cgroup.usable_cpus().usable), 1)


def check_count(name: str, value: Any, least: int, example: str) -> None:
    """Raise ConfigError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: must be a whole number of at least {least}, such as {example}")


def check_seconds(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name}={value!r}: must be a number of seconds above 0, or None for no limit")


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How one call is run.

    Attributes:
        timeout: seconds that it may run, time in the queue not counted; its worker is killed then. None for no limit.
        retries: times that it may run again if its worker dies; setting it declares the call safe to repeat.
        priority: calls with a higher one go first.
        max_concurrency: calls of the same function that run at a time; None for no limit.
        on_full: ``raise`` :class:`QueueFull` or ``wait`` for room when the queue is full.
    """

    timeout: float | None = None
    retries: int = 0
    priority: int = 0
    max_concurrency: int | None = None
    on_full: str = "raise"

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        check_count("retries", self.retries, 0, "1")
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise ConfigError(f"priority={self.priority!r}: must be a whole number, such as 10; higher goes first")
        if self.max_concurrency is not None:
            check_count("max_concurrency", self.max_concurrency, 1, "2")
        if self.on_full not in ("raise", "wait"):
            raise ConfigError(f"on_full={self.on_full!r}: must be 'raise' or 'wait'")


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a pool is run: the arguments of :class:`loopwatch.WorkerPool`."""

    workers: int | None = None
    min_workers: int | None = None
    idle_timeout: float | None = 60.0
    max_queue: int | None = None
    name: str = "pool"
    start_method: str = "forkserver"
    preload: tuple[str, ...] = ()
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    warmup: Callable[[], object] | None = None
    max_tasks_per_worker: int | None = None
    max_memory_per_worker: int | None = None
    nice: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    prefetch: int | None = None
    context: tuple[Any, ...] = ()
    forward_logs: bool = True
    prefix_output: bool | str = False
    on_event: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_start()
        self._check_output()
        object.__setattr__(self, "initargs", tuple(self.initargs))
        object.__setattr__(self, "context", tuple(located(each) for each in self.context))

    def _check_sizes(self) -> None:
        """Check the number of workers and their limits."""
        if self.workers is not None:
            check_count("workers", self.workers, 1, "4")
        if self.min_workers is not None:
            check_count("min_workers", self.min_workers, 0, "1")
            if self.min_workers > self.most:
                raise ConfigError(f"min_workers={self.min_workers!r}: must not be more than workers={self.most}")
        if self.idle_timeout is not None:
            check_seconds("idle_timeout", self.idle_timeout)
        for name in ("max_queue", "max_tasks_per_worker", "max_memory_per_worker", "prefetch"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1, {"max_memory_per_worker": "500_000_000"}.get(name, "100"))
        if not isinstance(self.nice, int) or isinstance(self.nice, bool) or not 0 <= self.nice <= 19:
            raise ConfigError(f"nice={self.nice!r}: must be 0 (as the parent) to 19 (only when nothing else runs)")

    def _check_start(self) -> None:
        """Check how workers are started and initialized."""
        if self.start_method not in START_METHODS:
            allowed = " or ".join(map(repr, START_METHODS))
            raise ConfigError(
                f"start_method={self.start_method!r}: must be {allowed}; forking a running loop is unsafe"
            )
        for name in ("initializer", "warmup", "on_event"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be callable")
        if not isinstance(self.env, Mapping) or not all(
            isinstance(each, str) for pair in self.env.items() for each in pair
        ):
            raise ConfigError(f"env={self.env!r}: must be a mapping of str to str")
        for name, example in (("preload", "('numpy',)"), ("initargs", "(1, 2)"), ("context", "('package:variable',)")):
            if not isinstance(getattr(self, name), tuple | list):
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be a tuple, such as {example}")
        if not all(isinstance(each, str) for each in self.preload):
            raise ConfigError(f"preload={self.preload!r}: must be names of modules, such as ('numpy',)")

    def _check_output(self) -> None:
        """Check the name of the pool, and how the output of workers is handled."""
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"name={self.name!r}: must be a str, such as 'images'")
        if not isinstance(self.forward_logs, bool):
            raise ConfigError(f"forward_logs={self.forward_logs!r}: must be True or False")
        if not isinstance(self.prefix_output, bool | str):
            raise ConfigError(f"prefix_output={self.prefix_output!r}: must be True, False, or a str as '{PREFIX}'")
        try:
            self.prefix(0)
        except (KeyError, IndexError, ValueError, AttributeError):
            words = "may contain {name} and {pid}, no other names in braces"
            raise ConfigError(f"prefix_output={self.prefix_output!r}: {words}") from None

    def prefix(self, pid: int) -> str:
        """Return the prefix of the lines that a worker writes."""
        form = self.prefix_output if isinstance(self.prefix_output, str) else PREFIX
        return form.format(name=self.name, pid=pid)

    @property
    def most(self) -> int:
        """Maximum number of workers."""
        return self.workers or usable_cpus()

    @property
    def least(self) -> int:
        """Minimum number of workers, started before the first call."""
        return self.most if self.min_workers is None else self.min_workers


class Located:
    """A context variable and where a worker finds it: ``module``, ``name``."""

    __slots__ = ("module", "name", "variable")

    def __init__(self, module: str, name: str, variable: contextvars.ContextVar[Any]) -> None:
        self.module, self.name, self.variable = module, name, variable


def located(variable: Any) -> Located:
    """Find a context variable, given as itself or as ``module:name``.

    Raises:
        ConfigError: there is no such variable, or no module has it under a name.
    """
    if isinstance(variable, Located):
        return variable
    if isinstance(variable, str):
        module, _, name = variable.partition(":")
        if module and name:
            import importlib

            try:
                found = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as exc:
                raise ConfigError(f"context={variable!r}: {exc}") from exc
            if isinstance(found, contextvars.ContextVar):
                return Located(module, name, found)
    if isinstance(variable, contextvars.ContextVar):
        for module, contents in list(sys.modules.items()):
            for name, value in list(getattr(contents, "__dict__", {}).items()):
                if value is variable:
                    return Located(module, name, variable)
    raise ConfigError(f"context={variable!r}: must be a ContextVar at the top of a module, or its 'module:name'")


def pool_options(**options: Any) -> PoolOptions:
    """Return the options of a pool; an unknown option raises a ConfigError that names it."""
    _check_known(PoolOptions, options)
    return PoolOptions(**options)


def changed(options: CallOptions, changes: Mapping[str, Any]) -> CallOptions:
    """Return ``options`` with ``changes``; an unknown option raises a ConfigError that names it."""
    _check_known(CallOptions, changes)
    return dataclasses.replace(options, **changes)


def _check_known(cls: type[PoolOptions] | type[CallOptions], given: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(cls)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{name}={value!r}: unknown option; known are {', '.join(sorted(known))}")
