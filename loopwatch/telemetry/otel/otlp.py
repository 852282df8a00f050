"""Sends an encoded OTLP message, over http or grpc: one attempt, one answer, no retries and no log lines of its own.

The caller decides when to try again. A request under way can be aborted from another thread, so that nobody has to wait
for a receiver that does not answer.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import zlib
from base64 import b64encode
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface
from urllib.parse import SplitResult, unquote, urlsplit

from loopwatch.core import descriptors
from loopwatch.core.originals import time
from loopwatch.errors import ConfigError
from loopwatch.telemetry.otel.otlp_config import Protocol, Signal, Target

if TYPE_CHECKING:
    import http.client
    import ssl

_AGAIN = frozenset({429, 502, 503, 504})
"""Status codes after which a client is to retry, by the OTLP specification."""
_LONGEST_ANSWER = 64 * 1024
"""Bytes of an answer that are read; nothing in it is needed."""
_LONGEST_WAIT = 300.0
"""Seconds for which a receiver can make the exporter wait at most."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one attempt.

    Attributes:
        reason: why it failed, "" if it did not.
        again: whether the same message may be sent again.
        after: seconds that the receiver asks to wait before a retry, None if it does not say.
    """

    reason: str = ""
    again: bool = False
    after: float | None = None


class Sender(Interface):
    """Sends to one target; for one thread."""

    def send(self, body: bytes) -> Answer:
        """Send a message and wait for the answer, at most ``Target.timeout`` seconds; never raises."""

    def abort(self) -> None:
        """Abort a request under way, and send nothing any more; from any thread."""

    def close(self) -> None:
        """Close the connection; no request is under way."""

    def abandon(self) -> None:
        """Release the parent's connection in a forked child; :meth:`send` opens another."""


def sender_of(target: Target) -> Sender:
    """Return the sender for ``target``.

    Raises:
        ConfigError: grpc is not installed, or a certificate's file cannot be used.
    """
    return GrpcSender(target) if target.protocol is Protocol.GRPC else HttpSender(target)


class HttpSender:
    """Sends over http, with one connection that is kept between messages.

    Args:
        target: the receiver.

    Raises:
        ConfigError: a certificate's file cannot be used.
    """

    def __init__(self, target: Target) -> None:
        import http.client
        import urllib.request

        self._client = http.client
        self._proxies = urllib.request
        self._target = target
        self._parts = urlsplit(target.url)
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": "loopwatch",
            **_credentials(self._parts),
        }
        self._headers |= dict(target.headers)
        if target.compression != "none":
            self._headers["Content-Encoding"] = target.compression
        self._context = _tls(target) if self._parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None
        self._mark: descriptors.Mark = None
        self._aborted = False

    def send(self, body: bytes) -> Answer:
        """Post a message and return the receiver's answer; never raises."""
        body = _compressed(body, self._target.compression)
        ends = time.monotonic() + self._target.timeout
        was_open = self._connection is not None
        try:
            return self._attempt(body, ends)
        except (OSError, ValueError, self._client.HTTPException) as exc:  # ValueError: an invalid host name
            self._close()
            # The receiver may have closed a kept connection: that is no failure yet.
            if not was_open or self._aborted or isinstance(exc, TimeoutError):
                return Answer(_words(exc), again=True)
        try:
            return self._attempt(body, ends)
        except (OSError, ValueError, self._client.HTTPException) as exc:  # ValueError: an invalid host name
            self._close()
            return Answer(_words(exc), again=True)

    def abort(self) -> None:
        """Shut the socket down, from any thread; nothing is sent any more."""
        self._aborted = True
        connection = self._connection
        found = getattr(connection, "sock", None)
        if found is not None and self._is_ours(found):
            with contextlib.suppress(OSError):  # the receiver has closed it
                found.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._close()

    def abandon(self) -> None:
        """Close the inherited descriptor in a forked child."""
        self._close()  # closes the descriptor; the parent's connection stays open

    def _attempt(self, body: bytes, ends: float) -> Answer:
        connection = self._connection
        if connection is not None and connection.sock is not None and not self._is_ours(connection.sock):
            self._close()
            connection = None
        if connection is None:
            connection = self._connection = self._connect(ends)
        if connection.sock is None:
            connection.connect()
            self._mark = _mark_of(connection)
        if self._aborted:
            self._close()
            return Answer("stopped")
        connection.sock.settimeout(max(ends - time.monotonic(), 0.01))
        connection.request("POST", self._path, body, self._headers)
        response = connection.getresponse()
        response.read(_LONGEST_ANSWER)
        status, reason, after = response.status, response.reason, response.headers.get("Retry-After")
        if response.will_close or not response.isclosed():
            self._close()
        if 200 <= status < 300:
            return Answer()
        return Answer(f"HTTP {status} {reason}".strip()[:100], status in _AGAIN, _wait_of(after))

    def _connect(self, ends: float) -> http.client.HTTPConnection:
        parts, timeout = self._parts, max(ends - time.monotonic(), 0.01)
        host = parts.hostname or ""
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        found = None if self._proxies.proxy_bypass(host) else self._proxies.getproxies().get(parts.scheme)
        proxy = urlsplit(found if not found or "://" in found else f"http://{found}") if found else None
        if self._context is not None:
            if proxy is None or not proxy.hostname:
                return self._client.HTTPSConnection(host, parts.port, timeout=timeout, context=self._context)
            secure = self._client.HTTPSConnection(proxy.hostname, proxy.port, timeout=timeout, context=self._context)
            secure.set_tunnel(host, parts.port or 443, _credentials(proxy, "Proxy-Authorization"))
            return secure
        if proxy is None or not proxy.hostname:
            return self._client.HTTPConnection(host, parts.port, timeout=timeout)
        self._path = f"http://{parts.netloc.rpartition('@')[2]}{self._path}"
        self._headers |= _credentials(proxy, "Proxy-Authorization")
        return self._client.HTTPConnection(proxy.hostname, proxy.port, timeout=timeout)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.sock is not None and not self._is_ours(connection.sock):
                connection.sock.detach()
            with contextlib.suppress(OSError):
                connection.close()

    def _is_ours(self, connected: socket.socket) -> bool:
        """Whether the descriptor still belongs to this connection."""
        return descriptors.mark(connected.fileno()) == self._mark


class GrpcSender:
    """Sends over grpc; its channel is opened with the first message, so that a process may fork before.

    Args:
        target: the receiver.

    Raises:
        ConfigError: grpc is not installed, or a certificate's file cannot be read.
    """

    def __init__(self, target: Target) -> None:
        try:
            import grpc
        except ImportError:
            raise ConfigError(
                f"OTLP over grpc to {target.shown}: grpc is not installed: pip install grpcio, or set "
                "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
            ) from None
        self._grpc: Any = grpc
        self._target = target
        self._secure = urlsplit(target.url).scheme == "https"
        self._files = [_content(name) for name in (target.certificate, target.client_key, target.client_certificate)]
        codes = grpc.StatusCode
        self._again = {
            codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.DEADLINE_EXCEEDED, codes.CANCELLED, codes.ABORTED,
            codes.OUT_OF_RANGE, codes.DATA_LOSS,
        }  # fmt: skip
        self._channel: Any = None
        self._call: Any = None
        self._inherited: list[Any] = []
        self._aborted = False

    def send(self, body: bytes) -> Answer:
        """Call the export method and return the answer; never raises."""
        if self._channel is None:
            self._open()
        metadata = tuple((name.lower(), value) for name, value in self._target.headers)
        if self._aborted:
            return Answer("stopped")
        try:
            # Not as a future: that takes a thread, which cannot start while the interpreter exits (since 3.12).
            self._call(body, timeout=self._target.timeout, metadata=metadata)
            return Answer()
        except self._grpc.RpcError as exc:
            code = exc.code()
            reason = f"grpc {code.name}: {exc.details()}" if exc.details() else f"grpc {code.name}"
            return Answer(reason[:200], code in self._again, _retry_info(exc))
        except ValueError:  # the channel has been closed
            return Answer("stopped")

    def abort(self) -> None:
        """Close the channel, from any thread; nothing is sent any more."""
        self._aborted = True
        channel = self._channel
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def abandon(self) -> None:
        """Keep the parent's channel unused in a forked child."""
        # Closing it would wait for the parent's threads, and so would collecting it as garbage: it is kept.
        self._inherited += [self._channel, self._call]
        self._channel = self._call = None

    def _open(self) -> None:
        grpc, parts = self._grpc, urlsplit(self._target.url)
        kinds = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
        compression = kinds.get(self._target.compression, grpc.Compression.NoCompression)
        address = parts.netloc.rpartition("@")[2]
        if parts.port is None:
            address += ":443" if self._secure else ":80"
        # Without back-off of its own: the caller decides when to try again.
        options = (("grpc.max_reconnect_backoff_ms", 1000), ("grpc.use_local_subchannel_pool", 1))
        if self._secure:
            trusted, key, certificate = self._files
            credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
            self._channel = grpc.secure_channel(address, credentials, options, compression)
        else:
            self._channel = grpc.insecure_channel(address, options, compression)
        self._call = self._channel.unary_unary(_METHODS[self._target.signal])


_METHODS = {
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}


def _mark_of(connection: Any) -> descriptors.Mark:
    return descriptors.mark(connection.sock.fileno())


def _content(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        with open(file, "rb") as opened:  # noqa: PTH123 - the error names the file as it was given
            return opened.read()
    except OSError as exc:
        raise ConfigError(f"certificate file {file!r}: {exc.strerror}; it must be readable") from None


def _tls(target: Target) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=target.certificate)
        if target.client_certificate is not None:
            context.load_cert_chain(target.client_certificate, target.client_key)
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        files = [name for name in (target.certificate, target.client_certificate, target.client_key) if name]
        raise ConfigError(f"certificate files {files}: cannot be used ({exc}); they must be in PEM format") from None
    return context


def _credentials(parts: SplitResult, header: str = "Authorization") -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {b64encode(pair.encode()).decode()}"}


def _compressed(body: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(body, compresslevel=6)
    return zlib.compress(body) if how == "deflate" else body


def _words(exc: BaseException) -> str:
    """Return a network error as text, without anything long or secret."""
    if isinstance(exc, TimeoutError):
        return "timed out"
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return str(text).splitlines()[0][:200]


def _wait_of(header: str | None) -> float | None:
    """Return the seconds that ``Retry-After`` asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else None  # noqa: PLR0124 - not NaN


def _retry_info(exc: Any) -> float | None:
    """Return the seconds that a grpc receiver asks for (``google.rpc.RetryInfo`` in its trailing metadata)."""
    for key, value in exc.trailing_metadata() or ():
        if key == "google.rpc.retryinfo-bin":
            from google.protobuf.message import DecodeError
            from google.rpc.error_details_pb2 import RetryInfo

            with contextlib.suppress(DecodeError):
                delay = RetryInfo.FromString(value).retry_delay
                return float(min(max(delay.seconds + delay.nanos / 1e9, 0.0), _LONGEST_WAIT))
    return None
