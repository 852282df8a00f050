"""Panels as they look in all of our dashboards: tiles, series, heatmaps, tables. What they show is said elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from . import sdk

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

Steps = Sequence[tuple[float | None, str]]
"""Thresholds: (from this value on, colour); the first has no value."""

NEUTRAL: Steps = ((None, BLUE),)
NONE_IS_GOOD: Steps = ((None, GREEN), (1, RED))
LAG: Steps = ((None, GREEN), (0.05, YELLOW), (0.25, RED))
"""s; people notice a tenth of a second, and a quarter of one on every request is an outage for many."""
HELD: Steps = ((None, GREEN), (0.1, YELLOW), (2, RED))
"""s; the defaults of ``Config.threshold`` and ``Config.hang_after``."""
BLOCKED: Steps = ((None, GREEN), (0.01, YELLOW), (0.1, RED))
"""Share of the time."""
BUSY: Steps = ((None, GREEN), (0.7, YELLOW), (0.9, RED))
"""Utilization; queues grow without bound towards 1."""
COST: Steps = ((None, GREEN), (0.01, YELLOW), (0.03, RED))
"""Cores; the default of ``Config.cpu_budget`` is 0.01."""

PROMETHEUS = sdk.common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TRACES = sdk.common_models.DataSourceRef(type_val="tempo", uid="${traces}")

HERE = "${__url_time_range}&${datasource:queryparam}&${traces:queryparam}"
"""What a link to another dashboard keeps."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel.

    Attributes:
        expr: the expression.
        legend: how its series are called.
        instant: whether its value now is wanted, and not its course.
        form: ``time_series``, ``table`` or ``heatmap``.
        exemplars: whether exemplars are shown with it.
        rare: whether it may have no result although the program is in each kind of trouble: what it shows needs more.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    form: str = "time_series"
    exemplars: bool = False
    rare: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel without its place.

    Attributes:
        builder: of the SDK.
        queries: what it asks Prometheus.
        width, height: in cells of the grid, which has 24 columns.
    """

    builder: Any
    queries: tuple[Query, ...]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: what stands above it.
        query: what its values are.
        unit: of the values.
        steps: thresholds that colour the cell, none for a plain one.
    """

    title: str
    query: Query
    unit: str = "short"
    steps: Steps = field(default=())


def thresholds(steps: Steps) -> Any:
    """Return the SDK's form of thresholds."""
    return sdk.dashboard.ThresholdsConfig().mode(sdk.models.ThresholdsMode.ABSOLUTE).steps(_steps(steps))


def tile(
    title: str,
    about: str,
    query: Query,
    *,
    unit: str = "short",
    steps: Steps = NEUTRAL,
    width: int = 4,
    empty: str = "0",
    name: bool = False,
) -> Panel:
    """Make a tile with one value; ``name`` shows which series it is instead of its value."""
    builder = (
        _base(sdk.stat.Panel(), title, about)
        .unit(unit)
        .thresholds(thresholds(steps))
        .no_value(empty)
        .color_mode(sdk.common_models.BigValueColorMode.BACKGROUND)
        .graph_mode(
            sdk.common_models.BigValueGraphMode.NONE if query.instant else sdk.common_models.BigValueGraphMode.AREA
        )
        .text_mode(sdk.common_models.BigValueTextMode.NAME if name else sdk.common_models.BigValueTextMode.AUTO)
        .reduce_options(sdk.common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    return Panel(builder, (query,), width, 4)


def series(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    steps: Steps = (),
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    highest: float | None = None,
) -> Panel:
    """Make a panel of lines over time, or of areas on top of each other."""
    legend = sdk.common.VizLegendOptions().placement(sdk.common_models.LegendPlacement.BOTTOM).show_legend(True)
    tooltip = sdk.common.VizTooltipOptions().mode(sdk.common_models.TooltipDisplayMode.MULTI)
    builder = (
        _base(sdk.timeseries.Panel(), title, about)
        .unit(unit)
        .min(0)
        .legend(legend.display_mode(sdk.common_models.LegendDisplayMode.TABLE).calcs(["max", "lastNotNull"]))
        .tooltip(tooltip.sort(sdk.common_models.SortOrder.DESCENDING))
        .line_width(1)
        .show_points(sdk.common_models.VisibilityMode.NEVER)
        .fill_opacity(40 if stacked else 5)
    )
    if stacked:
        builder.stacking(sdk.common.StackingConfig().mode(sdk.common_models.StackingMode.NORMAL).group("A"))
    if highest is not None:
        builder.max(highest)
    if steps:
        style = sdk.common.GraphThresholdsStyleConfig().mode(sdk.common_models.GraphThresholdsStyleMode.DASHED)
        builder.thresholds(thresholds(steps)).thresholds_style(style)
    return Panel(builder, queries, width, height)


def heat(title: str, about: str, query: Query, *, unit: str = "s", width: int = 12, height: int = 9) -> Panel:
    """Make a heatmap of a histogram's buckets."""
    color = sdk.heatmap.HeatmapColorOptions().mode(sdk.heatmap_models.HeatmapColorMode.SCHEME)
    tooltip = sdk.heatmap.HeatmapTooltip().mode(sdk.common_models.TooltipDisplayMode.SINGLE)
    builder = (
        _base(sdk.heatmap.Panel(), title, about)
        .calculate(False)
        .color(color.scheme("Oranges").steps(64).exponent(0.5).scale(sdk.heatmap_models.HeatmapColorScale.EXPONENTIAL))
        .y_axis(sdk.heatmap.YAxisConfig().unit(unit).axis_placement(sdk.common_models.AxisPlacement.LEFT))
        .cell_values(sdk.heatmap.CellValues().unit("short"))
        .filter_values(sdk.heatmap.FilterValueRange().le(1e-9))
        .tooltip(tooltip.show_color_scale(True))
        .cell_gap(1)
        .exemplars_color("rgba(31, 120, 255, 0.8)")
        .show_legend()
    )
    return Panel(builder, (query,), width, height)


def bars(
    title: str,
    about: str,
    query: Query,
    *,
    unit: str = "short",
    steps: Steps = NEUTRAL,
    width: int = 8,
    height: int = 8,
    empty: str = "none",
) -> Panel:
    """Make one horizontal bar for each series, as it is now."""
    builder = (
        _base(sdk.bargauge.Panel(), title, about)
        .unit(unit)
        .min(0)
        .no_value(empty)
        .thresholds(thresholds(steps))
        .orientation(sdk.common_models.VizOrientation.HORIZONTAL)
        .display_mode(sdk.common_models.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(sdk.common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    return Panel(builder, (query,), width, height)


def table(
    title: str,
    about: str,
    names: Mapping[str, str],
    columns: Sequence[Column],
    *,
    links: Mapping[str, tuple[str, str]] | None = None,
    width: int = 24,
    height: int = 9,
) -> Panel:
    """Make a table: a row for each set of labels, a column for each query; sorted by the first of them, worst first.

    Args:
        title, about: of the panel.
        names: labels that make a row, and what stands above them.
        columns: values.
        links: (title, address) for columns, by what stands above them.
        width, height: in cells.
    """
    sort = sdk.common.TableSortByFieldState().display_name(columns[0].title).desc(True)
    values = ["Value"] if len(columns) == 1 else [f"Value #{ref(position)}" for position in range(len(columns))]
    titles = {**names, **dict(zip(values, (column.title for column in columns), strict=True))}
    builder = (
        _base(sdk.table.Panel(), title, about)
        .no_value("0")
        .show_header(True)
        .filterable(True)
        .sort_by([sort])
        .with_transformation(sdk.models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            sdk.models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {name: index for index, name in enumerate(titles)},
                    "renameByName": titles,
                },
            )
        )
    )
    for column in columns:
        properties = [sdk.models.DynamicConfigValue("unit", column.unit)]
        if column.steps:
            properties += [
                sdk.models.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": _steps(column.steps)}),
                sdk.models.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}),
            ]
        builder.override_by_name(column.title, properties)
    for name, (words, url) in (links or {}).items():
        link = {"title": words, "url": url, "targetBlank": False}
        builder.override_by_name(name, [sdk.models.DynamicConfigValue("links", [link])])
    queries = tuple(column.query for column in columns)
    return Panel(builder, queries, width, height)


def words(title: str, about: str, markdown: str, *, width: int = 8, height: int = 8) -> Panel:
    """Make a panel of text."""
    builder = sdk.text.Panel().title(title).description(about)
    builder.mode(sdk.text_models.TextMode.MARKDOWN).content(markdown)
    return Panel(builder, (), width, height)


def found_traces(title: str, about: str, query: str, *, width: int = 24, height: int = 10) -> Panel:
    """Make a list of spans from the data source of traces."""
    asked = sdk.tempo.Dataquery().datasource(TRACES).ref_id("A").query_type("traceql").query(query).limit(50)
    asked.table_type(sdk.tempo_models.SearchTableType.SPANS)
    builder = sdk.table.Panel().title(title).description(about).datasource(TRACES).with_target(asked)
    return Panel(builder, (), width, height)


def dashboard_link(uid: str, **variables: str) -> str:
    """Return the address of another dashboard that keeps time and data sources and sets variables to fields of a row.

    Args:
        uid: of the dashboard.
        variables: what stands above the column that has the value, by variable.
    """
    found = "".join(f"&var-{name}=${{__data.fields.{column}:percentencode}}" for name, column in variables.items())
    return f"/d/{uid}/{uid}?{HERE}{found}"


def explore_traces(traceql: str) -> str:
    """Return the address of Explore with a query for spans; variables in it are put in by Grafana."""
    pane = {
        "datasource": "${traces}",
        "queries": [
            {
                "refId": "A",
                "datasource": {"type": "tempo", "uid": "${traces}"},
                "queryType": "traceql",
                "query": traceql,
                "tableType": "spans",
                "limit": 50,
            }
        ],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Grafana replaces variables in the address as it stands: what marks them must not be encoded.
    panes = quote(json.dumps({"a": pane}, separators=(",", ":")), safe="${}:._")
    return f"/explore?schemaVersion=1&panes={panes}"


def ref(position: int) -> str:
    """Return the letter by which a query is called."""
    return chr(ord("A") + position)


def target(query: Query, position: int) -> Any:
    """Return the SDK's form of a query."""
    asked = sdk.prometheus.Dataquery().datasource(PROMETHEUS).ref_id(ref(position)).expr(query.expr)
    asked.legend_format(query.legend or "__auto").format(sdk.prometheus_models.PromQueryFormat(query.form))
    asked.editor_mode(sdk.prometheus_models.QueryEditorMode.CODE)
    if query.exemplars:
        asked.exemplar(True)
    return asked.instant() if query.instant else asked.range()


def _base(builder: Any, title: str, about: str) -> Any:
    return builder.title(title).description(about).datasource(PROMETHEUS)


def _steps(steps: Steps) -> list[Any]:
    return [sdk.models.Threshold(value=value, color=color) for value, color in steps]
