"""Other processes of a program are found by their ports, and impostors are rejected."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest
from scraping import DEADLINE, free_range, targets, until

import loopwatch
from loopwatch import ConfigError
from loopwatch.telemetry import ports
from loopwatch.telemetry.prometheus import listeners, neighbours
from loopwatch.telemetry.prometheus.neighbours import Neighbour, Survey, identity

LOOPBACK = ports.resolve("127.0.0.1")
PAGE = {"loopwatch": "1.0", "pid": os.getpid(), "parent": os.getppid(), "service": "shop", "index": 3}
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list the owner of a socket")
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="takes a second user, and only root can become one"
)


def page(**fields: object) -> bytes:
    """Return an answer to ``GET /self``."""
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({**PAGE, **fields}).encode()


class Speaker:
    """Answers every request on a port with the same bytes, and counts the requests."""

    def __init__(self, port: int, answer: bytes, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.asked = 0
        self._answer = answer
        self._listener = socket.create_server((host, port), family=family)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                asked = client.recv(999)
                if asked == b"end":
                    return
                self.asked += 1
                try:
                    client.sendall(self._answer)
                except OSError:  # the client has stopped reading
                    continue

    def close(self) -> None:
        """Stop listening."""
        if self._thread.is_alive():
            with socket.create_connection(self._listener.getsockname()[:2], timeout=DEADLINE) as client:
                client.sendall(b"end")
            self._thread.join()
        self._listener.close()


@pytest.fixture
def speak() -> Iterator[Callable[..., Speaker]]:
    made: list[Speaker] = []

    def speak(port: int, answer: bytes, **options: str) -> Speaker:
        made.append(Speaker(port, answer, **options))
        return made[-1]

    yield speak
    for each in made:
        each.close()


# ------------------------------------------------------------------------------------------------ identity


def test_identity_of_an_answer() -> None:
    """Ids, service and worker index are read; the index of a process that has none is empty."""
    assert identity(page()) == Neighbour(os.getpid(), os.getppid(), "shop", "3")
    found = identity(page(index="", service='a "[{" b'))
    assert found is not None
    assert (found.index, found.service) == ("", 'a "[{" b')


HOSTILE = [
    b"",
    b"HTTP/1.1 404 Not Found\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n\r\n" + 4000 * b"[",
    b"HTTP/1.1 200 OK\r\n\r\n" + 600 * b'{"a":',
    b"HTTP/1.1 200 OK\r\n\r\n" + b'{"loopwatch":' + 3000 * b"[" + 3000 * b"]",
    b"HTTP/1.1 200 OK\r\n\r\n" + b'"' * 4000,
    b"HTTP/1.1 200 OK\r\n\r\n" + b'{"\\' * 1000,
    b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\x00",
    b"HTTP/1.1 200 OK\r\n\r\n[]",
    b"HTTP/1.1 200 OK\r\n\r\nnull",
    b"HTTP/1.1 200 OK\r\n\r\n" + b'{"pid":' + b"9" * 4000 + b"}",
    page() + b" " * neighbours.ANSWER,
    page(loopwatch=None),
    page(pid="1"),
    page(pid=True),
    page(pid=-1),
    page(pid=2**31),
    page(parent=1.5),
    page(service=None),
    page(service=["a"]),
    page(index={"a": 1}),
    page(index=None),
]


def test_hostile_answers_have_no_identity() -> None:
    """No answer makes ``identity`` raise, and one that loopwatch would not write gives None."""
    assert [answer for answer in HOSTILE if identity(answer) is not None] == []


def test_texts_are_bounded_and_on_one_line() -> None:
    """A text from a neighbour is truncated, and cannot inject terminal escapes or line breaks."""
    found = identity(page(service="a\n\x1b[2J\u202e" + "b" * 2000, index="9\r"))
    assert found is not None
    assert found.service.startswith("a\\n\\x1b[2J\\u202e" + "b")
    assert found.service.isprintable()
    assert len(found.service) < neighbours.LONGEST + 20
    assert found.index == "9\\r"


# ------------------------------------------------------------------------------------------------ listeners


@linux
@pytest.mark.parametrize(("host", "packed"), [("127.0.0.1", b"\x7f\0\0\x01"), ("::1", bytes(15) + b"\x01")])
def test_listening_sockets_are_listed(host: str, packed: bytes) -> None:
    """A listening socket is listed with address, port, owner and inode, and only while it listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        port = listener.getsockname()[1]
        inode = os.fstat(listener.fileno()).st_ino
        found = listeners.read({port})
        assert found == [listeners.Listener(packed, port, os.geteuid(), inode)]
        assert listeners.reached(found, family, host, port) == found[0]
        assert listeners.reached(found, family, host, port + 1) is None
    assert listeners.read({port}) == []


def test_which_socket_a_connection_reaches() -> None:
    """An exact address takes precedence over a wildcard, IPv4 over IPv6; other addresses on the port are ignored."""
    mapped, v4 = bytes(10) + b"\xff\xff\x7f\0\0\x01", b"\x7f\0\0\x01"
    order = [v4, mapped, bytes(4), bytes(16)]
    table = [listeners.Listener(address, 80, uid, uid) for uid, address in enumerate(order)]
    other = listeners.Listener(b"\x7f\0\0\x02", 80, 9, 9)
    for number in range(4):
        found = listeners.reached([other, *reversed(table[number:])], socket.AF_INET, "127.0.0.1", 80)
        assert found == table[number]
    assert listeners.reached([other], socket.AF_INET, "127.0.0.1", 80) is None
    found = listeners.reached([*table, other], socket.AF_INET6, "fe80::1%lo", 80)
    assert found == table[3]


def test_connection_table_is_read_up_to_the_listeners() -> None:
    """The lines of 100,000 connections are left unread, as listening sockets come first."""
    rest = b"00000000:0000 %s 00000000:00000000 00:00000000 00000000 0 0 7 1\n"
    lines = iter(
        [b" sl local_address rem_address st\n", b"0: 0100007F:0050 " + rest % b"0A"]
        + 100_000 * [b"1: 0100007F:0050 " + rest % b"01"]
    )
    assert [each.inode for each in listeners.parse(lines, {80})] == [7]
    assert len(list(lines)) > 98_000
    assert listeners.parse([b"0: zz:0050 " + rest % b"0A", b"0: 0100007F " + rest % b"0A", b"\xff"], {80}) == []


# ------------------------------------------------------------------------------------------------ survey


def test_neighbours_are_found_and_not_asked_again(
    speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is asked once while its socket listens (where the system lists it), even if it is slow to answer; a
    process that replaces it is asked anew."""
    monkeypatch.setattr(neighbours, "FRESH", 0.0)
    base = free_range(3)
    first, other = speak(base, page()), speak(base + 1, b"HTTP/1.1 200 OK\r\n\r\nhello")
    survey, span = Survey(LOOPBACK), range(base, base + 3)
    for _ in range(3):
        assert survey.find(span) == {base: Neighbour(os.getpid(), os.getppid(), "shop", "3")}
    assert (first.asked, other.asked) == (1 if sys.platform == "linux" else 3, 3)
    first.close()
    assert survey.find(span) == {}
    speak(base, page(service="second"))
    assert survey.find(span)[base].service == "second"


def test_survey_result_is_reused(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """No port is asked twice within a second."""
    monkeypatch.setattr(neighbours, "FRESH", 1000.0)
    base = free_range(1)
    silent = speak(base, b"")
    survey = Survey(LOOPBACK)
    for _ in range(5):
        assert survey.find((base,)) == {}
    assert silent.asked == 1


def test_endless_answers_are_bounded(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of megabytes is read up to its limit, and does not keep other processes from being found."""
    monkeypatch.setattr(neighbours, "TOTAL", DEADLINE)
    base = free_range(9)
    for number in range(8):
        speak(base + number, page() + 5_000_000 * b" ")
    speak(base + 8, page())
    assert set(Survey(LOOPBACK, DEADLINE).find(range(base, base + 9))) == {base + 8}


def test_mute_ports_do_not_hide_other_processes(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A search begins with the ports that the last one did not reach: forty mute ports hide no process for good."""
    monkeypatch.setattr(neighbours, "FRESH", 0.0)
    base = free_range(41)
    mute = [socket.create_server(("127.0.0.1", base + number)) for number in range(40)]
    speak(base + 40, page())
    survey = Survey(LOOPBACK)
    try:
        assert until(lambda: set(survey.find(range(base, base + 41)))) == {base + 40}
    finally:
        for each in mute:
            each.close()


def test_survey_without_free_descriptors_is_empty(
    speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a free descriptor finds no neighbours, and nothing is raised."""
    base = free_range(1)
    speak(base, page())

    def full(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(neighbours.socket, "socket", full)
        assert Survey(LOOPBACK).find((base,)) == {}
    assert set(Survey(LOOPBACK).find((base,))) == {base}


def test_owner_is_looked_up_by_pid_if_sockets_are_not_listed(
    speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that the answer names must belong to this user and listen on that port."""
    monkeypatch.setattr(listeners, "read", lambda _ports: None)
    base = free_range(5)
    speak(base, page())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        speak(base + 1, page(pid=process.pid))
        speak(base + 2, page(pid=1))
        speak(base + 3, page(pid=2**31 - 1))
        assert set(Survey(LOOPBACK).find(range(base, base + 5))) == {base}
        process.communicate(b"\n")


def test_a_forked_child_closes_the_sockets_of_a_search(speak: Callable[..., Speaker]) -> None:
    """A fork during a search leaves no socket of it in the child."""
    base = free_range(2)
    mute = socket.create_server(("127.0.0.1", base))
    survey = Survey(LOOPBACK, DEADLINE)
    thread = threading.Thread(target=survey.find, args=((base,),), name="searching")
    before = psutil.Process().num_fds()
    thread.start()
    with mute:
        client, _ = mute.accept()
        pid = os.fork()
        if not pid:
            survey.abandon()
            os._exit(psutil.Process().num_fds() - before - 1)  # but for ``client``
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        client.close()
    thread.join()


# ------------------------------------------------------------------------------------------------ install


@pytest.fixture
def uninstalled() -> Iterator[None]:
    yield
    loopwatch.uninstall()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n" + 4000 * b"[", b"", 9000 * b"\xff"])
def test_a_hostile_answer_on_the_port(
    uninstalled: None, speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """Whatever the listener on the port answers, install() only raises the error that the port is in use."""
    speaker = speak(0, answer)
    monkeypatch.setenv("LOOPWATCH_PROMETHEUS_PORT", str(speaker.port))
    with pytest.raises(ConfigError, match="is in use by another program"):
        loopwatch.install()
    assert speaker.asked == 1
    assert loopwatch.current_agent() is None


SQUAT = """
    import json, os, socket, sys
    os.setgid(65534)
    os.setgroups([])
    os.setuid(65534)
    page = dict(loopwatch="1.0", pid=int(sys.argv[1]), parent=1, service="squatter", index="")
    asked = 0
    listeners = [socket.create_server(("127.0.0.1", int(port))) for port in sys.argv[2:]]
    print("ready", flush=True)
    import selectors
    selector = selectors.DefaultSelector()
    for each in listeners:
        selector.register(each, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            client = key.fileobj.accept()[0]
            client.recv(999)
            client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + json.dumps(page).encode())
            client.close()
"""


@pytest.fixture
def squat() -> Iterator[Callable[..., None]]:
    """Make another user answer on ports as loopwatch does; not as a child of this process, which root would trust."""
    started: list[int] = []

    def squat(*squatted: int) -> None:
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            os.setsid()
            code = textwrap.dedent(SQUAT)
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(os.getppid()), *map(str, squatted)], stdout=writing
            )
            os.write(writing, f"{process.pid}\n".encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(between, 0)
        with os.fdopen(reading) as output:
            words = [output.readline().strip(), output.readline().strip()]
        started.append(int(next(word for word in words if word != "ready")))

    yield squat
    for pid in started:
        psutil.Process(pid).kill()


@as_root
def test_another_user_is_no_neighbour(
    uninstalled: None, squat: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another user adds no target, is not asked, and does not make a program choose another port."""
    base = free_range(3)
    squat(base, base + 2)
    assert Survey(LOOPBACK).find((base, base + 2)) == {}
    monkeypatch.setenv("LOOPWATCH_PROMETHEUS_PORT", str(base))
    with pytest.raises(ConfigError, match="is in use by another program"):
        loopwatch.install()
    monkeypatch.setenv("LOOPWATCH_PROMETHEUS_PORT", str(base + 1))
    agent = loopwatch.install()
    assert set(targets(agent.snapshot().agent.prometheus)) == {f"127.0.0.1:{base + 1}"}


@as_root
def test_workers_of_another_user_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was started as root finds its workers that run as another user."""
    base = free_range(1)
    code = textwrap.dedent(SQUAT)
    command = [sys.executable, "-c", code, str(os.getpid()), str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert {each.service for each in Survey(LOOPBACK).find((base,)).values()} == {"squatter"}
        process.kill()
