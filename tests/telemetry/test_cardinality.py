"""Which keys get a series of their own, and totals that never decrease."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loopwatch.core.histogram import Histogram
from loopwatch.telemetry.metrics.cardinality import AGAIN, EVER, Growth, Key, Places, Spans, Totals, foremost

OTHER: Key = ("other",)


def limited(most: int, *, lasting: bool = False) -> Places:
    return Places(most, lambda _key: OTHER, lasting=lasting)


def test_the_first_keys_get_a_series() -> None:
    """With room for two, the third key and all that follow share a series."""
    found = limited(2)
    assert [found.name((name,), 1.0) for name in "abcd"] == [("a",), ("b",), OTHER, OTHER]
    assert found.exported == [("a",), ("b",), OTHER]


def test_a_key_that_occurs_once_gets_no_series() -> None:
    """That holds however heavy it is: its series would never change again, and another key would lose its own."""
    found = limited(1)
    found.name(("a",), 1.0)
    assert found.name(("huge",), 1000.0) == OTHER
    found.settle()
    assert found.taken == {("a",)}


def test_a_recurring_key_replaces_a_lighter_one() -> None:
    """It needs more than twice the weight; after a collection the lighter key is merged into the shared series."""
    found = limited(1)
    found.name(("a",), 10.0)
    for _ in range(2):
        assert found.name(("b",), 9.0) == OTHER
        found.settle()  # 18 is not more than twice 10
    assert found.name(("b",), 9.0) == OTHER, "not before the collection ends"
    found.settle()
    assert found.name(("b",), 9.0) == ("b",)
    assert found.name(("a",), 1.0) == OTHER


def test_a_lasting_series_is_given_up_only_when_its_key_is_over() -> None:
    """A heavier key waits; after the first key is over, the heavier one gets its series."""
    found = limited(1, lasting=True)
    found.name(("a",), 1.0)
    for _ in range(5):
        assert found.name(("b",), 100.0) == OTHER
        found.settle()
    found.leave([("a",)])
    assert found.exported == [("a",), OTHER], "its total is exported until another key needs the series"
    found.settle()
    assert found.name(("b",), 1.0) == ("b",)
    assert found.taken == {("b",)}


def test_a_key_that_comes_back_keeps_its_series() -> None:
    """A key that was over and comes back is treated like any other."""
    found = limited(1, lasting=True)
    found.name(("a",), 1.0)
    found.leave([("a",)])
    assert found.name(("a",), 1.0) == ("a",)
    assert found.name(("b",), 1.0) == OTHER
    found.settle()
    assert found.taken == {("a",)}


def test_keys_that_ever_had_a_series_are_bounded() -> None:
    """Each series lasts for ever, so after a multiple of the limit no new key gets one."""
    found = limited(2, lasting=True)
    names = set()
    for number in range(1000):
        key = (str(number),)
        for _ in range(AGAIN):
            found.name(key, 1.0)
        found.settle()
        names.add(found.name(key, 1.0))
        found.leave([key])
    assert len(names - {OTHER}) == 2 * EVER
    for _ in range(AGAIN):
        found.name(("0",), 1.0)
    found.settle()
    assert found.name(("0",), 1.0) == ("0",), "a known key gets its series back"


def test_keys_that_occur_once_do_not_use_up_the_limit() -> None:
    """After a thousand loops that were seen once each, a loop that stays gets a series."""
    found = limited(2)
    for number in range(1000):
        key = (str(number),)
        found.name(key, 0.5)
        found.settle()
        found.leave([key])
    for _ in range(AGAIN):
        found.name(("main",), 0.1)
    found.settle()
    assert found.name(("main",), 0.1) == ("main",)


def test_limit_is_lowered_at_run_time() -> None:
    """The lightest keys are merged from then on; with a limit of 0 all keys are."""
    found = limited(3)
    for name, weight in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        found.name((name,), weight)
    found.most = 2
    found.settle()
    assert found.name(("b",), 0.1) == OTHER
    assert found.taken == {("a",), ("c",)}
    found.most = 0
    found.settle()
    assert found.name(("a",), 1.0) == OTHER
    assert found.exported == [OTHER]


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.floats(0, 100)), max_size=300),
    st.booleans(),
)
def test_series_are_bounded_and_totals_monotonic(most: int, events: list[tuple[str, float]], lasting: bool) -> None:
    """There is never more than one series beyond the limit; no total decreases; all together count every event."""
    found, totals = limited(most, lasting=lasting), Totals(2)
    before: dict[Key, tuple[float, float]] = {}
    whole = 0.0
    for count, (name, weight) in enumerate(events, 1):
        if not count % 3:
            found.settle()
        totals.add(found.name((name,), weight), (1, weight))
        whole += weight
        assert len(found.exported) <= most + 1
        now = {key: (times, seconds) for (key, times), (_, seconds) in zip(
            totals.of(totals.names, 0), totals.of(totals.names, 1), strict=True
        )}  # fmt: skip
        assert all(now[key] >= value for key, value in before.items())
        assert sum(times for times, _ in now.values()) == count
        assert abs(sum(seconds for _, seconds in now.values()) - whole) < 1e-6
        before = now


def test_growth_after_a_restart() -> None:
    """A first total that is lower than before is that of a new object of that name: all of it is growth."""
    growth = Growth[str]()
    assert growth.of("pool", (10, 2.0)) == [10, 2.0]
    assert growth.of("pool", (12, 2.5)) == [2, 0.5]
    assert growth.of("pool", (3, 0.5)) == [3, 0.5]


def test_growth_after_a_gap() -> None:
    """The total from before the gap does not count twice."""
    growth = Growth[str]()
    growth.of("a", (10,))
    growth.of("b", (1,))
    assert growth.of("a", (11,)) == [1]


def test_growth_remembers_a_bounded_number() -> None:
    """Keys that were not seen for longest are forgotten."""
    growth = Growth[int](kept=3)
    for key in range(10):
        growth.of(key, (5,))
    assert growth.of(9, (6,)) == [1]
    assert growth.of(0, (6,)) == [6], "forgotten"


def test_histograms_of_ended_objects_are_kept() -> None:
    """The durations of an ended object stay in the series; the next object of that name adds to them."""
    spans = Spans[int]()
    first = Histogram()
    for _ in range(10):
        first.record(0.1)
    spans.add(("main",), 1, first.copy())
    first.record(0.2)
    spans.add(("main",), 1, first.copy())
    second = Histogram()
    second.record(0.4)
    spans.add(("main",), 2, second)
    ((_, found),) = spans.of([("main",), ("unknown",)])
    assert found.count == 12
    assert abs(found.total - 1.6) < 1e-9
    assert found.at_most([0.15, 0.3, 1.0]) == [10, 11, 12, 12]


def test_foremost() -> None:
    """The heaviest keys are returned; of equal ones the first in order."""
    assert foremost({("a",): 1, ("b",): 3, ("c",): 1}, 2) == {("b",), ("a",)}
