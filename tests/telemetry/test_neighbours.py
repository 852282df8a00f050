"""Other processes of a program are found by their ports, and what pretends to be one is not believed."""

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
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list who owns a socket")
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="takes a second user, and only root can become one"
)


def page(**fields: object) -> bytes:
    """Return an answer to ``GET /self``."""
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({**PAGE, **fields}).encode()


class Speaker:
    """Answers whatever it is asked on a port with the same bytes, and counts."""

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
                except OSError:  # it has heard enough
                    continue

    def close(self) -> None:
        """Listen no more."""
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


# ------------------------------------------------------------------------------------------------ what is said


def test_a_page_says_who_it_is() -> None:
    """Ids, service and number arrive; a number that is a text does too, and one that is none is ""."""
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


def test_hostile_pages_are_none() -> None:
    """Whatever a page holds, nothing is raised, and what is not as loopwatch writes it is nobody."""
    assert [answer for answer in HOSTILE if identity(answer) is not None] == []


def test_texts_are_bounded_and_on_one_line() -> None:
    """A text of a neighbour is cut, and cannot steer a terminal or forge a line."""
    found = identity(page(service="a\n\x1b[2J\u202e" + "b" * 2000, index="9\r"))
    assert found is not None
    assert found.service.startswith("a\\n\\x1b[2J\\u202e" + "b")
    assert found.service.isprintable()
    assert len(found.service) < neighbours.LONGEST + 20
    assert found.index == "9\\r"


# ------------------------------------------------------------------------------------------------ who listens


@linux
@pytest.mark.parametrize(("host", "packed"), [("127.0.0.1", b"\x7f\0\0\x01"), ("::1", bytes(15) + b"\x01")])
def test_the_kernel_lists_who_listens(host: str, packed: bytes) -> None:
    """A socket that listens is listed with address, port, owner and inode, and only while it does."""
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
    """An exact address goes before a wildcard, IPv4 before IPv6; other addresses of the port do not count."""
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


def test_a_table_of_connections_is_not_read_to_its_end() -> None:
    """The lines of a hundred thousand connections are left unread: those that listen stand before them."""
    rest = b"00000000:0000 %s 00000000:00000000 00:00000000 00000000 0 0 7 1\n"
    lines = iter(
        [b" sl local_address rem_address st\n", b"0: 0100007F:0050 " + rest % b"0A"]
        + 100_000 * [b"1: 0100007F:0050 " + rest % b"01"]
    )
    assert [each.inode for each in listeners.parse(lines, {80})] == [7]
    assert len(list(lines)) > 98_000
    assert listeners.parse([b"0: zz:0050 " + rest % b"0A", b"0: 0100007F " + rest % b"0A", b"\xff"], {80}) == []


# ------------------------------------------------------------------------------------------------ who is found


def test_neighbours_are_found_and_not_asked_again(
    speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is asked once for as long as its socket listens (where the system lists it), however long it is silent;
    another in its place is asked anew."""
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


def test_an_answer_serves_for_a_while(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a second nobody is asked twice."""
    monkeypatch.setattr(neighbours, "FRESH", 1000.0)
    base = free_range(1)
    nobody = speak(base, b"")
    survey = Survey(LOOPBACK)
    for _ in range(5):
        assert survey.find((base,)) == {}
    assert nobody.asked == 1


def test_endless_answers_end(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of megabytes is read to its bound, and does not keep others from being found."""
    monkeypatch.setattr(neighbours, "TOTAL", DEADLINE)
    base = free_range(9)
    for number in range(8):
        speak(base + number, page() + 5_000_000 * b" ")
    speak(base + 8, page())
    assert set(Survey(LOOPBACK, DEADLINE).find(range(base, base + 9))) == {base + 8}


def test_mute_ports_do_not_hide_others_for_long(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next search begins with ports that the last one did not get to: forty mute ones hide nobody for good."""
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


def test_without_descriptors_nobody_is_found(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no descriptor left for a search goes without, and nothing is raised."""
    base = free_range(1)
    speak(base, page())

    def full(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(neighbours.socket, "socket", full)
        assert Survey(LOOPBACK).find((base,)) == {}
    assert set(Survey(LOOPBACK).find((base,))) == {base}


def test_where_owners_are_not_listed(speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    """There the process that a page names is looked up: it must be this user's and listen on that port."""
    monkeypatch.setattr(listeners, "read", lambda _ports: None)
    base = free_range(5)
    speak(base, page())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        speak(base + 1, page(pid=process.pid))
        speak(base + 2, page(pid=1))
        speak(base + 3, page(pid=2**31 - 1))
        assert set(Survey(LOOPBACK).find(range(base, base + 5))) == {base}
        process.communicate(b"\n")


def test_a_forked_child_closes_its_copies(speak: Callable[..., Speaker]) -> None:
    """A fork in the midst of a search leaves no socket of it in the child."""
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
def test_a_hostile_page_on_the_port(
    uninstalled: None, speak: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """Whatever has the port says, install() raises no other error than that the port is in use."""
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
    """Have another user answer on ports as loopwatch does; not as our child, of which root would believe it."""
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
        with os.fdopen(reading) as said:
            words = [said.readline().strip(), said.readline().strip()]
        started.append(int(next(word for word in words if word != "ready")))

    yield squat
    for pid in started:
        psutil.Process(pid).kill()


@as_root
def test_another_user_is_no_neighbour(
    uninstalled: None, squat: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's page adds no target, is not even asked, and makes no program take another port than its own."""
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
        assert {who.service for who in Survey(LOOPBACK).find((base,)).values()} == {"squatter"}
        process.kill()
