"""Write ``dashboards/grafana/*.json`` anew."""

from __future__ import annotations

from pathlib import Path

from .expressions import boards

FOLDER = Path(__file__).parent.parent / "grafana"


def files() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {f"{board.uid}.json": board.to_json() for board in boards()}


if __name__ == "__main__":
    for name, written in files().items():
        (FOLDER / name).write_text(written, encoding="utf-8")
