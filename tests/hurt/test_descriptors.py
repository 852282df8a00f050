"""A program that closes every descriptor there is, as daemons do, gets their numbers for itself alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hostproc import succeeded


class Taking(BaseHTTPRequestHandler):
    """Takes whatever is sent, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take a message."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def receiver() -> Iterator[str]:
    """Run a receiver of OTLP; give its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
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
    gc.collect()  # what the standard library would close later
    highest = max(map(int, os.listdir("/proc/self/fd")))
    os.closerange(3, highest + 1)

    # From here on every number is the program's own.
    files = [open(f"{place}.own{number}", "w+b", buffering=0) for number in range(highest)]
    listener = socket.create_server(("127.0.0.1", 0))
    pairs = [each for _ in range(highest) for each in socket.socketpair()]
    for each in pairs:
        each.setblocking(False)
    mine = [each.fileno() for each in (*files, listener, *pairs)]
    before = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in mine]
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

    def heard(each):
        try:
            return each.recv(100)
        except BlockingIOError:
            return b""

    say(same=[(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in mine] == before,
        written=[os.stat(each.name).st_size for each in files if os.stat(each.name).st_size],
        heard=[str(found) for each in pairs if (found := heard(each))], accepted=len(accepted), scraped=scraped > 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/self/fd")
def test_numbers_of_descriptors_that_were_closed_are_the_programs(tmp_path: Path) -> None:
    """Journal, hang file, scrape, export and the board of a pool touch nothing that has the numbers of theirs now.

    The process is scraped on, at a port that is opened anew.
    """
    with receiver() as url:
        source = CLOSES_ALL.replace("run(busy(20))", 'runner("asyncio")(busy(20))')
        found = succeeded(source, tmp_path / "journal", url)
    assert found == {"same": True, "written": [], "heard": [], "accepted": 3, "scraped": True}
