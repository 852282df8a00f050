"""``loopwatch run``: starts a program so that it, and every Python process it starts, is watched.

No code of the program is imported or executed here. The program replaces this process, so that its exit code, signals
and input are its own; it loads the agent through PYTHONPATH (see :mod:`loopwatch.cli.bootstrap.sitecustomize`), and
the agent reads its settings from ``LOOPWATCH_*`` variables.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from loopwatch.config import ENV_PREFIX, Config, from_env
from loopwatch.errors import ConfigError, LoopwatchError

BOOTSTRAP = str(Path(__file__).parent / "bootstrap")
"""The directory that goes first on PYTHONPATH."""

_SCRIPTS = (".py", ".pyw", ".pyz")


@dataclass(frozen=True, slots=True)
class Program:
    """The program to execute.

    Attributes:
        path: executable file.
        argv: its arguments, its own name first.
    """

    path: str
    argv: tuple[str, ...]


def find_program(target: Sequence[str]) -> Program:
    """Return the program that ``-m MODULE ARGS``, ``SCRIPT ARGS`` or ``COMMAND ARGS`` means.

    A name without a directory is looked up on PATH first, as a shell does, unless a script has that name.

    Raises:
        LoopwatchError: there is no such module, script or command.
    """
    if not target:
        raise LoopwatchError("nothing to run; give a script, a command or -m MODULE")
    name, arguments = target[0], tuple(target[1:])
    if name.startswith("-m"):
        module, arguments = (name[2:], arguments) if name != "-m" else ("".join(arguments[:1]), arguments[1:])
        _check_module(module)
        return _python("-m", module, *arguments)
    path = Path(name)
    if path.suffix in _SCRIPTS and path.is_file():
        return _python(_not_an_option(name), *arguments)
    found = shutil.which(name) or _beside_python(name)
    if found is not None:
        first = _first_line(found)
        if first.startswith(b"PK\x03\x04"):
            return _python(found, *arguments)
        _check_interpreter(name, found, first)
        return Program(found, (name, *arguments))
    if path.is_file() or (path / "__main__.py").is_file():
        return _python(_not_an_option(name), *arguments)
    raise LoopwatchError(_missing(name, path))


def settings_for(options: Mapping[str, str]) -> dict[str, str]:
    """Return the ``LOOPWATCH_*`` variables for ``{field: text}``, each text checked as the agent will parse it.

    Raises:
        ConfigError: names the option, its value and what is allowed.

    Example:
        >>> settings_for({"threshold": "0.2"})
        {'LOOPWATCH_THRESHOLD': '0.2'}
    """
    return {ENV_PREFIX + field.upper(): _checked(field, text) for field, text in options.items()}


def _checked(field: str, text: str) -> str:
    """Return ``text`` in a form that the program's processes can use, whatever their directory."""
    variable, option = ENV_PREFIX + field.upper(), f"--{field.replace('_', '-')}"
    if not text:
        raise ConfigError(f"{option} '': must not be empty")
    try:
        # Callables belong to the program: importing them here would run its code.
        config = from_env({variable: _without_callables(text) if field == "context" else text})
    except ConfigError as exc:
        raise ConfigError(str(exc).replace(f"{variable}=", f"{option} ", 1)) from None
    if field == "journal":
        return _checked_journal(config, option)
    return _with_absolute_paths(text) if field in ("user_code", "library_code") else text


def environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` with ``variables``, and with :data:`BOOTSTRAP` first on PYTHONPATH, once."""
    others = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry != BOOTSTRAP]
    path = os.pathsep.join([BOOTSTRAP, *others]) if any(others) else BOOTSTRAP
    return {**environ, **variables, "PYTHONPATH": path}


def execute(program: Program, environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by ``program``; on Windows, which cannot, run it and exit with its status.

    Raises:
        LoopwatchError: the system refuses to execute it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform == "win32":
            sys.exit(_run_and_wait(program, environ))
        # Python ignores these two and an ignored signal stays ignored across exec (signal(7)): other programs than
        # Python rely on the default.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execve(program.path, program.argv, environ)
    except OSError as exc:
        raise LoopwatchError(
            f"cannot execute {program.path}: {exc.strerror}; is it a program for this system?"
        ) from None


def _run_and_wait(program: Program, environ: Mapping[str, str]) -> int:
    with subprocess.Popen(program.argv, executable=program.path, env=environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the console sent it to the program too, which decides what to do
                continue


def _python(*argv: str) -> Program:
    return Program(sys.executable, (sys.executable, *argv))


def _not_an_option(name: str) -> str:
    return f".{os.sep}{name}" if name.startswith("-") else name


def _check_module(module: str) -> None:
    if not module:
        raise LoopwatchError("-m: the name of a module is missing")
    # Only the top level: finding a submodule would import its parents, which are the program's code.
    top = module.partition(".")[0]
    path = list(sys.path)
    try:
        if not sys.flags.safe_path:
            sys.path.insert(0, str(Path.cwd()))
        found = top != "__main__" and importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):  # ValueError: an empty name
        found = False
    finally:
        sys.path[:] = path
    if not found:
        raise LoopwatchError(f"no module named {top!r} for {sys.executable}; install it there, or check the name")


def _beside_python(name: str) -> str | None:
    """Return a command of the environment that loopwatch is installed in, which need not be activated."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) if Path(name).name == name else None


def _missing(name: str, path: Path) -> str:
    if not name:
        return "the name of what to run is empty; give a script, a command or -m MODULE"
    if path.is_dir():
        return f"{name} is a directory without __main__.py; give a script, a command or -m MODULE"
    if path.suffix in _SCRIPTS or path.name != name:
        return f"no such file: {name} (in {Path.cwd()}); check its path"
    as_module = f", or write -m {name} if it is a module" if name.replace(".", "").isidentifier() else ""
    return f"no command {name!r} on PATH and no such file in {Path.cwd()}; check the name{as_module}"


def _with_absolute_paths(text: str) -> str:
    items = (item.strip() for item in text.split(","))
    return ",".join(str(Path(item).absolute()) if "/" in item or os.sep in item else item for item in items if item)


def _without_callables(text: str) -> str:
    return ",".join(item for item in text.split(",") if ":" not in item)


def _checked_journal(config: Config, option: str) -> str:
    journal = Path(str(config.journal))
    folder = journal if journal.is_dir() else journal.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {str(journal)!r}: must be in a directory that can be written to, {folder} cannot")
    return str(journal)


def _first_line(path: str) -> bytes:
    """Return the first line of a file: ``#!...``, or the signature of an archive, which the system cannot execute."""
    try:
        with Path(path).open("rb") as file:
            return file.readline(256)
    except OSError:  # executable but not readable
        return b""


def _check_interpreter(name: str, path: str, first: bytes) -> None:
    """Refuse a command whose first line makes Python ignore PYTHONPATH: it would run unwatched."""
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    while words and not Path(words[0]).name.startswith("python"):  # skip /usr/bin/env and its options
        del words[0]
    for flag in words[1:]:
        if re.fullmatch(r"-[A-Za-z]*[EI][A-Za-z]*", flag):
            raise LoopwatchError(
                f"{name} starts Python with {flag}, which ignores PYTHONPATH, so it could not be watched; "
                f"write: loopwatch run {words[0]} {path}"
            )
