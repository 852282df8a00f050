"""Checks of what a program gives to be watched; imports little."""

from __future__ import annotations

from typing import Any

from loopwatch.errors import ConfigError


def check_executor(executor: Any, name: str | None) -> None:
    """Check that ``executor`` can be watched under ``name``.

    Raises:
        ConfigError: it is no executor, or the name is none.
    """
    known = isinstance(getattr(executor, "_cache", None), dict) and callable(getattr(executor, "apply_async", None))
    if isinstance(executor, type) or (not known and not callable(getattr(executor, "submit", None))):
        raise ConfigError(
            f"watch_executor({executor!r}): not an executor (it has no submit()); pass a "
            "concurrent.futures.Executor or a multiprocessing.Pool"
        )
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigError(f"watch_executor(name={name!r}): must be a str that is not empty, such as 'thumbnails'")
