"""The exception tree of loopwatch.

.. code-block:: text

    LoopwatchError
    └── ConfigError        (also a ValueError)  a field, variable or argument that cannot be used
"""


class LoopwatchError(Exception):
    """Base of every error that loopwatch raises on purpose."""


class ConfigError(LoopwatchError, ValueError):
    """A setting that cannot be used; the message names it, its value and what is allowed.

    Example:
        >>> import loopwatch
        >>> loopwatch.Config(threshold=0)
        Traceback (most recent call last):
        loopwatch.errors.ConfigError: threshold=0: must be a number of seconds above 0, such as 0.1
    """
