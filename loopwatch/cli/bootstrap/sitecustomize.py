"""What the interpreter loads at start under ``loopwatch run``: installs the agent when there is something to watch.

Starts nothing and imports nothing: a process that never imports asyncio (pip, multiprocessing's resource tracker) keeps
a finder in ``sys.meta_path`` that never finds anything. One that does waits for its first loop, pool or worker process
(:mod:`loopwatch.core.deferred`), and pays for the agent only then. The ``sitecustomize`` that would have been loaded
without us is loaded in our place. Whatever of ours fails is one line on stderr; the program runs.
"""
# Any interpreter of the machine may come by here, with loopwatch or without, also one older than loopwatch supports:
# hence the syntax of Python 3.6, and no import of what is not loaded at this point anyway.
# ruff: noqa: PTH120, BLE001

import os
import sys

MYPY = False
if MYPY:  # for the type checker only: typing is not loaded at this point
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_OFF = ("0", "false", "no", "off")  # as loopwatch.config reads them, which must not be imported here


class _OnceAsyncioIsWanted:
    """A meta path finder that gives its place to loopwatch's own when asyncio is looked for."""

    def __init__(self) -> None:
        self._asked = False

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
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
            _tell(exc)
            return None


def _install(_asyncio: object) -> None:
    try:
        from loopwatch._installed import install_when_needed

        install_when_needed(_tell)
    except Exception as exc:
        _tell(exc)


def _tell(exc: Exception) -> None:
    if sys.stderr is None:
        return
    why = " ".join(str(exc).split()) or type(exc).__name__
    advice = "install loopwatch for this interpreter" if isinstance(exc, ImportError) else "report this to loopwatch"
    line = f"loopwatch: this process is not watched: {why} ({sys.executable}); {advice}, or set LOOPWATCH_ENABLED=0"
    try:
        sys.stderr.write(line + "\n")
    except Exception:  # noqa: S110 - a closed stderr: there is nobody to tell
        pass


if os.environ.get("LOOPWATCH_ENABLED", "").strip().lower() not in _OFF:
    if "asyncio" in sys.modules:
        _install(None)
    else:
        sys.meta_path.insert(0, _OnceAsyncioIsWanted())

# The next sitecustomize in line takes our place in sys.modules. If there is none, this import fails as it would have
# failed without us, and an error in it is the interpreter's to report (Lib/site.py, execsitecustomize).
_others = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
if len(_others) < len(sys.path):
    sys.path[:] = _others
    del sys.modules[__name__]
    __import__(__name__)
