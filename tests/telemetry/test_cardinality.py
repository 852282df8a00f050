"""Which keys are told apart, and totals that never go down, whatever happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loopwatch.core.histogram import Histogram
from loopwatch.telemetry.metrics.cardinality import AGAIN, EVER, Growth, Key, Places, Spans, Totals, foremost

OTHER: Key = ("other",)


def places(most: int, *, lasting: bool = False) -> Places:
    return Places(most, lambda _key: OTHER, lasting=lasting)


def test_the_first_are_told_apart() -> None:
    """With room for two, the third is told together with all that follow."""
    found = places(2)
    assert [found.name((name,), 1.0) for name in "abcd"] == [("a",), ("b",), OTHER, OTHER]
    assert found.exported == [("a",), ("b",), OTHER]


def test_one_that_happens_once_takes_no_place() -> None:
    """However long it lasted: it could tell nothing in its place, and the other would be missing."""
    found = places(1)
    found.name(("a",), 1.0)
    assert found.name(("huge",), 1000.0) == OTHER
    found.settle()
    assert found.taken == {("a",)}


def test_one_that_comes_again_takes_the_place_of_a_lighter_one() -> None:
    """With more than twice its weight, and once all is told; the lighter one is told together with others then."""
    found = places(1)
    found.name(("a",), 10.0)
    for _ in range(2):
        assert found.name(("b",), 9.0) == OTHER
        found.settle()  # 18 is not more than twice 10
    assert found.name(("b",), 9.0) == OTHER, "not before it is settled"
    found.settle()
    assert found.name(("b",), 9.0) == ("b",)
    assert found.name(("a",), 1.0) == OTHER


def test_a_lasting_place_is_given_up_by_those_that_are_over() -> None:
    """A heavier one waits; when the first is over the next that comes has its place, and not before."""
    found = places(1, lasting=True)
    found.name(("a",), 1.0)
    for _ in range(5):
        assert found.name(("b",), 100.0) == OTHER
        found.settle()
    found.leave([("a",)])
    assert found.exported == [("a",), OTHER], "what it counted is told until somebody needs its place"
    found.settle()
    assert found.name(("b",), 1.0) == ("b",)
    assert found.taken == {("b",)}


def test_one_that_is_back_keeps_its_place() -> None:
    """One that was over and comes again is as good as any other."""
    found = places(1, lasting=True)
    found.name(("a",), 1.0)
    found.leave([("a",)])
    assert found.name(("a",), 1.0) == ("a",)
    assert found.name(("b",), 1.0) == OTHER
    found.settle()
    assert found.taken == {("a",)}


def test_keys_that_ever_had_a_place_are_bounded() -> None:
    """Each is a series for ever: after so many times as many as are told at a time newcomers find no place."""
    found = places(2, lasting=True)
    told = set()
    for number in range(1000):
        key = (str(number),)
        for _ in range(AGAIN):
            found.name(key, 1.0)
        found.settle()
        told.add(found.name(key, 1.0))
        found.leave([key])
    assert len(told - {OTHER}) == 2 * EVER
    for _ in range(AGAIN):
        found.name(("0",), 1.0)
    found.settle()
    assert found.name(("0",), 1.0) == ("0",), "those that are known find theirs again"


def test_keys_that_come_and_go_use_up_nothing() -> None:
    """A thousand loops of jobs were seen once each: the one that stays has a place."""
    found = places(2)
    for number in range(1000):
        key = (str(number),)
        found.name(key, 0.5)
        found.settle()
        found.leave([key])
    for _ in range(AGAIN):
        found.name(("main",), 0.1)
    found.settle()
    assert found.name(("main",), 0.1) == ("main",)


def test_fewer_places_at_run_time() -> None:
    """The lightest are told together from then on; with none at all everything is."""
    found = places(3)
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
def test_whatever_happens_series_are_few_and_grow(most: int, events: list[tuple[str, float]], lasting: bool) -> None:
    """At no time more series than places and one; none goes down; together they have all that happened."""
    found, totals = places(most, lasting=lasting), Totals(2)
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


def test_growth_of_one_that_began_anew() -> None:
    """A first total that is lower than before means another thing of that name: all of it is new."""
    growth = Growth[str]()
    assert growth.of("pool", (10, 2.0)) == [10, 2.0]
    assert growth.of("pool", (12, 2.5)) == [2, 0.5]
    assert growth.of("pool", (3, 0.5)) == [3, 0.5]


def test_growth_of_one_that_was_missing_for_a_while() -> None:
    """What it had before does not count twice."""
    growth = Growth[str]()
    growth.of("a", (10,))
    growth.of("b", (1,))
    assert growth.of("a", (11,)) == [1]


def test_growth_remembers_a_bounded_number() -> None:
    """Those that were not seen for longest are forgotten."""
    growth = Growth[int](kept=3)
    for key in range(10):
        growth.of(key, (5,))
    assert growth.of(9, (6,)) == [1]
    assert growth.of(0, (6,)) == [6], "forgotten"


def test_histograms_of_things_that_come_and_go() -> None:
    """What a thing that is gone has counted stays; the next one of that name adds to it."""
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
    """The heaviest, of equal ones the first in order."""
    assert foremost({("a",): 1, ("b",): 3, ("c",): 1}, 2) == {("b",), ("a",)}
