"""Advice fits the place: a remedy that awaits only where there is a coroutine, offloading only where it can be done."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import pytest

from loopwatch.core.dataclasses import replace
from loopwatch.diagnosis import call_context
from loopwatch.diagnosis.advise import advise
from loopwatch.diagnosis.call_context import CallContext, Kind
from loopwatch.diagnosis.cause_facts import CAUSES
from loopwatch.diagnosis.culprit import Verdict, judge
from loopwatch.diagnosis.offloadable import can_be_offloaded, frame_of, lasts
from loopwatch.diagnosis.own_part import Parts
from loopwatch.diagnosis.public_names import public
from loopwatch.diagnosis.remedy import ON_TIME, moves, remedy
from loopwatch.diagnosis.remedy_table import TABLE
from loopwatch.diagnosis.site import Site
from loopwatch.events import Cause, Evidence, Frame
from loopwatch.system.signals import handler_code
from loopwatch.watch.observation import Observation, Sample
from loopwatch.watch.stacks import RawFrame, RawStack, to_frame, to_frames

WITHOUT_COROUTINE = sorted(set(Kind) - {Kind.COROUTINE, Kind.CALLED, Kind.UNKNOWN}, key=lambda kind: kind.name)
SITE = Site((), library_code=("library",))
USER = Frame("refresh", "app", "/srv/app.py", 21)


def taken() -> tuple[RawFrame, ...]:
    """Return the stack of the caller, innermost frame first, up to the test's own."""
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_name.startswith("test_"):
        frames.append(RawFrame(frame.f_code, frame.f_lineno, frame.f_lasti, frame.f_globals["__name__"]))
        frame = frame.f_back
    return tuple(frames)


def run(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("it was suspended")


def plain() -> tuple[RawFrame, ...]:
    return taken()


async def handler() -> tuple[RawFrame, ...]:
    return taken()


async def calling(function: Callable[[], Any]) -> Any:
    return function()


def library(function: Callable[[], Any]) -> Any:
    return function()


LIBRARY: dict[str, Any] = {"__name__": "library.core"}
exec("def call(function): return function()\nasync def serve(function): return function()", LIBRARY)


class Resource:
    found: tuple[RawFrame, ...] = ()
    local = staticmethod(lambda: taken())

    def __init__(self) -> None:
        self.found = taken()

    def __enter__(self) -> Resource:
        return self

    def __exit__(self, *_: object) -> None:
        self.found = taken()

    def __del__(self) -> None:
        Resource.found = taken()


class Late(Resource):
    def __init__(self) -> None:
        """Do nothing."""

    def __call__(self) -> tuple[RawFrame, ...]:
        return taken()


def context(
    frames: tuple[RawFrame, ...], *, in_task: bool = True, handlers: frozenset[CodeType] = frozenset()
) -> CallContext:
    """Return the context of the innermost frame, without the driver of the coroutine."""
    frames = tuple(raw for raw in frames if raw.code is not run.__code__)
    return call_context.find(to_frame(frames[0]), frames, SITE.is_user, handlers, in_task=in_task)


# ------------------------------------------------------------------------------------------ where a line stands


def test_coroutine_and_functions_it_calls() -> None:
    """A coroutine is known by its code; a plain function that it calls by the coroutine around it."""
    assert context(run(handler())) == CallContext(Kind.COROUTINE, "handler")
    assert context(run(calling(plain))) == CallContext(Kind.CALLED, "plain", "calling")
    assert context(run(calling(Late()))).kind is Kind.CALLED


def test_comprehensions_are_part_of_their_function() -> None:
    """A line in a comprehension or generator expression of a coroutine stands in a coroutine."""

    async def listing() -> Any:
        return next(taken() for _ in range(1))

    assert context(run(listing())).kind is Kind.COROUTINE


def test_callbacks_of_loop_and_libraries() -> None:
    """Without any coroutine it is a callback of the loop; with a library in between, one of that library."""
    assert context(plain(), in_task=False).kind is Kind.CALLBACK
    assert context(plain(), in_task=True).kind is Kind.UNKNOWN
    through = run(calling(lambda: LIBRARY["call"](plain)))
    assert context(through) == CallContext(Kind.CALLED_BACK, "plain", "calling", "library.core.call")
    served = run(LIBRARY["serve"](plain))
    assert context(served) == CallContext(Kind.CALLED_BACK, "plain", "", "library.core.serve")


def test_special_methods() -> None:
    """Finalizers, context managers and other special methods are told apart, wherever they run."""

    def leave() -> tuple[RawFrame, ...]:
        with (resource := Late()):
            pass
        return resource.found

    async def collect() -> tuple[RawFrame, ...]:
        Late()
        return Resource.found

    assert context(run(calling(leave))).kind is Kind.CONTEXT_MANAGER
    assert context(run(collect())).kind is Kind.FINALIZER
    assert context(run(calling(lambda: Resource().found))).kind is Kind.SPECIAL


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals of Unix")
def test_signal_handlers() -> None:
    """A registered handler is known by its code, also where it interrupted a coroutine."""
    found = []

    def handle(*_: object) -> None:
        found.append(taken())

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        handlers = handler_code()
        run(calling(lambda: signal.raise_signal(signal.SIGUSR1)))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handle.__code__ in handlers
    assert handle.__code__ not in handler_code()
    assert context(found[0], handlers=handlers).kind is Kind.SIGNAL_HANDLER


def test_without_a_stack_nothing_is_known() -> None:
    """A culprit that is on no stack of the loop's thread stands nowhere."""
    assert call_context.find(None, (), SITE.is_user, in_task=True) == CallContext()
    assert call_context.find(Frame("f", "m", "/m.py", 1), plain(), SITE.is_user, in_task=True) == CallContext()


# ------------------------------------------------------------------------------------------ what is said there


@pytest.mark.parametrize("kind", WITHOUT_COROUTINE)
@pytest.mark.parametrize("advice", TABLE, ids=lambda advice: advice.operation)
def test_nothing_is_awaited_without_a_coroutine(advice: Any, kind: Kind) -> None:
    """For every row and every place without a coroutine the sentence has nothing to await."""
    for cause in advice.causes:
        said = remedy(cause, advice.patterns[:1], None, ON_TIME, CallContext(kind, "C.f", "", "library.call"))
        assert re.search(r"\bawait\b", said) is None, said
        assert said.endswith(".") and "{" not in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Kind.COROUTINE, "Replace time.sleep() with await asyncio.sleep()"),
        (Kind.CALLED, "make it a coroutine function that view() awaits"),
        (Kind.CALLBACK, "Start a task with loop.create_task() that uses asyncio.sleep()"),
        (Kind.CALLED_BACK, "Have view() run the call that leads to C.f() through asyncio.to_thread"),
        (Kind.FINALIZER, "out of C.f(): release the object earlier, in __aexit__()"),
        (Kind.CONTEXT_MANAGER, "__aenter__() and __aexit__()"),
        (Kind.SPECIAL, "Move time.sleep() out of C.f()"),
        (Kind.SIGNAL_HANDLER, "Register C.f() with loop.add_signal_handler()"),
    ],
)
def test_each_place_has_its_sentence(kind: Kind, words: str) -> None:
    """What can be done about a sleep depends on the function that sleeps."""
    said = remedy(Cause.SLEEP, ["time.sleep"], None, ON_TIME, CallContext(kind, "C.f", "view", "library.call"))
    assert words in said


def test_advice_that_awaits_nothing_is_the_same_everywhere() -> None:
    """Compiling a pattern once is possible wherever the line stands."""
    said = {remedy(Cause.PYTHON, ["re.compile"], None, ON_TIME, CallContext(kind, "f", "g", "h")) for kind in Kind}
    assert said == {"Compile the pattern once at import instead of calling re.compile() on the loop."}


def test_computing_coroutine_gives_way() -> None:
    """A coroutine that computes itself is not told to move, which it cannot, but to give way or split."""
    said = remedy(Cause.PYTHON, (), Frame("consume", "app", "/app.py", 7), ON_TIME, CallContext(Kind.COROUTINE))
    assert said.startswith("Let consume() give way with await asyncio.sleep(0) every N items, or move its computing")


@pytest.mark.parametrize("cause", [Cause.PYTHON, Cause.NATIVE_GIL, Cause.NATIVE, Cause.UNKNOWN])
@pytest.mark.parametrize("call", ["asyncio.tasks.gather", "asyncio.queues.Queue.get", "asyncio.futures.Future.done"])
def test_asyncio_is_never_moved(cause: Cause, call: str) -> None:
    """Functions of asyncio are never offered to a process or a thread: they belong to the loop."""
    said = remedy(cause, [call], None)
    assert "Executor" not in said and "to_thread" not in said
    assert "asyncio.sleep(0)" in said


@pytest.mark.parametrize(
    ("cause", "calls", "words"),
    [
        (Cause.NATIVE_GIL, ["logging.Logger.debug", "logging.LogRecord.getMessage"], "truncated text"),
        (Cause.IO, ["logging.Logger.info", "logging.StreamHandler.emit"], "QueueHandler"),
        (Cause.IO, ["multiprocessing.queues.Queue.get", "multiprocessing.connection.Connection.recv_bytes"],
         "asyncio.to_thread, or watch the connection with loop.add_reader()"),
        (Cause.LOCK, ["multiprocessing.queues.Queue.get"], "loop.add_reader()"),
        (Cause.LOCK, ["multiprocessing.pool.Pool.map", "threading.Event.wait"], "map_async()"),
        (Cause.GIL, ["multiprocessing.queues.Queue._feed"], "SharedBuffer"),
        (Cause.NATIVE_GIL, ["asyncio.base_events.BaseEventLoop.run_in_executor"], "SharedBuffer"),
        (Cause.GC, ["gc.collect"], "gc.freeze()"),
        (Cause.PYTHON, ["sqlalchemy.ext.asyncio.session.AsyncSession.scalars"], "yield_per"),
        (Cause.PYTHON, ["sqlalchemy.ext.asyncio.session.AsyncSession.flush"], "Insert in bulk"),
        (Cause.PYTHON, ["sqlalchemy.orm.session.Session.execute", "sqlalchemy.orm.bulk_persistence.x"], "in bulk"),
        (Cause.PYTHON, ["httpx._client.AsyncClient.__init__", "ssl.create_default_context"], "httpx.AsyncClient()"),
        (Cause.IO, ["openai.resources.chat.completions.completions.Completions.create"], "openai.AsyncOpenAI"),
    ],
)  # fmt: skip
def test_operation_and_cause_decide(cause: Cause, calls: list[str], words: str) -> None:
    """The same library gets other advice for another operation, and for another cause."""
    assert words in remedy(cause, calls, None)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("httpx._client.AsyncClient.__init__", "httpx.AsyncClient"),
        ("concurrent.futures._base.Future.result", "concurrent.futures.Future.result"),
        ("posix.waitpid", "os.waitpid"),
        ("_socket.getaddrinfo", "socket.getaddrinfo"),
        ("_io.open", "open"),
        ("requests.api.get", "requests.get"),
        ("asyncio.queues.Queue.get", "asyncio.Queue.get"),
        ("builtins.sorted", "sorted"),
        ("f.<locals>.<lambda>", "f.<locals>.<lambda>"),
        (".recv", ".recv"),
        ("handler", "handler"),
        ("_private", "_private"),
        ("", ""),
    ],
)
def test_public_names(name: str, shown: str) -> None:
    """Functions are called what their documentation calls them."""
    assert public(name) == shown


# ------------------------------------------------------------------------------------------ what can be offloaded


async def computing() -> tuple[RawFrame, ...]:
    return taken()


async def awaiting() -> tuple[RawFrame, ...]:
    if len(sys.argv) < 0:
        await handler()
    return taken()


def offered(frames: tuple[RawFrame, ...], kind: Kind = Kind.CALLED) -> bool:
    return can_be_offloaded(CallContext(kind, "f", "view"), frames[0], [RawStack(frames)] * 3)


def test_offered_for_functions_of_modules() -> None:
    """Plain functions, and coroutine functions that await nothing, are offered; local functions and methods are not."""

    def local() -> tuple[RawFrame, ...]:
        return taken()

    assert offered(plain())
    assert offered(run(computing()), Kind.COROUTINE)
    assert not offered(run(awaiting()), Kind.COROUTINE)
    assert not offered(local())
    assert not offered(Late()())


@pytest.mark.parametrize("kind", [*WITHOUT_COROUTINE, Kind.UNKNOWN])
def test_not_offered_where_nobody_awaits(kind: Kind) -> None:
    """A callback, a special method or what a library calls is not offered: its caller does not await it."""
    assert not offered(plain(), kind)
    assert not can_be_offloaded(CallContext(Kind.COROUTINE, "f", "", "fastapi.routing.app"), plain()[0], [])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [("x", True), ("xxx", True), ("..xxx..", True), ("xx.xx", True), ("x.x.x", False), ("x..x", False), ("...", False)],
)
def test_short_calls_do_not_last(shown: str, expected: bool) -> None:
    """A function missing in two samples between those that show it is called over and over."""
    with_it, without = RawStack(plain()), RawStack(run(handler()))
    assert lasts(plain()[0], [with_it if each == "x" else without for each in shown]) is expected


def observed(frames: tuple[RawFrame, ...], task: str | None = "Task-1") -> Observation:
    samples = [Sample(0.1 * number, 0.0, RawStack(frames)) for number in range(3)]
    return Observation("id", "main", "MainThread", 0.0, 0.0, 0.3, Evidence(0.3), samples=samples, task=task)


@pytest.mark.parametrize(("cause", "expected"), [(Cause.PYTHON, True), (Cause.GIL, False), (Cause.LOCK, False)])
def test_advise_combines_cause_and_code(cause: Cause, expected: bool) -> None:
    """A function is offered where its code allows it and its cause is one that offloading cures."""
    frames = tuple(raw for raw in run(calling(plain)) if raw.code is not run.__code__)
    verdict = judge(SITE, [to_frames(frames)] * 3)
    advised = advise(
        observed(frames), SITE, cause, verdict, shown=RawStack(frames), calls=(), parts=Parts(0.3, 0.0, 0.0)
    )
    assert verdict.culprit is not None and verdict.culprit.function == "plain"
    assert advised.offloadable is expected
    assert frame_of(frames, verdict.culprit) == frames[0]


def test_callbacks_that_share_a_call_are_told_by_it() -> None:
    """An overloaded pass whose callbacks make one known call is told with that call's remedy, and how many made it;
    small callbacks and unknown calls are told as too many."""
    verdict = Verdict(USER, (USER,), agreeing=9)

    def remedy_of(handles: int, *calls: str) -> str:
        evidence = Evidence(0.5, cpu=0.49, process_cpu=0.49, samples=10, gil_wait=0.0, handles=handles, uneven=0.1,
                            callbacks=8, longest_callback=0.09, threshold=0.1, call="ssl.create_default_context",
                            syscall="running", syscall_share=1.0)  # fmt: skip
        samples = [Sample(0.1, 0.0, RawStack(()))] * 10
        seen = Observation("a", "main", "MainThread", 0.0, 0.0, 0.5, evidence, samples=samples)
        return advise(seen, SITE, Cause.OVERLOAD, verdict, shown=None, calls=calls, parts=Parts(0.5, 0.0, 0.0)).remedy

    said = remedy_of(20, "ssl.create_default_context")
    assert said.startswith("Create the client or TLS context once")
    assert said.endswith(" 20 callbacks in one pass, each 25 ms.")
    assert remedy_of(5000, "ssl.create_default_context") == remedy_of(20) == CAUSES[Cause.OVERLOAD].remedy


def test_short_calls_are_named() -> None:
    """The remedy of a loop over short calls names them."""
    verdict = Verdict(USER, (USER,), agreeing=3, repeated=replace(USER, function="parse"))
    seen = Observation("a", "main", "MainThread", 0.0, 0.0, 0.5, Evidence(0.5))
    said = advise(seen, SITE, Cause.PYTHON, verdict, shown=None, calls=(), parts=Parts(0.5, 0.0, 0.0)).remedy
    assert said.endswith(" It makes many short calls of parse().")


@pytest.mark.parametrize(
    ("calls", "expected"),
    [([], True), (["acme.fetch"], True), (["PIL.Image.Image.resize"], True), (["re.compile"], False),
     (["logging.Logger.debug"], False), (["sqlalchemy.orm.session.Session.execute"], False)],
)  # fmt: skip
def test_offered_only_where_the_remedy_is_to_move(calls: list[str], expected: bool) -> None:
    """What has another remedy, such as to log less, is not offered for moving."""
    assert moves(Cause.PYTHON, calls) is expected
    assert not moves(Cause.IO, ["multiprocessing.queues.Queue.get"])


def test_short_calls_are_told_of_their_caller() -> None:
    """A function whose calls are short is not to be moved: the loop around its calls is to give way."""
    called = (raw for raw in run(calling(plain)) if raw.code is not run.__code__)
    frames = tuple(called)
    seen = observed(frames)
    for at in range(2):
        seen.samples.insert(1 + at, Sample(0.05 * at, 0.0, RawStack(frames[1:])))
    verdict = judge(SITE, [to_frames(frames)] * 3)
    advised = advise(seen, SITE, Cause.PYTHON, verdict, shown=RawStack(frames), calls=(), parts=Parts(0.3, 0.0, 0.0))
    assert advised.remedy.startswith("Let calling() give way with await asyncio.sleep(0) every N items: each call of p")
    assert not advised.offloadable
