"""Finds the culprit of a stall: the responsible frame of the user's own code. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from loopwatch.core.dataclasses import dataclass
from loopwatch.diagnosis.site import Site
from loopwatch.events import Frame

AGREE = 0.6
"""Share of the samples that must show a function for it to be the culprit."""
MOST = 0.5
"""Share of the samples that must show short calls within the culprit for them to count."""

Stack = tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a stall happened.

    Attributes:
        culprit: the responsible frame, None if there is none.
        stack: the representative stack, outermost frame first.
        agreeing: number of samples that show the culprit.
        repeated: function of the user that the culprit calls again and again, none of whose calls lasted; None if there
            is none.
    """

    culprit: Frame | None
    stack: Stack
    agreeing: int
    repeated: Frame | None = None


def judge(site: Site, stacks: Sequence[Stack], lasted: Sequence[int] = ()) -> Verdict:
    """Find the culprit of stacks that were sampled one after the other.

    It is the deepest call of the user's code that lasted, in the function that most samples agree on; if none of that
    code appears, the outermost function of a library that does more than pass a request on.

    Args:
        site: tells whose code a frame is.
        stacks: outermost frame first.
        lasted: for each stack, how many of its outermost frames are calls that an earlier sample shows as well; all of
            them where that is not known.

    Example:
        >>> site = Site(("/usr/lib/python3.12",))
        >>> consume, parse = (Frame(name, "app", "/srv/app.py", 7) for name in ("consume", "parse"))
        >>> judge(site, [(consume, parse)] * 3, [2, 1, 1]).culprit.function
        'consume'
    """
    if not stacks:
        return Verdict(None, (), 0)
    parts = list(_parts(site, stacks, lasted))
    seen = Counter(key for part in parts for key in {_key(frame) for frame in part if site.is_user(frame)})
    agreed = _agreed(seen, AGREE * len(stacks))
    found = [_deepest(site, part, agreed) for part in parts]
    hits = Counter(frame for frame in found if frame is not None)
    if not hits:
        return _outermost(site, stacks)
    function = Counter(_key(frame) for frame in hits.elements()).most_common(1)[0][0]
    culprit = max((frame for frame in hits if _key(frame) == function), key=lambda frame: hits[frame])
    showing = Counter(stack for stack, frame in zip(stacks, found, strict=True) if frame == culprit)
    inner = Counter(
        frame for stack, part in zip(stacks, parts, strict=True) if (frame := _within(site, stack, part, function))
    )
    is_repeated = len(stacks) > 1 and inner.total() >= MOST * len(stacks)
    repeated = inner.most_common(1)[0][0] if is_repeated else None
    return Verdict(culprit, showing.most_common(1)[0][0], seen[function], repeated)


def _parts(site: Site, stacks: Sequence[Stack], lasted: Sequence[int]) -> Iterator[Stack]:
    """Yield of each stack the part that lasted; all of it where that shows nothing of the user's code."""
    for index, stack in enumerate(stacks):
        part = stack[: lasted[index]] if index < len(lasted) else stack
        yield part if any(site.is_user(frame) for frame in part) else stack


def _within(site: Site, stack: Stack, part: Stack, function: tuple[str, str]) -> Frame | None:
    """Return the user's call that did not last within ``function``, None if there is none."""
    innermost = next((frame for frame in reversed(part) if site.is_user(frame)), None)
    if innermost is None or _key(innermost) != function:
        return None
    return next((frame for frame in stack[len(part) :] if site.is_user(frame)), None)


def _outermost(site: Site, stacks: Sequence[Stack]) -> Verdict:
    stack = Counter(stacks).most_common(1)[0][0]
    libraries = [frame for frame in stack if not site.is_stdlib(frame)]
    working = (frame for frame in libraries if not site.is_machinery(frame))
    outermost = next(working, None) or next(iter(libraries), None)
    return Verdict(outermost, stack, sum(outermost in other for other in stacks) if outermost else 0)


def _deepest(site: Site, stack: Stack, keys: set[tuple[str, str]]) -> Frame | None:
    return next((frame for frame in reversed(stack) if _key(frame) in keys and site.is_user(frame)), None)


def _agreed(seen: Counter[tuple[str, str]], needed: float) -> set[tuple[str, str]]:
    """Return the functions that enough samples show; if there are none, the most frequent one."""
    return {key for key, count in seen.items() if count >= needed} or {key for key, _ in seen.most_common(1)}


def _key(frame: Frame) -> tuple[str, str]:
    return frame.function, frame.file
