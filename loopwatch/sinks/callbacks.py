"""The program's ``on_stall`` callbacks, as a sink of stalls."""

from __future__ import annotations

import logging
from collections.abc import Callable

from loopwatch.core.faults import Faults
from loopwatch.core.text import error_text
from loopwatch.events import FlaggedFunction, Stall

Callback = Callable[[Stall], object]


class Callbacks:
    """Calls each callback with each stall; one that raises is removed and logged, the others go on.

    Args:
        configured: returns the callback of the settings in force, None if there is none.
        drop_configured: removes it from the settings.
        faults: the agent's fault handling.
    """

    def __init__(
        self, configured: Callable[[], Callback | None], drop_configured: Callable[[], object], faults: Faults
    ) -> None:
        self._configured, self._drop_configured, self._faults = configured, drop_configured, faults
        self._added: list[Callback] = []

    def add(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with each stall from now on; return a function that ends that."""
        self._added.append(callback)
        return lambda: self._remove(callback)

    def emit(self, stall: Stall, _flagged: FlaggedFunction | None = None, _span: object = None) -> None:
        """Call each of them with ``stall``."""
        for callback in (self._configured(), *self._added):
            if callback is not None:
                self._call(callback, stall)

    def _call(self, callback: Callback, stall: Stall) -> None:
        try:
            callback(stall)
        except BaseException as exc:  # noqa: BLE001 - not even sys.exit() or a cancelled future may end the thread
            self._faults.count("callback")
            self._faults.say(
                logging.ERROR, "loopwatch: the on_stall callback %r raised %s and is removed",
                callback, error_text(exc), exc=exc,
            )  # fmt: skip
            self._remove(callback)
            if callback is self._configured():
                self._drop_configured()

    def _remove(self, callback: Callback) -> None:
        if callback in self._added:
            self._added.remove(callback)
