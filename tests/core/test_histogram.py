"""The histogram: exact where it is cheap, right to 5 percent elsewhere, of bounded size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.core.histogram import Histogram

durations = st.lists(st.floats(2e-5, 9e4), min_size=1, max_size=200)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def exact(values: list[float], q: float) -> float:
    """The smallest duration not exceeded by at least a share ``q`` of the durations."""
    return next(value for rank, value in enumerate(sorted(values), 1) if rank >= q * len(values))


@given(durations, st.floats(0, 1))
def test_quantiles_are_right_to_five_percent(values: list[float], q: float) -> None:
    """Every quantile lies within 5 percent of the exact one."""
    assert filled(values).quantile(q) == pytest.approx(exact(values, q), rel=0.05)


@given(durations)
def test_many_at_once(values: list[float]) -> None:
    """Adding many durations at once makes the same histogram as one by one."""
    together = Histogram()
    together.record_all([])
    together.record_all(values[: len(values) // 2])
    together.record_all(values[len(values) // 2 :])
    one, other = filled(values), together
    assert (other.count, other.lowest, other.highest) == (one.count, one.lowest, one.highest)
    assert other.total == pytest.approx(one.total)
    assert [other.quantile(q / 10) for q in range(11)] == [one.quantile(q / 10) for q in range(11)]


@given(durations)
def test_summary_is_exact_where_it_can_be(values: list[float]) -> None:
    """Count, minimum, maximum and mean are exact; the quantiles lie in order between the extremes."""
    stats = filled(values).stats()
    assert stats is not None
    assert (stats.count, stats.min, stats.max) == (len(values), min(values), max(values))
    assert stats.mean == pytest.approx(math.fsum(values) / len(values))
    assert stats.min <= stats.p50 <= stats.p90 <= stats.p99 <= stats.max


@given(st.lists(st.floats(0, 1e-5), min_size=1, max_size=50))
def test_tiny_durations_are_off_by_ten_microseconds_at_most(values: list[float]) -> None:
    """Below its finest bucket a quantile is off by less than 10 microseconds."""
    histogram = filled(values)
    for q in (0.5, 0.9, 0.99):
        assert abs(histogram.quantile(q) - exact(values, q)) <= 1e-5


@given(st.lists(st.floats(-1e9, 1e9), max_size=500))
def test_memory_is_bounded(values: list[float]) -> None:
    """Whatever is recorded, there are 243 buckets at most, and nothing is lost from the count."""
    histogram = filled(values)
    assert len(histogram._buckets) <= 243
    assert histogram.count == len(values) == sum(histogram._buckets.values())


def test_all_buckets_together_are_few() -> None:
    """A hundred thousand different durations over all magnitudes take 243 buckets."""
    histogram = filled([10 ** (-7 + 14 * step / 100_000) for step in range(100_000)])
    assert len(histogram._buckets) == 243
    assert histogram.count == 100_000


def test_empty() -> None:
    """Without durations there is no summary, and a quantile is 0."""
    assert Histogram().stats() is None
    assert Histogram().quantile(0.99) == 0.0


def test_negative_counts_as_zero() -> None:
    """A heartbeat before its due time, by a clock's resolution, counts as on time."""
    stats = filled([-1e-6, -5.0]).stats()
    assert stats is not None
    assert (stats.min, stats.mean, stats.p99, stats.max) == (0.0, 0.0, 0.0, 0.0)


def test_one_outlier_among_a_thousand() -> None:
    """The outlier is the maximum and does not move the median."""
    stats = filled([0.001] * 999 + [2.0]).stats()
    assert stats is not None
    assert stats.max == 2.0
    assert stats.p50 == pytest.approx(0.001, rel=0.05)
    assert stats.p99 == pytest.approx(0.001, rel=0.05)


any_durations = st.lists(st.floats(0, 1000, allow_subnormal=False), max_size=50)


@given(any_durations, any_durations)
def test_difference_of_histograms(earlier: list[float], later: list[float]) -> None:
    """A histogram minus an earlier copy holds the values recorded in between, and their sum is the histogram."""
    histogram = filled(earlier)
    before = histogram.copy()
    for duration in later:
        histogram.record(duration)
    grown = histogram.since(before)
    assert grown.count == len(later)
    assert grown.total == pytest.approx(sum(later), rel=1e-6, abs=1e-6)
    bounds = [0.001, 0.1, 10.0]
    assert grown.at_most(bounds) == filled(later).at_most(bounds)
    if later:
        assert grown.highest == pytest.approx(max(later), rel=0.06, abs=2e-5)
    before.add(grown)
    assert before.count == histogram.count
    assert before.at_most(bounds) == histogram.at_most(bounds)


@given(any_durations)
def test_durations_of_about_one_length(values: list[float]) -> None:
    """Durations are listed shortest first, all of them, each right to 5 percent."""
    items = filled(values).items()
    assert [value for value, _ in items] == sorted(value for value, _ in items)
    listed = [value for value, count in items for _ in range(count)]
    assert len(listed) == len(values)
    for value, duration in zip(listed, sorted(values), strict=True):
        assert value == pytest.approx(duration, rel=0.06, abs=2e-5)
