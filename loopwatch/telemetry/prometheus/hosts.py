"""Checks the ``Host`` header of scrapes, so that web pages cannot read the metrics by DNS rebinding.

There a browser takes ``http://evil.example:9464`` for the page's own origin, whatever address the name has by now. An
address cannot be rebound; a name is answered only if it is known to be this machine's.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit


def name_of(header: str) -> str:
    """Return the name or address in a ``Host`` header, in lower case, "" if it holds none.

    Example:
        >>> name_of("Shop.Example:9464"), name_of("[::1]:9464"), name_of("["), name_of("")
        ('shop.example', '::1', '', '')
    """
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:  # mismatched brackets
        return ""


def is_known(header: str, names: Collection[str] = ()) -> bool:
    """Whether a request with this ``Host`` header is answered.

    Allowed are any address, ``localhost``, and the name of this machine (without DNS).

    Args:
        header: as the client has sent it.
        names: further names; ``*.example.com`` stands for all names below ``example.com``, ``*`` for any.

    Example:
        >>> is_known("10.0.0.7:9464"), is_known("evil.example:9464"), is_known("a.evil.example", ["*.evil.example"])
        (True, False, True)
    """
    name = name_of(header)
    if _is_address(name) or name in ("localhost", socket.gethostname().lower().rstrip(".")):
        return True
    return any(_fits(name, allowed.lower().strip("[]").rstrip(".")) for allowed in names)


def _fits(name: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return name.endswith(allowed[1:])
    return allowed in (name, "*")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
