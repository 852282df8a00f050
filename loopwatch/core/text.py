"""Sanitises untrusted text for all sinks: printable, on one line, bounded. Pure.

Names of functions, files, modules, tasks, threads, routes and loops, texts of exceptions and the lines of a foreign
journal may contain anything: newlines that forge a second log line, escape sequences that control a terminal,
bidirectional controls that disguise the text, surrogates that cannot be encoded, ten megabytes. Records are built from
the results of :func:`printable`, so all sinks get clean text; where a value must stay exact for a lookup (the file name
for :mod:`linecache`), the raw one is kept internally.
"""

from __future__ import annotations

MAX_NAME = 200
"""Maximum characters of a name (function, module, task, thread, loop, route, pool) or of the value of a label."""
MAX_PATH = 1000
"""Maximum characters of a path."""
MAX_LINE = 2000
"""Maximum characters of a log line, and of any other text such as that of an exception."""

_CUT = "..."

_type_name = type.__dict__["__name__"].__get__
"""Reads a class's name without its metaclass, whose attribute of that name could run code of the program."""


def printable(text: object, most: int = MAX_NAME) -> str:
    """Return ``text`` on one line, bounded, with all characters that are not printable escaped.

    Text that is too long is cut in its last third, so that both its beginning and its end (of a path: the file) are
    kept. Idempotent. Runs no code of the program: of an object that is not text the type is shown.

    Args:
        text: anything; None gives an empty text.
        most: maximum characters, 12 or more.

    Example:
        >>> printable("a\\nb\\x1b[31m"), printable("x" * 300, 12), printable(b"name"), printable(None)
        ('a\\\\nb\\\\x1b[31m', 'xxxxx...xxxx', '<bytes>', '')
    """
    exact = text if type(text) is str else _exact(text)
    if len(exact) <= most:
        if exact.isprintable():
            return exact
        escaped = "".join(map(_escaped, exact))
        if len(escaped) <= most:
            return escaped
    tail = most // 3
    head = most - tail - len(_CUT)
    return _first(exact[:head], head) + _CUT + _last(exact[-tail:] if tail else "", tail)


def shown(text: object) -> str:
    """Return text from a foreign file for display: printable, at most :data:`MAX_LINE` characters."""
    return printable(text, MAX_LINE)


def timing(seconds: float) -> str:
    """Return a duration as a log line says it.

    Example:
        >>> timing(0.31249), timing(1.5)
        ('312 ms', '1.50 s')
    """
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def error_text(error: BaseException, most: int = MAX_LINE) -> str:
    """Return type and text of an exception, printable.

    Example:
        >>> error_text(ValueError("no\\nway"))
        'ValueError: no\\\\nway'
    """
    try:
        said = printable(str(error), most)
    except Exception:  # noqa: BLE001 - its __str__ is code of the program; the failure is reported
        said = "(its text cannot be had)"
    kind = printable(_type_name(type(error)))
    return printable(f"{kind}: {said}" if said else kind, most)


def _exact(text: object) -> str:
    if text is None:
        return ""
    kind = type(text)
    # A subclass of str may override any method, even __str__ and __len__.
    return str.__str__(text) if issubclass(kind, str) else f"<{printable(_type_name(kind))}>"


def _escaped(char: str) -> str:
    return char if char.isprintable() else ascii(char)[1:-1]


def _first(text: str, room: int) -> str:
    """Return as much of the beginning of ``text`` as fits into ``room`` characters, without splitting an escape."""
    if text.isprintable():
        return text[:room]
    found = []
    for char in text:
        shown = _escaped(char)
        room -= len(shown)
        if room < 0:
            break
        found.append(shown)
    return "".join(found)


def _last(text: str, room: int) -> str:
    """Return as much of the end of ``text`` as fits into ``room`` characters, without splitting an escape."""
    if text.isprintable():
        return text
    found = []
    for char in reversed(text):
        shown = _escaped(char)
        room -= len(shown)
        if room < 0:
            break
        found.append(shown)
    return "".join(reversed(found))
