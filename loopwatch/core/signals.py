"""Exceptions from signal handlers of the program: those raised inside agent code, and Ctrl-C that ends the program."""

from __future__ import annotations

import signal
import sys
import threading
from types import CodeType
from typing import Any


def raised_by_handler(exc: BaseException) -> bool:
    """Return whether a Python signal handler of the program raised ``exc``.

    The interpreter runs handlers between any two bytecodes of the main thread (``_PyErr_CheckSignals`` in CPython's
    Modules/signalmodule.c), so that a timeout by ``signal.alarm`` may come out of any function. It is meant for the
    program and must reach it.

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


def ended_by_interrupt() -> bool:
    """Return whether a KeyboardInterrupt that the program did not catch has ended it; for exit handlers.

    The interpreter then kills itself with SIGINT as its last act, for the shell to see (``pymain_run_python`` and
    ``exit_sigint`` in CPython's Modules/main.c).
    """
    exc = getattr(sys, "last_value", None)
    if type(exc) is not KeyboardInterrupt or exc.__traceback__ is None or hasattr(sys, "ps1"):
        return False
    outermost = exc.__traceback__.tb_frame
    names = (outermost.f_globals.get("__name__"), outermost.f_code.co_name)
    return names in (("__main__", "<module>"), ("runpy", "_run_module_as_main"))


def end_by_interrupt() -> None:
    """Make the interpreter end as it does after an interrupt, whatever has run since.

    Its flag for that is cleared when source text is executed (``run_eval_code_obj`` in CPython's Python/pythonrun.c),
    as for every ``NamedTuple`` of a module that is imported while the agent stops; an interrupt in such a text sets it
    again.
    """
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return


def _code_of(handler: Any) -> CodeType | None:
    """Return the code that runs first when ``handler`` is called; None for signal.SIG_DFL and the like, and for C."""
    called = getattr(type(handler), "__call__", None)  # noqa: B004 - the function is wanted
    for function in (handler, getattr(handler, "func", None), called):
        code = getattr(function, "__code__", None)  # a bound method has the code of its function
        if isinstance(code, CodeType):
            return code
    return None
