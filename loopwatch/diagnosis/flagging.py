"""Which functions keep blocking a loop, counted over a sliding window. Pure: it is given the time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from loopwatch.core.dataclasses import dataclass
from loopwatch.events import Cause, FlaggedFunction, Frame, Stall

OFFLOADABLE = frozenset({Cause.PYTHON, Cause.NATIVE_GIL, Cause.NATIVE, Cause.IO, Cause.SLEEP})
"""Causes that are cured where the function runs somewhere else; only stalls of these are counted."""

MAX_SPANS = 256
"""Stalls of one function within the window whose times are kept apart; with more, those that end in the same hundredth
of the window are kept as one, and leave it together."""

MAX_LOOPS = 8
"""Names of loops kept of one function."""

_TRACKED = 4  # functions tracked for each one that telemetry tells apart: most are never flagged

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Share:
    """What one cause has in a span: number of stalls, s blocked, remedy of the latest."""

    stalls: int
    blocked: float
    remedy: str


@dataclass(frozen=True, slots=True)
class _Span:
    """One stall, or several that are counted together; times in s since the epoch, ``culprit`` of the latest."""

    begin: float
    end: float
    culprit: Frame
    victims: int
    loops: tuple[str, ...]
    shares: Mapping[Cause, _Share]


@dataclass(frozen=True, slots=True)
class _History:
    """The stalls of one function, in order of their end, and whether it has been told that it is flagged."""

    spans: tuple[_Span, ...] = ()
    told: bool = False


class Flagging:
    """Finds the functions that are the culprit of several stalls within a window.

    A function is known by module, qualified name and file. One thread may add while others read: what is known of a
    function is replaced as a whole and never changed, and readers take a copy of the table.

    Args:
        after: stalls within the window that make a function flagged, 1 or more.
        window: s.
        max_culprits: functions told apart in telemetry; four times as many are tracked, those that cost least leave.

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
            Its function if this makes it flagged, for the first time or after a whole window without a stall of it.
        """
        culprit = stall.culprit
        if culprit is None or stall.ongoing or stall.cause not in OFFLOADABLE:
            return None
        key = (culprit.module, culprit.function, culprit.file)
        new = _span(stall, culprit)
        known = self._known.get(key, _History())
        recent = self._recent(known.spans, new.end)
        spans = _bounded(sorted((*recent, new), key=_end), self.window)
        was_told = known.told and bool(recent)
        flagged = _count(spans) >= self.after
        self._known[key] = _History(spans, was_told or flagged)
        self._forget_the_cheapest(key, new.end)
        return self._record(spans) if flagged and not was_told and key in self._known else None

    def flagged(self, now: float) -> tuple[FlaggedFunction, ...]:
        """Return the functions that are flagged at ``now`` (s since the epoch), most blocked time first."""
        recent = [self._recent(history.spans, now) for history in self._known.copy().values()]
        found = [self._record(spans) for spans in recent if _count(spans) >= self.after]
        return tuple(sorted(found, key=lambda function: (-function.blocked, function.name, function.culprit.file)))

    def clear(self) -> None:
        """Forget everything."""
        self._known = {}

    def _recent(self, spans: Iterable[_Span], now: float) -> tuple[_Span, ...]:
        # What lies a whole window ahead was counted before the clock was set back.
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
            offloadable=cause in OFFLOADABLE,
        )


def _span(stall: Stall, culprit: Frame) -> _Span:
    return _Span(
        begin=stall.started_at,
        end=stall.started_at + stall.duration,
        culprit=culprit,
        victims=stall.victims or 0,
        loops=(stall.loop,),
        shares={stall.cause: _Share(1, stall.duration, stall.remedy)},
    )


def _end(span: _Span) -> float:
    return span.end


def _count(spans: Iterable[_Span]) -> int:
    return sum(share.stalls for span in spans for share in span.shares.values())


def _blocked(spans: Iterable[_Span]) -> float:
    return math.fsum(share.blocked for span in spans for share in span.shares.values())


def _bounded(spans: Sequence[_Span], window: float) -> tuple[_Span, ...]:
    """Return ``spans``, in order of their end, as no more than MAX_SPANS."""
    if len(spans) <= MAX_SPANS:
        return tuple(spans)
    # The slices lie still, so a span that was merged before stays in the slice of all its stalls and cannot grow on.
    slices = itertools.groupby(spans, key=lambda span: span.end // (window / 100))
    return tuple(_merged(list(together)) for _, together in slices)


def _merged(spans: Sequence[_Span]) -> _Span:
    """Return one span for several, which are in order of their end."""
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
            )
            for cause, parts in shares.items()
        },
    )
