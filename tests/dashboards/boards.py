"""Reads the dashboards as Grafana does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "dashboards" / "grafana"


def committed() -> dict[str, dict[str, Any]]:
    """Return the dashboards that are in the repository, by their uid."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GRAFANA.glob("*.json"))}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard, also those in closed rows, without the rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def targets(board: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (title, Prometheus query) of panels and annotations."""
    for panel in panels(board):
        for target in panel.get("targets", ()):
            if target["datasource"]["type"] == "prometheus":
                yield panel["title"], target
    for annotation in board["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["target"]


def strings(value: Any) -> Iterator[str]:
    """Yield every string in ``value``."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
