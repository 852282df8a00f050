"""Finds the other processes of a program that Prometheus scrapes, by the ports on which they listen.

Any program may answer on a port. So only answers of processes of the same user (or of root) count, and they are read
with bounds on size, depth and time. Linux lists the owner of every listening socket; elsewhere the process named in an
answer is checked: it must be the same user's, and listen on that port.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import selectors
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import psutil

from loopwatch.core import descriptors
from loopwatch.core.originals import time
from loopwatch.core.text import printable
from loopwatch.telemetry.ports import Address
from loopwatch.telemetry.prometheus import listeners
from loopwatch.telemetry.prometheus.listeners import Listener

AT_ONCE = 4
"""Sockets of one search at a time."""
PATIENCE = 0.25
"""Seconds that a process has to answer; one that is kept from it is asked again by a later search, after others."""
WHILE_STARTING = 0.5
"""The same for the process on the port that a starting program is to get."""
TOTAL = 1.0
"""Seconds that a search may take."""
FRESH = 1.0
"""Seconds for which the result of a search is reused."""
ANSWER = 4096
"""Bytes of an answer at most."""
LONGEST = 256
"""Characters of a text in it at most."""
_NOTICE = 0.05
"""Seconds within which a search ends once its result is not wanted any more."""
_OPENING = re.compile(rb"[\[{]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A process's answer about itself.

    Attributes:
        pid, parent: process ids, as it sees them.
        service: its ``service.name``.
        index: its number among the workers of its parent, "" if it has none.
    """

    pid: int
    parent: int
    service: str
    index: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A possible neighbour: an address, and the socket that listens there, None if it is not known."""

    family: socket.AddressFamily
    address: tuple[str | int, ...]
    port: int
    listener: Listener | None


class _Talk:
    """One exchange with a candidate."""

    def __init__(self, candidate: _Candidate, client: socket.socket, patience: float) -> None:
        self.candidate, self.client = candidate, client
        self.mark = descriptors.mark(client.fileno())
        self.ends = time.monotonic() + patience
        self.is_asked = False
        self.heard = b""

    def go_on(self) -> bool:
        """Send or receive; return whether it is over.

        Raises:
            OSError: nobody listens there, or it hung up.
        """
        if not self.is_asked:
            self.is_asked = True
            self.client.sendall(b"GET /self HTTP/1.0\r\n\r\n")  # a few bytes always fit
            return False
        data = self.client.recv(ANSWER)
        self.heard += data
        return not data or len(self.heard) > ANSWER


class Survey:
    """Finds the neighbours of this process; for one thread at a time.

    A process that has answered is not asked again for as long as its socket listens.

    Args:
        addresses: where they listen, as :func:`loopwatch.telemetry.ports.resolve` returned them.
        patience: seconds that a process has to answer.
    """

    def __init__(self, addresses: Sequence[Address], patience: float = PATIENCE) -> None:
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        self._hosts = [
            (family, str(everywhere.get(address[0], address[0])), address[2:]) for family, address in addresses
        ]
        self._patience = patience
        self._talks: list[_Talk] = []
        self._known: dict[Listener, Neighbour] = {}
        self._times_asked: dict[_Candidate, int] = {}
        self._found: Mapping[int, Neighbour] = {}
        self._fresh_until = -1.0

    def find(self, ports: Collection[int], wanted: Callable[[], bool] = lambda: True) -> Mapping[int, Neighbour]:
        """Return the neighbours by port; a result of the last second is reused.

        Args:
            ports: to search, the same at each call.
            wanted: asked now and then; once it returns False, the search ends.
        """
        if time.monotonic() >= self._fresh_until:
            found = self._search(ports, wanted)
            if not wanted():
                return found
            self._found, self._fresh_until = found, time.monotonic() + FRESH
        return self._found

    def abandon(self) -> None:
        """Close, in a forked child, its copies of the sockets of a search that was under way."""
        while self._talks:
            self._end(self._talks[-1])

    def _search(self, ports: Collection[int], wanted: Callable[[], bool]) -> dict[int, Neighbour]:
        candidates = list(self._candidates(ports))
        asked = [each for each in candidates if each.listener not in self._known]
        self._times_asked = {each: self._times_asked.get(each, 0) for each in asked}
        said = self._ask(sorted(asked, key=lambda each: self._times_asked[each]), wanted)
        # An answer counts for the socket seen before only if that one still listens.
        after = listeners.read(ports) if said else []
        for candidate, neighbour in said.items():
            if candidate.listener is not None and candidate.listener in (after or []):
                self._known[candidate.listener] = neighbour
        present = {each.listener for each in candidates}
        self._known = {listener: who for listener, who in self._known.items() if listener in present}
        found: dict[int, Neighbour] = {}
        for candidate in candidates:
            if candidate.listener is not None:
                who = self._known.get(candidate.listener)
            else:
                who = said.get(candidate)
                who = who if who is not None and listens(who.pid, candidate.port) else None
            if who is not None:
                found.setdefault(candidate.port, who)
        return found

    def _candidates(self, ports: Collection[int]) -> Iterator[_Candidate]:
        """Return the addresses where a neighbour may listen."""
        listening = listeners.read(ports)
        users = set() if listening is None else _users({each.uid for each in listening})
        for family, host, scope in self._hosts:
            for port in ports:
                address = (host, port, *scope)
                if listening is None:
                    yield _Candidate(family, address, port, None)
                    continue
                listener = listeners.reached(listening, family, host, port)
                if listener is not None and listener.uid in users:
                    yield _Candidate(family, address, port, listener)

    # -- requests -------------------------------------------------------------------------------------------------

    def _ask(self, candidates: Sequence[_Candidate], wanted: Callable[[], bool]) -> dict[_Candidate, Neighbour]:
        """Ask ``candidates`` about themselves, a few at a time; return the answers of loopwatch processes."""
        said: dict[_Candidate, Neighbour] = {}
        waiting = deque(candidates)
        ends = time.monotonic() + TOTAL
        # Neither epoll nor kqueue: a forked child would share it.
        with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
            try:
                while wanted() and (now := time.monotonic()) < ends:
                    for talk in [talk for talk in self._talks if talk.ends <= now]:
                        self._end(talk, selector)
                    while waiting and len(self._talks) < AT_ONCE and self._begin(waiting.popleft(), selector):
                        pass
                    if not self._talks:
                        break
                    for key, _ in selector.select(_NOTICE):
                        talk = key.data
                        if self._go_on(talk, selector):
                            who = identity(talk.heard)
                            if who is not None:
                                said[talk.candidate] = who
            finally:
                for talk in self._talks[:]:
                    self._end(talk, selector)
        return said

    def _begin(self, candidate: _Candidate, selector: selectors.BaseSelector) -> bool:
        """Connect; return False if there can be no more sockets."""
        try:
            client = socket.socket(candidate.family, socket.SOCK_STREAM)
        except OSError as exc:
            return exc.errno == errno.EAFNOSUPPORT
        talk = _Talk(candidate, client, self._patience)
        self._times_asked[candidate] += 1
        self._talks.append(talk)
        client.setblocking(False)
        selector.register(client, selectors.EVENT_WRITE, talk)
        if client.connect_ex(candidate.address) not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._end(talk, selector)
        return True

    def _go_on(self, talk: _Talk, selector: selectors.BaseSelector) -> bool:
        """Continue an exchange; return whether it is over."""
        try:
            is_over = talk.go_on()
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        if is_over:
            self._end(talk, selector)
        else:
            selector.modify(talk.client, selectors.EVENT_READ, talk)
        return is_over

    def _end(self, talk: _Talk, selector: selectors.BaseSelector | None = None) -> None:
        self._talks.remove(talk)
        if selector is not None:
            with contextlib.suppress(KeyError, ValueError):  # it was never registered
                selector.unregister(talk.client)
        descriptors.close_socket(talk.client, talk.mark)


def identity(answer: bytes) -> Neighbour | None:
    """Return the sender of an answer to ``GET /self``, None if it is not loopwatch.

    Example:
        >>> body = b'{"loopwatch": "1.0", "pid": 42, "parent": 1, "service": "shop", "index": 0}'
        >>> identity(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + body)
        Neighbour(pid=42, parent=1, service='shop', index='0')
        >>> identity(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + 4000 * b"[") is None
        True
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    if len(answer) > ANSWER or b" 200 " not in head.partition(b"\r\n")[0]:
        return None
    if len(_OPENING.findall(_STRING.sub(b"", body))) != 1:  # a flat object cannot exhaust the parser's stack
        return None
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("loopwatch"), str):
        return None
    pid, parent, service, index = (said.get(name) for name in ("pid", "parent", "service", "index"))
    if not (_is_pid(pid) and _is_pid(parent)):
        return None
    if not isinstance(service, str) or not isinstance(index, str | int):
        return None
    return Neighbour(pid, parent, printable(service[:LONGEST]), printable(str(index)[:LONGEST]))


def _is_pid(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**31


# ----------------------------------------------------------------------------------------------- owners


def _users(seen: set[int]) -> set[int]:
    """Return the users whose processes count: this one's, root, and for root those of its own children.

    A server that was started as root may run its workers as another user.

    Args:
        seen: users of the listening sockets; if all are known already, the children are not searched.
    """
    users = {0, os.geteuid()}
    if os.geteuid() == 0 and not seen <= users:
        for child in psutil.Process().children(recursive=True):
            try:
                users.add(child.uids().effective)
            except psutil.Error:  # it has just ended
                continue
    return users


def listens(pid: int, port: int) -> bool:
    """Whether process ``pid`` is this user's and listens on ``port``, as far as the system says."""
    try:
        process = psutil.Process(pid)
        if process.username() != psutil.Process().username():
            return False
        connections = getattr(process, "net_connections", None) or process.connections
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections("tcp"))
    except (psutil.Error, OSError, KeyError):  # it has ended, or access is denied
        return False


def gives_way(port: int, addresses: Sequence[Address]) -> bool:
    """Whether ``port`` is taken by a related process, so that this program may use the next port.

    That is loopwatch in an ancestor of this process; or any loopwatch where the port comes from the environment, which
    every process of a session or container may have inherited.
    """
    from_environment = os.environ.get("LOOPWATCH_PROMETHEUS_PORT", "").strip() == str(port)
    return any(
        from_environment or _is_relative(who) for who in Survey(addresses, WHILE_STARTING).find((port,)).values()
    )


def _is_relative(who: Neighbour) -> bool:
    if who.pid in _ancestors():
        return True
    # Outside Linux a forked worker is not recognised as one: see ports.is_worker.
    return not Path("/proc/self/stat").exists() and who.parent == os.getppid() != 1


def _ancestors() -> list[int]:
    found: list[int] = []
    pid = os.getppid()
    while pid > 1 and len(found) < 64:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
