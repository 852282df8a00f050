"""Every backend, also a user's own, satisfies the contract of :class:`loopwatch.Backend`."""

from __future__ import annotations

import asyncio
import threading

import pytest

from examples.own_backend import OneThread
from loopwatch import Backend, WorkerPool
from loopwatch.testing import BackendConformance
from loopwatch.workers.interpreters import InterpreterBackend
from loopwatch.workers.thread_backend import ThreadBackend
from tests.conftest import Run, runner
from tests.workers.test_interpreters import library, needs_interpreters

__all__ = ["library"]


class Conformance(BackendConformance):
    """The contract's checks, on each kind of loop."""

    @pytest.fixture
    def run(self, loop_kind: str) -> Run:
        return runner(loop_kind)


class TestWorkerPool(Conformance):
    """Worker processes."""

    def make(self, max_queue: int | None = None) -> Backend:
        return WorkerPool(workers=1, max_queue=max_queue)


class _Threaded(Conformance):
    """A cancelled call goes on in its thread."""

    async def strays_end(self, backend: Backend) -> None:
        threads = {thread for thread in threading.enumerate() if thread.name == f"loopwatch-{backend.name}"}
        await backend.close()
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()


class TestThreadBackend(_Threaded):
    """Threads."""

    pickles = False

    def make(self, max_queue: int | None = None) -> Backend:
        return ThreadBackend(1, max_queue=max_queue)


@needs_interpreters
@pytest.mark.usefixtures("library")
class TestInterpreterBackend(_Threaded):
    """Interpreters of their own."""

    def make(self, max_queue: int | None = None) -> Backend:
        return InterpreterBackend(1, max_queue=max_queue)


class TestOwn(Conformance):
    """A backend a user has written in a few lines: the example."""

    pickles = knows_options = unwraps = False

    def make(self, max_queue: int | None = None) -> Backend:
        return OneThread()
