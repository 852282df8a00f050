"""Reads which functions handle signals."""

from __future__ import annotations

import signal
from types import CodeType, FunctionType, MethodType


def handler_code() -> frozenset[CodeType]:
    """Return the code of the Python functions and methods that are registered with :func:`signal.signal`.

    Handlers of other types are left out: asking them for their code could run the program's.

    Example:
        >>> handler_code() <= handler_code()
        True
    """
    found = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        function = handler.__func__ if type(handler) is MethodType else handler
        if type(function) is FunctionType:
            found.add(function.__code__)
    return frozenset(found)
