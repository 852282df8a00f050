"""A program that closes all descriptors, as daemons do, can reuse their numbers without interference."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hostproc import succeeded


class AcceptingHandler(BaseHTTPRequestHandler):
    """A handler that accepts every request and keeps the connection open."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Accept a message."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def receiver() -> Iterator[str]:
    """Run an OTLP receiver and yield its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), AcceptingHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


CLOSES_ALL = """
    import gc, socket, urllib.request
    from concurrent.futures import ProcessPoolExecutor
    import loopwatch
    quiet()
    place, endpoint = sys.argv[1:3]
    loopwatch.install(prometheus_port=0, otlp_endpoint=endpoint, export_interval=1.0, journal=place, threshold=0.05)

    async def busy(passes):
        for _ in range(passes):
            await asyncio.sleep(0.02)
        await blocked()

    def agent():
        return loopwatch.current_agent()

    run(busy(20))
    with ProcessPoolExecutor(1) as pool:
        pool.submit(len, "ab").result()
    url = agent().snapshot().agent.prometheus
    urllib.request.urlopen(url).read()
    until(lambda: agent()._parts.telemetry.providers._private._exporter.exported)
    del pool
    gc.collect()  # closes what the standard library would close later
    highest = max(map(int, os.listdir("/proc/self/fd")))
    os.closerange(3, highest + 1)

    # From here on every number is the program's own.
    files = [open(f"{place}.own{number}", "w+b", buffering=0) for number in range(highest)]
    listener = socket.create_server(("127.0.0.1", 0))
    pairs = [each for _ in range(highest) for each in socket.socketpair()]
    for each in pairs:
        each.setblocking(False)
    own = [each.fileno() for each in (*files, listener, *pairs)]
    before = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in own]
    try:
        urllib.request.urlopen(url, timeout=5).read()
    except OSError:
        pass
    run(busy(20))
    until(lambda: agent().snapshot().agent.prometheus not in ("", url))
    scraped = len(urllib.request.urlopen(agent().snapshot().agent.prometheus).read())
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    listener.settimeout(10)
    accepted = [listener.accept()[0] for _ in clients]
    loopwatch.uninstall()

    def sent_to(each):
        try:
            return each.recv(100)
        except BlockingIOError:
            return b""

    say(same=[(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in own] == before,
        written=[os.stat(each.name).st_size for each in files if os.stat(each.name).st_size],
        read=[str(found) for each in pairs if (found := sent_to(each))], accepted=len(accepted), scraped=scraped > 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/self/fd")
def test_reused_descriptors_are_not_touched(tmp_path: Path) -> None:
    """Journal, hang file, scrape, export and task board do not touch descriptors that have reused their numbers.

    The process can still be scraped, at a new port.
    """
    with receiver() as url:
        source = CLOSES_ALL.replace("run(busy(20))", 'runner("asyncio")(busy(20))')
        found = succeeded(source, tmp_path / "journal", url)
    assert found == {"same": True, "written": [], "read": [], "accepted": 3, "scraped": True}
