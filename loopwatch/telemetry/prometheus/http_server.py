"""A small HTTP server for a few scrapers: one thread, which sleeps between requests, serves all of them in turn.

So the work never multiplies; a slow, silent or endless client costs a descriptor for some seconds, and their number is
bounded. It supports GET and HEAD, and closes each connection after its answer.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loopwatch.core import descriptors
from loopwatch.core.originals import time
from loopwatch.core.threads.own_thread import OwnThread

MOST = 16
"""Connections at a time; for another one the oldest is closed."""
PATIENCE = 5.0
"""Seconds that a client has to send its request, and again to take its answer."""
LINGER = 1.0
"""Seconds that a client has to close after its answer; closing first would discard data not yet read (tcp(7))."""
LONGEST = 8192
"""Bytes that a request may have."""
REST = 1.0
"""Seconds without new connections when the process has no descriptor left for one."""

SHARE = 4
"""How much longer a thread of the server rests than it has worked: a flood costs no more than a fifth of a core."""
LONGEST_REST = 0.02
"""Seconds of rest at most; longer work is limited by the code that does it."""

_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error",
    403: "Forbidden", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request.

    Attributes:
        method, path: the path without its query.
        headers: by name in lower case.
        turn: the same for requests handled together: a result computed for one of them is no older for the others.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request.

    Attributes:
        status: of HTTP.
        body: as it is sent.
        headers: beside those of every answer.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Search = Callable[[Callable[[], bool]], Response]
"""Finds an answer in a thread of its own, because it takes long; its argument returns False once nobody waits."""
Answer = Response | Search
"""A response, or the search that finds it."""


def text(status: int, words: str, **headers: str) -> Response:
    """Return a plain-text answer."""
    return Response(status, words.encode() + b"\n", {"Content-Type": "text/plain; charset=utf-8", **headers})


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.mark = descriptors.mark(connection.fileno())
        self.ends = time.monotonic() + PATIENCE
        self.heard = b""
        self.is_asked = False
        """Whether its request is complete, valid or not."""
        self.is_searched = False
        """Whether a thread of its own finds its answer."""
        self.found: memoryview | None = None
        """Its answer, once that thread has found it."""
        self.answer: memoryview | None = None
        """The rest of its answer, still to be sent."""
        self.is_over = False
        """Whether all of it was sent, and the client is to close."""


class WebServer:
    """Answers requests on a listening socket until it is closed, in the thread that calls :meth:`serve`.

    Args:
        listener: non-blocking; belongs to the server from now on.
        answer: called with each request; must not raise.

    Attributes:
        searching: the thread for answers that take long.
    """

    def __init__(self, listener: socket.socket, answer: Callable[[Request], Answer]) -> None:
        self._listener, self._answer = listener, answer
        self._clients: list[_Client] = []
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)  # a byte that does not fit is not needed
        self._marks = {each: descriptors.mark(each.fileno()) for each in (listener, self._woken, self._waker)}
        self._searches: deque[tuple[_Client, Search, bool]] = deque()
        self.searching = OwnThread("scrape-search", self._search, lambda: None, needed=lambda: self._searches)
        self._search_lock = threading.Lock()
        self._rests_until = 0.0
        self._turns = 0
        self._closing = self._is_away = False

    def serve(self, stays: Callable[[], bool]) -> None:
        """Serve in this thread until the server is closed, or ``stays`` returns False: then it may be called again.

        Raises:
            LostError: its descriptors were closed by the program.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_unless_away)
            # Neither epoll nor kqueue: a forked child would share it.
            selector = stack.enter_context(getattr(selectors, "PollSelector", selectors.SelectSelector)())
            selector.register(self._woken, selectors.EVENT_READ)
            if not self._rests_until:
                selector.register(self._listener, selectors.EVENT_READ)
            for client in self._clients:
                awaited = selectors.EVENT_WRITE if client.answer and not client.is_over else selectors.EVENT_READ
                selector.register(client.connection, awaited, client)
            used = time.thread_time()
            while not self._closing and stays():
                self._turn(selector)
                before, used = used, time.thread_time()
                _rest(used - before)
            self._is_away = not self._closing

    def close(self, end: Callable[[float], bool], timeout: float = 1.0) -> None:
        """Stop listening at once; waits at most ``timeout`` seconds.

        Args:
            end: ends the serving thread, waiting at most so many seconds; returns whether it is gone.
            timeout: seconds.
        """
        self._closing = True
        self.wake()
        ends = time.monotonic() + timeout
        if end(timeout):
            self._close_all()
        self.searching.end(max(ends - time.monotonic(), 0.0))

    def _close_unless_away(self) -> None:
        if self._is_away:
            self._is_away = False
        else:
            self._close_all()

    def abandon(self) -> None:
        """Release the parent's sockets in a forked child; the parent's connections go on."""
        self._close_all()

    def _close_all(self) -> None:
        for client in self._clients:
            descriptors.close_socket(client.connection, client.mark)
        for each, before in self._marks.items():
            descriptors.close_socket(each, before)
        self._clients = []

    def wake(self) -> None:
        """Wake the serving thread; from any thread."""
        if descriptors.mark(self._waker.fileno()) == self._marks[self._waker]:
            with contextlib.suppress(OSError):  # the server has ended by itself
                self._waker.send(b"x")

    def _is_whole(self) -> bool:
        """Whether all descriptors still belong to the server."""
        kept = [*self._marks.items(), *((client.connection, client.mark) for client in self._clients)]
        return all(descriptors.mark(each.fileno()) == before for each, before in kept)

    def _search(self) -> None:
        """Find one answer after the other, in a thread that ends when there are none to be found."""
        while self.searching.stays():
            with self._search_lock:
                if not self._searches:
                    self.searching.leave()
                    return
                client, search, with_body = self._searches.popleft()
            if client in self._clients and not self._closing:
                before = time.thread_time()
                client.found = _packed(search(self._is_awaited), with_body=with_body)
                self.wake()
                _rest(time.thread_time() - before)

    # -- in the serving thread ------------------------------------------------------------------------------------

    def _turn(self, selector: selectors.BaseSelector) -> None:
        """Wait for events, and handle them."""
        self._turns += 1
        now = time.monotonic()
        if self._rests_until and now >= self._rests_until:
            self._rests_until = 0.0
            selector.register(self._listener, selectors.EVENT_READ)
        ends = [client.ends for client in self._clients] + [self._rests_until] * bool(self._rests_until)
        happened = selector.select(max(min(ends) - now, 0.0) if ends else None)
        now = time.monotonic()  # before the work: answering one client may take longer than another may wait
        if not self._closing and not self._is_whole():
            raise descriptors.LostError(errno.EBADF, "the program has closed descriptors that are not its own")
        for key, events in happened:
            if self._closing:
                return
            if key.fileobj is self._woken:
                self._woken.recv(64)
            elif key.fileobj is self._listener:
                self._accept(selector)
            elif key.data is not None and key.data in self._clients:  # not dropped in this turn for another
                self._go_on(selector, key.data, events)
        for client in [client for client in self._clients if client.found is not None]:
            client.answer, client.found, client.is_searched = client.found, None, False
            self._go_on(selector, client, selectors.EVENT_WRITE)
        for client in [client for client in self._clients if client.ends <= now]:
            self._drop(selector, client)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        for _ in range(MOST):  # all waiting clients, so that they are answered together
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor left: a waiting client would cause a busy loop
                selector.unregister(self._listener)
                self._rests_until = time.monotonic() + REST
                return
            connection.setblocking(False)
            while len(self._clients) >= MOST:  # first one without a request yet, or with all of its answer
                self._drop(selector, min(self._clients, key=lambda each: each.is_asked and not each.is_over))
            client = _Client(connection)
            self._clients.append(client)
            selector.register(connection, selectors.EVENT_READ, client)

    def _go_on(self, selector: selectors.BaseSelector, client: _Client, events: int) -> None:
        try:
            hung_up = events & selectors.EVENT_READ and not self._read(client)
            if hung_up and (client.answer is None or client.is_over):
                self._drop(selector, client)
                return
            if client.answer is not None and not client.is_over:
                self._send(selector, client)
        except BlockingIOError:
            pass
        except OSError:  # the client has gone
            self._drop(selector, client)

    def _read(self, client: _Client) -> bool:
        """Read from a client; return False at its end of file."""
        data = client.connection.recv(LONGEST)
        if client.is_asked:
            return bool(data)  # data after its request is ignored
        client.heard += data
        if b"\r\n\r\n" in client.heard or len(client.heard) > LONGEST:
            client.is_asked = True
            self._begin(client, parse(client.heard, self._turns))
            client.ends = time.monotonic() + PATIENCE
            client.heard = b""
        return bool(data)

    def _begin(self, client: _Client, request: Request | None) -> None:
        """Answer a request, or queue it for the search thread."""
        if request is None:
            client.answer = _packed(text(400, "loopwatch: this is no request of HTTP that it understands"))
            return
        if request.method not in ("GET", "HEAD"):
            client.answer = _packed(text(405, "loopwatch: use GET", Allow="GET, HEAD"))
            return
        answer, with_body = self._answer(request), request.method == "GET"
        if isinstance(answer, Response):
            client.answer = _packed(answer, with_body=with_body)
            return
        with self._search_lock:
            client.is_searched = True
            self._searches.append((client, answer, with_body))
            try:
                self.searching.start()
            except RuntimeError:  # the system allows no more threads
                self._searches.clear()
                client.is_searched = False
                client.answer = _packed(text(503, "loopwatch: there can be no more threads"), with_body=with_body)

    def _is_awaited(self) -> bool:
        """Whether a client waits for a search."""
        return not self._closing and any(client.is_searched for client in list(self._clients))

    def _send(self, selector: selectors.BaseSelector, client: _Client) -> None:
        assert client.answer is not None
        try:
            client.answer = client.answer[client.connection.send(client.answer) :]
        except BlockingIOError:
            pass
        if client.answer:
            selector.modify(client.connection, selectors.EVENT_WRITE, client)
            return
        client.is_over, client.ends = True, time.monotonic() + LINGER
        client.connection.shutdown(socket.SHUT_WR)
        selector.modify(client.connection, selectors.EVENT_READ, client)

    def _drop(self, selector: selectors.BaseSelector, client: _Client) -> None:
        self._clients.remove(client)
        selector.unregister(client.connection)
        client.connection.close()


def _rest(worked: float) -> None:
    time.sleep(min(SHARE * worked, LONGEST_REST))


def _packed(response: Response, *, with_body: bool = True) -> memoryview:
    """Return an answer as bytes to send."""
    headers = {**response.headers, "Content-Length": str(len(response.body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\n{lines}\r\n".encode("latin-1")
    return memoryview(head + response.body if with_body else head)


def parse(heard: bytes, turn: int = 0) -> Request | None:
    """Return the request at the start of ``heard``, None if it is not valid.

    Example:
        >>> parse(b"GET /metrics?x=1 HTTP/1.1\\r\\nAccept: text/plain\\r\\n\\r\\n")
        Request(method='GET', path='/metrics', headers={'accept': 'text/plain'}, turn=0)
    """
    head, end, _ = heard.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if not end or len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    pairs = [line.partition(":") for line in lines]
    if sum(name.strip().lower() == "host" for name, _, _ in pairs) > 1:  # RFC 9112, 3.2
        return None
    try:
        path = urlsplit(words[1]).path
    except ValueError:  # mismatched brackets
        return None
    return Request(words[0], path, {name.strip().lower(): value.strip() for name, _, value in pairs}, turn)
