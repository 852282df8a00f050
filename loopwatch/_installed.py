"""The installed agent of this process, with its lock, fork and exit handling; kept by ``core.process_state``.

Imports the agent only on installation: under ``loopwatch run`` every process that imports asyncio imports this module.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable

from loopwatch.core.deferred import Deferred
from loopwatch.core.process_state import one
from loopwatch.core.subinterpreters import in_subinterpreter
from loopwatch.errors import ConfigError

TYPE_CHECKING = False  # recognised by type checkers; importing typing takes 3 ms
if TYPE_CHECKING:
    from typing import Any

    from loopwatch.agent import Agent
    from loopwatch.config import Config
    from loopwatch.core.patches import PatchSet


class _Process:
    """Installation state of this process."""

    def __init__(self) -> None:
        self.agent: Agent | None = None  # the wanted one
        self.begun: Agent | None = None  # the one that is on, or is being started or stopped
        self.lock = threading.RLock()
        self.settling: int | None = None  # ident of the thread that is in _settle()
        self.patches: PatchSet | None = None  # outlives agents, so that the next one finds the residues of the last
        self.deferred: Deferred | None = None
        self.is_handled = False  # fork and exit handlers are registered
        self.forking = threading.local()  # .release: restarts the agent's threads after this thread's fork


_process = one(_Process)


def install(config: Config | None = None, **settings: Any) -> Agent:
    """Watch every event loop of this process from now on.

    Safe at import time, inside a running loop and from any thread. Nothing is started before a loop runs. A second call
    returns the same agent; with explicit settings it reconfigures that agent and logs what changed.

    Args:
        config: all settings at once; the environment is not read then.
        **settings: fields of :class:`loopwatch.Config`; they override ``LOOPWATCH_*`` variables.

    Returns:
        The agent.

    Raises:
        ConfigError: a setting or variable that is unknown or not allowed; nothing is installed then.

    Example:
        >>> import loopwatch
        >>> loopwatch.install(threshold=0.2).config.threshold
        0.2
        >>> loopwatch.uninstall()
    """
    if config is not None and settings:
        raise ConfigError("install(): give either a Config or single settings, not both; use config.replaced(...)")
    from loopwatch.agent import Agent
    from loopwatch.config import field_names, from_env
    from loopwatch.core.off_loop import off_loop
    from loopwatch.core.patches import PatchSet

    with _process.lock:
        if _process.agent is not None:
            _process.agent.expect_typed_code(False)
            if config is not None:
                settings = {name: getattr(config, name) for name in field_names()}
            if settings:
                _process.agent.configure(**settings)
            return _process.agent
        patches = _process.patches = _process.patches or PatchSet()
        agent = off_loop(lambda: Agent(config or from_env(**settings), patches=patches))
        if _process.agent is None:  # else a signal handler has installed one meanwhile
            _process.agent = agent
        agent = _process.agent
        _handle_process()
        _settle()
        return agent


def uninstall() -> None:
    """Stop watching and restore everything; without an agent it does nothing.

    Attributes are as they were before :func:`install`. A replacement that other code has wrapped since stays as a
    pass-through, and the next :func:`install` reuses it.
    """
    _uninstall(leaving=False)


def _leave() -> None:
    from loopwatch.core.signals import end_by_interrupt, ended_by_interrupt

    was_interrupted = ended_by_interrupt()
    _uninstall(leaving=True)
    if was_interrupted:
        end_by_interrupt()


def _uninstall(*, leaving: bool) -> None:
    with _process.lock:
        if _process.deferred is not None:
            _process.deferred.cancel()
        _process.agent = None
        _settle(leaving=leaving)


def _settle(*, leaving: bool = False) -> None:
    """Start and stop agents until the wanted one is on, and no other; call it with the lock held.

    Signal handlers, finalizers and callbacks of the program may install and uninstall meanwhile, in the same thread:
    they only change which agent is wanted.

    Raises:
        ConfigError: the wanted agent cannot be started; none is wanted then.
    """
    if _process.settling is not None:
        return
    _process.settling = threading.get_ident()
    try:
        while _process.begun is not _process.agent:
            old, _process.begun = _process.begun, None
            if old is not None:
                old.stop(leaving=leaving)
            elif (new := _process.agent) is not None:
                _process.begun = new
                _begin(new)
    finally:
        _process.settling = None


def _begin(agent: Agent) -> None:
    try:
        _start(agent)
    except ConfigError:
        _process.begun = None
        if _process.agent is agent:
            _process.agent = None
        raise


def current_agent() -> Agent | None:
    """Return the installed agent, None if there is none.

    Under ``loopwatch run`` this installs it, if the process has not had anything to watch yet.
    """
    deferred = _process.deferred
    if _process.agent is None and deferred is not None:
        deferred.fire()
    return _process.agent


def install_when_needed(failed: Callable[[Exception], object]) -> None:
    """Install, for a program that does not do so itself, as soon as there is something to watch.

    Args:
        failed: called with an exception of the installation; must not raise.
    """
    if in_subinterpreter():
        return
    with _process.lock:
        if _process.agent is None and _process.deferred is None:
            _process.deferred = Deferred(install_from_environment, _place, failed)
            _process.deferred.start()


def install_from_environment() -> None:
    """Install for a program that does not do so itself; a bad setting is logged, and no agent is installed.

    The agent is installed even if the port for Prometheus cannot be opened. Blocks by code that a notebook or a prompt
    runs on its loop are expected here; an explicit call of install() reports them.
    """
    from loopwatch.core import log

    try:
        agent = install()
    except ConfigError as exc:
        if not str(exc).startswith("prometheus_"):
            log.write(logging.ERROR, "loopwatch: not started: %s", exc)
            return
        # The port could not be opened; an error about a value names its variable.
        log.write(logging.ERROR, "loopwatch: Prometheus cannot scrape this process: %s", exc)
        agent = install(prometheus_port=None)
    agent.expect_typed_code(True)


def _place() -> str | None:
    from loopwatch.health.naming import origin

    found = origin()
    return None if found.aside else found.place


def _start(agent: Agent) -> None:
    """Start the agent in place of the deferred start, whose replacements must be undone before."""
    deferred = _process.deferred
    was_waiting = deferred is not None and deferred.is_waiting
    if deferred is not None:
        deferred.cancel()
    try:
        agent.start()
    except ConfigError:
        if deferred is not None and was_waiting:
            deferred.start()
        raise
    for pool, place in deferred.pools() if deferred is not None else ():
        agent.adopt_executor(pool, place)


def _handle_process() -> None:
    """Register once: a fork handler cannot be removed, and an exit handler leaves its slot (atexitmodule.c)."""
    if _process.is_handled:
        return
    _process.is_handled = True
    atexit.register(_leave)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )


def _before_fork() -> None:
    agent = _process.agent
    _process.forking.release = agent.hold_for_fork() if agent is not None else None


def _after_fork_in_parent() -> None:
    release = getattr(_process.forking, "release", None)
    if release is not None:
        release()


def _after_fork_in_child() -> None:
    _process.lock = threading.RLock()
    _process.forking = threading.local()
    if _process.settling != threading.get_ident():
        _process.settling = None  # that thread does not exist here
    if _process.agent is not None:
        _process.agent.after_fork_in_child()
