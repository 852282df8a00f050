"""The service of the demo: a child process with the agent in it, and the parent's handle on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import loopwatch
from loopwatch.demo import app
from loopwatch.demo.truth import THRESHOLD

STOP_TIMEOUT = 5.0
"""Seconds for the child to end."""


def run_service() -> None:
    """Main function of the child: run the service under the agent until standard input ends; argv: loop, journal."""
    loop, journal = sys.argv[-2:]
    threading.Thread(target=_die_with_parent, name="lifeline", daemon=True).start()
    shop = app.Shop.open()
    send = _Sender()
    agent = loopwatch.install(
        loopwatch.Config(
            threshold=THRESHOLD,
            cpu_budget=0.05,  # it samples while the loop is blocked, here half of the time
            journal=journal,
            log_level=logging.DEBUG,  # not printed below WARNING: the parent prints the findings
            on_stall=lambda stall: send({"stall": stall.to_dict()}),
            context=(app.labels,),
            user_code=(app.__name__,),  # installed with the package, it would count as a library otherwise
        )
    )
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(shop, agent, send))


async def _serve(shop: app.Shop, agent: loopwatch.Agent, send: Callable[[dict[str, Any]], None]) -> None:
    running, end = asyncio.get_running_loop(), asyncio.Event()
    server = await asyncio.start_server(shop.serve, "127.0.0.1", 0)
    running.add_reader(0, end.set)
    send({"port": server.sockets[0].getsockname()[1], "disk": shop.export_to is not None})
    await end.wait()
    running.remove_reader(0)
    server.close()
    await asyncio.to_thread(agent.flush)
    send({"end": agent.snapshot().to_dict()})


class _Sender:
    """Writes messages to the parent, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):  # the parent is gone, and this process ends soon
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()


def _die_with_parent() -> None:
    """Wait for the end of standard input, which comes also when the parent is killed; then exit soon in any case."""
    while os.read(0, 64):
        pass
    time.sleep(STOP_TIMEOUT / 2)
    os._exit(1)


class Child:
    """The child process of the service. It ends when its standard input does, so it cannot outlive this process.

    Args:
        loop: ``asyncio`` or ``uvloop``.
        journal: file or directory for its journal.
    """

    def __init__(self, loop: str, journal: str) -> None:
        # This copy of the package may not be importable elsewhere; last on the path, it shadows nothing.
        code = "import sys; sys.path.append(sys.argv[1]); from loopwatch.demo.service import run_service; run_service()"
        root = str(Path(__file__).parent.parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, root, loop, journal],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C goes to this process, which ends the child
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the messages of the child, until it ends."""
        reader = asyncio.StreamReader(limit=2**24)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            while line := await reader.readline():
                yield json.loads(line)
        finally:
            transport.close()

    def ask_to_end(self) -> None:
        """Ask the child to end: close its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> int:
        """End the child, by force after a timeout, and return its exit status."""
        self.ask_to_end()
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Kill the child, and return its exit status."""
        self.ask_to_end()
        self._process.kill()
        return self._process.wait()
