"""Format and parser of the hang file: stacks written by faulthandler's C thread while Python could not run.

.. code-block:: text

    stalls.123.hang       {"schema": "loopwatch.hang/1", "pid": 123, "threads": {"0x00007f12ab34cd56": "main"}}
                          Timeout (0:00:02)!
                          Thread 0x00007f12ab34cd56 (most recent call first):
                            File "/srv/app/images.py", line 42 in resize
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from loopwatch.core.dataclasses import dataclass
from loopwatch.events import Frame
from loopwatch.sinks.json_checks import fits, json_object

SCHEMA = "loopwatch.hang/1"


@dataclass(frozen=True, slots=True)
class HangDump:
    """The stack of a loop's thread, written by faulthandler while the loop was blocked.

    Attributes:
        loop: name of the loop.
        pid: process id.
        frames: outermost first; functions are unqualified names, modules ``""``: faulthandler writes no more.
        at: seconds since the epoch at which it was written (mtime of the file), 0 if unknown.
    """

    loop: str
    pid: int
    frames: tuple[Frame, ...]
    at: float = 0.0


def hang_header(pid: int, threads: Mapping[int, str]) -> str:
    """Return the first line of a hang file: the loops by their threads.

    Args:
        pid: process id.
        threads: name of each loop by ident of its thread (``Thread.ident``).

    Example:
        >>> hang_header(7, {0x7F12AB34CD56: "main"})
        '{"schema": "loopwatch.hang/1", "pid": 7, "threads": {"0x00007f12ab34cd56": "main"}}\\n'
    """
    # As CPython's Python/traceback.c prints it: an unsigned long in hexadecimal, zero-padded.
    digits = struct.calcsize("L") * 2
    names = {f"0x{ident:0{digits}x}": name for ident, name in threads.items()}
    import json

    return json.dumps({"schema": SCHEMA, "pid": pid, "threads": names}) + "\n"


def parse_hang(text: str) -> tuple[HangDump, ...]:
    """Return the stacks of the threads named in the header, from the last dump in a hang file; never raises.

    Example:
        >>> dump = 'Timeout (0:00:02)!\\nThread 0x00000000000000ff (most recent call first):\\n'
        >>> dump += '  File "/srv/app.py", line 12 in inner\\n  File "/srv/app.py", line 34 in outer\\n'
        >>> [str(frame) for frame in parse_hang(hang_header(7, {255: "main"}) + dump)[0].frames]
        ['outer (/srv/app.py:34)', 'inner (/srv/app.py:12)']
    """
    header = hang_threads(text)
    if header is None:
        return ()
    pid, threads = header
    complete = text[: text.rfind("\n") + 1]  # a torn last line could hold half a function name
    for dump in reversed(re.split(r"^Timeout \(", complete, flags=re.MULTILINE)):
        stacks = _hang_stacks(dump)
        found = tuple(HangDump(threads[ident], pid, stacks[ident]) for ident in threads if stacks.get(ident))
        if found:
            return found
    return ()


# Python/traceback.c: "Thread 0x... (most recent call first):", "Current thread 0x...", from 3.14 with "[name]".
_THREAD = re.compile(r"(?:Current t|T)hread (0x[0-9a-f]{1,32})\b.*")
_FRAME = re.compile(r'  File "?(.*?)"?, line ([0-9]{1,9}|\?\?\?) in (.*)')
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))")


def hang_threads(text: str) -> tuple[int, dict[str, str]] | None:
    """Return process id and ``{thread: loop}`` from the header of a hang file, None if it has no header."""
    header = json_object(text.partition("\n")[0])
    if header is None or not str(header.get("schema")).startswith(SCHEMA):
        return None
    pid, threads = header.get("pid"), header.get("threads")
    if not (fits(int)(pid) and isinstance(pid, int) and isinstance(threads, dict)):
        return None
    return pid, {str(ident): str(name) for ident, name in threads.items()}


def _hang_stacks(dump: str) -> dict[str, tuple[Frame, ...]]:
    """Return the frames of each thread, outermost first."""
    stacks: dict[str, list[Frame]] = {}
    current: list[Frame] = []
    for line in dump.split("\n"):
        if thread := _THREAD.fullmatch(line):
            current = stacks.setdefault(thread[1], [])
        elif frame := _FRAME.fullmatch(line):
            file, number, function = frame.groups()
            current.append(Frame(_unescaped(function), "", _unescaped(file), int(number) if number.isdigit() else 0))
    return {ident: tuple(reversed(frames)) for ident, frames in stacks.items()}


def _unescaped(text: str) -> str:
    """Undo faulthandler's escapes of non-ASCII names (it prints ASCII only)."""
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), text)
