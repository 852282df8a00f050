"""The service behind ``loopwatch demo``: a small shop on plain asyncio streams, with habits that block event loops.

It plays the user's part: it does not import loopwatch, and the agent reports its functions like those of any program.
Each slow route does real work for about a third of a second; :meth:`Shop.open` finds the sizes that take so long
on this machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import os
import re
import socketserver
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

BLOCK = 0.3
"""Seconds of work per slow route."""
SUBSCRIBERS = 400
MAX_BODY = 64 * 1024
DISKS = (None, "/var/tmp")
"""Directories to export to: that of temporary files, and one on a disk, in case the first is in memory."""

Handler: TypeAlias = Callable[[str], Awaitable[object]]
"""Takes the part of the path that ``{id}`` stands for, returns a JSON-serializable value."""

_request: ContextVar[tuple[str, str] | None] = ContextVar("request", default=None)


def labels() -> Mapping[str, str] | None:
    """Return method and route of the current request as OpenTelemetry attributes; None outside a request."""
    request = _request.get()
    return None if request is None else {"http.request.method": request[0], "http.route": request[1]}


# ------------------------------------------------------------------------------------------------- the habits


def build_report(archive: str, number: str) -> dict[str, object]:
    """Parse a whole archive to change one field of it, and serialize all of it again."""
    report = json.loads(archive)
    report["id"] = number
    return {"id": number, "bytes": len(json.dumps(report))}


def shrink_image(pixels: bytes, width: int) -> bytes:
    """Halve a grey image, pixel by pixel."""
    small = bytearray()
    for row in range(0, len(pixels) - width, 2 * width):
        for left in range(row, row + width - 1, 2):
            square = pixels[left] + pixels[left + 1] + pixels[left + width] + pixels[left + width + 1]
            small.append(square // 4)
    return bytes(small)


def hash_password(password: str, iterations: int) -> bytes:
    """Hash slowly on purpose, as one should, but not on the loop."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt of this account", iterations)


_WORDS = re.compile(r"(\w+\s?)+")


def is_plain_search(query: str) -> bool:
    """Whether ``query`` is words only; the pattern takes twice as long for each further letter before a '!'."""
    return _WORDS.fullmatch(query) is not None


def ask_old_inventory() -> int:
    """Respect the rate limit of an old system: four requests per second."""
    time.sleep(BLOCK)
    return 12


def ask_supplier(port: int) -> int:
    """Query another service with a client that does not support asyncio."""
    supplier = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        supplier.request("GET", "/stock/oak-table")
        return int(supplier.getresponse().read())
    finally:
        supplier.close()


def export_orders(folder: str | None) -> int:
    """Write the whole list of orders again for each change, with fsync; return how often.

    As often as fits into :data:`BLOCK`: the speed of a disk differs a hundredfold, also from one minute to the next.
    """
    orders = b"4711;oak table;1;249.00\n" * 175_000
    ends = time.monotonic() + BLOCK
    written = 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while time.monotonic() < ends:
            file.seek(0)
            file.write(orders)
            os.fsync(file.fileno())
            written += 1
    return written


class PriceList:
    """Prices that a background thread renews, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._prices = {"oak table": 249}

    @property
    def renewing(self) -> bool:
        """Whether prices are being renewed."""
        return self._lock.locked()

    def renew(self) -> None:
        """Query the slow supplier while holding the lock; in a thread."""
        with self._lock:
            time.sleep(BLOCK)
            self._prices["oak table"] += 1

    def price_of(self, article: str) -> int:
        """Return a price; waits for the lock."""
        with self._lock:
            return self._prices[article]


def notify_subscriber(message: bytes) -> int:
    """Build the message of one subscriber: cheap, but those of all subscribers run in one pass."""
    checksum = 0
    for byte in message:
        checksum = (checksum * 31 + byte) & 0xFFFFFFFF
    return checksum


# ----------------------------------------------------------------------------------- the other side, and sizes


class _Supplier(socketserver.StreamRequestHandler):
    """Answers any request after :data:`BLOCK` seconds."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        time.sleep(BLOCK)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n12")


def _start_supplier() -> int:
    """Start the service that the shop depends on, in daemon threads; return its port."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Supplier)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="supplier", daemon=True).start()
    return int(server.server_address[1])


def sized(work: Callable[[int], object], start: int, seconds: float = BLOCK) -> int:
    """Return the size for which ``work``, whose time is proportional to it, takes ``seconds`` of processor time.

    Measured as the thread's processor time, not as wall time, and as the best of three: other programs may keep the
    machine busy.
    """
    size = start
    while _cost(work, size) < seconds / 10:
        size *= 2
    best = min(_cost(work, size) for _ in range(3))
    return max(int(size * seconds / best), 1)


def _cost(work: Callable[[int], object], size: int) -> float:
    began = time.thread_time()
    work(size)
    return time.thread_time() - began


def _archive(orders: int) -> str:
    return json.dumps({"orders": [{"article": "oak table", "number": n, "price": 249.5} for n in range(orders)]})


def _slow_query() -> str:
    letters = 10
    while _cost(lambda n: is_plain_search("a" * n + "!"), letters) < BLOCK / 10:
        letters += 1
    return "a" * (letters + 3) + "!"  # three doublings, from a tenth to a fifth: 0.8 to 1.6 BLOCK


def _waits_for_disk(folder: str | None) -> bool:
    """Whether exporting to ``folder`` waits rather than computes: memory has nothing to wait for."""
    began, cpu = time.monotonic(), time.thread_time()
    try:
        export_orders(folder)
    except OSError:
        return False
    return time.thread_time() - cpu < 0.45 * (time.monotonic() - began)


# ---------------------------------------------------------------------------------------------- the service


@dataclass(frozen=True, slots=True)
class Shop:
    """The service and its data.

    Attributes:
        archive: JSON of all orders.
        image, width: grey pixels, and how many make a row.
        iterations: of the password hash.
        account: hash of the one password.
        query: a search that makes the pattern backtrack.
        message: message to each subscriber.
        prices: the price list.
        supplier: port of the supplier's service.
        export_to: directory that exports go to, "" for that of temporary files; None if there is no disk to wait for.
    """

    archive: str
    image: bytes
    width: int
    iterations: int
    account: bytes
    query: str
    message: bytes
    prices: PriceList
    supplier: int
    export_to: str | None

    @classmethod
    def open(cls) -> Shop:
        """Return a shop whose slow routes take about :data:`BLOCK` on this machine; takes about 2 seconds."""
        width = 512
        # The measured time includes making the archive, a third of it.
        orders = sized(lambda orders: build_report(_archive(orders), "0"), 1000, 1.5 * BLOCK)
        rows = sized(lambda rows: shrink_image(bytes(width * rows), width), 16)
        iterations = sized(lambda count: hash_password("open sesame", count), 1000)
        return cls(
            archive=_archive(orders),
            image=bytes(width * rows),
            width=width,
            iterations=iterations,
            account=hash_password("open sesame", iterations),
            query=_slow_query(),
            message=bytes(sized(lambda size: notify_subscriber(bytes(size)), 10_000) // SUBSCRIBERS),
            prices=PriceList(),
            supplier=_start_supplier(),
            export_to=next((folder or "" for folder in DISKS if _waits_for_disk(folder)), None),
        )

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and path; ``{id}`` stands for one part of a path."""
        return {
            ("GET", "/health"): self.health,
            ("GET", "/report/{id}"): self.report,
            ("GET", "/thumbnail"): self.thumbnail,
            ("POST", "/login"): self.login,
            ("GET", "/search"): self.search,
            ("GET", "/legacy"): self.legacy,
            ("GET", "/stock"): self.stock,
            ("POST", "/export"): self.export,
            ("GET", "/lock"): self.lock,
            ("POST", "/fanout"): self.fanout,
        }

    async def health(self, _: str) -> object:
        """Report that the service is up."""
        return {"status": "ok"}

    async def report(self, number: str) -> object:
        """Large JSON."""
        return build_report(self.archive, number)

    async def thumbnail(self, _: str) -> object:
        """Pure Python."""
        return {"bytes": len(shrink_image(self.image, self.width))}

    async def login(self, _: str) -> object:
        """C code that releases the GIL."""
        return {"granted": hmac.compare_digest(hash_password("open sesame", self.iterations), self.account)}

    async def search(self, _: str) -> object:
        """A pattern that backtracks."""
        return {"plain": is_plain_search(self.query)}

    async def legacy(self, _: str) -> object:
        """A library that sleeps."""
        return {"in_stock": ask_old_inventory()}

    async def stock(self, _: str) -> object:
        """A network client from before asyncio."""
        return {"in_stock": ask_supplier(self.supplier)}

    async def export(self, _: str) -> object:
        """A wait for the disk."""
        return {"written": export_orders(self.export_to or None)}

    async def lock(self, _: str) -> object:
        """A lock shared with a thread, which starts here so that every request finds the lock held."""
        renewal = asyncio.get_running_loop().run_in_executor(None, self.prices.renew)
        while not self.prices.renewing and not renewal.done():
            await asyncio.sleep(0.005)
        price = self.prices.price_of("oak table")
        await renewal
        return {"price": price}

    async def fanout(self, _: str) -> object:
        """Hundreds of small callbacks in one pass of the loop."""
        loop = asyncio.get_running_loop()
        for _number in range(SUBSCRIBERS):
            loop.call_soon(notify_subscriber, self.message)
        notified = loop.create_future()
        loop.call_soon(notified.set_result, SUBSCRIBERS)
        return {"notified": await notified}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other, until the client closes it."""
        try:
            while (request := await _read_request(reader)) is not None:
                writer.write(await self._answer(*request))
                await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, or does not speak HTTP/1.1
        finally:
            writer.close()

    async def _answer(self, method: str, path: str) -> bytes:
        known = self.routes()
        for (verb, template), handler in known.items():
            argument = _match(template, path)
            if verb == method and argument is not None:
                token = _request.set((method, template))
                try:
                    return _response("200 OK", await handler(argument))
                finally:
                    _request.reset(token)
        return _response("404 Not Found", {"known": [f"{verb} {template}" for verb, template in known]})


def _match(template: str, path: str) -> str | None:
    """Return the part of ``path`` that ``{id}`` stands for ("" without one), None if ``path`` does not match."""
    before, placeholder, after = template.partition("{id}")
    if not placeholder:
        return "" if path == template else None
    middle = path.removeprefix(before).removesuffix(after)
    fits = path == before + middle + after and middle and "/" not in middle
    return middle if fits else None


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str] | None:
    """Return (method, path) of the next request, None if there is none; its body is read and dropped.

    Raises:
        ValueError: it is no valid request, or its body is too large.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return None
    first, *headers = head.decode("latin-1").split("\r\n")
    method, target, _version = first.split(" ")
    length = next((int(line[15:]) for line in headers if line.lower().startswith("content-length:")), 0)
    if not 0 <= length <= MAX_BODY:
        raise ValueError(f"body of {length} bytes: at most {MAX_BODY}")
    await reader.readexactly(length)
    return method, target.partition("?")[0]


def _response(status: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
