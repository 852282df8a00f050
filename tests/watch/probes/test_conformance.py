"""The contract of every probe, with one entry per kind of loop: a probe without an entry fails here."""

from __future__ import annotations

import asyncio
import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import pytest
from conftest import raised

from loopwatch.core.patches import PatchSet
from loopwatch.watch import probes
from loopwatch.watch.probes.asyncio import AsyncioProbe
from loopwatch.watch.probes.base import IDLE, Block, Counters, Probe
from loopwatch.watch.probes.heartbeat import Heartbeat, HeartbeatProbe

LIMIT = 0.1


class Entry(NamedTuple):
    """How one probe is attached.

    Attributes:
        kind: ``Probe.kind``.
        loop: returns a new loop.
        probe: attaches a probe to a loop.
    """

    kind: str
    loop: Callable[[], asyncio.AbstractEventLoop]
    probe: Callable[[asyncio.AbstractEventLoop, PatchSet], Probe]


def _uvloop() -> asyncio.AbstractEventLoop:
    made: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return made


def _uvloop_probe(loop: asyncio.AbstractEventLoop, _patches: PatchSet) -> Probe:
    from loopwatch.watch.probes.uvloop import UvloopProbe

    return UvloopProbe(loop, LIMIT)


ENTRIES = (
    Entry(
        "asyncio", asyncio.SelectorEventLoop,
        lambda loop, patches: AsyncioProbe(loop, LIMIT, patches, raised, real_time=True),
    ),
    Entry("uvloop", _uvloop, _uvloop_probe),
    Entry("heartbeat", asyncio.SelectorEventLoop, lambda _loop, _patches: HeartbeatProbe(LIMIT)),
)  # fmt: skip


class Attached:
    """A loop with a probe and a heartbeat, as the watcher has them, read between two callbacks."""

    def __init__(self, entry: Entry) -> None:
        self.patches = PatchSet()
        self.loop = entry.loop()
        self.probe = entry.probe(self.loop, self.patches)
        self.heart = Heartbeat(self.loop, 0.02, lambda: None, self.probe.on_beat, raised)
        if isinstance(self.probe, HeartbeatProbe):
            self.probe.listen(self.heart)

    def run(self, main: Callable[[], Any]) -> None:
        """Run a coroutine function to its end."""

        async def whole() -> None:
            self.probe.running(True)
            self.heart.start()
            await asyncio.sleep(0.05)
            await main()
            await asyncio.sleep(0.05)

        self.loop.run_until_complete(whole())
        self.probe.running(False)

    def look(self) -> float:
        """Return the probe's ``busy_since`` as the watcher would see it now."""
        now = time.monotonic()
        return self.probe.busy_since(now, 0.0, max(now - self.heart.due, 0.0))

    def close(self) -> None:
        self.heart.stop()
        self.probe.detach()
        self.patches.undo_all()
        self.loop.close()


@pytest.fixture(params=ENTRIES, ids=lambda entry: entry.kind)
def entry(request: pytest.FixtureRequest) -> Entry:
    """One kind of loop."""
    found: Entry = request.param
    return found


@pytest.fixture
def attached(entry: Entry) -> Iterator[Attached]:
    """A loop under a probe, which is restored afterwards."""
    made = Attached(entry)
    yield made
    made.close()


def blocked(attached: Attached, seconds: float) -> list[Block]:
    """Block the loop once and tick as the watcher does; return the blocks of at least the limit."""

    async def main() -> None:
        attached.look()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(0.01)
            attached.look()
        await asyncio.sleep(0)

    attached.run(main)
    attached.look()
    return [block for block in attached.probe.finished() if block.end - block.start >= LIMIT]


def test_every_probe_has_an_entry() -> None:
    """Each class of the folder that has the methods of a probe is tested here."""
    needed = {name for name, _ in inspect.getmembers(Probe, inspect.isfunction) if not name.startswith("_")}
    found = set()
    for module in pkgutil.iter_modules(probes.__path__, f"{probes.__name__}."):
        if module.name.endswith((".base", ".choice")):
            continue
        if module.name.endswith(".uvloop"):
            pytest.importorskip("uvloop")
        for _, each in inspect.getmembers(import_module(module.name), inspect.isclass):
            if each.__module__ == module.name and needed <= set(dir(each)):
                found.add(each.kind)
    assert found == {entry.kind for entry in ENTRIES}


def test_a_block_is_found_with_its_length(attached: Attached) -> None:
    """A block of 0.3 seconds is found as one of that length, within its uncertainty and the delay of this machine."""
    (block,) = blocked(attached, 0.3)
    length = block.end - block.start
    assert length >= 0.3 - block.uncertainty - 0.02
    assert block.end <= time.monotonic()
    assert block.uncertainty < LIMIT


def test_a_loop_that_waits_is_idle(attached: Attached) -> None:
    """A waiting loop has no block, and is seen as waiting from outside."""
    seen: list[float] = []

    async def main() -> None:
        looking = asyncio.get_running_loop().run_in_executor(
            None, lambda: (time.sleep(0.02), seen.append(attached.look()))
        )
        await asyncio.sleep(0.06)
        await looking

    attached.run(main)
    assert attached.probe.finished() == []
    assert len(seen) == 1
    assert attached.look() == IDLE  # it does not run


def test_blocks_are_returned_once(attached: Attached) -> None:
    """A second call returns nothing."""
    assert len(blocked(attached, 0.2)) == 1
    assert attached.probe.finished() == []


def test_the_limit_can_be_changed(attached: Attached) -> None:
    """With a limit that no block reaches, nothing is found."""
    attached.probe.set_limit(60.0)
    assert blocked(attached, 0.2) == []


def test_totals_grow(attached: Attached, entry: Entry) -> None:
    """Known totals never decrease, and the busy time includes the block."""
    attached.run(lambda: asyncio.sleep(0))
    before = attached.probe.counters(time.monotonic())

    async def main() -> None:
        time.sleep(0.2)

    attached.run(main)
    after = attached.probe.counters(time.monotonic())
    for name, one, other in zip(Counters._fields, before, after, strict=True):
        assert (one is None) == (other is None), name
        assert one is None or other >= one, name
    assert entry.kind == "heartbeat" or after.busy - before.busy >= 0.19


def test_detaching_twice_leaves_a_loop_that_runs(attached: Attached) -> None:
    """After detaching twice the loop has its own methods back, and runs."""
    attached.run(lambda: asyncio.sleep(0))
    attached.heart.stop()
    attached.probe.detach()
    attached.probe.detach()
    attached.loop.run_until_complete(asyncio.sleep(0.01))
    assert "loopwatch" not in repr(getattr(getattr(attached.loop, "_selector", None), "select", None))
