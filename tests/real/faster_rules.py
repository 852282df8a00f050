"""The shipped rules, made fast enough for a test."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "dashboards" / "prometheus"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def faster(text: str, factor: float) -> str:
    """Return rules in which ``factor`` times less time passes.

    Scaled are the windows ``[5m]``, ``offset 15m``, ``for: 10m``, and limits that are times (``> 30``: seconds of
    a hang or of waiting). Names, shares of the time and rates a second are not: they mean the same. No window gets
    shorter than a ``rate`` needs that sees a sample a second.

    Example:
        >>> faster("rate(x_total[5m]) > 30  # for: 1h", 60)
        'rate(x_total[5000ms]) > 0.5  # for: 60000ms'
    """

    def shorter(match: re.Match[str]) -> str:
        seconds = int(match["number"]) * _UNITS[match["unit"]] / factor
        least = 3.0 if match["before"] == "[" else 0.0
        return f"{match['before']}{max(seconds, least) * 1000:.0f}ms"

    text = re.sub(r"(?P<before>\[|offset |for: )(?P<number>\d+)(?P<unit>[smhd])\b", shorter, text)
    return re.sub(r"> 30$", f"> {30 / factor:g}", re.sub(r"> 30  ", f"> {30 / factor:g}  ", text), flags=re.MULTILINE)


def shipped(factor: float = 1) -> dict[str, str]:
    """Return the rule files by name."""
    return {
        name: faster((FOLDER / name).read_text(encoding="utf-8"), factor) for name in ("recording.yml", "alerts.yml")
    }
