"""Real servers for tests: Prometheus, Alertmanager, a collector, a receiver of alerts, and services that they watch.

Each is a context manager: on loopback, on a port of its own, with its files in a directory of the test, and gone in
the end. :func:`missing` returns why one is not available.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
START = 20.0
"""s that a server may take to be there, on a machine that does other things too."""


def missing(*programs: str) -> str:
    """Return why tests on real servers are skipped, "" if they need not be."""
    packages = {
        "prometheus": "prometheus",
        "promtool": "prometheus",
        "prometheus-alertmanager": "prometheus-alertmanager",
    }
    for program in programs:
        if program == "rotel":
            reason = rotel_does_not_run()
            if reason:
                return reason
        elif shutil.which(program) is None:
            return f"{program} is not installed (Debian package {packages[program]})"
    return ""


def rotel_binary() -> Path | None:
    """Return the collector's binary, which lies inside its package."""
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "rotel-agent"
    return path if path.is_file() else None


def rotel_environment() -> dict[str, str]:
    """Return the variables the collector needs to find the library of the interpreter it was built for."""
    return {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")}


@functools.cache
def rotel_does_not_run() -> str:
    """Return why the collector cannot be run here, "" if it can."""
    binary = rotel_binary()
    if binary is None:
        return "rotel is not installed (pip install rotel)"
    command = [str(binary), "start", "--help"]
    ran = subprocess.run(
        command, env={**os.environ, **rotel_environment()}, capture_output=True, text=True, check=False
    )
    return f"rotel does not run here: {ran.stderr.strip()[-200:]}" if ran.returncode else ""


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_that(found: Callable[[], T], what: str, seconds: float = START) -> T:
    """Poll until the result is true, and return it.

    Raises:
        AssertionError: it was not within ``seconds``; it says what was waited for, and the last answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}; last result: {answer!r}"
        time.sleep(0.05)


def get(url: str, timeout: float = 10.0, method: str = "GET") -> Any:
    """Return the response of a URL, decoded if it is JSON."""
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=timeout) as answer:
        body = answer.read().decode()
        return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body


def answers(url: str) -> bool:
    """Whether the server answers."""
    try:
        get(url, timeout=2.0)
    except (urllib.error.URLError, OSError):
        return False
    return True


@contextlib.contextmanager
def program(
    command: Sequence[str | Path], folder: Path, name: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a program; yields it and a function that reads its output. In the end it and all its children are killed."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
        )
    try:
        yield process, lambda: log.read_text(encoding="utf-8", errors="replace")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listening(process: subprocess.Popen[bytes], said: Callable[[], str]) -> int:
    """Return the port that a server of the Prometheus family logs as its own."""

    def port() -> int:
        assert process.poll() is None, said()
        found = re.search(r'msg="Listening on" address=\S*?:(\d+)', said())
        return int(found[1]) if found else 0

    return await_that(port, "a server that listens")


# -- Prometheus and Alertmanager -------------------------------------------------------------------------------------


class Prometheus:
    """A running Prometheus, as its HTTP API shows it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def _ask(self, path: str, **parameters: object) -> Any:
        query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        try:
            answer = get(f"{self.url}/api/v1/{path}?{query}")
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"{path} {parameters}: {exc.read().decode()}") from None
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the vector of an expression now, or at a time in seconds since the epoch."""
        data = self._ask("query", query=expression, **({} if at is None else {"time": at}))
        assert data["resultType"] == "vector", f"{expression}: a {data['resultType']}"
        found: list[dict[str, Any]] = data["result"]
        return found

    def course(self, expression: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """Return the matrix of an expression over a time range."""
        data = self._ask("query_range", query=expression, start=start, end=end, step=step)
        assert data["resultType"] == "matrix", f"{expression}: a {data['resultType']}"
        found: list[dict[str, Any]] = data["result"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with their health and last error."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def exemplars(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the exemplars of the series that an expression selects."""
        found: list[dict[str, Any]] = self._ask("query_exemplars", query=expression, start=start, end=end)
        return found


@contextlib.contextmanager
def prometheus(folder: Path, config: Mapping[str, Any], rules: Mapping[str, str] | None = None) -> Iterator[Prometheus]:
    """Run a Prometheus.

    Args:
        folder: for its files.
        config: its configuration; ``rule_files`` are added.
        rules: texts of rule files by name.
    """
    home = folder / "prometheus"
    home.mkdir()
    for name, text in (rules or {}).items():
        (home / name).write_text(text, encoding="utf-8")
    # JSON is YAML.
    (home / "prometheus.yml").write_text(json.dumps({**config, "rule_files": sorted(rules or {})}), encoding="utf-8")
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
    ]
    with program([*command, "--enable-feature=exemplar-storage"], home, "prometheus") as (process, said):
        server = Prometheus(listening(process, said))
        await_that(lambda: answers(f"{server.url}/-/ready"), "Prometheus ready")
        yield server


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """Run an Alertmanager that sends each alert by itself, at once, to ``webhook``; yields its host and port."""
    home = folder / "alertmanager"
    home.mkdir()
    route = {
        "receiver": "test",
        "group_by": ["..."],
        "group_wait": "0s",
        "group_interval": "1s",
        "repeat_interval": "1h",
    }
    receivers = [{"name": "test", "webhook_configs": [{"url": webhook, "send_resolved": True}]}]
    (home / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": receivers}), encoding="utf-8")
    command = ["prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=data"]
    command += ["--web.listen-address=127.0.0.1:0", "--cluster.listen-address="]
    with program(command, home, "alertmanager") as (process, said):
        port = listening(process, said)
        await_that(lambda: answers(f"http://127.0.0.1:{port}/-/ready"), "Alertmanager ready")
        yield f"127.0.0.1:{port}"


# -- receivers -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def http_server(handle: Callable[[str, bytes], tuple[int, bytes]]) -> Iterator[str]:
    """Run an HTTP server in threads; ``handle`` maps path and body to status and body. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            status, said = handle(self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="http server of a test")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Pager:
    """A webhook of Alertmanager that keeps all notifications."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        """Every alert as it came, with ``status`` firing or resolved."""

    def take(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Take a notification."""
        self.received.extend(json.loads(body)["alerts"])
        return 200, b"{}"

    def names(self, status: str, **labels: str) -> set[str]:
        """Return the names of the received alerts with a status and these labels."""
        return {alert["labels"]["alertname"] for alert in self.alerts(status, **labels)}

    def alerts(self, status: str, **labels: str) -> list[dict[str, Any]]:
        """Return the received alerts with a status and these labels."""
        return [
            alert
            for alert in list(self.received)
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]


# -- a collector -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rotel(folder: Path, *options: str) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Run a collector; yields its URLs for http and grpc, and a function that reads its output.

    Args:
        folder: for its files.
        *options: such as ``--exporter=blackhole``.
    """
    binary = rotel_binary()
    assert binary is not None
    home = folder / "rotel"
    home.mkdir()
    http, grpc = free_port(), free_port()
    command = [binary, "start", f"--otlp-http-endpoint=127.0.0.1:{http}", f"--otlp-grpc-endpoint=127.0.0.1:{grpc}"]
    command = [*command, f"--pid-file={home / 'pid'}", *options]
    with program(command, home, "rotel", rotel_environment()) as (process, said):

        def there() -> bool:
            assert process.poll() is None, said()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", http), 1):
                return True
            return False

        await_that(there, "a collector that listens")
        yield f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}", said


# -- watched services ------------------------------------------------------------------------------------------------


class Service:
    """examples/troubled_service.py, running."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], said: Callable[[], str]) -> None:
        self.url, self.process, self.said = url, process, said

    def on(self, *names: str) -> None:
        """Switch troubles on."""
        get(f"{self.url}/on/{','.join(names)}", timeout=60, method="POST")

    def off(self, *names: str) -> None:
        """Switch troubles off; all without names."""
        get(f"{self.url}/off/{','.join(names) or 'all'}", timeout=60, method="POST")


@contextlib.contextmanager
def troubled_service(folder: Path, name: str, env: Mapping[str, str], *options: str) -> Iterator[Service]:
    """Run the service with every kind of trouble."""
    command = [sys.executable, ROOT / "examples" / "troubled_service.py", "--port", "0", *options]
    with program(command, folder, name, env) as (process, said):

        def url() -> str:
            assert process.poll() is None, said()
            found = re.search(r"^(http://\S+)$", said(), re.MULTILINE)
            return found[1] if found else ""

        yield Service(await_that(url, f"{name} serves", 60), process, said)
