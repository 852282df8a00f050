"""A stand-in for Grafana's HTTP API that enforces its documented rules for folders and dashboards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "glsa_0123456789abcdefghijklmnopqrstuv_01234567"
VIEWER = "glsa_vwvwvwvwvwvwvwvwvwvwvwvwvwvwvwvw_89abcdef"

DASHBOARD_KEYS = {"dashboard", "folderUid", "overwrite", "message"}
FOLDER_KEYS = {"uid", "title", "parentUid", "description"}


@dataclass
class StandIn:
    """Its folders and dashboards, and the requests it received.

    Attributes:
        path: URL path under which Grafana is served, "" for none.
        folders: title by uid.
        saved: body of the latest request for each dashboard, by its uid.
        asked: (method, path with query) of each request.
        answers: canned answers by path: (status, headers, body); they win over its own.
        port: the port it listens on.
    """

    path: str = ""
    folders: dict[str, str] = field(default_factory=dict)
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[str, tuple[int, Mapping[str, str], bytes]] = field(default_factory=dict)
    port: int = 0

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        """Return status and JSON."""
        parts = urlsplit(target)
        path = parts.path.removeprefix(self.path)
        if headers.get("Authorization") not in (f"Bearer {TOKEN}", f"Bearer {VIEWER}"):
            return 401, {"message": "Invalid API key", "messageId": "api-key.invalid", "statusCode": 401}
        if not parts.path.startswith(f"{self.path}/api/"):
            return 404, {"message": "Not found"}
        if method == "GET" and path == "/api/folders":
            return 200, self._listed(parse_qs(parts.query))
        if method != "POST" or path not in ("/api/folders", "/api/dashboards/db"):
            return 404, {"message": "Not found"}
        if headers.get("Authorization") == f"Bearer {VIEWER}":
            return 403, {"message": "You'll need additional permissions to perform this action."}
        if headers.get("Content-Type") != "application/json":
            return 400, {"message": "bad request data"}
        try:
            given = json.loads(body)
        except ValueError:
            return 400, {"message": "bad request data"}
        return self._new_folder(given) if path == "/api/folders" else self._save(given)

    def _listed(self, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        limit, page = (int(query.get(name, [default])[0]) for name, default in (("limit", "1000"), ("page", "1")))
        every = [{"id": at, "uid": uid, "title": title} for at, (uid, title) in enumerate(self.folders.items(), 1)]
        return every[(page - 1) * limit : page * limit]

    def _new_folder(self, given: Any) -> tuple[int, Any]:
        if not isinstance(given, dict) or not set(given) <= FOLDER_KEYS:
            return 400, {"message": "bad request data"}
        if not given.get("title"):
            return 400, {"message": "folder title cannot be empty"}
        if given["title"] in self.folders.values():
            return 409, {"message": "a folder with the same name already exists in the current location"}
        uid = given.get("uid") or f"f{len(self.folders) + 1:09}"
        self.folders[uid] = given["title"]
        return 200, {"id": len(self.folders), "uid": uid, "title": given["title"], "version": 1}

    def _save(self, given: Any) -> tuple[int, Any]:
        if (
            not isinstance(given, dict)
            or not set(given) <= DASHBOARD_KEYS
            or not isinstance(given.get("dashboard"), dict)
        ):
            return 400, {"message": "bad request data"}
        dashboard = given["dashboard"]
        if not dashboard.get("title"):
            return 400, {"message": "Dashboard title cannot be empty", "status": "empty-name"}
        uid = dashboard.get("uid") or "made"
        if len(uid) > 40:
            return 400, {"message": "uid too long, max 40 characters"}
        if dashboard.get("id") is not None:
            return 404, {"message": "Dashboard not found", "status": "not-found"}
        if given.get("folderUid") and given["folderUid"] not in self.folders:
            return 400, {"message": "folder not found", "status": "not-found"}
        if uid in self.saved and given.get("overwrite") is not True:
            return 412, {"status": "version-mismatch", "message": "The dashboard has been changed by someone else"}
        self.saved[uid] = given
        return 200, {
            "id": len(self.saved),
            "uid": uid,
            "url": f"{self.path}/d/{uid}/slug",
            "status": "success",
            "version": 1,
        }


@contextmanager
def served(grafana: StandIn) -> Iterator[StandIn]:
    """Serve ``grafana`` on a free port during the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            grafana.asked.append((self.command, self.path))
            canned = grafana.answers.get(urlsplit(self.path).path)
            if canned is not None:
                status, headers, content = canned
            else:
                status, found = grafana.answer(self.command, self.path, self.headers, body)
                headers, content = {"Content-Type": "application/json"}, json.dumps(found).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _handle

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    grafana.port = server.server_address[1]
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield grafana
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
