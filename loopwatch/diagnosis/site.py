"""Tells whose code a frame is: the user's, a library's, the standard library's, generated, or server machinery."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from functools import lru_cache

from loopwatch.core.dataclasses import dataclass
from loopwatch.core.text import MAX_PATH, printable
from loopwatch.events import Frame

# As sysconfig and pathlib would say, which take 6 ms to load in every watched process.
_COLLECTIONS = (getattr(collections, "__file__", None) or "").rpartition("__init__.")[0]
_SEPARATOR = _COLLECTIONS[-1:] or "/"
_STDLIB = _COLLECTIONS.rstrip(_SEPARATOR).rpartition(_SEPARATOR)[0]

_TYPED = (
    "<stdin>", "<console>", "<input>", "<ipython-input-", "<python-input-", "<doctest ", "<unknown>", "<frozen ",
)  # fmt: skip
"""Beginnings of the file names of code that a person has typed, and of frozen modules."""
_ARGUMENT = "<string>"
"""File name of the program of ``python -c``; also of code that ``exec`` and ``dataclasses`` generate."""
_MEMORY = "memory:"
"""Beginning of the file names of Mako's templates."""

MACHINERY = (
    "_pytest",
    "anyio",
    "asgiref",
    "contextlib",
    "daphne",
    "django.contrib.staticfiles.handlers",
    "django.core.handlers",
    "django.utils.deprecation",
    "elasticapm",
    "fastapi.applications",
    "fastapi.middleware",
    "fastapi.routing.get_request_handler",
    "fastapi.routing.request_response",
    "fastapi.routing.run_endpoint_function",
    "granian",
    "greenlet",
    "gunicorn",
    "hypercorn",
    "litestar._asgi",
    "litestar.app",
    "litestar.middleware",
    "litestar.routes",
    "nest_asyncio",
    "newrelic",
    "opentelemetry.instrumentation",
    "opentelemetry.util",
    "pluggy",
    "quart.app",
    "quart.asgi",
    "quart.utils",
    "sanic.app",
    "sanic.http",
    "sanic.server",
    "sentry_sdk",
    "sqlalchemy.util",
    "starlette._exception_handler",
    "starlette._utils",
    "starlette.applications",
    "starlette.concurrency",
    "starlette.middleware",
    "starlette.routing",
    "tornado.ioloop",
    "tornado.web.RequestHandler._execute",
    "uvicorn",
    "uvloop",
    "aiohttp.web_app",
    "aiohttp.web_middlewares",
    "aiohttp.web_protocol",
    "aiohttp.web_urldispatcher",
)
"""Modules and functions that only pass a request on: servers, middlewares, routing."""


@dataclass(frozen=True, slots=True)
class Site:
    """Distinguishes the user's code from libraries and the interpreter.

    Attributes:
        stdlib: directories of the standard library.
        user_code, library_code: path or module prefixes, which take precedence.
        is_argument: whether the program was given with ``python -c``.

    Example:
        >>> site = Site(("/usr/lib/python3.12",))
        >>> site.is_user(Frame("handler", "app.views", "/srv/app/views.py", 7))
        True
        >>> site.is_user(Frame("__init__", "app.views", "<string>", 2))
        False
    """

    stdlib: tuple[str, ...]
    user_code: tuple[str, ...] = ()
    library_code: tuple[str, ...] = ()
    is_argument: bool = False

    @classmethod
    def here(cls, user_code: Sequence[str] = (), library_code: Sequence[str] = (), command: Sequence[str] = ()) -> Site:
        """Return the rules for this interpreter; paths are compared in printable form, as frames have them.

        Args:
            user_code, library_code: path or module prefixes.
            command: the interpreter's command line (:data:`sys.orig_argv`).
        """
        return cls(
            (printable(_STDLIB, MAX_PATH),) if _STDLIB else (),
            tuple(printable(prefix, MAX_PATH) for prefix in user_code),
            tuple(printable(prefix, MAX_PATH) for prefix in library_code),
            _is_argument(command),
        )

    def is_user(self, frame: Frame) -> bool:
        """Whether ``frame`` is the user's own code: not the standard library, no installed package, not generated."""
        return _is_user(self, frame.module, frame.file, "__create_fn__" in frame.function)

    def is_stdlib(self, frame: Frame) -> bool:
        """Whether ``frame`` belongs to the standard library or is frozen into the interpreter."""
        return _is_stdlib(self, frame.file)

    def is_machinery(self, frame: Frame) -> bool:
        """Whether ``frame`` belongs to a library's code that only passes a request on."""
        return _is_machinery(frame.module, frame.function)


def _is_argument(command: Sequence[str]) -> bool:
    """Whether an interpreter was given its program with ``-c``, which may stand among other letters (``-Ic``).

    What follows the program's name are its own options: ``gunicorn -c settings.py``. See Python/getopt.c in CPython.
    """
    words = iter(command[1:])
    for word in words:
        if len(word) < 2 or not word.startswith("-") or word == "--":
            return False
        if word.startswith("--"):
            if word == "--check-hash-based-pycs":
                next(words, None)
            continue
        letters = word[1:]
        ends = next((at for at, letter in enumerate(letters) if letter in "cmWX"), None)
        if ends is not None and letters[ends] in "cm":
            return letters[ends] == "c"
        if ends == len(letters) - 1:  # the value of -W or -X is the next word
            next(words, None)
    return False


# Called for each frame of every sample, and a program has few files.
@lru_cache(maxsize=4096)
def _is_user(site: Site, module: str, file: str, is_made: bool) -> bool:
    if any(_matches(module, file, prefix) for prefix in site.user_code):
        return True
    if any(_matches(module, file, prefix) for prefix in site.library_code):
        return False
    return not _is_stdlib(site, file) and not _installed(file) and not (is_made or _is_generated(site, module, file))


@lru_cache(maxsize=4096)
def _is_stdlib(site: Site, file: str) -> bool:
    if file.startswith("<frozen"):
        return True
    return any(_under(file, folder) for folder in site.stdlib) and not _installed(file)


def _is_generated(site: Site, module: str, file: str) -> bool:
    """Whether the code has no source of its own, as of dataclasses, attrs, SQLAlchemy, ``exec`` and templates."""
    if file == _ARGUMENT:
        return not (site.is_argument and module in ("__main__", ""))  # stacks of faulthandler name no module
    return (file.startswith("<") and not file.startswith(_TYPED)) or file.startswith(_MEMORY)


@lru_cache(maxsize=4096)
def _is_machinery(module: str, function: str) -> bool:
    name = f"{module}.{function}"
    return any(name == prefix or name.startswith(prefix + ".") for prefix in MACHINERY)


def _installed(file: str) -> bool:
    parts = file.replace("/", _SEPARATOR).split(_SEPARATOR)
    return "site-packages" in parts or "dist-packages" in parts


def _under(file: str, folder: str) -> bool:
    return file.startswith(folder.rstrip("/\\") + ("\\" if "\\" in folder else "/"))


def _matches(module: str, file: str, prefix: str) -> bool:
    if "/" in prefix or "\\" in prefix:
        return file == prefix or _under(file, prefix)
    return module == prefix or module.startswith(prefix + ".")
