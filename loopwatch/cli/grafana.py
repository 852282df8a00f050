"""A minimal client of Grafana's HTTP API: folders, and dashboards in them. Standard library only."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from loopwatch.errors import LoopwatchError

TIMEOUT = 30.0
"""Seconds to wait for one response."""
_LONGEST = 16 * 1024 * 1024
"""Bytes read of a response at most."""
_PAGE = 1000
"""Folders per request; Grafana's maximum."""

_ADVICE = {
    401: "is it a token of this Grafana, and not expired",
    403: "the token's service account needs the role Editor",
    404: "is this the address of Grafana, with its path",
}


class Grafana:
    """One Grafana, accessed with the token of a service account.

    Args:
        url: its address, with its path if it has one.
        token: of a service account that may edit; never shown in an error.

    Raises:
        LoopwatchError: the address or the token is invalid.

    Example:
        >>> grafana = Grafana("https://grafana.example.com", "glsa_secret")
        >>> board = {"uid": "mine", "title": "Mine", "panels": []}
        >>> grafana.save(board, grafana.folder("loopwatch"), "first version")  # doctest: +SKIP
        'https://grafana.example.com/d/mine/mine'
    """

    def __init__(self, url: str, token: str) -> None:
        self._root = _address(url)
        self._token = _usable(token)
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        self._opener = urllib.request.build_opener(_NoRedirect, tls)

    def folder(self, title: str) -> str:
        """Return the uid of the top-level folder with this title; it is created if there is none."""
        page = 1
        while folders := self._ask("GET", f"/api/folders?limit={_PAGE}&page={page}", list):
            for folder in folders:
                if folder.get("title") == title:
                    return str(folder["uid"])
            if len(folders) < _PAGE:
                break
            page += 1
        return str(self._ask("POST", "/api/folders", dict, {"title": title})["uid"])

    def save(self, dashboard: Mapping[str, Any], folder: str | None, message: str) -> str:
        """Save a dashboard in place of the one with its uid, and return its address.

        Args:
            dashboard: as exported, without ``id``.
            folder: uid of a folder, None for none.
            message: description of this version in the dashboard's history.
        """
        body: dict[str, Any] = {"dashboard": {**dashboard, "id": None}, "overwrite": True, "message": message}
        if folder is not None:
            body["folderUid"] = folder
        answer = self._ask("POST", "/api/dashboards/db", dict, body, f"{dashboard['title']}: ")
        path = str(answer.get("url", f"/d/{dashboard['uid']}"))
        # If Grafana is served under a path, its answer includes that path.
        at = urlsplit(self._root)
        return f"{at.scheme}://{at.netloc}{path}" if path.startswith(f"{at.path}/") else f"{self._root}{path}"

    def _ask(self, method: str, path: str, kind: type[Any], body: Any = None, subject: str = "") -> Any:
        """Send a request and return the JSON of the response."""
        address = f"{self._root}{path}"
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(address, data, headers, method=method)
        asked = f"{subject}{method} {address.partition('?')[0]}"
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                answer = json.loads(response.read(_LONGEST))
        except urllib.error.HTTPError as exc:
            with exc:
                raise self._refused(asked, exc) from None
        except urllib.error.URLError as exc:
            raise LoopwatchError(f"{asked}: {self._reason(exc.reason)}") from None
        except ValueError:
            raise LoopwatchError(f"{asked}: the answer is not JSON; is this the address of Grafana") from None
        except (OSError, http.client.HTTPException) as exc:
            raise LoopwatchError(f"{asked}: {self._reason(exc)}") from None
        if not isinstance(answer, kind):
            raise LoopwatchError(f"{asked}: the answer is not what Grafana gives; is this its address")
        return answer

    def _refused(self, asked: str, exc: urllib.error.HTTPError) -> LoopwatchError:
        if exc.code in _REDIRECTS:
            there = self._clean(exc.headers.get("Location", ""))
            return LoopwatchError(f"{asked}: {exc.code}, it has moved to {there}; give the address that is meant")
        try:
            said = json.loads(exc.read(_LONGEST))["message"]
        except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
            said = exc.reason
        advice = f"; {_ADVICE[exc.code]}" if exc.code in _ADVICE else ""
        return LoopwatchError(f"{asked}: {exc.code} {self._clean(str(said))}{advice}")

    def _reason(self, exc: object) -> str:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({exc.verify_message}); SSL_CERT_FILE can name your authority's"
        if isinstance(exc, TimeoutError):
            return f"no answer within {TIMEOUT:.0f} s"
        if isinstance(exc, OSError) and exc.strerror:
            return exc.strerror
        return self._clean(f"{type(exc).__name__}: {exc}" if isinstance(exc, Exception) else str(exc))

    def _clean(self, text: str) -> str:
        """Return untrusted text as one line of printable characters, without the token."""
        line = " ".join(text.replace(self._token, "***").split())[:500]
        return "".join(char if char.isprintable() else "?" for char in line)


_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is meant for one address, and a POST would become a GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return no request, so that the redirect is an error."""
        return None


def _address(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        fits = False
    if not fits or parts.username or parts.query or parts.fragment or not url.strip().isprintable():
        shown = repr(url) if "@" not in url else "an address with a user in it"
        raise LoopwatchError(f"--url {shown}: must be the address of Grafana, such as https://grafana.example.com")
    return url.strip().rstrip("/")


def _usable(token: str) -> str:
    found = token.strip()
    if not found:
        raise LoopwatchError("no token: make one for a service account in Grafana, and put it into GRAFANA_TOKEN")
    if not found.isascii() or not found.isprintable() or " " in found:
        raise LoopwatchError("the token has characters that none has; is it the whole token, and only that")
    return found
