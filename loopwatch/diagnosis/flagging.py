"""Flagging: finds functions that keep blocking a loop, over a sliding window. Pure: the time is an argument."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from loopwatch.core.dataclasses import dataclass
from loopwatch.diagnosis.cause_facts import those
from loopwatch.events import Cause, FlaggedFunction, Frame, Stall

OFFLOADABLE = those("is_offloadable")
"""Causes that offloading the function cures; only stalls of these are counted."""

MAX_SPANS = 256
"""Stalls of one function within the window that are kept separately; with more, those that end in the same hundredth of
the window are merged, and leave it together."""

MAX_LOOPS = 8
"""Loop names kept per function."""

_TRACKED = 4  # functions tracked for each one that telemetry distinguishes: most are never flagged

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Share:
    """Stalls of one cause in a span: their number, seconds; remedy of the latest, and whether it can be offloaded."""

    stalls: int
    blocked: float
    remedy: str
    offloadable: bool


@dataclass(frozen=True, slots=True)
class _Span:
    """One stall, or several merged; times in seconds since the epoch, ``culprit`` of the latest."""

    begin: float
    end: float
    culprit: Frame
    victims: int
    loops: tuple[str, ...]
    shares: Mapping[Cause, _Share]


@dataclass(frozen=True, slots=True)
class _History:
    """The stalls of one function, sorted by end, and whether it was reported as flagged."""

    spans: tuple[_Span, ...] = ()
    reported: bool = False


class Flagging:
    """Finds the functions that are the culprit of several stalls within a window.

    A function is identified by module, qualified name and file. One thread may add while others read: the history of
    a function is replaced as a whole and never changed, and readers copy the table.

    Args:
        after: number of stalls within the window that flags a function, 1 or more.
        window: length of the window, seconds.
        max_culprits: functions distinguished in telemetry; four times as many are tracked, the cheapest are dropped.

    Attributes:
        after, window, max_culprits: as above; may be changed at any time.

    Example:
        >>> flagging = Flagging(after=3, window=60.0, max_culprits=20)
        >>> flagging.flagged(now=0.0)
        ()
    """

    def __init__(self, after: int, window: float, max_culprits: int) -> None:
        self.after, self.window, self.max_culprits = after, window, max_culprits
        self._known: dict[_Key, _History] = {}

    def add(self, stall: Stall) -> FlaggedFunction | None:
        """Count ``stall``, which ended now.

        Returns:
            Its function if this flags it, for the first time or after a whole window without a stall of it.
        """
        culprit = stall.culprit
        if culprit is None or stall.ongoing or stall.cause not in OFFLOADABLE:
            return None
        key = (culprit.module, culprit.function, culprit.file)
        new = _span(stall, culprit)
        known = self._known.get(key, _History())
        recent = self._recent(known.spans, new.end)
        spans = _bounded(sorted((*recent, new), key=_end), self.window)
        was_reported = known.reported and bool(recent)
        flagged = _count(spans) >= self.after
        self._known[key] = _History(spans, was_reported or flagged)
        self._forget_the_cheapest(key, new.end)
        return self._record(spans) if flagged and not was_reported and key in self._known else None

    def flagged(self, now: float) -> tuple[FlaggedFunction, ...]:
        """Return the functions that are flagged at ``now`` (seconds since the epoch), most blocked time first."""
        recent = [self._recent(history.spans, now) for history in self._known.copy().values()]
        found = [self._record(spans) for spans in recent if _count(spans) >= self.after]
        return tuple(sorted(found, key=lambda function: (-function.blocked, function.name, function.culprit.file)))

    def clear(self) -> None:
        """Forget everything."""
        self._known = {}

    def _recent(self, spans: Iterable[_Span], now: float) -> tuple[_Span, ...]:
        # Spans a whole window ahead were counted before the clock was set back.
        return tuple(span for span in spans if now - self.window < span.end <= now + self.window)

    def _forget_the_cheapest(self, newest: _Key, now: float) -> None:
        def cost(key: _Key) -> tuple[bool, float, float]:
            spans = self._known[key].spans
            return key == newest, _blocked(self._recent(spans, now)), spans[-1].end

        while len(self._known) > _TRACKED * self.max_culprits:
            del self._known[min(self._known, key=cost)]

    def _record(self, spans: Sequence[_Span]) -> FlaggedFunction:
        whole, window = _merged(spans), self.window
        shares, culprit, blocked = whole.shares, whole.culprit, _blocked(spans)
        cause = min(shares, key=lambda cause: (-shares[cause].blocked, cause))
        counts = ((cause, share.stalls) for cause, share in shares.items())
        return FlaggedFunction(
            name=f"{culprit.module}:{culprit.function}",
            culprit=culprit,
            stalls=_count(spans),
            window=window,
            blocked=blocked,
            blocked_per_minute=blocked * 60 / window,
            victims=whole.victims,
            cause=cause,
            causes=tuple(sorted(counts, key=lambda item: (-item[1], item[0]))),
            loops=whole.loops,
            first_at=whole.begin,
            last_at=whole.end,
            remedy=shares[cause].remedy,
            offloadable=shares[cause].offloadable,
        )


def _span(stall: Stall, culprit: Frame) -> _Span:
    return _Span(
        begin=stall.started_at,
        end=stall.started_at + stall.duration,
        culprit=culprit,
        victims=stall.victims or 0,
        loops=(stall.loop,),
        shares={stall.cause: _Share(1, stall.duration, stall.remedy, stall.offloadable)},
    )


def _end(span: _Span) -> float:
    return span.end


def _count(spans: Iterable[_Span]) -> int:
    return sum(share.stalls for span in spans for share in span.shares.values())


def _blocked(spans: Iterable[_Span]) -> float:
    return math.fsum(share.blocked for span in spans for share in span.shares.values())


def _bounded(spans: Sequence[_Span], window: float) -> tuple[_Span, ...]:
    """Return ``spans``, sorted by end, merged if there are more than MAX_SPANS."""
    if len(spans) <= MAX_SPANS:
        return tuple(spans)
    # Slices are fixed in time, so a merged span stays in the slice of all its stalls and cannot grow on.
    slices = itertools.groupby(spans, key=lambda span: span.end // (window / 100))
    return tuple(_merged(list(together)) for _, together in slices)


def _merged(spans: Sequence[_Span]) -> _Span:
    """Merge spans, which are sorted by end, into one."""
    shares: dict[Cause, list[_Share]] = {}
    for span in spans:
        for cause, share in span.shares.items():
            shares.setdefault(cause, []).append(share)
    return _Span(
        begin=min(span.begin for span in spans),
        end=spans[-1].end,
        culprit=spans[-1].culprit,
        victims=sum(span.victims for span in spans),
        loops=tuple(sorted({name for span in spans for name in span.loops}))[:MAX_LOOPS],
        shares={
            cause: _Share(
                stalls=sum(share.stalls for share in parts),
                blocked=math.fsum(share.blocked for share in parts),
                remedy=parts[-1].remedy,
                offloadable=parts[-1].offloadable,
            )
            for cause, parts in shares.items()
        },
    )
