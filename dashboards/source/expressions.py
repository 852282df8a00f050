"""Every expression of every dashboard, for whoever wants to run them against a Prometheus.

    for expression in expressions():
        result = prometheus.query(expression.concrete())
        assert result or expression.rare, expression.where

:func:`expressions` has those of panels, annotations and variables. Of a variable, ``label_values(SELECTOR, LABEL)`` is
no PromQL: its :attr:`~Expression.expr` is the selector, and the result must carry the label. All give vectors, in a
range query matrices. One that is not ``rare`` has a result as soon as the program has been in each kind of trouble
while it was scraped (loops that block, tasks that fail, workers that crash, hang or stay as zombies, functions that are
flagged and moved); also an annotation, which is empty while nothing happens. A rare one needs more (an agent that is
off or at fault, a restart), and must be accepted by the server only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .board import Board, expressions_of, variable_queries
from .loop import loop
from .offload import offload
from .overview import overview
from .workers import workers

BOARDS = (overview, loop, workers, offload)
"""What makes the dashboards, in the order in which they are meant to be read."""

_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.*), (?P<label>\w+)\)")


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression.

    Attributes:
        board: uid of its dashboard.
        where: row and panel, annotation or variable.
        ref: letter of the query in its panel.
        expr: as it stands in the dashboard, with Grafana's variables.
        instant: whether it is asked for its value now; else for its course.
        rare: whether it may have no result, see the module.
        label: which a result must have, None for any.
    """

    board: str
    where: str
    ref: str
    expr: str
    instant: bool = False
    rare: bool = False
    label: str | None = None

    def concrete(self, values: Mapping[str, str] | None = None, *, rate: int = 60, within: int = 900) -> str:
        """Return it with each variable replaced.

        Args:
            values: of the dashboard's variables as regular expressions, such as ``{"job": "shop"}``; else ``.*``.
            rate: s of ``$__rate_interval``, at least four scrapes.
            within: s of ``$__range``.

        Example:
            >>> Expression("", "", "A", 'rate(x{job=~"$job"}[$__rate_interval])').concrete({"job": "shop"}, rate=8)
            'rate(x{job=~"shop"}[8s])'
        """
        found = {"job": ".*", "instance": ".*", "loop": ".*", "pool": ".*", **(values or {})}
        found |= {"__rate_interval": f"{rate}s", "__rate_interval_ms": str(rate * 1000), "__range": f"{within}s"}
        return re.sub(r"\$(\w+)", lambda match: found[match[1]], self.expr)


def boards() -> tuple[Board, ...]:
    """Make all dashboards."""
    return tuple(make() for make in BOARDS)


def expressions() -> Iterator[Expression]:
    """Yield all of them."""
    for board in boards():
        for where, ref, query in expressions_of(board):
            yield Expression(board.uid, where, ref, query.expr, query.instant, query.rare)
        for name, asked in variable_queries(board.variables).items():
            parts = _LABEL_VALUES.fullmatch(asked)
            assert parts is not None, asked
            yield Expression(board.uid, f"variable {name}", "A", parts["selector"], instant=True, label=parts["label"])
