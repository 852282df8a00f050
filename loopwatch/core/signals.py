"""Tells an exception of our own from one that a signal handler of the program has raised in the midst of our code."""

from __future__ import annotations

import signal
import threading
from types import CodeType
from typing import Any


def raised_by_handler(exc: BaseException) -> bool:
    """Return whether a Python signal handler of the program raised ``exc``.

    The interpreter runs handlers between two bytecodes of whatever the main thread is at (``_PyErr_CheckSignals`` in
    CPython's Modules/signalmodule.c), so that a time-out by ``signal.alarm`` may come out of any function. It is meant
    for the program and must not be kept from it.

    Args:
        exc: as caught, with its traceback.

    Example:
        >>> try:
        ...     raise OSError("ours")
        ... except OSError as exc:
        ...     raised_by_handler(exc)
        False
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = {code for number in signal.valid_signals() if (code := _code_of(signal.getsignal(number))) is not None}
    step = exc.__traceback__
    while step is not None:
        if step.tb_frame.f_code in handlers:
            return True
        step = step.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    """Return the code that runs first when ``handler`` is called; None for signal.SIG_DFL and the like, and for C."""
    called = getattr(type(handler), "__call__", None)  # noqa: B004 - the function is wanted
    for function in (handler, getattr(handler, "func", None), called):
        code = getattr(function, "__code__", None)  # a bound method has that of its function
        if isinstance(code, CodeType):
            return code
    return None
