"""The example with every kind of trouble; it needs no server."""

from __future__ import annotations

import contextlib
import signal
import urllib.error
from pathlib import Path

import psutil
import pytest
from real_servers import await_that, get, troubled_service

from loopwatch.events import Cause
from loopwatch.report.reader import read_journals

pytestmark = [pytest.mark.long, pytest.mark.measures]


def test_troubles_come_and_go(tmp_path: Path) -> None:
    """Switched on, troubles block the loop and make processes: zombies, orphans, workers; switched off, those are gone,
    and the service ends at SIGTERM with 0. The journal has the causes of the selected troubles.
    """
    env = {"LOOPWATCH_JOURNAL": str(tmp_path / "stalls.jsonl"), "LOOPWATCH_THRESHOLD": "0.05"}
    with troubled_service(tmp_path, "service", env) as service:
        parent = psutil.Process(service.process.pid)
        assert get(f"{service.url}/ping") == {"pid": parent.pid}
        troubles = get(f"{service.url}/")
        assert not any(troubles.values()) and len(troubles) >= 20
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            service.on("sleep,no_such_trouble")
        caught.value.close()

        service.on("zombie", "orphan", "hung_worker", "crashes", "errors")
        states = await_that(lambda: ended_and_alive(parent), "a zombie, and three workers", 60)
        assert states[0] >= 1
        service.on("sleep", "dump")
        assert get(f"{service.url}/")["dump"]
        await_that(lambda: {Cause.SLEEP} <= causes(tmp_path), "stalls in the journal", 60)
        service.on("starved")
        await_that(lambda: starved(tmp_path) > 0.05, "stalls without a processor in the journal", 60)
        service.off()
        assert not any(get(f"{service.url}/").values())
        kept = ("resource_tracker", "forkserver")  # of multiprocessing, one each while the program runs
        await_that(
            lambda: all(any(name in line for name in kept) for line in commands(parent)), f"{commands(parent)} gone"
        )
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0, service.said()


def ended_and_alive(parent: psutil.Process) -> tuple[int, int] | None:
    """Return the number of zombie and of live children, once there are one and three."""
    found = [status(child) for child in parent.children()]
    ended = found.count(psutil.STATUS_ZOMBIE)
    return (ended, len(found) - ended) if ended and len(found) - ended >= 3 else None


def status(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.status())
    return "gone"


def commands(parent: psutil.Process) -> list[str]:
    """Return the command lines of the children that have not ended."""
    found = []
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.append(" ".join(child.cmdline()))
    return found


def starved(folder: Path) -> float:
    """Return the seconds for which stalls in the journal were without a processor."""
    return sum(stall.starved for stall in read_journals(str(folder)).stalls)


def causes(folder: Path) -> set[Cause]:
    """Return the causes of the stalls in the journal."""
    return {stall.cause for stall in read_journals(str(folder)).stalls}
