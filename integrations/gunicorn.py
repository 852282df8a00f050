"""A hook for gunicorn's configuration file: its arbiter is watched too, and reports the health of its workers.

.. code-block:: python

    # gunicorn.conf.py
    from loopwatch.integrations.gunicorn import on_starting

Workers do not need it: each installs with the application, or is forked from an arbiter that has installed.
"""

from __future__ import annotations

import loopwatch


def on_starting(_server: object) -> None:
    """Install the agent in the arbiter before it forks workers, with the settings of the ``LOOPWATCH_*`` variables.

    Each worker starts an agent of its own, and with a port of its own where ``LOOPWATCH_PROMETHEUS_PORT`` is
    set. The application may install with other settings; they are those of its worker.

    Raises:
        ConfigError: a variable that is not allowed, or a port that is in use; the server does not start then.
    """
    loopwatch.install()
