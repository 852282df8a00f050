"""``loopwatch dashboards``: writes the packaged dashboards and rules to a folder, or saves them in a Grafana."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from loopwatch._version import __version__
from loopwatch.cli.grafana import Grafana
from loopwatch.errors import LoopwatchError

_LEFT_OUT = frozenset({"__init__.py", "__pycache__", "source", "tests"})
"""Other entries of the data folder: code, and in a checkout the sources of the data."""


def export(target: Path, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write dashboards, rules, runbook, the compose file and its files into a folder; return all their paths.

    Existing files with the same content are left alone.

    Args:
        target: the folder; it is created if needed.
        overwrite: whether to replace files that differ.

    Raises:
        LoopwatchError: an existing file differs, and nothing was written; or the folder cannot be written to.

    Example:
        >>> [str(path) for path in export(Path("monitoring"))][:2]  # doctest: +SKIP
        ['monitoring/compose/alertmanager.yml', 'monitoring/compose/collector.yaml']
    """
    wanted = {target / name: content for name, content in _files(_data())}
    try:
        changed = {path: content for path, content in wanted.items() if not _same(path, content)}
        theirs = [path for path in changed if path.exists()]
        if theirs and not overwrite:
            raise LoopwatchError(
                f"{theirs[0]}: differs from what would be written{_and_others(theirs)}; keep your changes and give "
                "another DIR, or replace them with --force"
            )
        for path, content in changed.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as exc:
        raise LoopwatchError(f"{exc.filename or target}: cannot be written: {exc.strerror}; give another DIR") from None
    return tuple(wanted)


def push(url: str, token: str, folder: str, saved: Callable[[str, str], object] = lambda _title, _url: None) -> None:
    """Save the dashboards in a Grafana, in place of those of an earlier version.

    Args:
        url: of Grafana, with its path if it has one.
        token: of a service account that may edit.
        folder: title of the folder, which is created if needed; empty for none.
        saved: called with title and address of each.

    Raises:
        LoopwatchError: Grafana could not be reached, or has refused.
    """
    grafana = Grafana(url, token)
    uid = grafana.folder(folder) if folder else None
    for dashboard in dashboards():
        saved(dashboard["title"], grafana.save(dashboard, uid, f"loopwatch {__version__}"))


def dashboards() -> tuple[dict[str, Any], ...]:
    """Return the dashboards in Grafana's JSON model."""
    found = ((name, content) for name, content in _files(_data()) if name.startswith("grafana/"))
    return tuple(json.loads(content) for _, content in found)


def _data() -> Traversable:
    try:
        return importlib.resources.files("loopwatch.dashboards")
    except ModuleNotFoundError:
        raise LoopwatchError("the dashboards are not part of this installation; install loopwatch with pip") from None


def _files(folder: Traversable, under: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield (path with slashes, content) of each file, sorted."""
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name in _LEFT_OUT:
            continue
        if item.is_dir():
            yield from _files(item, f"{under}{item.name}/")
        else:
            yield f"{under}{item.name}", item.read_bytes()


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _and_others(paths: list[Path]) -> str:
    return f", and so do {len(paths) - 1} others" if len(paths) > 1 else ""
