"""The exporting thread: what is sent, and how the program behaves when the receiver fails."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from otlp_receiver import Handler, Receiver, grpc_receiver, receiver, until

from loopwatch.core.faults import Faults
from loopwatch.errors import ConfigError
from loopwatch.telemetry.otel import exporter
from loopwatch.telemetry.otel.exporter import Exporter, Outbox
from loopwatch.telemetry.otel.otlp import Answer, GrpcSender, HttpSender, sender_of
from loopwatch.telemetry.otel.otlp_config import Protocol, Signal, Target, Targets


class Fake:
    """A sender that gives the prepared answers in order, then success."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.aborted = self.closed = False

    def send(self, body: bytes) -> Answer:
        self.sent.append(body)
        return self.answers.pop(0) if self.answers else Answer()

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        """Nothing."""


def joined(items: Any) -> bytes:
    return ",".join(items).encode()


def outbox(sender: Fake, limit: int = 4, batch: int = 2) -> Outbox:
    return Outbox(Signal.TRACES, sender, shown="http://x", encode=joined, limit=limit, batch=batch)


AGAIN = Answer("busy", again=True)
NEVER = Answer("HTTP 400 Bad Request")


# -- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded() -> None:
    """With a limit of four the fifth item is dropped and counted; the queued items stay."""
    box = outbox(Fake())
    assert [box.put(item) for item in "abcde"] == [True, True, True, True, False]
    assert box.dropped == 1
    assert list(box.waiting) == ["a", "b", "c", "d"]


def test_retryable_messages_stay_queued() -> None:
    """The same message is sent again, followed by the items that were queued meanwhile."""
    sender = Fake(AGAIN, AGAIN)
    box = outbox(sender)
    box.put("a")
    assert box.attempt() == AGAIN
    box.put("b")
    assert box.attempt() == AGAIN
    assert box.attempt() == Answer()
    assert box.attempt() == Answer()
    assert box.attempt() is None
    assert sender.sent == [b"a", b"a", b"a", b"b"]
    assert box.dropped == 0


def test_rejected_messages_are_dropped() -> None:
    """A message that the receiver rejects for good does not block those behind it."""
    sender = Fake(NEVER)
    box = outbox(sender)
    for item in "abc":
        box.put(item)
    assert box.attempt() == NEVER
    assert box.dropped == 2
    assert box.attempt() == Answer()
    assert sender.sent == [b"a,b", b"c"]


def test_items_that_cannot_be_encoded_are_dropped() -> None:
    """They are counted, and the items behind them are sent."""
    sender = Fake()
    box = outbox(sender, batch=1)
    box.put(1)
    box.put("b")
    answer = box.attempt()
    assert answer is not None
    assert answer.reason.startswith("cannot be encoded: TypeError")
    assert box.attempt() == Answer()
    assert (box.dropped, sender.sent) == (1, [b"b"])


# -- the thread -------------------------------------------------------------------------------------------------------


@pytest.fixture
def faults() -> Faults:
    return Faults()


def made(faults: Faults, collect: Callable[[], bytes | None], **fields: Any) -> Exporter:
    return Exporter(Targets({}, **({"interval": 0.02, "delay": 0.01} | fields)), faults, collect)


def test_metrics_each_interval_and_once_more_at_the_end(faults: Faults) -> None:
    """A message is collected at each interval, and a last one at the stop, however long the interval is."""
    sender, numbers = Fake(), iter(range(10_000))
    found = made(faults, lambda: str(next(numbers)).encode())
    found.add(Signal.METRICS, sender, "http://x", lambda messages: messages[0])
    found.start()
    until(lambda: len(sender.sent) >= 3)
    found.stop(5.0)
    assert not found.alive
    assert sender.sent == [str(number).encode() for number in range(len(sender.sent))]
    assert found.dropped == {Signal.METRICS: 0}
    assert found.cpu > 0
    late = made(faults, lambda: b"last", interval=3600)
    late.add(Signal.METRICS, sender, "http://x", lambda messages: messages[0])
    late.start()
    late.stop(5.0)
    assert sender.sent[-1] == b"last"


def test_spans_are_sent_in_batches(faults: Faults) -> None:
    """A full batch is sent at once, a single span after the delay; the thread starts with the first span."""
    sender = Fake()
    found = made(faults, lambda: None, delay=0.05, batch=3, queue=100)
    found.add(Signal.TRACES, sender, "http://x", joined)
    assert not found.alive
    for item in "abcd":
        found.put(Signal.TRACES, item)
    until(lambda: len(sender.sent) >= 2)
    found.stop(5.0)
    assert b",".join(sender.sent) == b"a,b,c,d"
    found.put(Signal.TRACES, "late")
    assert len(sender.sent) == 2, "a span after the stop is not sent"


def test_repeated_failures_are_logged_once(faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    """However many attempts and signals fail, one warning is logged, and one line when the export works again."""
    caplog.set_level(logging.INFO, "loopwatch")
    failing = [Fake(*[AGAIN] * 3) for _ in Signal]
    found = made(faults, lambda: b"m")
    for signal, sender in zip(Signal, failing, strict=True):
        found.add(signal, sender, f"http://x/{signal.value}", lambda items: str(items[0]).encode())
    found.put(Signal.TRACES, "t")
    found.put(Signal.LOGS, "l")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "SHORTEST_PAUSE", 0.01)
        found.start()
        until(lambda: all(len(sender.sent) > 3 for sender in failing))
        until(lambda: len(caplog.records) >= 2)
    found.stop(5.0)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "busy; it goes on trying" in warnings[0].getMessage()
    (again,) = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert again.startswith("loopwatch: exports to http://x/")
    assert faults.counts == {}


def test_a_short_program_logs_that_the_receiver_is_absent(faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    """If the only attempt is the one at exit, its failure is the one log line."""
    found = made(faults, lambda: b"m", interval=3600)
    for signal in Signal:
        found.add(signal, Fake(AGAIN), "http://x", lambda items: b"m")
    found.start()
    found.stop(5.0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("busy; this was the last attempt (the program is not affected)")


def test_retry_after_is_respected(faults: Faults) -> None:
    """Until ``Retry-After`` has passed nothing is sent, however short the interval, and no metrics are collected."""
    sender = Fake(Answer("HTTP 429", again=True, after=3600.0))
    collected = []
    found = made(faults, lambda: collected.append(1) or b"m")  # type: ignore[func-returns-value]
    found.add(Signal.METRICS, sender, "http://x", lambda messages: messages[0])
    found.start()
    until(lambda: sender.sent)
    time.sleep(0.1)  # five intervals
    assert len(sender.sent) == 1
    assert len(collected) == 1
    found.stop(5.0)
    assert len(sender.sent) == 2, "once more at the end"


def test_delta_messages_are_queued_and_cumulative_ones_are_not(faults: Faults) -> None:
    """Of cumulative metrics only the latest message is kept; of deltas a bounded number, as they would be lost."""
    from loopwatch.telemetry.otel.otlp_config import Temporality

    for temporality, kept in ((Temporality.CUMULATIVE, 1), (Temporality.DELTA, 8)):
        found = made(faults, lambda: b"m", temporality=temporality)
        assert found.add(Signal.METRICS, Fake(), "x", joined).limit == kept


def test_stop_aborts_a_request_that_hangs(faults: Faults) -> None:
    """A pending request is aborted."""

    class Hanging(Fake):
        def __init__(self) -> None:
            super().__init__()
            self.over = threading.Event()

        def send(self, body: bytes) -> Answer:
            self.sent.append(body)
            self.over.wait(30)
            return Answer("stopped")

        def abort(self) -> None:
            self.over.set()

    sender = Hanging()
    found = made(faults, lambda: b"m")
    found.add(Signal.METRICS, sender, "http://x", lambda messages: messages[0])
    found.start()
    until(lambda: sender.sent)
    found.stop(0.05)
    until(lambda: not found.alive)
    assert len(sender.sent) == 1, "no further request is started"


def test_a_signal_that_is_exported_elsewhere_ends(faults: Faults) -> None:
    """It is exported once more and then no more; other signals continue; without any signal the thread ends."""
    metrics, traces = Fake(), Fake()
    found = made(faults, lambda: b"m", interval=3600)
    found.add(Signal.METRICS, metrics, "http://x", lambda messages: messages[0])
    found.add(Signal.TRACES, traces, "http://x", joined)
    found.start()
    found.end(Signal.METRICS)
    until(lambda: metrics.sent)
    found.put(Signal.TRACES, "t")
    until(lambda: traces.sent)
    assert metrics.sent == [b"m"]
    found.end(Signal.TRACES)
    until(lambda: not found.alive)
    assert found.dropped == {Signal.METRICS: 0, Signal.TRACES: 0}


# -- over http --------------------------------------------------------------------------------------------------------


def target(server: Receiver, **fields: Any) -> Target:
    return Target(Signal.METRICS, Protocol.HTTP, f"{server.url}/v1/metrics", **({"timeout": 5.0} | fields))


@pytest.fixture
def senders() -> Iterator[list[Any]]:
    made: list[Any] = []
    yield made
    for each in made:
        each.abandon()


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_http_request(compression: str, senders: list[Any]) -> None:
    """Headers, compression and path are as configured; all messages use one connection."""
    with receiver() as server:
        sender = HttpSender(target(server, headers=(("api-key", "1"),), compression=compression))
        senders.append(sender)
        assert [sender.send(b"") for _ in range(3)] == [Answer()] * 3
        assert len(server.received) == 3
        assert {each.path for each in server.received} == {"/v1/metrics"}
        headers = server.received[0].headers
        assert headers["api-key"] == "1"
        assert headers["Content-Type"] == "application/x-protobuf"
        assert headers.get("Content-Encoding", "none") == compression
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    ("status", "headers", "answer"),
    [
        (429, {"Retry_After": "7"}, Answer("HTTP 429 Too Many Requests", again=True, after=7.0)),
        (503, {"Retry_After": "soon"}, Answer("HTTP 503 Service Unavailable", again=True)),
        (503, {"Retry_After": "999999"}, Answer("HTTP 503 Service Unavailable", again=True, after=300.0)),
        (502, {}, Answer("HTTP 502 Bad Gateway", again=True)),
        (400, {}, Answer("HTTP 400 Bad Request")),
        (401, {}, Answer("HTTP 401 Unauthorized")),
        (301, {"Location": "http://127.0.0.1:1/"}, Answer("HTTP 301 Moved Permanently")),
    ],
)
def test_http_status_decides_about_a_retry(
    status: int, headers: dict[str, str], answer: Answer, senders: list[Any]
) -> None:
    """Whether and when a message may be sent again follows the OTLP specification."""
    with receiver(lambda handler: handler.answer(status, **headers)) as server:
        sender = HttpSender(target(server))
        senders.append(sender)
        assert sender.send(b"x") == answer


def test_a_closed_keep_alive_connection_is_reopened(senders: list[Any]) -> None:
    """A connection that the receiver closed between two messages is no failure; one that it always closes is."""
    with receiver() as server:
        sender = HttpSender(target(server))
        senders.append(sender)
        assert sender.send(b"") == Answer()
        for connection in list(server.connections):
            connection.shutdown(socket.SHUT_RDWR)
        until(lambda: not server.connections)
        assert sender.send(b"") == Answer()
        server.behave = Handler.drop
        answer = sender.send(b"")
        assert answer.again
        assert answer.reason


def test_through_a_proxy(senders: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of the environment is used; credentials in the URLs of receiver and proxy are sent as headers."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with receiver() as server:
        monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:pass%21@"))
        sender = HttpSender(Target(Signal.METRICS, Protocol.HTTP, "http://you:word@collector.example:4318/v1/metrics"))
        senders.append(sender)
        assert sender.send(b"") == Answer()
        (received,) = server.received
        assert received.path == "http://collector.example:4318/v1/metrics"
        assert received.headers["Proxy-Authorization"] == "Basic bWU6cGFzcyE="
        assert received.headers["Authorization"] == "Basic eW91OndvcmQ="
        assert received.headers["Host"] == "collector.example:4318"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        direct = HttpSender(target(server))
        senders.append(direct)
        assert direct.send(b"") == Answer()
        assert server.received[-1].path == "/v1/metrics"


def test_a_refused_connection_may_be_retried(senders: list[Any]) -> None:
    """A refused connection is a failure that may be retried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        sender = HttpSender(Target(Signal.METRICS, Protocol.HTTP, f"http://127.0.0.1:{port}/v1/metrics"))
        senders.append(sender)
        assert sender.send(b"") == Answer("Connection refused", again=True)


def test_an_invalid_host_name_is_a_failure(senders: list[Any]) -> None:
    """A host name that cannot even be looked up is a failure like any other."""
    sender = HttpSender(Target(Signal.METRICS, Protocol.HTTP, f"http://{'a' * 70}..example/v1/metrics"))
    senders.append(sender)
    assert sender.send(b"").reason


def test_a_slow_receiver_times_out(senders: list[Any]) -> None:
    """After the time-out the attempt has failed, and may be retried."""
    over = threading.Event()
    with receiver(lambda _handler: over.wait(30)) as server:  # type: ignore[arg-type, return-value]
        sender = HttpSender(target(server, timeout=0.1))
        senders.append(sender)
        assert sender.send(b"") == Answer("timed out", again=True)
        over.set()


def test_a_request_is_aborted(senders: list[Any]) -> None:
    """Another thread can abort it while the receiver has not answered."""
    over, answers = threading.Event(), []
    with receiver(lambda _handler: over.wait(30)) as server:  # type: ignore[arg-type, return-value]
        sender = HttpSender(target(server, timeout=30.0))
        senders.append(sender)
        thread = threading.Thread(target=lambda: answers.append(sender.send(b"")))
        thread.start()
        until(lambda: server.requests)
        sender.abort()
        thread.join(20)
        assert not thread.is_alive()
        assert answers[0].reason
        over.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {made} -days 2 -subj /CN=127.0.0.1 "
        "-addext subjectAltName=IP:127.0.0.1"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"openssl is not installed, or too old: {done.stderr[:200]}")
    return made, key


def test_tls(certificate: tuple[Path, Path], senders: list[Any]) -> None:
    """A receiver with a trusted certificate gets the message; an untrusted one is a failure with a reason."""
    with receiver(certificate=certificate) as server:
        trusting = HttpSender(target(server, certificate=str(certificate[0])))
        senders.append(trusting)
        assert trusting.send(b"") == Answer()
        wary = HttpSender(target(server))
        senders.append(wary)
        answer = wary.send(b"")
        assert "CERTIFICATE_VERIFY_FAILED" in answer.reason
        assert len(server.received) == 1


def test_tls_to_a_plain_text_receiver(senders: list[Any]) -> None:
    """A TLS connection to a plain-text receiver is a failure and not an exception."""
    with receiver() as server:
        sender = HttpSender(Target(Signal.METRICS, Protocol.HTTP, server.url.replace("http:", "https:"), timeout=5.0))
        senders.append(sender)
        assert sender.send(b"").again


def test_invalid_certificate_files(tmp_path: Path) -> None:
    """They are an error of one line at install."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("nothing of that kind")
    with pytest.raises(ConfigError, match=r"ca\.pem.*must be in PEM format") as caught:
        sender_of(Target(Signal.METRICS, Protocol.HTTP, "https://127.0.0.1:1", certificate=str(wrong)))
    assert "\n" not in str(caught.value)
    assert ssl.create_default_context()


# -- over grpc --------------------------------------------------------------------------------------------------------


@pytest.fixture
def grpc_server() -> Iterator[tuple[str, Any]]:
    """A grpc receiver in a separate process: its address, and a line for each message it received."""
    with grpc_receiver() as found:
        yield found


def test_grpc_request(grpc_server: tuple[str, Any]) -> None:
    """The method of the signal is called; the status of the receiver decides whether a message may be retried."""
    url, lines = grpc_server
    sender = GrpcSender(Target(Signal.LOGS, Protocol.GRPC, url))
    assert sender.send(b"x" * 10) == Answer()
    assert lines.readline().split() == ["/opentelemetry.proto.collector.logs.v1.LogsService/Export", "10"]
    sender.abort()
    for code, again in (("UNAVAILABLE", True), ("INVALID_ARGUMENT", False)):
        refused = GrpcSender(Target(Signal.LOGS, Protocol.GRPC, url, (("Answer", code),)))
        assert refused.send(b"x") == Answer(f"grpc {code}: as you wish", again=again)
        refused.abort()


def test_grpc_without_a_receiver() -> None:
    """It fails within the time-out, and may be retried."""
    sender = GrpcSender(Target(Signal.LOGS, Protocol.GRPC, "http://127.0.0.1:1", timeout=5.0))
    answer = sender.send(b"x")
    assert answer.again
    assert answer.reason.startswith("grpc UNAVAILABLE")
    sender.abort()


def test_grpc_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package to install, or the variable to set instead."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ConfigError, match=r"pip install grpcio.*OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"):
        sender_of(Target(Signal.LOGS, Protocol.GRPC, "http://127.0.0.1:1"))
