"""The health service of the agent: wires the discovery of executors to the monitor of pools and child processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.own_thread import OwnThread
from loopwatch.core.patches import PatchSet
from loopwatch.errors import ConfigError
from loopwatch.events import Finding
from loopwatch.health.discovery import ExecutorDiscovery
from loopwatch.health.kinds.worker_pool import OwnPool, WatchedOwn
from loopwatch.health.monitor import Monitor
from loopwatch.health.records import PoolReading


class HealthService:
    """Watches the executors and child processes of this process.

    Args:
        config: current settings.
        patches: where replaced attributes are kept.
        faults: where failures are counted.
        loop_name: returns what an event loop is called, None for one that is not known.
        polled: called after each look at processes, in a thread of its own.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        patches: PatchSet,
        faults: Faults,
        loop_name: Callable[[Any], str | None],
        polled: Callable[[], object] = lambda: None,
    ) -> None:
        self._faults, self._hung_after = faults, lambda: config().hung_after
        self._monitor = Monitor(config, patches, faults, polled)
        self._executors = ExecutorDiscovery(
            patches, faults, add=self._monitor.add, remove=self._monitor.remove, loop_name=loop_name,
            hung_after=self._hung_after,
        )  # fmt: skip

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find and look after them from now on; starts no thread before there is something to look after."""
        with self._faults.guard("health"):
            self._monitor.start()
        with self._faults.guard("executors"):
            self._executors.start()

    def adopt(self, loop: Any) -> None:
        """Take note of the default executor of a loop that was there before us."""
        with self._faults.guard("executors"):
            self._executors.adopt(loop)

    def found(self, executor: Any, place: str) -> None:
        """Watch an executor that was made before us, at ``place``."""
        with self._faults.guard("executors"):
            self._executors.found(executor, place)

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread; the patches are undone by their owner."""
        with self._faults.guard("executors"):
            self._executors.stop()
        with self._faults.guard("health"):
            self._monitor.stop(timeout)

    @property
    def thread(self) -> OwnThread:
        """What looks after them."""
        return self._monitor.thread

    def when_forked(self, action: Callable[[], object]) -> None:
        """Have ``action`` done once the fork of the calling thread is over; now, if it is."""
        self._monitor.process_hooks.when_forked(action)

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child."""
        with self._faults.guard("executors"):
            self._executors.after_fork_in_child()
        with self._faults.guard("health"):
            self._monitor.after_fork_in_child()

    def tick(self, now: float) -> None:
        """Look for what cannot be found out by itself; to be called now and then, with ``time.monotonic``."""
        self._monitor.tick(now)

    # -- what is asked --------------------------------------------------------------------------------------------

    @property
    def cpu(self) -> float:
        """s of processor time of its threads."""
        return self._monitor.cpu

    @property
    def in_use(self) -> bool:
        """Whether there is a thread that looks after something."""
        return self._monitor.in_use

    def readings(self) -> tuple[PoolReading, ...]:
        """Return the figures of all pools, and of child processes if there were any."""
        return self._monitor.readings()

    def findings(self) -> tuple[Finding, ...]:
        """Return the advice that holds now."""
        return self._monitor.findings()

    def own(self, pool: OwnPool) -> None:
        """Look after one of loopwatch's own pools."""
        with self._faults.guard("executors"):
            self._monitor.add(WatchedOwn(pool, self._hung_after))

    def watch(self, executor: Any, name: str | None, *, is_on: bool = True) -> None:
        """Watch an executor that is not found by itself, or give one a name; only check both unless ``is_on``.

        Raises:
            ConfigError: no executor or no name, or ``submit`` cannot be replaced.
        """
        _check(executor, name)
        if not is_on:
            return
        try:
            self._executors.watch(executor, name)
        except TypeError as exc:
            raise ConfigError(
                f"watch_executor({executor!r}): its submit() cannot be replaced ({exc}); "
                "watch the executor that it uses"
            ) from None


def _check(executor: Any, name: str | None) -> None:
    known = isinstance(getattr(executor, "_cache", None), dict) and callable(getattr(executor, "apply_async", None))
    if isinstance(executor, type) or (not known and not callable(getattr(executor, "submit", None))):
        raise ConfigError(
            f"watch_executor({executor!r}): not an executor (it has no submit()); pass a "
            "concurrent.futures.Executor or a multiprocessing.Pool"
        )
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigError(f"watch_executor(name={name!r}): must be a str that is not empty, such as 'thumbnails'")
