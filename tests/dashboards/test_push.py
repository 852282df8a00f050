"""``loopwatch dashboards push``: the requests to Grafana, and the errors when it refuses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import committed
from stand_in import TOKEN, VIEWER, StandIn, served

from loopwatch import __version__
from loopwatch.cli import grafana as grafana_module
from loopwatch.cli import main
from loopwatch.cli.grafana import Grafana
from loopwatch.errors import LoopwatchError

BOARDS = committed()


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the token and proxies of the environment in which the tests run."""
    for name in ("GRAFANA_TOKEN", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def grafana() -> Iterator[StandIn]:
    with served(StandIn()) as server:
        yield server


def push(*arguments: str) -> int:
    return main.main(["dashboards", "push", *arguments])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error of one line, without the program's name; the token is never in it."""
    out, err = capsys.readouterr()
    assert err.startswith("loopwatch: ") and err.endswith("\n") and err.count("\n") == 1
    assert TOKEN not in out + err and VIEWER not in out + err
    return err.removeprefix("loopwatch: ").rstrip("\n")


def test_push_saves_all_dashboards(
    grafana: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four are saved in the folder, which is created; a second push replaces them and creates no second folder."""
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    assert push("--url", grafana.url) == 0
    assert list(grafana.folders.values()) == ["loopwatch"]
    (uid,) = grafana.folders
    assert set(grafana.saved) == set(BOARDS)
    for name, body in grafana.saved.items():
        assert body["dashboard"] == {**BOARDS[name], "id": None}
        assert (body["folderUid"], body["overwrite"], body["message"]) == (uid, True, f"loopwatch {__version__}")
    out, err = capsys.readouterr()
    assert err == ""
    titles = {BOARDS[name]["title"]: name for name in BOARDS}
    assert {line.partition(": ")[0] for line in out.splitlines()} == set(titles)
    assert f"loopwatch / Loop: {grafana.url}/d/loopwatch-loop/slug\n" in out

    grafana.asked.clear()
    assert push("--url", f"{grafana.url}/", "--token", TOKEN) == 0
    assert list(grafana.folders.values()) == ["loopwatch"]
    assert [method for method, _ in grafana.asked] == ["GET", *["POST"] * 4]


def test_an_existing_folder_is_used(grafana: StandIn) -> None:
    """That holds also on a later page of the list; an empty name means no folder."""
    grafana.folders.update({f"x{number}": f"folder {number}" for number in range(1500)})
    assert push("--url", grafana.url, "--token", TOKEN, "--folder", "folder 1400") == 0
    assert {body["folderUid"] for body in grafana.saved.values()} == {"x1400"}
    assert len(grafana.folders) == 1500
    assert push("--url", grafana.url, "--token", TOKEN, "--folder", "") == 0
    assert all("folderUid" not in body for body in grafana.saved.values())
    assert push("--url", grafana.url, "--token", TOKEN, "--folder", "Grüße & mehr") == 0
    assert "Grüße & mehr" in grafana.folders.values()


def test_grafana_under_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    """Requests and addresses of a Grafana that is served under a path have the path once."""
    with served(StandIn(path="/ops/grafana")) as grafana:
        assert push("--url", grafana.url, "--token", TOKEN) == 0
        assert all(path.startswith("/ops/grafana/api/") for _, path in grafana.asked)
        assert f"{grafana.url}/d/loopwatch-overview/slug" in capsys.readouterr().out
        assert push("--url", f"http://127.0.0.1:{grafana.port}", "--token", TOKEN) == 2
        assert "404" in refused(capsys)


def test_no_token(grafana: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a valid token no request is sent."""
    assert push("--url", grafana.url) == 2
    assert refused(capsys).startswith("no token: ")
    assert push("--url", grafana.url, "--token", "two words") == 2
    assert "two words" not in refused(capsys)
    assert grafana.asked == []


@pytest.mark.parametrize(
    ("token", "path", "answer", "words"),
    [
        ("wrong", "", None, "GET {url}/api/folders: 401 Invalid API key; is it a token of this Grafana"),
        (
            VIEWER,
            "",
            None,
            "POST {url}/api/folders: 403 You'll need additional permissions to perform this action.; the",
        ),
        (
            TOKEN,
            "/api/dashboards/db",
            (404, {"message": "Not found"}),
            "loopwatch / Loop: POST {url}/api/dashboards/db: 404",
        ),
        (
            TOKEN,
            "/api/dashboards/db",
            (412, {"message": "The dashboard belongs to plugin X.", "status": "plugin-dashboard"}),
            "loopwatch / Loop: POST {url}/api/dashboards/db: 412 The dashboard belongs to plugin X.",
        ),
        (
            TOKEN,
            "/api/dashboards/db",
            (400, {"message": "Cannot save provisioned dashboard"}),
            "loopwatch / Loop: POST {url}/api/dashboards/db: 400 Cannot save provisioned dashboard",
        ),
        (TOKEN, "/api/folders", (409, {"message": "a folder exists"}), "GET {url}/api/folders: 409 a folder exists"),
        (TOKEN, "/api/folders", (502, b"<html>Bad"), "GET {url}/api/folders: 502 Bad Gateway"),
        (TOKEN, "/api/folders", (500, [1]), "GET {url}/api/folders: 500 Internal Server Error"),
        (TOKEN, "/api/folders", (200, b"<html>Welcome</html>"), "GET {url}/api/folders: the answer is not JSON"),
        (TOKEN, "/api/folders", (200, {"no": "list"}), "GET {url}/api/folders: the answer is not what Grafana gives"),
        (
            TOKEN,
            "/api/dashboards/db",
            (200, []),
            "loopwatch / Loop: POST {url}/api/dashboards/db: the answer is not what",
        ),
        (
            TOKEN,
            "/api/folders",
            (400, {"message": f"bad\n token\x1b[31m {TOKEN}"}),
            "GET {url}/api/folders: 400 bad token?[31m ***",
        ),
    ],
)
def test_refusals_are_errors_of_one_line(
    grafana: StandIn, capsys: pytest.CaptureFixture[str], *, token: str, path: str, answer: object, words: str
) -> None:
    """It has method, address, status and Grafana's message, which cannot break the line or show the token."""
    if isinstance(answer, tuple):
        status, body = answer
        grafana.answers[path] = (status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert push("--url", grafana.url, "--token", token) == 2
    assert refused(capsys).startswith(words.format(url=grafana.url))


def test_a_redirect_is_not_followed(grafana: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """The token is only sent to the given address."""
    with served(StandIn()) as elsewhere:
        location = {"Location": f"{elsewhere.url}/api/folders"}
        for status in (301, 302, 303, 307, 308):
            grafana.answers["/api/folders"] = (status, location, b"")
            assert push("--url", grafana.url, "--token", TOKEN) == 2
            assert f"{status}, it has moved to {elsewhere.url}" in refused(capsys)
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "grafana.example.com",
        "ftp://grafana.example.com",
        "file:///etc/passwd",
        "https://",
        "http://host:port",
        "http://host/?orgId=1",
        "http://host/#top",
        "http://user:secret@host",
        "http://host\n/x",
        "",
    ],
)
def test_bad_addresses(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid address is rejected before anything is sent, without showing secrets in it."""
    assert push("--url", url, "--token", TOKEN) == 2
    line = refused(capsys)
    assert line.startswith("--url ") and "such as https://grafana.example.com" in line and "secret" not in line


def test_an_unreachable_grafana_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A port without a listener and an unknown name are errors of one line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert push("--url", f"http://127.0.0.1:{port}", "--token", TOKEN) == 2
    assert refused(capsys) == f"GET http://127.0.0.1:{port}/api/folders: Connection refused"
    assert push("--url", "http://grafana.invalid", "--token", TOKEN) == 2
    assert refused(capsys).startswith("GET http://grafana.invalid/api/folders: ")


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[", None])
def test_broken_servers(
    reply: bytes | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that disconnects, is no HTTP server, ends too early or never answers is an error of one line."""
    monkeypatch.setattr(grafana_module, "TIMEOUT", 5.0 if reply is not None else 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                if reply is None:
                    connection.recv(1)  # until the client gives up
                else:
                    connection.sendall(reply)

        answering = threading.Thread(target=answer)
        answering.start()
        port = listening.getsockname()[1]
        assert push("--url", f"http://127.0.0.1:{port}", "--token", TOKEN) == 2
        answering.join()
    line = refused(capsys)
    assert line.startswith(f"GET http://127.0.0.1:{port}/api/folders: ")
    if reply is None:
        assert line.endswith("no answer within 0 s")


def test_certificates_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrusted certificate is rejected before the token is sent; SSL_CERT_FILE can make it trusted."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    if shutil.which("openssl") is None or subprocess.run(make, capture_output=True, check=False).returncode:
        pytest.skip("openssl cannot make a certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    received: list[bytes] = []

    def answer(times: int) -> None:
        for _ in range(times):
            connection, _ = listening.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    received.append(secure.recv(65536))
                    secure.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            except OSError:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=answer, args=(2,))
        answering.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        assert push("--url", url, "--token", TOKEN) == 2
        assert "its certificate is not trusted" in refused(capsys)
        assert received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert push("--url", url, "--token", TOKEN) == 2
        assert refused(capsys).startswith(f"GET {url}/api/folders: 500")
        answering.join()
    assert f"Authorization: Bearer {TOKEN}".encode() in received[0]


def test_the_token_is_in_no_error_of_the_client() -> None:
    """That holds also if the client is used without the command line."""
    with served(StandIn()) as grafana:
        client = Grafana(grafana.url, f"{TOKEN}\n")
        uid = client.folder("mine")
        assert client.folder("mine") == uid
        address = client.save({"uid": "one", "title": "One", "panels": []}, uid, "first")
        assert address == f"{grafana.url}/d/one/slug"
        with pytest.raises(LoopwatchError) as raised:
            client.save({"uid": "x" * 41, "title": "Two"}, uid, "too long")
    assert str(raised.value) == f"Two: POST {grafana.url}/api/dashboards/db: 400 uid too long, max 40 characters"
    assert TOKEN not in repr(vars(raised.value)) + str(raised.value.__context__)


def test_as_a_program(grafana: StandIn, tmp_path: Path) -> None:
    """The command takes the token from the environment, prints the addresses, and exits with 0."""
    environ = {**os.environ, "GRAFANA_TOKEN": TOKEN}
    command = [sys.executable, "-m", "loopwatch", "dashboards", "push", "--url", grafana.url, "--folder", "Services"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 4)
    assert len(grafana.saved) == 4
