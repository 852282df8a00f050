"""Foreign text made fit for every sink: printable, on one line, bounded. Pure.

Names of functions, files, modules, tasks, threads, routes and loops, texts of exceptions and the lines of somebody
else's journal may hold anything: line ends that forge a second line of a log, escapes that steer a terminal,
bidirectional controls that show another text than there is, surrogates that cannot be encoded, ten megabytes. Records
are made of what :func:`printable` returns, so all sinks get clean text; where a value must stay exact to look something
up (the file name for :mod:`linecache`), the raw one is kept inside.
"""

from __future__ import annotations

MAX_NAME = 200
"""Characters of a name: of a function, module, task, thread, loop, route, pool, or of the value of a label."""
MAX_PATH = 1000
"""Characters of a path."""
MAX_LINE = 2000
"""Characters of a line in the log, and of any other text such as that of an exception."""

_CUT = "..."

_type_name = type.__dict__["__name__"].__get__
"""Reads a class's name past a metaclass, whose attribute of that name would be code of the program."""


def printable(text: object, most: int = MAX_NAME) -> str:
    """Return ``text`` on one line, bounded, with everything else than printable characters shown as an escape.

    What is too long is cut in its last third, so that both the beginning and the end (of a path: the file) are there.
    Applied twice it changes nothing more. No code of the program runs: of an object that is no text its type is shown.

    Args:
        text: anything; None is no text.
        most: characters, 12 or more.

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
    """Return a text out of somebody else's file for people: printable, at most :data:`MAX_LINE` characters."""
    return printable(text, MAX_LINE)


def error_text(error: BaseException, most: int = MAX_LINE) -> str:
    """Return type and text of an exception, printable.

    Example:
        >>> error_text(ValueError("no\\nway"))
        'ValueError: no\\\\nway'
    """
    try:
        said = printable(str(error), most)
    except Exception:  # noqa: BLE001 - its __str__ is code of the program; that it fails is what is told
        said = "(its text cannot be had)"
    kind = printable(_type_name(type(error)))
    return printable(f"{kind}: {said}" if said else kind, most)


def _exact(text: object) -> str:
    if text is None:
        return ""
    kind = type(text)
    # A subclass of str may have methods of its own, down to __str__ and __len__.
    return str.__str__(text) if issubclass(kind, str) else f"<{printable(_type_name(kind))}>"


def _escaped(char: str) -> str:
    return char if char.isprintable() else ascii(char)[1:-1]


def _first(text: str, room: int) -> str:
    """Return as much of the beginning of ``text`` as goes into ``room`` characters; no escape is torn."""
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
    """Return as much of the end of ``text`` as goes into ``room`` characters."""
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
