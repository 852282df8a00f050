"""Every expression of the dashboards on a real Prometheus: scraped and sent metrics give the same results."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from history import LATE, LENGTH, WAYS, Prometheus, prometheus, write

from dashboards.source.expressions import Expression, expressions
from dashboards.source.promql import INSTANCE, JOB, RANGE, Scope
from loopwatch.telemetry.metrics import catalog

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian: prometheus)",
)

EXPRESSIONS = tuple(expressions())


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("prometheus")
    return folder, write(folder)


@pytest.fixture
def server(history: tuple[Path, int]) -> Iterator[Prometheus]:
    with prometheus(*history) as running:
        yield running


def plain(result: list[dict[str, Any]]) -> dict[tuple[tuple[str, str], ...], Any]:
    """Return values by labels, without what may differ: job, instance, and the notation of a bound."""
    found = {}
    for series in result:
        labels = {name: value for name, value in series["metric"].items() if name not in ("job", "instance")}
        if "le" in labels:
            labels["le"] = str(float(labels["le"]))
        values = series["values"] if "values" in series else [series["value"]]
        found[tuple(sorted(labels.items()))] = [(at, round(float(value), 6)) for at, value in values]
    return found


def ask(server: Prometheus, expression: Expression, job: str) -> list[dict[str, Any]]:
    concrete = expression.concrete({"job": job}, rate=60, within=900)
    return server.query(concrete) if expression.instant else server.range(concrete)


def test_scraped_and_sent_metrics_give_the_same(server: Prometheus) -> None:
    """Each expression has a result unless it is rare, and the same one for scraped and sent metrics."""
    wrong = [
        f"{expression.board}: {expression.where} {expression.ref}: {words}"
        for expression in EXPRESSIONS
        for words in complaints(server, expression)
    ]
    assert wrong == []
    assert len(EXPRESSIONS) > 120


def complaints(server: Prometheus, expression: Expression) -> Iterator[str]:
    """Yield the errors in the results of an expression."""
    if expression.label in ("job", "instance"):  # asked below
        return
    scraped, sent = (ask(server, expression, job) for job in WAYS)
    if not scraped and not expression.rare:
        yield "no result"
    if expression.label:
        if not all(series["metric"].get(expression.label) for series in (*scraped, *sent)):
            yield f"no {expression.label}"
        return
    if plain(scraped) != plain(sent):
        yield f"{plain(scraped)} was scraped, {plain(sent)} was sent"
    seen = {name for series in (*scraped, *sent) for name in series["metric"]}
    if seen - LABELS:
        yield f"labels that depend on the way are seen: {seen - LABELS}"


LABELS = {"job", "instance", "le"} | {name.replace(".", "_") for m in catalog.CATALOG for name in m.attributes}


def test_a_process_without_an_instance_is_shown(server: Prometheus) -> None:
    """Without service.instance.id there is no instance to choose; with "All" its metrics are shown nevertheless."""
    (services,) = {e.expr for e in EXPRESSIONS if e.where == "variable job"}
    assert {series["metric"]["job"] for series in server.query(services)} == set(WAYS)
    (variable,) = {e.expr for e in EXPRESSIONS if e.where == "variable instance"}
    found = server.query(Expression("", "", "A", variable).concrete())
    assert {series["metric"].get("instance") for series in found} == {"10.0.0.1:9464", None}
    chosen = Scope((JOB, INSTANCE)).now("asyncio.tasks", JOB)
    assert len(server.query(Expression("", "", "A", chosen).concrete())) == 2
    only = Expression("", "", "A", chosen).concrete({"instance": "10\\\\.0\\\\.0\\\\.1:9464"})
    assert [series["metric"] for series in server.query(only)] == [{"job": "scraped"}]


def value(server: Prometheus, expr: str, at: float | None = None) -> float:
    """Return the one value of an expression for the job ``scraped``; 0 if it has none."""
    found = server.query(Expression("", "", "A", expr).concrete({"job": "scraped"}, rate=60, within=900), at)
    assert len(found) <= 1
    return float(found[0]["value"][1]) if found else 0.0


def test_the_first_event_of_a_series_counts(server: Prometheus) -> None:
    """A culprit's counter begins with its first stall: increase() misses it, the dashboards count it."""
    scope = Scope((JOB, INSTANCE))
    grown = scope.grown(
        "asyncio.eventloop.stalls", catalog.CULPRIT, window=RANGE, matchers=['loopwatch_culprit="app:nap"']
    )
    stalls = (LENGTH - LATE) // 15 + 1
    assert value(server, grown) == stalls == 41
    just_after = server.end - LENGTH + LATE + 5
    assert value(server, scope.grown("asyncio.eventloop.stalls"), just_after) == 2, "one for each of the two culprits"
    series = scope.of("asyncio.eventloop.stalls")
    assert value(server, f"sum (increase({series}[$__rate_interval]))", just_after) == 0
    crashes = "loopwatch.pool.crashes"
    assert value(server, scope.pace(crashes, catalog.POOL, seconds=60), just_after) == pytest.approx(1), "a minute"
    assert value(server, scope.rate(crashes, catalog.POOL), just_after) == 0
    assert value(server, scope.pace(crashes)) == value(server, scope.rate(crashes)) == pytest.approx(1 / 15)
    # Later it equals increase(): four steps of 15 seconds in 60 seconds, two culprits.
    assert value(server, scope.grown("asyncio.eventloop.stalls")) == pytest.approx(8)
    assert value(server, scope.grown("asyncio.eventloop.stalls"), server.end - LENGTH + LATE - 5) == 0


def test_shares_rates_and_quantiles(server: Prometheus) -> None:
    """They are the values that are computed by hand from the history."""
    scope = Scope((JOB, INSTANCE))
    # 3 blocked seconds in each 15 seconds, for each of two culprits.
    blocked = scope.share("asyncio.eventloop.stall.duration", JOB)
    assert value(server, blocked) == pytest.approx(0.4)
    assert value(server, scope.rate("asyncio.eventloop.stall.victims")) == pytest.approx(2.0)
    assert value(server, scope.rate("loopwatch.offload.saved")) == pytest.approx(0.5)
    # 0.75 seconds in each 15 seconds, of the quota and of neighbours.
    (panel,) = (e for e in EXPRESSIONS if e.board == "loopwatch-overview" and "without a processor" in e.where)
    shares = server.query(panel.concrete({"job": "scraped"}))
    assert {each["metric"]["loopwatch_starved_by"] for each in shares} == {"quota", "neighbours"}
    assert [float(each["value"][1]) for each in shares] == pytest.approx([0.05, 0.05])
    assert value(server, scope.now("asyncio.eventloop.utilization")) == 0.75
    # 10 of 11 are below the first bound, the last one in the fifth bucket (0.025, 0.05].
    assert 0 < value(server, scope.quantile(0.5, "asyncio.eventloop.lag", JOB)) < 0.001
    assert 0.025 < value(server, scope.quantile(0.99, "asyncio.eventloop.lag", JOB)) <= 0.05
    assert not math.isnan(value(server, scope.quantile(0.9, "loopwatch.pool.task.run", catalog.POOL)))


def test_tiles_show_the_values_of_the_history(server: Prometheus) -> None:
    """The tiles of the first rows, by title, have the expected values."""
    tiles = {
        (expression.board.removeprefix("loopwatch-"), expression.where.rpartition(" / ")[2]): expression
        for expression in EXPRESSIONS
        if expression.where.startswith("Now")
    }
    expected = {
        ("overview", "Processes watched"): 1,
        ("overview", "Loops that hang now"): 1,
        ("overview", "Worst lag (p99)"): 0.2,
        ("overview", "Most blocked"): 0.4,
        ("overview", "Stalls"): 82,
        ("overview", "Workers in trouble"): 6,
        ("loop", "Held now for"): 4,
        ("loop", "Whom (a minute)"): 120,
        ("workers", "Hung"): 2,
        ("workers", "Crashes"): 41,
        ("workers", "Failed tasks"): 41,
        ("offload", "Functions to move"): 1,
        ("offload", "Loop time saved"): 0.5,
        ("offload", "Trip for a second of work"): 2,
    }
    found = {key: value(server, tiles[key].expr) for key in expected}
    assert found == pytest.approx(expected)
    (worst,) = server.query(tiles["loop", "By what (last 5 minutes)"].concrete({"job": "scraped"}))
    assert worst["metric"] in (
        {"loopwatch_culprit": "app:resize", "loopwatch_cause": "python"},
        {"loopwatch_culprit": "app:nap", "loopwatch_cause": "sleep"},
    )
