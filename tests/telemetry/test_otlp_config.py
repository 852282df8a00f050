"""OTLP targets are configured by the standard variables; an invalid value is an error of one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopwatch.errors import ConfigError
from loopwatch.telemetry.otel.otlp_config import Protocol, Signal, Target, Temporality, targets_of

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def urls(environ: dict[str, str], endpoint: str | None = None) -> dict[str, str]:
    return {signal.value: target.url for signal, target in targets_of(environ, endpoint).targets.items()}


def test_nothing_is_sent_without_an_endpoint() -> None:
    """Variables that only set protocol or headers do not enable the export."""
    assert targets_of({}).targets == {}
    assert targets_of({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_HEADERS": "a=b"}).targets == {}


def test_one_endpoint_for_all_signals() -> None:
    """Over http each signal has its path below it; over grpc there are no paths."""
    assert urls(BASE) == {
        "metrics": "http://collector:4318/v1/metrics",
        "traces": "http://collector:4318/v1/traces",
        "logs": "http://collector:4318/v1/logs",
    }
    assert urls({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/otlp/"})["logs"] == "https://c/otlp/v1/logs"
    assert set(urls(BASE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).values()) == {"http://collector:4318"}


def test_endpoint_of_one_signal() -> None:
    """It is used as it is, and other signals are not sent without a common endpoint."""
    assert urls({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:1/path"}) == {"metrics": "http://m:1/path"}
    assert urls(BASE | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/x"})["traces"] == "http://t:1/x"


def test_setting_wins_over_variables() -> None:
    """``otlp_endpoint`` is a base URL for all signals and takes precedence over the variables; so does the interval."""
    environ = BASE | {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:1/x", "OTEL_METRIC_EXPORT_INTERVAL": "5000"}
    assert urls(environ, "http://mine:1")["metrics"] == "http://mine:1/v1/metrics"
    assert urls({}, "http://mine:1/v1/metrics")["logs"] == "http://mine:1/v1/logs"
    assert targets_of(environ).interval == 5.0
    assert targets_of(environ, interval=2.0).interval == 2.0
    assert targets_of({}).interval == 10.0
    assert targets_of({"OTEL_METRIC_EXPORT_INTERVAL": "1"}).interval == 0.1, "not a thousand times a second"


def test_disabled_signals() -> None:
    """``OTEL_*_EXPORTER=none`` disables one signal, and ``OTEL_SDK_DISABLED`` all, even with a setting."""
    assert set(urls(BASE | {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "console"})) == {"metrics"}
    assert set(urls({"OTEL_METRICS_EXPORTER": "none"}, "http://mine:1")) == {"traces", "logs"}
    assert urls(BASE | {"OTEL_SDK_DISABLED": "true"}) == {}


def test_headers_timeouts_and_certificates(tmp_path: Path) -> None:
    """Headers are decoded, a signal's own variable takes precedence, and certificates are files."""
    certificate = tmp_path / "ca.pem"
    certificate.write_text("x")
    environ = BASE | {
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%2Cb, tenant = shop ,",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x=1=2",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
        "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "0.5",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc",
    }
    found = targets_of(environ).targets
    assert found[Signal.TRACES] == Target(
        Signal.TRACES, Protocol.HTTP, "http://collector:4318/v1/traces", (("api-key", "a,b"), ("tenant", "shop")),
        3.0, "gzip", str(certificate),
    )  # fmt: skip
    assert found[Signal.LOGS].headers == (("x", "1=2"),)
    assert found[Signal.LOGS].timeout == 0.5
    assert found[Signal.METRICS].protocol is Protocol.GRPC
    assert targets_of({"OTEL_METRICS_EXPORTER": "otlp_proto_grpc"}, "http://m:1").targets[
        Signal.METRICS
    ].protocol is Protocol.GRPC  # fmt: skip


def test_grpc_takes_an_address_without_a_scheme() -> None:
    """An address in the format of grpc is secure unless a variable says otherwise."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert urls(environ)["metrics"] == "https://collector:4317"
    assert urls(environ | {"OTEL_EXPORTER_OTLP_INSECURE": "true"})["metrics"] == "http://collector:4317"


def test_temporality_and_queues() -> None:
    """The other standard variables are read too."""
    found = targets_of(
        {
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "DELTA",
            "OTEL_BSP_MAX_QUEUE_SIZE": "10",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
            "OTEL_BSP_SCHEDULE_DELAY": "250",
        }
    )
    assert (found.temporality, found.queue, found.batch, found.delay) == (Temporality.DELTA, 10, 4, 0.25)


BAD = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:port"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a b"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "api-key"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,=c"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0aInjected: 1"),
    ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "a b=c"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
    ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "nan"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "10s"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file.pem"),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "absolute"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value}" for name, value in BAD])
def test_bad_variables(name: str, value: str) -> None:
    """The error is one line that names the variable and the allowed values, also if nothing would be sent."""
    with pytest.raises(ConfigError, match=name) as caught:
        targets_of({name: value})
    assert "\n" not in str(caught.value)
    assert "must be" in str(caught.value)


def test_secrets_are_not_shown() -> None:
    """They are neither in the error about a header, nor in the shown URL of a target."""
    with pytest.raises(ConfigError) as caught:
        targets_of({"OTEL_EXPORTER_OTLP_HEADERS": "authorization: Bearer hunter2"})
    assert "hunter2" not in str(caught.value)
    shown = Target(Signal.LOGS, Protocol.HTTP, "https://me:hunter2@host:1/v1/logs?token=hunter2").shown
    assert shown == "https://host:1/v1/logs"
