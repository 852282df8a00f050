"""The health service of the agent: wires the discovery of executors to the monitor of pools and child processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.patches import PatchSet
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.errors import ConfigError
from loopwatch.events import Finding
from loopwatch.health.discovery import ExecutorDiscovery
from loopwatch.health.exit_waits import ExitWaits
from loopwatch.health.kinds.worker_pool import OwnPool, WatchedOwn
from loopwatch.health.monitor import Monitor
from loopwatch.health.records import PoolReading
from loopwatch.watch.stacks import RawStack


class HealthService:
    """Watches the executors and child processes of this process.

    Args:
        config: returns the current settings.
        patches: registry of replaced attributes.
        faults: counter of failures.
        loop_name: returns the name of an event loop, None for an unknown one.
        polled: called after each poll, in the monitor's thread.
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
        exits = ExitWaits(config, lambda may_start: self._monitor.look_at_exit(may_start))
        self._monitor = Monitor(config, patches, faults, polled, exits=exits, pools=lambda: self._executors.each())
        self._executors = ExecutorDiscovery(
            patches, faults, add=self._monitor.add, remove=self._monitor.remove, loop_name=loop_name,
            hung_after=self._hung_after, exits=exits,
        )  # fmt: skip

    # -- life cycle -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start discovery and monitoring; the thread starts only once there is something to monitor."""
        with self._faults.guard("health"):
            self._monitor.start()
        with self._faults.guard("executors"):
            self._executors.start()

    def adopt(self, loop: Any) -> None:
        """Register the default executor of a loop that existed before the agent."""
        with self._faults.guard("executors"):
            self._executors.adopt(loop)

    def found(self, executor: Any, place: str) -> None:
        """Watch an executor that was created at ``place`` before the agent started."""
        with self._faults.guard("executors"):
            self._executors.found(executor, place)

    def stop(self, timeout: float = 1.0) -> None:
        """Stop discovery and the thread; the owner of the patches undoes them."""
        with self._faults.guard("executors"):
            self._executors.stop()
        with self._faults.guard("health"):
            self._monitor.stop(timeout)

    @property
    def thread(self) -> OwnThread:
        """The monitor's thread."""
        return self._monitor.thread

    def when_forked(self, action: Callable[[], object]) -> None:
        """Run ``action`` when the calling thread has left ``os.fork``; at once if it is not in it."""
        self._monitor.process_hooks.when_forked(action)

    def after_fork_in_child(self) -> None:
        """Start afresh in a forked child."""
        with self._faults.guard("executors"):
            self._executors.after_fork_in_child()
        with self._faults.guard("health"):
            self._monitor.after_fork_in_child()

    def submitter(self, before: float) -> RawStack | None:
        """Return the stack of the latest submission to a process pool before that time, None if there is none."""
        return self._executors.submitters.latest(before)

    def tick(self, now: float) -> None:
        """Look for unrecorded child processes; to be called regularly, with ``time.monotonic`` seconds."""
        self._monitor.tick(now)

    # -- readings, findings, registration -------------------------------------------------------------------------

    @property
    def cpu(self) -> float:
        """CPU seconds of the monitor's thread."""
        return self._monitor.cpu

    @property
    def in_use(self) -> bool:
        """Whether the monitor's thread exists."""
        return self._monitor.in_use

    def readings(self) -> tuple[PoolReading, ...]:
        """Return the readings of all pools, and of child processes if there were any."""
        return self._monitor.readings()

    def findings(self) -> tuple[Finding, ...]:
        """Return the current findings."""
        return self._monitor.findings()

    def own(self, pool: OwnPool) -> None:
        """Monitor a :class:`loopwatch.WorkerPool`."""
        with self._faults.guard("executors"):
            self._monitor.add(WatchedOwn(pool, self._hung_after))

    def watch(self, executor: Any, name: str | None) -> None:
        """Watch an executor that discovery does not find, or rename one.

        Raises:
            ConfigError: its ``submit`` cannot be replaced.
        """
        try:
            self._executors.watch(executor, name)
        except TypeError as exc:
            raise ConfigError(
                f"watch_executor({executor!r}): its submit() cannot be replaced ({exc}); "
                "watch the executor that it uses"
            ) from None
