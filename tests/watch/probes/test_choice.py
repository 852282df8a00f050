"""Which probe reads a loop: real time is told from a simulated one by the type alone, and mocks are left alone."""

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
    """A loop whose passes are its own, too, as that of CPython's tests."""

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]


class Derived(asyncio.SelectorEventLoop):
    """A loop that adds something to its passes, in real time."""

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]


class Foreign(asyncio.AbstractEventLoop):
    """A loop that nobody knows."""

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
    """asyncio's own passes are timed whatever the clock is; where passes and clock are the program's, nothing is."""
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
    """A loop of uvloop is read by its counters, and one of a class of the program's too."""
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
    """Not one attribute of a mock is asked for; only what the program gives us has a heartbeat then."""
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
    """The select of a mock stays the program's: the heartbeat serves where the clock is real."""
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
    """A clock that stands on the instance, or a time.monotonic that somebody has replaced, is simulated."""
    loop = asyncio.SelectorEventLoop()
    made.append(loop)
    assert keeps_real_time(loop)
    loop.time = lambda: 7.0  # type: ignore[method-assign]
    assert not keeps_real_time(loop)
    del loop.time  # type: ignore[misc]
    assert keeps_real_time(loop)
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    assert not keeps_real_time(loop)
