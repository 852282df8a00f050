"""Classifies what a thread does by the system call it is in. Pure."""

from __future__ import annotations

RUNNING = "running"
LOCK_CALLS = frozenset({"futex", "futex_waitv"})
SLEEP_CALLS = frozenset({"clock_nanosleep", "nanosleep", "pause"})
POLLS = frozenset(
    {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "io_uring_enter"}
)
"""Calls in which a loop waits for events."""


def kind_of(syscall: str | None) -> str:
    """Return ``running``, ``sleep``, ``lock``, ``io`` or ``""`` (not known) for the system call of a thread."""
    if syscall is None:
        return ""
    if syscall == RUNNING:
        return RUNNING
    if syscall in SLEEP_CALLS:
        return "sleep"
    return "lock" if syscall in LOCK_CALLS else "io"
