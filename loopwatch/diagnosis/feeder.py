"""Attributes the work of a process pool's own threads to the line that submitted the call. Pure."""

from __future__ import annotations

from loopwatch.watch.stacks import RawStack

_FEEDERS = (("multiprocessing.queues", "Queue._feed"), ("concurrent.futures.process", "_ExecutorManagerThread."))
"""Modules and beginnings of functions in which these threads pickle arguments and unpickle results."""


def is_feeder(hog: RawStack) -> bool:
    """Return whether a stack is that of a thread which passes arguments and results of a process pool on."""
    names = [(raw.module, raw.code.co_qualname) for raw in hog.frames]
    return any(module == own and name.startswith(begin) for module, name in names for own, begin in _FEEDERS)


def on_behalf_of(hog: RawStack | None, submitter: RawStack | None) -> RawStack | None:
    """Return the stack of such a thread as if the submitter had called it; any other stack, or none, unchanged."""
    if hog is None or submitter is None or not is_feeder(hog):
        return hog
    return RawStack((*hog.frames, *submitter.frames), hog.globals)
