"""The governor: a pure function of readings that keeps the agent within its budget."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loopwatch.watch.governor import PERIOD, STRETCH_MOST, Governor


def fed(budget: float, *shares: float) -> list[float]:
    """Return the factor after each period, in which the agent used that share of one core."""
    governor, now, cpu = Governor(budget), 100.0, 7.0
    governor.update(now, cpu)
    factors = []
    for share in shares:
        now += PERIOD
        cpu += share * PERIOD
        factors.append(governor.update(now, cpu))
    return factors


def test_first_reading_decides_nothing() -> None:
    """Usage before the first reading does not count."""
    governor = Governor(0.01)
    assert governor.update(now=0.0, cpu=1000.0) == 1.0
    assert governor.share == 0.0


def test_decides_once_a_period() -> None:
    """Between two decisions, 5 seconds apart, nothing changes whatever the usage."""
    governor = Governor(0.01)
    governor.update(0.0, 0.0)
    assert governor.update(4.999, 4.9) == 1.0
    assert governor.update(5.0, 4.9) == 2.0
    assert governor.share == pytest.approx(0.98)
    assert governor.update(9.999, 9.9) == 2.0


def test_doubles_up_to_sixteen() -> None:
    """Over budget the intervals double each period, and stop at 16."""
    assert fed(0.01, *[0.5] * 6) == [2, 4, 8, 16, 16, 16]
    assert STRETCH_MOST == 16


def test_returns_when_it_costs_less_than_half() -> None:
    """Under half of the budget the intervals are halved each period, down to 1."""
    assert fed(0.03, 1, 1, 1, 0.0149, 0.0149, 0.009, 0.009) == [2, 4, 8, 4, 2, 1, 1]


def test_stays_in_between() -> None:
    """Between half of the budget and the budget the factor stays: ticking twice as often would cost too much."""
    assert fed(0.03, 1, 0.0299, 0.0151, 0.0299) == [2, 2, 2, 2]


def test_share_is_of_the_last_period() -> None:
    """share covers the last complete period, not all of time."""
    governor = Governor(0.5)
    governor.update(0.0, 0.0)
    governor.update(5.0, 1.0)
    assert governor.share == pytest.approx(0.2)
    governor.update(15.0, 1.5)
    assert governor.share == pytest.approx(0.05)


def test_budget_may_change() -> None:
    """A budget raised at run time counts from the next decision on."""
    governor = Governor(0.01)
    governor.update(0.0, 0.0)
    assert governor.update(5.0, 0.5) == 2
    governor.budget = 1.0
    assert governor.update(10.0, 1.0) == 1


@given(st.floats(1e-4, 1.0), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 2)), max_size=50))
def test_factor_is_always_a_power_of_two_from_1_to_16(budget: float, steps: list[tuple[float, float]]) -> None:
    """Whatever the readings, the factor is 1, 2, 4, 8 or 16, and changes by one step at a time."""
    governor, now, cpu, before = Governor(budget), 0.0, 0.0, 1.0
    for seconds, share in steps:
        now, cpu = now + seconds, cpu + seconds * share
        factor = governor.update(now, cpu)
        assert factor in (1, 2, 4, 8, 16)
        assert factor / before in (0.5, 1, 2)
        before = factor


@given(st.floats(1e-4, 0.16), st.floats(1e-3, 0.1))
def test_settles_within_budget(cost: float, budget: float) -> None:
    """An agent whose cost falls as its intervals grow ends within budget, and then stays at one factor."""
    # It may alternate between two factors where rounding alone decides.
    assume(all(abs(cost / factor / budget - 1) > 1e-6 for factor in (1, 2, 4, 8, 16)))
    governor, now, cpu = Governor(budget), 0.0, 0.0
    governor.update(now, cpu)
    factors = []
    for _ in range(20):
        now += PERIOD
        cpu += PERIOD * cost / governor.stretch
        factors.append(governor.update(now, cpu))
    if cost / STRETCH_MOST <= budget:
        assert governor.share <= budget
    assert len(set(factors[6:])) == 1
