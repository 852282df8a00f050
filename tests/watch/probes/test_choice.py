"""Which probe reads a loop: a real clock is recognised by the loop's type alone, and mocks are left alone."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from conftest import raised

from loopwatch.core.patches import PatchSet
from loopwatch.watch.probes.choice import is_known, keeps_real_time, make_probe

LIMIT = 0.1


class Simulated(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    def time(self) -> float:
        return 7.0


class OwnPasses(Simulated):
    """A loop that also overrides its passes, as CPython's test loop does."""

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]


class Derived(asyncio.SelectorEventLoop):
    """A loop that extends its passes, in real time."""

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]


class Foreign(asyncio.AbstractEventLoop):
    """A loop of an unknown kind."""

    def is_closed(self) -> bool:
        return False


@pytest.fixture
def made() -> Iterator[list[asyncio.AbstractEventLoop]]:
    """Loops that are closed at the end."""
    loops: list[asyncio.AbstractEventLoop] = []
    yield loops
    for loop in loops:
        loop.close()


@pytest.mark.parametrize(
    ("kind", "real", "probe"),
    [
        (asyncio.SelectorEventLoop, True, "asyncio"),
        (Derived, True, "asyncio"),
        (Simulated, False, "asyncio"),
        (OwnPasses, False, None),
    ],
)
def test_loops_of_asyncio(kind: Any, real: bool, probe: str | None, made: list[Any]) -> None:
    """asyncio's own passes are timed with any clock; a loop that overrides both passes and clock is not watched."""
    loop = kind()
    made.append(loop)
    before = dict(vars(loop)), dict(vars(loop._selector))
    patches = PatchSet()
    found = make_probe(loop, LIMIT, patches, raised)
    assert keeps_real_time(loop) is real
    assert is_known(loop) is (probe is not None)
    assert (None if found is None else found.kind) == probe
    patches.undo_all()
    assert (dict(vars(loop)), dict(vars(loop._selector))) == before


def test_loops_of_uvloop(made: list[Any]) -> None:
    """A loop of uvloop, also of a subclass, is read by its counters."""
    uvloop = pytest.importorskip("uvloop")

    class Simulates(uvloop.Loop):  # type: ignore[misc]
        def time(self) -> float:
            return 7.0

    for kind, real in ((uvloop.Loop, True), (Simulates, False)):
        made.append(kind())
        found = make_probe(made[-1], LIMIT, PatchSet(), raised)
        assert found is not None
        assert (found.kind, keeps_real_time(made[-1])) == ("uvloop", real)
        found.detach()


@pytest.mark.parametrize("mock", [Mock(), MagicMock(), Mock(spec=asyncio.SelectorEventLoop), object(), Foreign()])
def test_mocks_and_unknown_loops_are_left_alone(mock: Any) -> None:
    """No attribute of a mock is accessed; only an explicitly given loop then has a heartbeat."""
    calls = getattr(mock, "mock_calls", [])
    assert make_probe(mock, LIMIT, PatchSet(), raised) is None
    assert not is_known(mock)
    assert calls == []
    if isinstance(mock, Mock):
        assert vars(mock)["_mock_children"] == {}
    given = make_probe(mock, LIMIT, PatchSet(), raised, given=True)
    assert given is not None
    assert given.kind == "heartbeat"


@pytest.mark.parametrize("selector", [Mock(), Mock(spec=selectors.SelectSelector)])
def test_a_mocked_selector_is_not_touched(selector: Any, made: list[Any]) -> None:
    """The select of a mock stays the program's, and the heartbeat is used where the clock is real."""
    loop = asyncio.SelectorEventLoop()
    made.append(loop)
    real, loop._selector = loop._selector, selector  # type: ignore[attr-defined]
    select = selector.select
    found = make_probe(loop, LIMIT, PatchSet(), raised)
    loop._selector = real  # type: ignore[attr-defined]
    assert found is not None
    assert found.kind == "heartbeat"
    assert selector.select is select
    assert selector.mock_calls == []


def test_a_replaced_clock_is_not_real(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock set on the instance, or a replaced time.monotonic, counts as simulated."""
    loop = asyncio.SelectorEventLoop()
    made.append(loop)
    assert keeps_real_time(loop)
    loop.time = lambda: 7.0  # type: ignore[method-assign]
    assert not keeps_real_time(loop)
    del loop.time  # type: ignore[misc]
    assert keeps_real_time(loop)
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    assert not keeps_real_time(loop)
