"""The Prometheus endpoint of this process: its port, the page of metrics it serves, and its lifetime.

The page is made from the same points as all other exports, without the SDK of OpenTelemetry, with exemplars in the
OpenMetrics format. prometheus_client writes it; its registry, which belongs to the program, is left alone.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loopwatch.core import descriptors
from loopwatch.core.faults import Faults
from loopwatch.core.originals import time
from loopwatch.core.threads.own_thread import OwnThread
from loopwatch.errors import ConfigError
from loopwatch.telemetry import ports, resource
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.ports import Place
from loopwatch.telemetry.prometheus import exposition, hosts
from loopwatch.telemetry.prometheus.exposition import Family
from loopwatch.telemetry.prometheus.http_server import Answer, Request, Response, WebServer, text
from loopwatch.telemetry.prometheus.neighbours import Neighbour, Survey, gives_way

SETTLE = 0.1
"""Seconds after a fork before the child takes a port: one that calls exec, or ends at once, needs none."""
SHARE = 4
"""How much longer the thread rests between two pages than it has written the first, so that a flood of scrapers costs
no more than a fifth of a core; requests handled together get the same page."""
SLICE = 0.0003
"""Seconds of work between two yields of the GIL: a loop that wants it waits no longer than that."""
NAP = 0.0002
"""Seconds; long enough for a thread that waits for the GIL to get it."""
HINT = "loopwatch: the metrics are at /metrics, the ports of all processes at /targets"
NOT_FOR_PAGES = "loopwatch: requests of web pages are not answered"
UNKNOWN_NAME = (
    "loopwatch: asked under a name that is not known to be this machine's: use an address, localhost, the machine's "
    "host name, or one that is listed in prometheus_names (LOOPWATCH_PROMETHEUS_NAMES)"
)
PART = "prometheus"
"""Part name under which its faults are counted."""

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Collected = Callable[[Callable[[], None]], Iterator[Family]]
"""Returns the metric families; calls its argument between parts of the work, to yield the GIL."""


class Scrape:
    """The Prometheus port of one process, and the pages served there.

    Args:
        host, port: as configured.
        account: source of the metrics.
        faults: the agent's fault handling.
        names: accepted host names, beside this machine's own; see :mod:`loopwatch.telemetry.prometheus.hosts`.
        addresses: the addresses of ``host``, None to resolve it.

    Raises:
        ConfigError: ``host`` has no address, or prometheus_client is not installed.
    """

    def __init__(
        self,
        host: str,
        port: int,
        account: Account,
        faults: Faults,
        *,
        names: tuple[str, ...] = (),
        addresses: list[ports.Address] | None = None,
    ) -> None:
        try:
            # All imports, and now: a child forked while a thread imports has a half-imported module for ever.
            import prometheus_client.exposition
            import prometheus_client.metrics_core
            import prometheus_client.openmetrics.exposition
            import prometheus_client.samples  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"prometheus_port={port!r}: needs prometheus_client: pip install 'loopwatch[prometheus]'"
            ) from None
        self._host, self._port, self._account, self._faults = host, port, account, faults
        self._names = names
        self._addresses = addresses or ports.resolve(host)
        self._begin()

    def _begin(self) -> None:
        self._survey = Survey(self._addresses)
        self.thread = OwnThread("scrape", self._run, self._wake)
        self._place: Place | None = None
        self._server: WebServer | None = None
        self._closed = False
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._page = _Page(self._collected)

    @property
    def url(self) -> str:
        """The URL to scrape, "" while there is none."""
        return "" if self._place is None else self._place.url

    @property
    def cpu(self) -> float:
        """CPU time of its threads, seconds."""
        return sum(thread.cpu for thread in self.threads)

    @property
    def threads(self) -> list[OwnThread]:
        """The serving thread, and the thread for answers that take long."""
        return [self.thread] if self._server is None else [self.thread, self._server.searching]

    def open(self) -> None:
        """Listen: on the configured port, a worker process on the first free one from there on.

        Raises:
            ConfigError: no port can be opened; the message names port and host, and what to do.
        """
        if ports.is_inside_pool():
            return
        try:
            self._place = ports.take(self._host, self._port, self._addresses, first_free=ports.is_worker())
        except ConfigError:
            if not self._port or not gives_way(self._port, self._addresses):
                raise
            self._place = ports.take(self._host, self._port, self._addresses, first_free=True)

    def start(self) -> None:
        """Answer requests from now on, in a thread."""
        if self._place is not None:
            self._server = WebServer(self._place.listener, self._answer)
            try:
                self.thread.start()
            except RuntimeError as exc:  # the system allows no more threads
                self._faults.add(PART, exc)
                self.close()
                return
            self._announce(self._place)

    def close(self, timeout: float = 1.0) -> None:
        """Stop listening; waits at most ``timeout`` seconds for the thread."""
        self._closed = True
        with self._lock:
            server, place, self._server, self._place = self._server, self._place, None, None
        self._woken.set()
        if server is not None:
            server.close(self.thread.end, timeout)
        elif place is not None:
            place.listener.close()

    def in_child(self) -> Scrape:
        """Return the replacement for a forked child, and release the parent's sockets."""
        if self._server is not None:
            self._server.abandon()
        elif self._place is not None:
            self._place.listener.close()
        self._survey.abandon()
        child = Scrape.__new__(Scrape)  # nothing is resolved or imported right after a fork
        child._host, child._port, child._names, child._addresses = self._host, self._port, self._names, self._addresses
        child._account, child._faults = self._account, self._faults
        child._begin()
        return child

    def start_soon(self) -> None:
        """Take a port in a little while, and answer on it, in a thread; if none is free, that is logged."""
        self.thread.start()

    def _wake(self) -> None:
        self._woken.set()
        server = self._server
        if server is not None:
            server.wake()

    def _run(self) -> None:
        with self._reviving():
            if self._server is not None:
                self._server.serve(self.thread.stays)
            else:
                self._serve_later()

    @contextlib.contextmanager
    def _reviving(self) -> Iterator[None]:
        """Contain faults; if a daemonizing program has closed the descriptors, reopen the endpoint on new ones."""
        with self._faults.guard(PART):
            try:
                yield
            except descriptors.LostError:
                with self._lock:
                    self._place = self._server = None
                self._serve_later()

    def _serve_later(self) -> None:
        ends = time.monotonic() + SETTLE
        while (left := ends - time.monotonic()) > 0:
            if not self.thread.stays() or self._closed:
                return
            self._woken.wait(left)
            self._woken.clear()
        if ports.is_inside_pool():
            return
        try:
            place = ports.take(self._host, self._port, self._addresses, first_free=True)
        except ConfigError as exc:
            self._faults.say(logging.WARNING, "loopwatch: Prometheus cannot scrape process %d: %s", os.getpid(), exc)
            return
        with self._lock:
            if self._closed:
                place.listener.close()
                return
            self._place = place
            self._server = server = WebServer(place.listener, self._answer)
        self._announce(place)
        server.serve(self.thread.stays)

    def _announce(self, place: Place) -> None:
        self._faults.say(logging.INFO, "loopwatch: Prometheus can scrape process %d at %s", os.getpid(), place.url)

    # -- requests -------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Answer:
        if "origin" in request.headers:
            return text(403, NOT_FOR_PAGES)
        host = request.headers.get("host", "")
        if host and not hosts.is_known(host, (self._host, *self._names)):  # without one: no browser (RFC 9112, 3.2)
            return text(403, UNKNOWN_NAME)
        match request.path:
            case "/metrics":
                return self._safely(lambda: self._page.get(request))
            case "/self":
                return self._safely(lambda: _json(self._identity()))
            case "/targets":
                return lambda wanted: self._safely(lambda: self._targets(hosts.name_of(host), wanted))
        return text(404, HINT)

    def _safely(self, answer: Callable[[], Response]) -> Response:
        try:
            return answer()
        except Exception as exc:  # noqa: BLE001 - counted; later scrapes are answered after a failed one
            self._faults.add(PART, exc)
            return text(500, "loopwatch: the values could not be collected; the program's log says why")

    def _collected(self, pause: Callable[[], None]) -> Iterator[Family]:
        from prometheus_client.metrics_core import InfoMetricFamily

        attributes = resource.attributes()
        labels = {exposition.label(name): exposition.text(value) for name, value in attributes.items()}
        yield InfoMetricFamily("target", "What this process is.", labels)
        reading = self._account.read(pause)
        if reading is not None:
            yield from exposition.families(reading, self._account.exemplars)

    def _identity(self) -> Mapping[str, Any]:
        attributes = resource.attributes()
        return {
            "loopwatch": attributes["telemetry.distro.version"],
            "pid": os.getpid(),
            "parent": os.getppid(),
            "service": attributes["service.name"],
            "index": attributes.get("loopwatch.worker.index", ""),
        }

    def _targets(self, host: str, wanted: Callable[[], bool]) -> Response:
        """Return all ports of loopwatch from the configured one on in the format of Prometheus' ``http_sd_configs``.

        Args:
            host: as the client knows it, "" if it did not say: it can reach the others there too.
            wanted: returns False once nobody waits for the answer.
        """
        place = self._place
        if place is None:
            return _json([])
        span = ports.SPAN if self._port else 1  # with port 0 the others are on unknown ports
        others = [port for port in range(place.base, min(place.base + span, 65536)) if port != place.port]
        own = self._identity()
        here = Neighbour(own["pid"], own["parent"], str(own["service"]), str(own["index"]))
        found = {**self._survey.find(others, wanted), place.port: here}
        return _json(
            [
                {
                    "targets": [ports.authority(host or place.host, port)],
                    "labels": {
                        "__meta_loopwatch_service": who.service,
                        "__meta_loopwatch_worker_index": who.index,
                        "__meta_loopwatch_pid": str(who.pid),
                    },
                }
                for port, who in sorted(found.items())
            ]
        )


class _Page:
    """The text of the metrics: written once for all requests that are handled together."""

    def __init__(self, collected: Collected) -> None:
        self._collected = collected
        self._kept: dict[tuple[int, str], bytes] = {}
        self._rests_until = 0.0

    def get(self, request: Request) -> Response:
        """Return the page in the format that a client prefers."""
        from prometheus_client.exposition import generate_latest
        from prometheus_client.openmetrics.exposition import generate_latest as generate_open

        is_open = "application/openmetrics-text" in accepted(request.headers.get("accept", ""))
        content_type = OPEN if is_open else PLAIN
        encode = generate_open if is_open else generate_latest
        body = self._kept.get((request.turn, content_type))
        if body is None:
            time.sleep(max(self._rests_until - time.monotonic(), 0.0))
            began = time.thread_time()
            body = encode(_InSlices(self._collected))
            self._rests_until = time.monotonic() + min(SHARE * (time.thread_time() - began), 1.0)
            self._kept = {(request.turn, content_type): body}
        kind = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if "gzip" in accepted(request.headers.get("accept-encoding", "")):
            return Response(200, gzip.compress(body, compresslevel=1), {**kind, "Content-Encoding": "gzip"})
        return Response(200, body, kind)


class _InSlices:
    """Stands in for a registry of prometheus_client; yields the GIL while it is written, so that loops wait briefly."""

    def __init__(self, collected: Collected) -> None:
        self._collected = collected
        self._began = 0.0

    def collect(self) -> Iterator[Family]:
        """Return the metric families."""
        self._began = time.perf_counter()
        for family in self._collected(self._pause):
            self._pause()
            family.samples = _Lazily(family.samples, self._pause)
            yield family

    def _pause(self) -> None:
        if time.perf_counter() - self._began > SLICE:
            time.sleep(NAP)
            self._began = time.perf_counter()


class _Lazily:
    """Samples that are written one by one."""

    def __init__(self, samples: Sequence[Any], between: Callable[[], object]) -> None:
        self._samples, self._between = samples, between

    def __iter__(self) -> Iterator[Any]:
        for sample in self._samples:
            self._between()
            yield sample


def accepted(header: str) -> set[str]:
    """Return the values that a client accepts, whatever it prefers.

    Example:
        >>> sorted(accepted("gzip;q=0.5, br;q=0, Identity"))
        ['gzip', 'identity']
    """
    parts = (part.lower().replace(" ", "").split(";") for part in header.split(","))
    return {name for name, *options in parts if name and not {"q=0", "q=0.0"} & set(options)}


def _json(value: Any) -> Response:
    return Response(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
