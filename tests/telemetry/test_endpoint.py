"""The Prometheus endpoint on a real port: correct samples, exemplars, and a server that clients cannot exhaust."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import http.client
import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from prometheus_client import REGISTRY
from scraping import OPENMETRICS, fetch, free_range, one, scraped, target_info, until

import loopwatch
from loopwatch import ConfigError
from loopwatch.core.faults import Faults
from loopwatch.core.histogram import Histogram
from loopwatch.telemetry import ports
from loopwatch.telemetry.metrics.account import Account
from loopwatch.telemetry.metrics.catalog import CATALOG, LAG_BOUNDS, MAX_SAMPLES, Kind
from loopwatch.telemetry.metrics.exemplars import Exemplars
from loopwatch.telemetry.metrics.records import Point, Reading, Spread
from loopwatch.telemetry.prometheus import http_server, neighbours
from loopwatch.telemetry.prometheus.endpoint import Scrape

Run = Callable[[Any], Any]


def full_reading(value: float = 1.5) -> Reading:
    """Return a reading with as many points as the catalog allows."""
    lags = Histogram()
    for ms in (0.5, 2, 20, 300, 60_000):
        lags.record(ms / 1000)
    points, spreads = {}, {}
    for metric in CATALOG:
        named = [tuple(f"{name}-{number}" for name in metric.attributes) for number in range(metric.sets)]
        if metric.kind is Kind.HISTOGRAM:
            spreads[metric.name] = tuple(Spread(attributes, lags) for attributes in named)
        else:
            points[metric.name] = tuple(Point(attributes, value) for attributes in named)
    return Reading(time.time(), points, spreads)


@pytest.fixture
def serve() -> Iterator[Callable[..., Scrape]]:
    """Serve the readings of a function; closed at the end."""
    opened: list[Scrape] = []

    def serve(read: Callable[[], Reading | None], faults: Faults | None = None, **options: Any) -> Scrape:
        settings = {"host": "127.0.0.1", "port": 0, **options}
        scrape = Scrape(account=Account(lambda _pause: read(), Exemplars()), faults=faults or Faults(), **settings)
        scrape.open()
        scrape.start()
        opened.append(scrape)
        return scrape

    yield serve
    for scrape in opened:
        scrape.close()
    # The thread that searches for other processes may still be ending.
    assert until(lambda: not any(thread.name.startswith("loopwatch-scrape") for thread in threading.enumerate()))


@pytest.fixture
def uninstalled() -> Iterator[None]:
    yield
    loopwatch.uninstall()


# ------------------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
def test_every_point_is_exposed_under_its_prometheus_name(serve: Callable[..., Scrape], accept: str) -> None:
    """Each metric of the catalog has the name that collectors give it, with all its labels and its value."""
    samples = scraped(serve(full_reading).url, accept)
    assert 500 < len(samples) <= MAX_SAMPLES + 1  # and target_info
    assert not [sample for sample in samples if sample.name.endswith("_created")]
    for metric in CATALOG:
        if metric.kind is Kind.HISTOGRAM:
            continue
        found = [sample for sample in samples if sample.name == metric.prometheus]
        assert len(found) == metric.sets, metric.name
        assert {sample.value for sample in found} == {1.5}
        assert {frozenset(sample.labels) for sample in found} == {
            frozenset(name.replace(".", "_") for name in metric.attributes)
        }
    names = {sample.name for sample in samples}
    assert {"asyncio_eventloop_time_seconds_total", "asyncio_eventloop_utilization_ratio", "asyncio_tasks"} <= names


def test_histograms_are_cumulative(serve: Callable[..., Scrape]) -> None:
    """With lags of 0.5, 2, 20, 300 ms and a minute, each bucket counts those up to its bound; the sum is exact."""
    samples = scraped(serve(full_reading).url)
    loop = {"asyncio_eventloop_name": "asyncio.eventloop.name-0"}
    name = "asyncio_eventloop_lag_seconds"
    buckets = [one(samples, f"{name}_bucket", **loop, le=str(bound)).value for bound in (*LAG_BOUNDS, "+Inf")]
    assert buckets == [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5]
    assert one(samples, f"{name}_count", **loop).value == 5
    assert one(samples, f"{name}_sum", **loop).value == pytest.approx(60.3225)


def test_a_stall_is_the_exemplar_of_its_lag(run: Run, uninstalled: None) -> None:
    """The lag bucket of a stall in a traced callback has its trace id as exemplar, in the OpenMetrics format only."""
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    agent = loopwatch.install(threshold=0.05, heartbeat=0.01, prometheus_port=0, log_level="CRITICAL", cpu_budget=1.0)
    url = agent.snapshot().agent.prometheus

    async def blocks() -> None:
        await asyncio.sleep(0.05)
        with trace.use_span(trace.NonRecordingSpan(context)):
            await asyncio.sleep(0)
            time.sleep(0.15)
        await asyncio.sleep(0.05)

    run(blocks())
    assert agent.flush(10)
    stall = agent.stalls()[-1]
    found = [sample for sample in scraped(url, OPENMETRICS) if sample.exemplar]
    assert len(found) == 1
    (sample,) = found
    assert sample.name == "asyncio_eventloop_lag_seconds_bucket"
    bound = next(bound for bound in LAG_BOUNDS if stall.duration <= bound)
    assert sample.labels == {"asyncio_eventloop_name": "main", "le": str(float(bound))}
    assert sample.exemplar is not None
    assert sample.exemplar.labels == {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}
    assert sample.exemplar.value == pytest.approx(stall.duration)
    assert float(sample.exemplar.timestamp or 0) == pytest.approx(stall.started_at + stall.duration, abs=0.01)
    assert b"trace_id" not in fetch(url)[1]
    stalls = [each for each in scraped(url) if each.name == "asyncio_eventloop_stalls_total"]
    assert {each.labels["asyncio_eventloop_name"] for each in stalls} == {"main"}, "a stall before the first scrape"


def test_the_default_registry_is_left_alone(serve: Callable[..., Scrape]) -> None:
    """The program's own metrics in prometheus_client are unchanged."""
    before = [family.name for family in REGISTRY.collect()]
    assert scraped(serve(full_reading).url)
    assert [family.name for family in REGISTRY.collect()] == before


# ------------------------------------------------------------------------------------------------ HTTP


def test_unknown_paths_and_methods_are_explained(serve: Callable[..., Scrape]) -> None:
    """An unknown path, another method and a malformed request get an error with advice; HEAD gets the headers alone."""
    url = serve(full_reading).url
    address = urlsplit(url)

    def ask(method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    status, body, _ = ask("GET", "/")
    assert (status, b"/metrics" in body) == (404, True)
    assert ask("POST", "/metrics")[0] == 405
    status, body, headers = ask("HEAD", "/metrics")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 10_000
    assert ask("GET", "/metrics?name[]=x")[0] == 200
    for sent in (b"hello\r\n\r\n", b"x" * 9000, b"GET http://[ HTTP/1.1\r\n\r\n"):
        with socket.create_connection((address.hostname, address.port), timeout=30) as client:
            client.sendall(sent)
            assert client.makefile("rb").read().split()[1] == b"400"


def test_response_is_compressed_on_request(serve: Callable[..., Scrape]) -> None:
    """The text is the same with gzip, and at most a fifth of the size."""
    url = serve(full_reading).url
    packed, plain = fetch(url, Accept_Encoding="gzip")[1], fetch(url)[1]
    assert len(packed) < len(plain) / 5
    assert b"loopwatch_pool_workers" in gzip.decompress(packed)


def test_resource_attributes_are_escaped(serve: Callable[..., Scrape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes whose names or values Prometheus would reject do not break the scrape."""
    given = "my-team=a%22b%0A%5C,2nd=x,ключ=значение,deployment.environment.name=prod,raw=caf\udce9"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", given)
    url = serve(full_reading).url
    for accept in ("text/plain", OPENMETRICS):
        labels = one(scraped(url, accept), "target_info").labels
        assert labels["raw"] == "caf?"
        assert labels["my_team"] == 'a"b\n\\'
        assert (labels["key_2nd"], labels["key_"], labels["deployment_environment_name"]) == ("x", "значение", "prod")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/openmetrics-text; version=abc", "application/openmetrics-text"),
        ("text/html, application/openmetrics-text;q=0", "text/plain"),
        ("text/plain;version=1.., */*", "text/plain"),
        (";;,,=", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_invalid_accept_headers_get_a_default_format(serve: Callable[..., Scrape], accept: str, kind: str) -> None:
    """An invalid Accept header is answered in an existing format and counts no fault."""
    faults = Faults()
    url = serve(full_reading, faults).url
    assert fetch(url, Accept=accept, Accept_Encoding="gzip;q=0")[0].startswith(kind)
    assert faults.counts == {}


def answered(scrape: Scrape, lines: str) -> int:
    """Return the status that a request with these header lines gets."""
    with socket.create_connection(("127.0.0.1", urlsplit(scrape.url).port), timeout=30) as client:
        client.sendall(f"GET /targets HTTP/1.1\r\n{lines}\r\n".encode())
        return int(client.makefile("rb").read().split()[1])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200),
        ("127.0.0.1", 200),
        ("[::1]:9464", 200),
        ("10.0.0.7:9464", 200),
        ("LocalHost:80", 200),
        ("localhost.", 200),
        (socket.gethostname(), 200),
        ("", 200),
        ("shop:9464", 200),
        ("pod-7.shop.svc.cluster.local:9464", 200),
        ("svc.cluster.local:9464", 403),
        ("evilsvc.cluster.local", 403),
        ("evil.example:9464", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[nonsense", 403),
        ("a" * 5000, 403),
    ],
)
def test_host_header_is_checked(serve: Callable[..., Scrape], host: str, status: int) -> None:
    """Addresses, names of this machine and configured names are answered; a name that a web page could point at this
    machine is rejected (DNS rebinding)."""
    faults = Faults()
    scrape = serve(full_reading, faults, names=("shop", "*.svc.cluster.local"))
    assert answered(scrape, f"Host: {host}\r\n") == status
    assert faults.counts == {}


def test_requests_of_web_pages_are_rejected(serve: Callable[..., Scrape]) -> None:
    """A request with an Origin or with two hosts is rejected; one without a host is answered, as no browser sends it;
    with ``*`` every name is answered."""
    scrape = serve(full_reading)
    assert answered(scrape, "Host: 127.0.0.1\r\nOrigin: https://evil.example\r\n") == 403
    assert answered(scrape, "Host: 127.0.0.1\r\nOrigin: null\r\n") == 403
    assert answered(scrape, "Host: 127.0.0.1\r\nHost: evil.example\r\n") == 400
    assert answered(scrape, "") == 200
    assert answered(scrape, "Host: shop.example\r\n") == 403
    assert answered(serve(full_reading, names=("*",)), "Host: shop.example\r\n") == 200


def test_concurrent_scrapes_share_a_reading(serve: Callable[..., Scrape]) -> None:
    """Twelve scrapes that arrive during another share one or two readings, and each later scrape gets a new one."""
    read, asked = [], threading.Event()

    def held_up() -> Reading:
        read.append(1)
        assert asked.wait(30)
        return full_reading()

    url = serve(held_up).url
    where = (urlsplit(url).hostname, urlsplit(url).port)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(13):
            clients.append(stack.enter_context(socket.create_connection(where, timeout=30)))
            clients[-1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            until(lambda: read)
        asked.set()
        for client in clients:
            assert len(client.makefile("rb").read()) > 10_000
    assert 2 <= len(read) <= 3
    for number in range(len(read) + 1, len(read) + 4):
        fetch(url)
        assert len(read) == number


def test_bad_clients_are_bounded(serve: Callable[..., Scrape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that send nothing, send slowly or read nothing hold a bounded number of descriptors and delay no
    others."""
    monkeypatch.setattr(http_server, "PATIENCE", 1.0)
    url = serve(full_reading).url
    where = (urlsplit(url).hostname, urlsplit(url).port)
    before = psutil.Process().num_fds()
    clients = [socket.create_connection(where, timeout=30) for _ in range(3 * http_server.MOST)]
    for number, client in enumerate(clients):
        try:
            client.sendall([b"", b"GET /me", b"GET /metrics HTTP/1.1\r\n\r\n"][number % 3])
        except OSError:  # it was dropped for a later one
            pass
    assert len(scraped(url)) > 500
    assert psutil.Process().num_fds() <= before + len(clients) + http_server.MOST
    for client in clients:  # the server closes the connections of all of them
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass
        client.close()
    assert len(scraped(url)) > 500
    gc.collect()
    assert until(lambda: psutil.Process().num_fds() <= before)


def test_accept_without_a_free_descriptor(serve: Callable[..., Scrape], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a free descriptor does not spin on pending connections, and serves them later."""
    monkeypatch.setattr(http_server, "REST", 0.05)
    refused: list[int] = []
    accept = socket.socket.accept

    def full(listener: socket.socket) -> Any:
        if len(refused) < 3:
            refused.append(1)
            raise OSError(24, "Too many open files")
        return accept(listener)

    url = serve(full_reading).url
    monkeypatch.setattr(socket.socket, "accept", full)
    assert len(scraped(url)) > 500
    assert len(refused) == 3


def test_a_failed_reading_is_a_fault(serve: Callable[..., Scrape], caplog: pytest.LogCaptureFixture) -> None:
    """The scrape gets a 500, the fault is counted and logged once, and the next scrape is answered."""
    faults, fails = Faults(), [True, True, False]

    def read() -> Reading:
        if fails.pop(0):
            raise ValueError("no figures")
        return full_reading()

    url = serve(read, faults).url
    for _ in range(2):
        with pytest.raises(OSError, match="500"):
            fetch(url)
    assert len(scraped(url)) > 500
    assert faults.counts == {"prometheus": 2}
    assert len([record for record in caplog.records if "no figures" in record.message]) == 1


def open_files() -> set[str]:
    """Return what the descriptors of this process refer to, such as ``12 -> socket:[4711]``."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the directory itself, which is closed by now
            found.add(f"{each.name} -> {each.readlink()}")
    return found


class Mute:
    """Listens on ports and accepts connections without an answer; counts the open ones."""

    def __init__(self, ports: range) -> None:
        self.listeners = [socket.create_server(("127.0.0.1", port)) for port in ports]
        self.most = self.taken = 0
        self._selector = selectors.DefaultSelector()  # here, as its descriptor is not to appear in the midst of a test
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with self._selector as selector:
            for each in self.listeners:
                selector.register(each, selectors.EVENT_READ, True)
            while not self._closing.is_set():
                for key, _ in selector.select(0.01):
                    if key.data:
                        client = key.fileobj.accept()[0]  # type: ignore[union-attr]
                        self.taken += 1
                        selector.register(client, selectors.EVENT_READ, False)
                    elif not key.fileobj.recv(999):  # type: ignore[union-attr]
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                self.most = max(self.most, len(selector.get_map()) - len(self.listeners))
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """Close all connections."""
        self._closing.set()
        self._thread.join()


@pytest.fixture
def mute() -> Iterator[Callable[[range], Mute]]:
    made: list[Mute] = []
    yield lambda ports: made.append(Mute(ports)) or made[-1]  # type: ignore[func-returns-value]
    for each in made:
        each.close()


@pytest.mark.long
def test_concurrent_target_requests_share_a_search(serve: Callable[..., Scrape], mute: Callable[[range], Mute]) -> None:
    """Requests for /targets beside mute listeners share one search, which uses a handful of sockets and one thread."""
    base = free_range(12)
    beside = mute(range(base + 1, base + 11))
    scrape = serve(full_reading, port=base)
    before, threads, most, running = psutil.Process().num_fds(), threading.active_count(), 0, 0
    clients: list[socket.socket] = []
    for _ in range(200):
        client = socket.create_connection(("127.0.0.1", base), timeout=30)
        client.sendall(b"GET /targets HTTP/1.1\r\nHost: localhost\r\n\r\n")
        clients.append(client)
        if len(clients) > 10:
            clients.pop(0).close()
        most = max(most, psutil.Process().num_fds())
        running = max(running, threading.active_count())
    assert most <= before + 11 + http_server.MOST + 4 * neighbours.AT_ONCE  # both ends are in this process
    assert running <= threads + 1
    assert beside.most <= neighbours.AT_ONCE
    (only,) = json.loads(fetch(scrape.url.replace("metrics", "targets"))[1])
    assert only["targets"] == [f"127.0.0.1:{base}"]
    for client in clients:
        client.close()


def test_a_search_ends_with_its_client(serve: Callable[..., Scrape], mute: Callable[[range], Mute]) -> None:
    """A search ends when its client disconnects and when the port is closed; neither leaves a thread or a socket."""
    base = free_range(22)
    beside = mute(range(base + 1, base + 21))
    scrape = serve(full_reading, port=base)
    names = lambda: {thread.name for thread in threading.enumerate()}  # noqa: E731
    for ending in ("client", "port"):
        before, taken = open_files(), beside.taken
        with socket.create_connection(("127.0.0.1", base), timeout=30) as client:
            client.sendall(b"GET /targets HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: beside.taken > taken)  # noqa: B023
            if ending == "port":
                scrape.close(30)
                assert "loopwatch-scrape-search" not in names()
        assert until(lambda: "loopwatch-scrape-search" not in names())
        with contextlib.suppress(AssertionError):
            until(lambda: open_files() <= before)  # noqa: B023
        assert open_files() - before == set()
        assert beside.taken - taken <= 3 * neighbours.AT_ONCE  # a complete search asks all twenty


# ------------------------------------------------------------------------------------------------ the port


def test_a_port_in_use(uninstalled: None) -> None:
    """A port of another program is an error of one line that names port and remedy; nothing is installed or left
    open."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threads = threading.active_count()
        with pytest.raises(ConfigError) as caught:
            loopwatch.install(prometheus_port=port)
        words = str(caught.value)
        assert re.fullmatch(
            rf"prometheus_port={port}: 127\.0\.0\.1:{port} is in use .*; choose another port, .*", words
        )
        assert "\n" not in words
        assert loopwatch.current_agent() is None
        assert threading.active_count() == threads
        other.close()
        assert loopwatch.install(prometheus_port=port).snapshot().agent.prometheus == f"http://127.0.0.1:{port}/metrics"


def test_port_of_an_unrelated_loopwatch_is_an_error(uninstalled: None) -> None:
    """A second program with the same port gets an error too: it would be taken for a worker of the first."""
    first = loopwatch.Agent(loopwatch.Config(prometheus_port=0))
    first.start()
    try:
        url = first.snapshot().agent.prometheus
        with pytest.raises(ConfigError, match="is in use"):
            loopwatch.install(prometheus_port=urlsplit(url).port)
    finally:
        first.stop()


@pytest.mark.parametrize(
    ("host", "words"),
    [("203.0.113.7", "must be an address of this machine"), ("nowhere.invalid", "must be an address of this machine")],
)
def test_invalid_hosts_are_errors(host: str, words: str) -> None:
    """An address of another machine and an unknown name are errors that name the setting."""
    with pytest.raises(ConfigError, match=rf"prometheus_host='{host}': {words}"):
        loopwatch.install(prometheus_port=0, prometheus_host=host)
    assert loopwatch.current_agent() is None


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::1", "[::1]"])
def test_host_may_be_a_name_or_an_address(uninstalled: None, host: str) -> None:
    """The endpoint listens on names and addresses of both families; a second one on the same port is an error."""
    try:
        agent = loopwatch.install(prometheus_port=0, prometheus_host=host)
    except ConfigError:
        pytest.skip(f"this machine has no {host}")
    url = agent.snapshot().agent.prometheus
    assert target_info(url)["process_pid"] == str(os.getpid())
    second = loopwatch.Agent(loopwatch.Config(prometheus_port=urlsplit(url).port, prometheus_host=host))
    with pytest.raises(ConfigError, match="in use"):
        second.start()


def test_port_and_host_change_at_run_time(uninstalled: None) -> None:
    """configure() changes the port, and the host on the same port; if that fails, nothing changes."""
    port = free_range()
    agent = loopwatch.install(prometheus_port=port)
    agent.configure(prometheus_host="0.0.0.0")
    assert agent.snapshot().agent.prometheus == f"http://0.0.0.0:{port}/metrics"
    agent.configure(prometheus_port=port + 1)
    assert target_info(agent.snapshot().agent.prometheus)["process_pid"] == str(os.getpid())
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/metrics")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError):
        agent.configure(prometheus_port=port)
    assert agent.config.prometheus_port == port + 1
    assert len(scraped(f"http://127.0.0.1:{port + 1}/metrics")) > 1
    agent.configure(prometheus_port=None)
    assert agent.snapshot().agent.prometheus == ""
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://127.0.0.1:{port + 1}/metrics")


def test_without_prometheus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where prometheus_client is missing, the error names the extra."""
    monkeypatch.setitem(sys.modules, "prometheus_client.exposition", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'loopwatch[prometheus]'")):
        loopwatch.install(prometheus_port=0)
    assert loopwatch.current_agent() is None


# ------------------------------------------------------------------------------------------------ documentation

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
SECTION = PAGE.partition("\n## Prometheus\n")[2].partition("\n## ")[0]


def test_example_of_the_page_runs(tmp_path: Path) -> None:
    """The code of docs/telemetry.md prints the address that it shows."""
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    port = free_range()
    done = subprocess.run(
        [sys.executable, "-c", code.replace("9464", str(port))], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"http://127.0.0.1:{port}/metrics\n"
    assert f"# {done.stdout}".replace(str(port), "9464") in code


def test_configuration_of_the_page_is_valid(tmp_path: Path) -> None:
    """Its scrape configurations and rules are accepted by promtool, and its query selects metrics of the catalog."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    found = re.findall(r"^```yaml\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    for number, config in enumerate(found):
        path = tmp_path / f"{number}.yml"
        path.write_text(config)
        done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (query,) = re.findall(r"^```promql\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    rules = {"groups": [{"name": "page", "rules": [{"record": "page:stalls", "expr": query}]}]}
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps(rules))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {metric.prometheus for metric in CATALOG} | {"target_info"}
    assert set(re.findall(r"\w+_total|target_info", query)) <= names
    assert f"{ports.SPAN} ports" in SECTION
    assert f"{MAX_SAMPLES} samples" in SECTION
