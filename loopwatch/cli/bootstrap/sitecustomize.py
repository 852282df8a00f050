"""Loaded by each interpreter at start under ``loopwatch run``: installs the agent once there is something to watch.

Starts nothing and imports nothing: a process that never imports asyncio (pip, multiprocessing's resource tracker) has
an idle finder in ``sys.meta_path``, no more. One that does waits for its first loop, pool or worker process
(:mod:`loopwatch.core.deferred`), and loads the agent only then. The ``sitecustomize`` that this one shadows is loaded
in its place. Any failure here is one line on stderr; the program runs.
"""
# Any interpreter of the machine may load this file, with loopwatch or without, also one older than loopwatch supports:
# hence the syntax of Python 3.6, and no import of modules that are not loaded at this point anyway.
# ruff: noqa: PTH120, BLE001

import os
import sys

MYPY = False
if MYPY:  # for the type checker only: typing is not loaded at this point
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_OFF = ("0", "false", "no", "off")  # as in loopwatch.config, which must not be imported here


class _OnceAsyncioIsWanted:
    """A meta path finder that replaces itself by loopwatch's own when asyncio is imported."""

    def __init__(self) -> None:
        self._asked = False

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec of asyncio, through loopwatch's finder; None for any other module."""
        if name != "asyncio" or self._asked:
            return None
        self._asked = True
        try:
            from loopwatch.core.import_hooks import WhenImported

            finder = WhenImported(name, _install)
            # In place: the import system is iterating over this list.
            sys.meta_path[sys.meta_path.index(self)] = finder
            return finder.find_spec(name, path, target)
        except Exception as exc:
            _print_error(exc)
            return None


def _install(_asyncio: object) -> None:
    try:
        from loopwatch._installed import install_when_needed

        install_when_needed(_print_error)
    except Exception as exc:
        _print_error(exc)


def _print_error(exc: Exception) -> None:
    if sys.stderr is None:
        return
    why = " ".join(str(exc).split()) or type(exc).__name__
    advice = "install loopwatch for this interpreter" if isinstance(exc, ImportError) else "report this to loopwatch"
    line = f"loopwatch: this process is not watched: {why} ({sys.executable}); {advice}, or set LOOPWATCH_ENABLED=0"
    try:
        sys.stderr.write(line + "\n")
    except Exception:  # noqa: S110 - stderr is closed: nowhere to report
        pass


if os.environ.get("LOOPWATCH_ENABLED", "").strip().lower() not in _OFF:
    if "asyncio" in sys.modules:
        _install(None)
    else:
        sys.meta_path.insert(0, _OnceAsyncioIsWanted())

# The next sitecustomize on the path replaces this one in sys.modules. If there is none, this import fails as it would
# without this file; the interpreter reports an error in it (Lib/site.py, execsitecustomize).
_others = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
if len(_others) < len(sys.path):
    sys.path[:] = _others
    del sys.modules[__name__]
    __import__(__name__)
