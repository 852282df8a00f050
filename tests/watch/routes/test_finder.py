"""Requests are found on the stack and in the tasks that wait for the running one; faults cost the labels only."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

import loopwatch
from loopwatch import Frame
from loopwatch.agent import Agent
from loopwatch.testing import RecordingSink
from loopwatch.watch.routes import finder
from loopwatch.watch.routes.finder import Request, resolve
from loopwatch.watch.routes.frameworks import READERS
from loopwatch.watch.routes.route import Route, labels
from loopwatch.watch.routes.starlette import _fits

SHOW = Frame("show", "shop", "/srv/shop.py", 3)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (
            Route("GET", "/a/{b}", SHOW),
            {"http.request.method": "GET", "http.route": "/a/{b}", "code.function.name": "shop.show"},
        ),
        (Route("WEBSOCKET", "/a", None), {"http.request.method": "WEBSOCKET", "http.route": "/a"}),
        (Route("get", None, None), {"http.request.method": "_OTHER"}),
        (Route("BREW\n", "/a\n", None), {"http.request.method": "_OTHER", "http.route": "/a\\n"}),
    ],
)  # fmt: skip
def test_labels(route: Route, expected: dict[str, str]) -> None:
    """Labels are printable; a method that the conventions do not know is ``_OTHER``."""
    assert labels(route) == expected


def test_innermost_request_with_a_route_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of frameworks inside each other the innermost route that is known counts, else what is known of the inner one."""
    readers = {"starlette": lambda value: value, "django": lambda value: value}
    monkeypatch.setattr("loopwatch.watch.routes.frameworks.READERS", readers)
    outer, inner, unknown = Route("GET", "/outer", None), Route("GET", "/inner", None), Route("PUT", None, None)
    cases = [((inner, outer), inner), ((unknown, outer), outer), ((inner, unknown), inner), ((unknown, None), unknown)]
    for (first, second), expected in cases:
        assert resolve([Request("django", (first,)), Request("starlette", (second,))]) is expected
    assert resolve([]) is None


def test_every_frame_has_a_reader() -> None:
    """Each framework of the table has a reader that takes as many values as are read of its frames."""
    for known in finder._FRAMES.values():
        code = READERS[known.framework].__code__  # type: ignore[attr-defined]
        assert code.co_argcount == len(known.names)


def test_frames_exist_in_the_installed_versions() -> None:
    """Functions and arguments of the table exist in the frameworks that are installed."""
    checked = 0
    for (module, name), known in finder._FRAMES.items():
        try:
            owner: Any = __import__(module, fromlist=["x"])
        except ImportError:
            continue
        if "<locals>" in name:
            continue  # of earlier versions
        for part in name.split("."):
            owner = getattr(owner, part)
        assert owner.__code__.co_qualname == name
        assert set(known.names) <= set(owner.__code__.co_varnames)
        checked += 1
    assert checked


@pytest.mark.parametrize(
    ("template", "path", "fits"),
    [("", "", True), ("/a/{b}", "/a/7", True), ("/a/{b}", "/c/7", False), ("/a", "/a/b", False), ("/v1", "/v2", False)],
)
def test_template_of_mounts_fits(template: str, path: str, *, fits: bool) -> None:
    """Literal segments are the same, a parameter stands for one segment."""
    assert _fits(template, path) is fits


class Scope(dict[str, Any]):
    """A scope that can be watched."""


def endpoint(wait: float) -> Any:
    async def show(request: Any) -> Any:
        from starlette.responses import PlainTextResponse

        time.sleep(wait)
        return PlainTextResponse("done")

    return show


async def served(app: Any, path: str) -> weakref.ref[Scope]:
    """Serve one request with the bare application; return a reference to its scope."""
    scope = Scope(type="http", method="GET", path=path, headers=[], query_string=b"", root_path="")

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None: ...

    await asyncio.sleep(0)
    await asyncio.create_task(app(scope, receive, send))
    return weakref.ref(scope)


@pytest.mark.measures
def test_request_is_not_kept_alive(agent: Agent, sink: RecordingSink, run: Any) -> None:
    """Once its stall has been recorded, nothing of the agent refers to the request."""
    starlette = pytest.importorskip("starlette.applications")
    from starlette.routing import Route as Routed

    app = starlette.Starlette(routes=[Routed("/{x}", endpoint(0.2))])

    async def main() -> weakref.ref[Scope]:
        reference = await served(app, "/1")
        await asyncio.sleep(0)
        return reference

    reference = run(main())
    assert sink.wait()[0].context["http.route"] == "/{x}"
    gc.collect()
    assert reference() is None


@pytest.mark.measures
def test_endpoint_reaches_the_diagnosis(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The observation of a block within a request has the endpoint as a record: function, module, file, first line."""
    starlette = pytest.importorskip("starlette.applications")
    from starlette.routing import Route as Routed

    from loopwatch.sinks.service import SinkService

    seen: list[Any] = []
    observe = SinkService.observe

    def noted(self: SinkService, observation: Any) -> None:
        seen.append(observation)
        observe(self, observation)

    monkeypatch.setattr(SinkService, "observe", noted)
    agent = loopwatch.install(threshold=0.1, log_level="CRITICAL", cpu_budget=1.0)
    show = endpoint(0.2)
    run(served(starlette.Starlette(routes=[Routed("/{x}", show)]), "/1"))
    assert agent.flush()
    loopwatch.uninstall()
    (found,) = [each.endpoint for each in seen if each.context]
    assert found == Frame("endpoint.<locals>.show", __name__, __file__, show.__code__.co_firstlineno)
    assert not [sample for each in seen for sample in each.samples if sample.requests or sample.context]


@pytest.mark.measures
def test_fault_costs_the_labels_only(
    agent: Agent, sink: RecordingSink, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework whose objects cannot be read leaves the stall without labels, is counted, and hurts nobody."""
    starlette = pytest.importorskip("starlette.applications")
    from starlette.routing import Route as Routed

    def fails(*_: object) -> Route:
        raise AttributeError("another version")

    monkeypatch.setattr("loopwatch.watch.routes.frameworks.READERS", {"starlette": fails})
    run(served(starlette.Starlette(routes=[Routed("/{x}", endpoint(0.2))]), "/1"))
    (stall,) = sink.wait()
    assert stall.context == {}
    assert stall.culprit is not None
    assert stall.culprit.function == "endpoint.<locals>.show"
    assert agent.snapshot().agent.faults.get("route", 0) >= 1


PROGRAM = """
    import asyncio, sys, time
    {before}
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    {after}

    async def show(request):
        time.sleep(0.2)
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/items/{{item}}", show)])
    scope = dict(type="http", method="GET", path="/items/1", headers=[], query_string=b"", root_path="")

    async def receive(): return {{"type": "http.request"}}
    async def send(message): pass
    async def main():
        await asyncio.sleep(0.01)
        await asyncio.create_task(app(scope, receive, send))

    asyncio.run(main())
    import loopwatch
    agent = loopwatch.current_agent()
    agent.flush()
    print([stall.context for stall in agent.stalls()])
"""
INSTALL = "import loopwatch; loopwatch.install(threshold=0.1)"


@pytest.mark.measures
@pytest.mark.parametrize(
    ("command", "before", "after"),
    [([], INSTALL, ""), ([], "", INSTALL), (["-m", "loopwatch", "run", "--threshold", "0.1"], "", "")],
    ids=["installed before", "installed after", "loopwatch run"],
)
def test_framework_imported_before_or_after(tmp_path: Path, command: list[str], before: str, after: str) -> None:
    """The framework may be imported before or after ``install()``, or in a program started with ``loopwatch run``."""
    pytest.importorskip("starlette")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(before=before, after=after))
    done = subprocess.run(
        [sys.executable, *command, str(program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == (
        "[{'http.request.method': 'GET', 'http.route': '/items/{item}', 'code.function.name': '__main__.show'}]\n"
    ), done.stderr


@pytest.mark.measures
def test_no_framework_is_imported_or_patched(agent: Agent, sink: RecordingSink, run: Any) -> None:
    """A stall in a program without a framework imports none, and frames of a framework are its own functions."""
    code = (
        "import asyncio, sys, time, loopwatch; agent = loopwatch.install(threshold=0.05, log_level='CRITICAL')\n"
        "async def main(): time.sleep(0.1)\n"
        "asyncio.run(main()); agent.flush(); assert agent.stalls(); print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frameworks = {"starlette", "fastapi", "aiohttp", "litestar", "quart", "django", "anyio"}
    assert {name.partition(".")[0] for name in done.stdout.split()} & frameworks == set()
    assert "loopwatch.watch.routes.frameworks" not in done.stdout.split()
