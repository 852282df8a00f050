"""A receiver of OTLP over http that behaves as a test wants, and decodes the messages that it receives."""

from __future__ import annotations

import contextlib
import gzip
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DEADLINE = 30.0
"""Seconds; generous: a test that reaches it has found another problem."""
_KINDS: dict[str, Any] = {
    "metrics": ExportMetricsServiceRequest,
    "traces": ExportTraceServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}

Behaviour = Callable[["Handler"], None]
Points = dict[tuple[str, ...], Any]


@dataclass
class Received:
    """One message.

    Attributes:
        signal: metrics, traces or logs.
        path, headers: of the request.
        message: decoded.
        size: bytes on the wire.
    """

    signal: str
    path: str
    headers: dict[str, str]
    message: Any
    size: int


@dataclass
class Receiver:
    """The received messages, and the behaviour for the next requests."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    requests: int = 0
    behave: Behaviour = lambda handler: handler.take()
    connections: set[Any] = field(default_factory=set)

    def of(self, signal: str) -> list[Any]:
        """Return the messages of a signal, in order."""
        return [each.message for each in list(self.received) if each.signal == signal]

    def items(self, signal: str) -> list[Any]:
        """Return the spans or log records of all messages, in order."""
        return [item for message in self.of(signal) for item in items_of(message, signal)]

    def points(self, number: int = -1) -> dict[str, Points]:
        """Return the points of a message of metrics: {name: {attributes: value or histogram}}."""
        return points_of(self.of("metrics")[number])

    def resource(self, signal: str = "metrics") -> dict[str, Any]:
        """Return the attributes of the resource of the latest message."""
        message = self.of(signal)[-1]
        each = getattr(
            message, {"metrics": "resource_metrics", "traces": "resource_spans", "logs": "resource_logs"}[signal]
        )
        return {item.key: _value(item.value) for item in each[0].resource.attributes}

    def until(self, happened: Callable[[], Any], what: str = "") -> Any:
        """Wait until ``happened`` returns a true value; return it."""
        return until(happened, what)


def until(happened: Callable[[], Any], what: str = "") -> Any:
    """Wait until ``happened`` returns a true value and return it; fail at the deadline."""
    ends = time.monotonic() + DEADLINE
    while time.monotonic() < ends:
        found = happened()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"never happened: {what or happened}")


class Handler(BaseHTTPRequestHandler):
    """One request; ``receiver.behave`` decides how it is handled."""

    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        self.receiver.requests += 1
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.receiver.behave(self)

    def take(self) -> None:
        """Store the message and answer with success."""
        signal = self.path.rpartition("/")[2]
        body = _UNPACK.get(self.headers.get("Content-Encoding", ""), bytes)(self.body)
        message = _KINDS[signal].FromString(body)
        self.receiver.received.append(Received(signal, self.path, dict(self.headers), message, len(self.body)))
        self.answer(200)

    def answer(self, status: int, **headers: str) -> None:
        """Answer with a status."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True

    def setup(self) -> None:
        super().setup()
        self.receiver.connections.add(self.connection)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.receiver.connections.discard(self.connection)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that disconnects is not reported."""


@contextlib.contextmanager
def receiver(behave: Behaviour | None = None, *, port: int = 0, certificate: Any = None) -> Iterator[Receiver]:
    """Serve until the end of the block."""
    found = Receiver()
    if behave is not None:
        found.behave = behave
    server = _Server(("127.0.0.1", port), type("Handling", (Handler,), {"receiver": found}))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    found.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="receiver")
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in list(found.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)


def items_of(message: Any, signal: str) -> list[Any]:
    """Return the spans or log records of a message."""
    if signal == "traces":
        scopes = [scope for each in message.resource_spans for scope in each.scope_spans]
        return [span for scope in scopes for span in scope.spans]
    scopes = [scope for each in message.resource_logs for scope in each.scope_logs]
    return [record for scope in scopes for record in scope.log_records]


def points_of(message: Any) -> dict[str, Points]:
    """Return {name: {attributes: value}} of a message, or of the SDK's own data."""
    found: dict[str, Points] = {}
    for of_resource in message.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    key = tuple(_value(item.value) for item in point.attributes)
                    value = point if kind == "histogram" else getattr(point, point.WhichOneof("value"))
                    assert key not in found.setdefault(metric.name, {}), f"{metric.name}{key} is there twice"
                    found[metric.name][key] = value
    return found


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


GRPC = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
class Everything(grpc.GenericRpcHandler):
    def service(self, details):
        def answer(request, context):
            wanted = dict(context.invocation_metadata()).get("answer")
            if wanted:
                context.abort(getattr(grpc.StatusCode, wanted), "as you wish")
            print(details.method, len(request), flush=True)
            return b""
        return grpc.unary_unary_rpc_method_handler(answer)
server = grpc.server(ThreadPoolExecutor(2), handlers=[Everything()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


@contextlib.contextmanager
def grpc_receiver() -> Iterator[tuple[str, Any]]:
    """Receive over grpc in a separate process; yields its address, and lines of method and length of each message."""
    command = [sys.executable, "-c", GRPC]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.stdout
        process.stdin.close()
