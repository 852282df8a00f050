"""Loads the Prometheus endpoint only where a port is configured; imports little itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopwatch.config import Config
from loopwatch.core.faults import Faults
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.errors import ConfigError

if TYPE_CHECKING:
    from loopwatch.telemetry.metrics.account import Account
    from loopwatch.telemetry.prometheus.endpoint import Scrape

PART = "prometheus"


class PrometheusPort:
    """The Prometheus port of one process, if it has one.

    Args:
        account: source of the metrics.
        faults: the agent's fault handling.
    """

    def __init__(self, account: Account, faults: Faults) -> None:
        self._account, self._faults = account, faults
        self._scrape: Scrape | None = None
        self._waits = False

    @property
    def url(self) -> str:
        """The URL to scrape, "" if there is none."""
        return "" if self._scrape is None else self._scrape.url

    @property
    def cpu(self) -> float:
        """CPU time of its threads, seconds."""
        return 0.0 if self._scrape is None else self._scrape.cpu

    @property
    def threads(self) -> list[OwnThread]:
        """The threads of the endpoint; none while this process is not scraped."""
        return [] if self._scrape is None else self._scrape.threads

    def open(self, config: Config) -> None:
        """Listen, if ``config`` names a port; requests are answered from :meth:`start` on.

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
        """Answer requests from now on."""
        if self._scrape is not None:
            self._scrape.start()

    def begin(self) -> None:
        """Take the port of a forked child, now that there is something to watch."""
        if self._waits and self._scrape is not None:
            self._waits = False
            with self._faults.guard(PART):
                self._scrape.start_soon()

    def move(self, old: Config, new: Config) -> None:
        """Reopen the endpoint with the ``new`` settings, or with the ``old`` ones if that fails.

        Raises:
            ConfigError: the new port cannot be opened.
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
        """Close the endpoint; waits at most ``timeout`` seconds."""
        scrape, self._scrape = self._scrape, None
        if scrape is not None:
            with self._faults.guard(PART):
                scrape.close(timeout)

    def after_fork_in_child(self, *, again: bool) -> None:
        """Release the parent's port in a forked child.

        Args:
            again: whether the child takes a port of its own, once there is something to watch; workers of process pools
                have no loop, and their parent reports on them.
        """
        parents, self._scrape = self._scrape, None
        if parents is None:
            return
        with self._faults.guard(PART):
            own = parents.in_child()
            self._scrape, self._waits = (own, True) if again else (None, False)
