"""Loads the Prometheus endpoint only where a port is configured; imports little itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.own_thread import OwnThread
from loopwatch.errors import ConfigError

if TYPE_CHECKING:
    from loopwatch.telemetry.metrics.account import Account
    from loopwatch.telemetry.prometheus.endpoint import Scrape

PART = "prometheus"


class PrometheusPort:
    """The port of one process, if it has one.

    Args:
        account: where what is told comes from.
        faults: of the agent.
    """

    def __init__(self, account: Account, faults: Faults) -> None:
        self._account, self._faults = account, faults
        self._scrape: Scrape | None = None
        self._waits = False

    @property
    def url(self) -> str:
        """Where this process is scraped, "" while it is not."""
        return "" if self._scrape is None else self._scrape.url

    @property
    def cpu(self) -> float:
        """Processor s of its thread."""
        return 0.0 if self._scrape is None else self._scrape.cpu

    @property
    def threads(self) -> list[OwnThread]:
        """What answers; none while this process is not scraped."""
        return [] if self._scrape is None else self._scrape.threads

    def open(self, config: Config) -> None:
        """Listen, if ``config`` names a port; what comes is answered from :meth:`start` on.

        Raises:
            ConfigError: it cannot be opened.
        """
        if config.prometheus_port is None:
            return
        from loopwatch.telemetry.prometheus.endpoint import Scrape

        host, port, names = config.prometheus_host, config.prometheus_port, config.prometheus_names
        scrape = Scrape(host, port, self._account, self._faults, names=names)
        scrape.open()
        self._scrape = scrape

    def start(self) -> None:
        """Answer from now on."""
        if self._scrape is not None:
            self._scrape.start()

    def begin(self) -> None:
        """There is something to watch now: a forked child takes its port."""
        if self._waits and self._scrape is not None:
            self._waits = False
            with self._faults.guard(PART):
                self._scrape.start_soon()

    def move(self, old: Config, new: Config) -> None:
        """Be scraped elsewhere; where that cannot be, at the same place as before.

        Raises:
            ConfigError: the new place cannot be opened.
        """
        before, self._scrape = self._scrape, None
        if before is not None:
            before.close()  # first: on another host, the port may be the same
        try:
            self.open(new)
        except ConfigError:
            self.open(old)
            raise
        finally:
            self.start()

    def close(self, timeout: float) -> None:
        """Be scraped no more; waits at most ``timeout`` s."""
        scrape, self._scrape = self._scrape, None
        if scrape is not None:
            with self._faults.guard(PART):
                scrape.close(timeout)

    def after_fork_in_child(self, *, again: bool) -> None:
        """Let go of the parent's port in a forked child.

        Args:
            again: whether the child takes one of its own, once there is something to watch: of workers of process
                pools, which have no loop, their parent tells.
        """
        parents, self._scrape = self._scrape, None
        if parents is None:
            return
        with self._faults.guard(PART):
            own = parents.in_child()
            self._scrape, self._waits = (own, True) if again else (None, False)
