"""A dashboard as a whole: its variables, links and annotations, and the place of each panel on the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopwatch.telemetry.metrics import catalog

from . import sdk
from .panels import PROMETHEUS, Panel, Query, ref, target
from .promql import INSTANCE, JOB, Scope

COLUMNS = 24
TAG = "loopwatch"

_DESCRIPTIONS = {
    JOB: "The service: the scrape's job, or service.name (with service.namespace) of OpenTelemetry.",
    INSTANCE: "The process: the scrape's target, or service.instance.id of OpenTelemetry.",
    catalog.LOOP: "The event loop, by its name in loopwatch.",
    catalog.POOL: "The pool, by its name in loopwatch.",
}


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading.

    Attributes:
        title: the heading.
        lines: panels side by side; each line fills the grid, and its panels are of one height.
        folded: whether it is closed at first, and asks for nothing until it is opened.
    """

    title: str
    lines: Sequence[Sequence[Panel]]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """An annotation: points in time at which an expression has a value.

    Attributes:
        title: what it is called in the list of annotations.
        query: the expression and what a mark says; its labels are shown as tags.
        color: of the marks.
        shown: whether it is switched on at first.
    """

    title: str
    query: Query
    color: str
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard.

    Attributes:
        uid: the last part of its address, which never changes.
        title, about: what it is called; what it answers.
        variables: attributes that it can be narrowed by, each query filtered by the ones before.
        rows: what it shows.
        marks: annotations.
        since: how far back it shows at first, such as ``1h``.
    """

    uid: str
    title: str
    about: str
    variables: tuple[str, ...]
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    since: str = "1h"

    def to_json(self) -> str:
        """Return the JSON that Grafana imports."""
        made = (
            sdk.dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.about)
            .tags([TAG, "asyncio"])
            .time(f"now-{self.since}", "now")
            .timezone("browser")
            .refresh("30s")
            .tooltip(sdk.models.DashboardCursorSync.CROSSHAIR)
            .editable()
            .links([_link()])
            .variables(_variables(self.variables))
            .annotations([_annotation(mark) for mark in self.marks])
            .build()
        )
        made.panels = _placed(self.rows)
        plain = json.loads(json.dumps(made, cls=sdk.JSONEncoder))
        for shown in (*plain["links"], *plain["annotations"]["list"]):
            del shown["placement"]  # the SDK knows one, in a menu that has to be opened
        return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def variable_queries(attributes: Sequence[str]) -> dict[str, str]:
    """Return the query of each variable, by its name; each is narrowed by the variables before it."""
    found = {}
    for position, attribute in enumerate(attributes):
        name, source = _SOURCES[attribute]
        found[name] = Scope(tuple(attributes[:position])).values(source, attribute)
    return found


_SOURCES = {
    JOB: ("job", "loopwatch.agent.start_time"),
    INSTANCE: ("instance", "loopwatch.agent.start_time"),
    catalog.LOOP: ("loop", "asyncio.eventloop.blocked_for"),
    catalog.POOL: ("pool", "loopwatch.pool.in_flight"),
}
"""The name of the variable, and a metric that every process, loop or pool has."""


def _variables(attributes: Sequence[str]) -> list[Any]:
    every = sdk.models.VariableOption(selected=True, text=["All"], value=["$__all"])
    made: list[Any] = [
        sdk.dashboard.DatasourceVariable("datasource")
        .label("Metrics")
        .description("The Prometheus, or what speaks its language, that has the metrics.")
        .type("prometheus"),
        sdk.dashboard.DatasourceVariable("traces")
        .label("Traces")
        .description("The Tempo that has the spans; links to traces lead there. Without one, only they do not work.")
        .type("tempo"),
    ]
    labels = {"job": "Service", "instance": "Process", "loop": "Loop", "pool": "Pool"}
    for attribute, (name, query) in zip(attributes, variable_queries(attributes).items(), strict=True):
        made.append(
            sdk.dashboard.QueryVariable(name)
            .label(labels[name])
            .description(_DESCRIPTIONS[attribute])
            .datasource(PROMETHEUS)
            .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
            .definition(query)
            .refresh(sdk.models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(sdk.models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            # Also what has no such label at all: a process that was given no service.instance.id.
            .all_value(".*")
            .current(every)
        )
    return made


def _link() -> Any:
    link = sdk.dashboard.DashboardLink("loopwatch").type(sdk.models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.include_vars(True).keep_time(True).as_dropdown(False).target_blank(False)


def _annotation(mark: Mark) -> Any:
    asked = target(mark.query, 0)
    asked.interval("1m")
    made = sdk.dashboard.AnnotationQuery().name(mark.title).datasource(PROMETHEUS).enable(mark.shown)
    made.icon_color(mark.color).hide(False).expr(mark.query.expr).step("1m").target(asked)
    return made.title_format(mark.title).text_format(mark.query.legend).use_value_for_time(False)


def _placed(rows: Sequence[Row]) -> list[Any]:
    """Give each panel its place and its number."""
    placed: list[Any] = []
    number, y = 0, 0
    for row in rows:
        number += 1
        heading = sdk.dashboard.Row(row.title).id(number).collapsed(row.folded)
        heading.grid_pos(sdk.models.GridPos(x=0, y=y, w=COLUMNS, h=1))
        y += 1
        inside, top = [], y
        for line in row.lines:
            if sum(panel.width for panel in line) != COLUMNS or len({panel.height for panel in line}) != 1:
                raise ValueError(f"a line of {row.title!r} does not fill the grid")
            x = 0
            for panel in line:
                number += 1
                place = sdk.models.GridPos(x=x, y=y, w=panel.width, h=panel.height)
                built = panel.builder.id(number).grid_pos(place)
                if panel.queries:
                    built.targets([target(query, position) for position, query in enumerate(panel.queries)])
                inside.append(built)
                x += panel.width
            y += line[0].height
        if row.folded:
            for built in inside:
                heading.with_panel(built)
            y = top  # a closed row takes no place
        placed.append(heading.build())
        if not row.folded:
            placed += [built.build() for built in inside]
    return placed


def expressions_of(board: Board) -> list[tuple[str, str, Query]]:
    """Return (where, letter, query) of each expression of panels and annotations."""
    found = []
    for row in board.rows:
        for line in row.lines:
            for panel in line:
                title = panel.builder.build().title
                found += [(f"{row.title} / {title}", ref(at), query) for at, query in enumerate(panel.queries)]
    found += [(f"annotation {mark.title}", "A", mark.query) for mark in board.marks]
    return found
