"""Services in every kind of trouble, real servers: every expression has data, every alert comes and goes.

The metrics come both ways at once: Prometheus scrapes the services, and the services send OTLP to a collector, whose
exporter Prometheus scrapes too. So each claim is made twice, for the jobs ``scraped`` and ``exported``.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from collector_exporter import PrometheusExporter
from faster_rules import shipped
from real_servers import (
    ROOT,
    Pager,
    Prometheus,
    alertmanager,
    await_that,
    free_port,
    http_server,
    missing,
    program,
    prometheus,
    rotel,
    troubled_service,
)

from loopwatch.telemetry.metrics.catalog import CATALOG, Kind

sys.path.insert(0, str(ROOT))  # the code that makes the dashboards is not installed

SPEED = 60
"""Times as fast as shipped the rules are here: a minute is a second."""

WHY_NOT = missing("prometheus", "prometheus-alertmanager", "rotel")
pytestmark = [
    pytest.mark.long,
    pytest.mark.measures,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(300),
]

BOTH = ("scraped", "exported")
BLOCKING = ("python", "dump", "garbage", "culprits", "fault")
POOLS = (
    "default_executor",
    "threads_compute",
    "processes_wait",
    "pool_per_call",
    "queue",
    "errors",
    "zombie",
    "orphan",
)
POOLS += ("hung_worker", "crashes", "broken_pool", "offloaded")

RULES = {rule["alert"]: rule for group in yaml.safe_load(shipped()["alerts.yml"])["groups"] for rule in group["rules"]}
ONLY_SCRAPED = {"LoopwatchTargetDown"}
"""There is no ``up`` of a process behind a collector."""
ONLY_EXPORTED = {"LoopwatchInstancesLost"}
"""Where there is, that says it."""
SLOW_TO_END = {"LoopwatchLagBudgetBurnsFast", "LoopwatchLagBudgetBurnsSlowly"}
"""Their windows are hours and days; they do not forget within a test, however fast time passes."""


WITH_DEAD = {"LoopwatchTargetDown"}
"""Targets that stay down."""


PREFORK = """
import asyncio, os
import loopwatch, loopwatch.telemetry.service  # so that a worker starts at once
import loopwatch.telemetry.prometheus.endpoint
import opentelemetry.sdk.metrics, opentelemetry.exporter.otlp.proto.http, prometheus_client.exposition

while os.fork():
    os.wait()
loopwatch.install()
asyncio.run(asyncio.sleep(3600))
"""
"""A server that has one worker, and starts it again when it has died."""


@contextlib.contextmanager
def prefork(folder: Path, name: str, env: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Run :data:`PREFORK`; yields a function that kills its worker as the kernel does when memory is short."""
    with program([sys.executable, "-c", PREFORK], folder, name, env) as (process, _):
        parent = psutil.Process(process.pid)

        def kill() -> None:
            parent.children()[0].kill()

        yield kill


def environment(name: str, port: int, collector: str) -> dict[str, str]:
    """Return the settings of a service that exports both ways."""
    return {
        "OTEL_SERVICE_NAME": name,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "LOOPWATCH_EXPORT_INTERVAL": "1",
        "LOOPWATCH_PROMETHEUS_PORT": str(port),
        "LOOPWATCH_THRESHOLD": "0.05",
        "LOOPWATCH_HANG_AFTER": "1",
        "LOOPWATCH_HUNG_AFTER": "1",
        "LOOPWATCH_CPU_BUDGET": "0.5",  # exporting every second, it costs more than it should
        "TROUBLE_HANG": "4",
    }


def configuration(services: list[int], mortals: dict[str, int], exporter: str, manager: str) -> dict[str, Any]:
    """Return the configuration of Prometheus."""

    def job(name: str, *targets: str, **more: object) -> dict[str, Any]:
        return {"job_name": name, "static_configs": [{"targets": targets}], **more}

    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]},
        "scrape_configs": [
            job("scraped", *(f"127.0.0.1:{port}" for port in services)),
            *(job(f"scraped-{name}", f"127.0.0.1:{port}", **often) for name, port in mortals.items()),
            job("collector", exporter.removeprefix("http://"), honor_labels=True, **often),
        ],
    }


def finite(series: dict[str, Any]) -> list[float]:
    """Return the numbers in the result of a vector or a matrix."""
    points = series["values"] if "values" in series else [series["value"]]
    return [float(value) for _, value in points if not math.isnan(float(value))]


def without_data(server: Prometheus, job: str, start: float, end: float) -> Iterator[str]:
    """Yield the dashboard expressions and recorded series that return no data of their shape for a job."""
    from dashboards.source.expressions import expressions

    for item in expressions():
        expression = item.concrete({"job": job}, rate=8, within=60)
        found = server.query(expression, end) if item.instant else server.course(expression, start, end)
        where = f"{job}: {item.board}, {item.where} {item.ref}: {expression}"
        if item.label is not None and not all(series["metric"].get(item.label) for series in found):
            yield f"{where}: no label {item.label}"
        if not item.rare and not any(finite(series) for series in found):
            yield f"{where}: nothing"
    for group in yaml.safe_load(shipped()["recording.yml"])["groups"]:
        for rule in group["rules"]:
            found = server.course(f'{rule["record"]}{{job="{job}"}}', start, end)
            if not any(finite(series) for series in found):
                yield f"{job}: {rule['record']}: nothing"


def exported_differently(server: Prometheus, at: float) -> Iterator[str]:
    """Yield metrics that come only one way, or with other labels, except for labels added by scrape and collector."""
    found: dict[str, dict[str, frozenset[str]]] = {job: {} for job in BOTH}
    for job, metrics in found.items():
        for series in server.query(f'{{__name__=~"(asyncio|cpython|loopwatch)_.+", job="{job}"}}', at):
            labels = {label for label in series["metric"] if not label.startswith("otel_scope_")}
            metrics[series["metric"]["__name__"]] = frozenset(labels)
    one, other = found.values()
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield f"{name}: labels {one.get(name)} and {other.get(name)}"
    for metric in CATALOG:
        expected = metric.prometheus + ("_bucket" if metric.kind is Kind.HISTOGRAM else "")
        if expected not in one:
            yield f"{metric.name}: not exported"


TRUTHS = """
max(max_over_time(asyncio_eventloop_utilization_ratio{$}[40s])) > 0.9
max(max_over_time(asyncio_eventloop_blocked_for_seconds{$}[40s])) > 0.5
max(max_over_time(asyncio_eventloop_lag_max_seconds{$}[40s])) > 2
max(sum by (instance) (rate(asyncio_eventloop_stall_duration_seconds_total{$}[15s]))) <= 1.1
sum(asyncio_eventloop_stalls_total{$, loopwatch_culprit="__main__:thumbnail"}) > 5
sum(asyncio_eventloop_stalls_total{$, loopwatch_culprit="__main__:sleep", loopwatch_cause="sleep"}) > 5
sum(asyncio_eventloop_stalls_total{$, loopwatch_culprit="other"}) > 1
max(count by (instance) (asyncio_eventloop_stalls_total{$})) <= 24
sum(asyncio_eventloop_stall_victims_total{$}) > 100
sum(asyncio_eventloop_stall_starved_seconds_total{$, loopwatch_starved_by="neighbours"}) > 0.2
sum(loopwatch_pool_workers{$, loopwatch_worker_state="zombie"}) >= 1
sum(loopwatch_pool_workers{$, loopwatch_worker_state="orphan"}) == 1
sum(loopwatch_pool_workers{$, loopwatch_worker_state="hung"}) >= 1
loopwatch_pool_crashes_total{$, loopwatch_pool_name="crashing", loopwatch_crash_reason="exit 3"} >= 2
loopwatch_pool_crashes_total{$, loopwatch_pool_name="crashing", loopwatch_crash_reason="SIGSEGV"} >= 2
sum(loopwatch_pool_crashes_total{$, loopwatch_crash_reason="exit 7"}) == 1
sum(loopwatch_pool_failed_total{$, loopwatch_pool_kind="thread", error_type="ValueError"}) > 10
max(loopwatch_pool_queue_depth{$, loopwatch_pool_kind="thread"}) > 50
max(loopwatch_pool_queue_depth{$, loopwatch_pool_kind="default"}) > 20
max(loopwatch_pool_memory_bytes{$, loopwatch_pool_kind="process"}) > 5e6
sum(loopwatch_offload_calls_total{$, loopwatch_offload_to="process"}) > 5
sum(loopwatch_offload_calls_total{$, loopwatch_offload_to="thread"}) > 5
sum(loopwatch_offload_calls_total{$, loopwatch_offload_to="inline"}) > 5
sum(loopwatch_offload_saved_seconds_total{$}) > 0.4
sum(loopwatch_offload_run_time_seconds_total{$, loopwatch_offload_to="process"}) > 0.4
sum(loopwatch_flagged_seconds{$, loopwatch_remedy=~".+"}) > 0.2
sum(loopwatch_agent_state{$, loopwatch_agent_state="paused"}) == 1
sum(loopwatch_agent_faults_total{$}) == 1
sum(loopwatch_agent_dropped_total{$, loopwatch_agent_signal="traces"}) > 1
max(max_over_time(scrape_samples_scraped{job="scraped"}[40s])) <= 600
"""
"""Expressions that hold while the troubles are on, ``$`` for the job."""


def untrue(server: Prometheus, job: str, at: float) -> Iterator[str]:
    """Yield the :data:`TRUTHS` that do not hold, with the actual values."""
    for line in TRUTHS.strip().splitlines():
        asked = line.replace("$", f'job="{job}"')
        if not server.query(asked, at):
            without = re.sub(r" (>|>=|==|<=) [\d.e]+$", "", asked)
            yield f"not {asked}, but {[(series['metric'], series['value'][1]) for series in server.query(without, at)]}"


def test_every_expression_has_data_and_every_alert_comes_and_goes(tmp_path: Path) -> None:
    """Both ways: panels, variables, annotations and rules have data; each alert reaches a webhook, and is resolved."""
    pager, exporter = Pager(), PrometheusExporter(expiration=3.0)
    began = time.time()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        sink = enter(http_server(exporter.handle))
        forward = ("--exporter=otlp", f"--otlp-exporter-endpoint={sink}", "--otlp-exporter-protocol=http")
        collector, _, _ = enter(rotel(tmp_path, *forward))
        manager = enter(alertmanager(tmp_path, enter(http_server(pager.take))))
        ports = [free_port() for _ in range(3)]
        mortals = {"lonely": free_port(), "flapping": free_port()}
        server = enter(prometheus(tmp_path, configuration(ports, mortals, sink, manager), shipped(SPEED)))

        settings = [environment("exported", port, collector) for port in ports]
        settings[0]["LOOPWATCH_MAX_CULPRITS"] = "4"
        settings[2]["LOOPWATCH_CPU_BUDGET"] = "0.001"  # it cannot keep to that
        settings[2]["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"http://127.0.0.1:{free_port()}/v1/traces"  # unused port
        flapping = environment("exported-flapping", mortals["flapping"], collector)
        flapping["LOOPWATCH_EXPORT_INTERVAL"] = "0.2"
        settings[2]["OTEL_BSP_MAX_QUEUE_SIZE"] = "1"
        loops = enter(troubled_service(tmp_path, "loops", settings[0]))
        pools = enter(troubled_service(tmp_path, "pools", settings[1]))
        busy = enter(troubled_service(tmp_path, "busy", settings[2], "--uvloop"))
        loops.on("starved")  # alone, as it leaves the other troubles no processor either
        await_alerts(pager, [("LoopwatchStarved", job) for job in BOTH])
        loops.off("starved")
        loops.on(*BLOCKING)
        pools.on(*POOLS, "paused")
        busy.on("saturation", "sleep", "storm")
        with prefork(tmp_path, "lonely", environment("exported-lonely", mortals["lonely"], collector)):
            known = 'job:loopwatch_instances:count{job=~".*-lonely"}'
            await_that(lambda: len(server.query(known)) == len(BOTH), "the rules have seen it", 60)
        flap(enter(prefork(tmp_path, "flapping", flapping)), server, pager)
        await_alerts(pager, [("LoopwatchLoopSaturated", job) for job in BOTH])
        busy.off("saturation")
        busy.on("hang")
        come = {(name, job) for name in RULES for job in BOTH}
        come -= {(name, "exported") for name in ONLY_SCRAPED} | {(name, "scraped") for name in ONLY_EXPORTED}
        await_alerts(pager, [item for item in come if item[0] not in ONLY_EXPORTED])
        # The alerts may fire before the first hang ends and is recorded in the lag.
        await_that(lambda: not [each for job in BOTH for each in untrue(server, job, time.time())], "all is true", 60)
        end = time.time()

        problems = [f"{rule['name']}: {rule['lastError']}" for rule in server.rules() if rule["health"] != "ok"]
        for job in BOTH:
            problems += without_data(server, job, max(began, end - 45), end)
            problems += untrue(server, job, end)
        problems += exported_differently(server, end)
        absent = list(without_data(server, "absent", max(began, end - 45), end))  # the check can fail
        assert len(absent) > 100 and all(problem.endswith("nothing") for problem in absent)
        assert not problems, "\n".join(problems)

        enter(prefork(tmp_path, "lonely again", environment("exported-lonely", mortals["lonely"], collector)))
        pools.off()
        for gone in (loops, busy):
            gone.process.terminate()
        await_alerts(pager, [item for item in come if item[0] in ONLY_EXPORTED])
        await_alerts(pager, [item for item in come if item[0] not in SLOW_TO_END | WITH_DEAD], "resolved")
        allowed = SLOW_TO_END | WITH_DEAD | ONLY_EXPORTED
        await_that(lambda: firing(server) <= allowed, "no other alert fires", 60)
        for alert in pager.received:
            assert_is_readable(alert)


def assert_is_readable(alert: dict[str, Any]) -> None:
    """The texts of an alert have no placeholder left, and its links lead somewhere."""
    notes = alert["annotations"]
    assert "<no value>" not in f"{notes}" and "<error" not in f"{notes}", notes
    assert notes["runbook_url"] == f"docs/runbook.md#{alert['labels']['alertname'].lower()}"
    assert re.fullmatch(r"/d/loopwatch-\w+\?var-job=[\w-]+(&var-\w+=[^&\s]+)*", notes["dashboard"]), notes


def await_alerts(pager: Pager, alerts: list[tuple[str, str]], status: str = "firing") -> None:
    """Wait until all alerts have come for their jobs."""

    def all_came() -> bool:
        nonlocal left
        left = [(name, job) for name, job in left if name not in came(pager, status, job)]
        return not left

    left = sorted(alerts)
    try:
        await_that(all_came, "all alerts", 90)
    except AssertionError:
        raise AssertionError(f"not {status}: {left}") from None


def firing(server: Prometheus) -> set[str]:
    """Return the names of the alerts that fire now."""
    return {alert["metric"]["alertname"] for alert in server.query('ALERTS{alertstate="firing"}')}


def came(pager: Pager, status: str, job: str) -> set[str]:
    """Return the names of the alerts received for a job, or for its mortal processes."""
    return {name for suffix in ("", "-lonely", "-flapping") for name in pager.names(status, job=job + suffix)}


def lives(server: Prometheus, name: str) -> float:
    """Return how often the process of a job of its own has been seen to start, both ways."""
    starts = f'loopwatch_agent_start_time_seconds{{job=~".*-{name}"}}'
    found = dict.fromkeys(BOTH, 0.0)
    for asked in (f"count by (job) (count_over_time({starts}[5m]))", f"sum by (job) (changes({starts}[5m]))"):
        for series in server.query(asked):
            found[series["metric"]["job"].removesuffix(f"-{name}")] += float(series["value"][1])
    return min(found.values())


def flap(kill: Callable[[], None], server: Prometheus, pager: Pager) -> None:
    """Kill a worker and its replacement until both ways report that it does not stay."""
    for starts in range(1, 40):
        await_that(lambda n=starts: lives(server, "flapping") >= n, f"start {starts}", 60)
        if all("LoopwatchRestartLoop" in came(pager, "firing", job) for job in BOTH):
            return
        kill()
    raise AssertionError("40 starts are no loop")
