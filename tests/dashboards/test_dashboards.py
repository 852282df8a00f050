"""The dashboards: committed files are up to date, Grafana can read them, and expressions fit the catalog."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from boards import GRAFANA, committed, panels, strings, targets

from dashboards.source import promql as write
from dashboards.source import sdk
from dashboards.source.__main__ import files
from dashboards.source.board import Row
from dashboards.source.expressions import Expression, boards, expressions
from dashboards.source.panels import Query, bars, tile
from loopwatch.health.finding_rules import Kinds
from loopwatch.telemetry.metrics import catalog
from loopwatch.telemetry.metrics.catalog import CATALOG, Kind, Metric

UIDS = ["loopwatch-loop", "loopwatch-offload", "loopwatch-overview", "loopwatch-workers"]
BOARDS = committed()
EXPRESSIONS = tuple(expressions())

SERIES: dict[str, tuple[Metric, frozenset[str]]] = {}
"""The series that a process exports, by their names in Prometheus, with their labels and those of the scrape."""
for _metric in CATALOG:
    _labels = {"job", "instance", *(name.replace(".", "_") for name in _metric.attributes)}
    if _metric.kind is Kind.HISTOGRAM:
        SERIES[f"{_metric.prometheus}_bucket"] = (_metric, frozenset(_labels | {"le"}))
        SERIES[f"{_metric.prometheus}_count"] = SERIES[f"{_metric.prometheus}_sum"] = (_metric, frozenset(_labels))
    else:
        SERIES[_metric.prometheus] = (_metric, frozenset(_labels))

SERIES[write.ALERTS] = (
    Metric(write.ALERTS, "1", Kind.GAUGE, "Alerts, exported by Prometheus itself."),
    frozenset({"alertname", "alertstate", "severity", "job", "instance"}),
)


def selectors(node: Any, function: str = "") -> Iterator[tuple[Any, str, float]]:
    """Yield (selector, function applied to it, range in seconds or 0) in an expression."""
    kind = type(node).__name__
    if kind == "VectorSelector":
        yield node, function, 0.0
    elif kind == "MatrixSelector":
        yield node.vector_selector, function, node.range.total_seconds()
    elif kind == "Call":
        for argument in node.args:
            yield from selectors(argument, node.func.name)
    elif kind == "BinaryExpr":
        yield from selectors(node.lhs, function)
        yield from selectors(node.rhs, function)
    elif kind in ("AggregateExpr", "ParenExpr", "UnaryExpr", "SubqueryExpr"):
        yield from selectors(node.expr, function)


def kept(node: Any) -> Iterator[tuple[str, ...]]:
    """Yield the labels that each aggregation keeps."""
    kind = type(node).__name__
    if kind == "AggregateExpr":
        if node.modifier is not None:
            assert str(node.modifier.type).endswith("By"), "an aggregation must list the labels that it keeps"
            yield tuple(node.modifier.labels)
        yield from kept(node.expr)
    elif kind == "Call":
        for argument in node.args:
            yield from kept(argument)
    elif kind == "BinaryExpr":
        yield from kept(node.lhs)
        yield from kept(node.rhs)
    elif kind in ("ParenExpr", "UnaryExpr", "SubqueryExpr"):
        yield from kept(node.expr)


def test_committed_dashboards_are_up_to_date() -> None:
    """The four files are byte for byte what ``python -m dashboards.source`` writes, and there are no others."""
    written = files()
    assert sorted(written) == sorted(path.name for path in GRAFANA.iterdir()) == [f"{uid}.json" for uid in UIDS]
    for name, text in written.items():
        assert (GRAFANA / name).read_text(encoding="utf-8") == text, f"{name}: run python -m dashboards.source"
    assert files() == written


@pytest.mark.parametrize("uid", UIDS)
def test_dashboards_survive_a_round_trip_through_the_sdk(uid: str) -> None:
    """Read into the SDK's models and written again, each dashboard has the same keys and values."""
    sdk.register_default_plugins()
    board = BOARDS[uid]
    again = json.loads(json.dumps(sdk.models.Dashboard.from_json(board), cls=sdk.JSONEncoder))
    for shown in (*again["links"], *again["annotations"]["list"]):
        del shown["placement"]  # the models add the placement in a menu; without it the link is always visible
    assert again == board
    assert board["uid"] == uid
    assert (board["schemaVersion"], "id" in board) == (42, False)


@pytest.mark.parametrize("uid", UIDS)
def test_panels_fill_the_grid(uid: str) -> None:
    """Panels neither overlap nor leave a gap on the 24 columns, and their ids are unique."""
    board = BOARDS[uid]
    cells: set[tuple[int, int]] = set()
    bottom = 0
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["w"] >= 1 and place["x"] + place["w"] <= 24
        taken = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        cells |= taken
        bottom = max(bottom, place["y"] + place["h"])
    assert len(cells) == 24 * bottom, "a gap"
    every = [panel["id"] for panel in board["panels"]]
    every += [panel["id"] for row in board["panels"] if row["type"] == "row" for panel in row.get("panels", ())]
    assert sorted(every) == list(range(1, len(every) + 1))


@pytest.mark.parametrize("uid", UIDS)
def test_each_panel_is_described(uid: str) -> None:
    """Each panel has a description, a data source by variable and a unit; tiles also have thresholds and a no-value
    text."""
    board = BOARDS[uid]
    assert len(board["description"]) > 60
    for panel in panels(board):
        assert panel["title"] and len(panel["description"]) > 15 and panel["description"].rstrip().endswith("."), panel[
            "title"
        ]
        if panel["type"] == "text":
            continue
        assert panel["datasource"]["uid"] in ("${datasource}", "${traces}")
        defaults = panel["fieldConfig"]["defaults"] if "fieldConfig" in panel else {}
        if panel["type"] in ("stat", "timeseries", "bargauge"):
            assert defaults["unit"]
        if panel["type"] in ("stat", "bargauge"):
            assert defaults["thresholds"]["steps"][0]["value"] is None
            assert defaults["noValue"]
    for variable in board["templating"]["list"]:
        assert variable["label"] and variable["description"]
    titles = [panel["title"] for panel in panels(board)]
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert len(rows) == len(set(rows)) >= 5
    assert len(titles) >= 12


@pytest.mark.parametrize("uid", UIDS)
def test_variables_are_used_and_chained(uid: str) -> None:
    """Each used variable is defined, each defined one is used, and each query filters by those before it."""
    board = BOARDS[uid]
    defined = [variable["name"] for variable in board["templating"]["list"]]
    assert defined[:4] == ["datasource", "traces", "job", "instance"]
    used = set()
    for text in strings({key: value for key, value in board.items() if key != "templating"}):
        used |= {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    assert used == set(defined)
    queries = [variable for variable in board["templating"]["list"] if variable["type"] == "query"]
    for position, variable in enumerate(queries):
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".*"
        assert variable["datasource"]["uid"] == "${datasource}"
        earlier = [other["name"] for other in queries[:position]]
        assert re.findall(r"\$(\w+)", variable["query"]["query"]) == earlier


def test_every_expression_is_listed() -> None:
    """``expressions()`` has exactly the expressions in the files, each once."""
    in_files = [
        (uid, target["expr"], bool(target.get("instant")))
        for uid, board in BOARDS.items()
        for _, target in targets(board)
    ]
    listed = [(e.board, e.expr, e.instant) for e in EXPRESSIONS if not e.where.startswith("variable ")]
    assert sorted(in_files) == sorted(listed)
    assert len(listed) > 120
    in_variables = [
        (uid, variable["query"]["query"])
        for uid, board in BOARDS.items()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
    listed_there = [
        (e.board, f"label_values({e.expr}, {e.label})") for e in EXPRESSIONS if e.where.startswith("variable ")
    ]
    assert sorted(in_variables) == sorted(listed_there)


def test_expressions_fit_the_catalog() -> None:
    """Each parses; metrics, suffixes and labels are those of the catalog; counters appear in rates and increases
    only."""
    wrong = [
        f"{expression.board}: {expression.where} {expression.ref}: {words}"
        for expression in EXPRESSIONS
        for words in complaints(expression)
    ]
    assert wrong == []


def complaints(expression: Expression) -> Iterator[str]:
    """Yield the errors in an expression."""
    tree = promql_parser.parse(expression.concrete())
    of_variable = expression.where.startswith("variable ")
    found = list(selectors(tree))
    if not found:
        yield "it asks for nothing"
    names: set[str] = set()
    for selector, function, window in found:
        if selector.name not in SERIES:
            yield f"no series {selector.name}"
            continue
        metric, labels = SERIES[selector.name]
        names |= labels
        if selector.name == write.ALERTS:  # alerts of a whole service have no instance to filter by
            continue
        matched = {matcher.name for matcher in selector.matchers.matchers}
        if not matched <= labels:
            yield f"{selector.name} has no {matched - labels}"
        if not of_variable and not {"job", "instance"} <= matched:
            yield f"{selector.name} is not narrowed to what was chosen"
        if metric.kind is Kind.GAUGE and function in ("rate", "increase"):
            yield f"{selector.name} is a gauge"
        if metric.kind is not Kind.GAUGE and window and (function not in ("rate", "increase") or window not in WINDOWS):
            yield f"{selector.name} is looked at by {function} over {window} seconds"
        if metric.kind is not Kind.GAUGE and not window and f"unless {selector.name}{{" not in expression.expr:
            yield f"{selector.name} is looked at as it stands"
        if selector.name.endswith("_bucket") and not re.search(r"by \([^)]*\ble\)", expression.expr):
            yield f"buckets of {selector.name} are lost"
    for labels_kept in kept(tree):
        if not set(labels_kept) <= names:
            yield f"nothing has {set(labels_kept) - names}"
    if not of_variable and selector_at_top(tree):
        yield "labels that depend on the way of the metrics would be seen"


WINDOWS = (60, 300, 900)
"""Seconds of ``$__rate_interval``, the recent past, and ``$__range``, as ``concrete()`` inserts them."""


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ('asyncio_nope{job=~"$job", instance=~"$instance"}', "no series asyncio_nope"),
        ('asyncio_tasks{job=~"$job", instance=~"$instance", colour="red"}', "asyncio_tasks has no {'colour'}"),
        ('max(asyncio_tasks{job=~"$job"})', "asyncio_tasks is not narrowed to what was chosen"),
        ('max(rate(asyncio_tasks{job=~"$job", instance=~"$instance"}[1m]))', "asyncio_tasks is a gauge"),
        ('sum(asyncio_eventloop_passes_total{job=~"$job", instance=~"$instance"})', "is looked at as it stands"),
        ('sum(rate(asyncio_eventloop_passes_total{job=~"$job", instance=~"$instance"}[2m]))', "over 120.0 seconds"),
        ('max by (pod) (asyncio_tasks{job=~"$job", instance=~"$instance"})', "nothing has {'pod'}"),
        ('asyncio_tasks{job=~"$job", instance=~"$instance"}', "depend on the way"),
        ('sum(rate(asyncio_eventloop_lag_seconds_bucket{job=~"$job", instance=~"$instance"}[1m]))', "buckets of"),
    ],
)  # fmt: skip
def test_the_check_of_expressions_finds_errors(expr: str, words: str) -> None:
    """Each kind of error in an expression is reported."""
    assert any(words in found for found in complaints(Expression("", "Row / Panel", "A", expr)))


def selector_at_top(node: Any) -> bool:
    """Whether a selector reaches the result without an aggregation."""
    kind = type(node).__name__
    if kind in ("VectorSelector", "MatrixSelector"):
        return True
    if kind == "BinaryExpr":
        return selector_at_top(node.lhs) or selector_at_top(node.rhs)
    if kind == "Call":
        return any(selector_at_top(argument) for argument in node.args)
    if kind in ("ParenExpr", "UnaryExpr"):
        return selector_at_top(node.expr)
    return kind == "AggregateExpr" and str(node.op) == "topk" and selector_at_top(node.expr)


def test_every_metric_is_shown() -> None:
    """Each metric of the catalog appears in a dashboard."""
    shown = {selector.name for e in EXPRESSIONS for selector, _, _ in selectors(promql_parser.parse(e.concrete()))}
    missing = [metric.name for metric in CATALOG if not any(name.startswith(metric.prometheus) for name in shown)]
    assert missing == []


def test_every_finding_has_advice() -> None:
    """Each kind of finding is listed in the dashboard Workers, with what to do."""
    (text,) = [panel["options"]["content"] for panel in panels(BOARDS["loopwatch-workers"]) if panel["type"] == "text"]
    kinds = [value for name, value in vars(Kinds).items() if name.isupper()]
    assert re.findall(r"^- \*\*(.+)\*\*: ", text, re.MULTILINE) == kinds


@pytest.mark.parametrize("uid", UIDS)
def test_legends_use_labels_that_are_kept(uid: str) -> None:
    """A legend or annotation text uses no label that the expression has dropped."""
    for where, target in targets(BOARDS[uid]):
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert all(re.search(rf"by \([^)]*\b{name}\b", target["expr"]) for name in named), where


@pytest.mark.parametrize("uid", UIDS)
def test_tables_name_their_columns(uid: str) -> None:
    """Each value and each label that is kept is a named column of its table; links refer to existing columns."""
    for panel in panels(BOARDS[uid]):
        if panel["type"] != "table" or panel["datasource"]["uid"] == "${traces}":
            continue
        organize = panel["transformations"][1]["options"]
        renamed = organize["renameByName"]
        values = {"Value"} if len(panel["targets"]) == 1 else {f"Value #{t['refId']}" for t in panel["targets"]}
        outermost = [re.search(r"\bby \(([^)]*)\)", target["expr"]) for target in panel["targets"]]
        labels = {label for found in outermost if found for label in found[1].split(", ")}
        assert set(renamed) == values | (labels - {"le"})
        assert all(target["format"] == "table" and target["instant"] for target in panel["targets"])
        assert panel["options"]["sortBy"][0]["displayName"] in renamed.values()
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["options"] in renamed.values()
            for item in override["properties"]:
                for link in item["value"] if item["id"] == "links" else ():
                    assert set(re.findall(r"__data\.fields\.(\w+)", link["url"])) <= set(renamed.values())


def test_dashboards_are_linked() -> None:
    """Each links to the others by tag, keeping variables and time; tables link to existing dashboards."""
    for board in BOARDS.values():
        (link,) = board["links"]
        assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
            "dashboards",
            ["loopwatch"],
            True,
            True,
        )
        assert "loopwatch" in board["tags"]
        assert board["refresh"] and board["time"]["to"] == "now"
        for text in strings(board):
            for uid, slug, query in re.findall(r"/d/([\w-]+)/([\w-]+)\?(\S*)", text):
                assert uid == slug and uid in BOARDS
                assert "${__url_time_range}" in query and "${datasource:queryparam}" in query
                variables = {variable["name"] for variable in BOARDS[uid]["templating"]["list"]}
                assert set(re.findall(r"var-(\w+)=", query)) <= variables


def test_links_to_traces() -> None:
    """Culprits link to their spans, with the chosen data source and time; heatmaps show exemplars."""
    urls = [text for text in strings(BOARDS["loopwatch-loop"]) if text.startswith("/explore")]
    assert urls
    pane = json.loads(urllib.parse.unquote(urls[0].partition("panes=")[2]))["a"]
    assert pane["datasource"] == pane["queries"][0]["datasource"]["uid"] == "${traces}"
    assert pane["queries"][0]["query"] == '{ span.loopwatch.culprit = "${__value.raw}" }'
    assert pane["range"] == {"from": "${__from}", "to": "${__to}"}
    for uid in ("loopwatch-loop", "loopwatch-overview"):
        heatmaps = [panel for panel in panels(BOARDS[uid]) if panel["type"] == "heatmap"]
        assert heatmaps
        for panel in heatmaps:
            (target,) = panel["targets"]
            assert target["exemplar"] and target["format"] == "heatmap" and target["legendFormat"] == "{{le}}"


@pytest.mark.parametrize("uid", UIDS)
def test_stalls_and_crashes_are_marked(uid: str) -> None:
    """Every dashboard has annotations for stalls and crashes; stalls are enabled by default only in that of a loop."""
    marks = {mark["name"]: mark for mark in BOARDS[uid]["annotations"]["list"]}
    assert {"Stalls", "Worker crashes"} <= set(marks)
    assert marks["Worker crashes"]["enable"]
    assert marks["Stalls"]["enable"] == (uid == "loopwatch-loop")
    for mark in marks.values():
        assert mark["expr"] == mark["target"]["expr"]
        assert mark["datasource"]["uid"] == "${datasource}"


def test_expressions_outside_the_catalog_are_rejected() -> None:
    """A metric, label or kind that is not in the catalog raises when the dashboard is built."""
    scope = write.Scope((write.JOB, write.INSTANCE))
    assert scope.of("asyncio.tasks") == 'asyncio_tasks{job=~"$job", instance=~"$instance"}'
    with pytest.raises(KeyError, match="nope"):
        scope.now("asyncio.nope")
    with pytest.raises(ValueError, match="is a gauge"):
        scope.rate("asyncio.tasks")
    with pytest.raises(ValueError, match=re.escape("['asyncio.eventloop.name']")):
        scope.now("asyncio.tasks", catalog.LOOP)
    with pytest.raises(ValueError, match="not in seconds"):
        scope.share("asyncio.eventloop.stalls")


def test_a_row_with_a_gap_is_rejected() -> None:
    """A gap raises when the dashboard is built."""
    query = Query("vector(1)")
    narrow = Row("narrow", [[tile("a", "b", query, width=4), bars("c", "d", query, width=8)]])
    with pytest.raises(ValueError, match="'narrow' does not fill the grid"):
        dataclasses.replace(boards()[0], rows=(narrow,)).to_json()
