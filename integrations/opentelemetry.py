"""An instrumentor of OpenTelemetry: ``opentelemetry-instrument python app.py`` watches loops, with no line of code.

.. code-block:: python

    from loopwatch.integrations.opentelemetry import LoopwatchInstrumentor

    LoopwatchInstrumentor().instrument(threshold=0.1)

Its name is ``loopwatch``: in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``, and in the section
``instrumentation/development`` of a declarative configuration, where its options are the settings.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from typing import Any

import loopwatch

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "loopwatch.integrations.opentelemetry needs opentelemetry-instrumentation: "
        "pip install 'loopwatch[opentelemetry]'",
        name=exc.name,
    ) from exc

logger = logging.getLogger("loopwatch")

_HELPER = "multiprocessing.resource_tracker"
_PROVIDERS = ("tracer_provider", "meter_provider", "logger_provider")


class LoopwatchInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # untyped where it is not installed
    """Installs loopwatch as ``opentelemetry-instrument`` installs the instrumentations of libraries.

    ``instrument(**settings)`` takes the fields of :class:`loopwatch.Config`, and ``tracer_provider``,
    ``meter_provider`` and ``logger_provider``, which are then used instead of the global ones (see
    :meth:`loopwatch.Agent.use_providers`). Without arguments, as ``opentelemetry-instrument`` calls it, a bad
    ``LOOPWATCH_*`` variable is logged and the program starts without loopwatch; with arguments a bad one is a
    :class:`loopwatch.ConfigError`.

    Example:
        >>> instrumentor = LoopwatchInstrumentor()
        >>> instrumentor.instrument(threshold=0.2)
        >>> loopwatch.current_agent().config.threshold
        0.2
        >>> instrumentor.uninstrument()
    """

    _installed_here = False

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no packages: the instrumented library, asyncio, is part of Python."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        if not kwargs and any(_HELPER in argument for argument in sys.orig_argv):
            return  # started by multiprocessing, with nothing of the program in it
        providers = {name: kwargs.pop(name) for name in _PROVIDERS if name in kwargs}
        was_there = loopwatch.current_agent() is not None
        try:
            agent = loopwatch.install(**kwargs)
        except loopwatch.ConfigError as exc:
            if kwargs or providers:
                raise
            logger.error("loopwatch: not started: %s", exc)
            return
        self._installed_here = not was_there
        try:
            if providers:
                agent.use_providers(**providers)
        except loopwatch.ConfigError:
            self._uninstrument()
            raise

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the interface's
        agent = loopwatch.current_agent()
        if agent is not None:
            agent.use_providers()
        if self._installed_here:  # an agent that the program installed is the program's to uninstall
            self._installed_here = False
            loopwatch.uninstall()
