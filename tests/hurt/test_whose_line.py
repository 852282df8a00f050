"""Warnings, log records and tracebacks point at the program's line, never at a wrapper of the agent."""

from __future__ import annotations

import ast
import os
import sys
import textwrap
from pathlib import Path

import pytest
from hostproc import PRELUDE, program, succeeded

import loopwatch

pytestmark = pytest.mark.measures

ROOT = Path(loopwatch.__file__).parent
SINCE_3_12 = sys.version_info >= (3, 12)

EACH = """
    import asyncio.base_subprocess, concurrent.futures.process, concurrent.futures.thread, faulthandler, logging
    import multiprocessing.pool, multiprocessing.popen_forkserver, subprocess, traceback, types, warnings
    try:
        import uvloop
    except ImportError:
        pass
    import loopwatch
    from loopwatch import _installed
    from loopwatch.core.patches import Patch

    class Probe(Exception):
        pass

    armed = False

    def warn_log_raise(*args, **kwargs):
        if not armed:
            return None  # a call by the agent
        warnings.warn("asked", stacklevel=2)
        logging.getLogger("asked").error("asked", stacklevel=2)
        raise Probe

    def install():
        loopwatch.install(journal=sys.argv[1], log_level="CRITICAL")

    def replaced():
        return [(each.owner, each.name) for each in _installed._process.patches._active if isinstance(each, Patch)]

    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append([record.pathname, record.lineno])
    logging.getLogger("asked").addHandler(handler)
    logging.getLogger("asked").propagate = False
    quiet()

    # Collect all patches with everything imported; then install again over functions that warn, log and raise.
    install()
    found = replaced()
    loopwatch.uninstall()
    asked = []
    for owner, name in found:
        before = vars(owner).get(name)
        bound = getattr(owner, "__name__", "") == "Loop"  # of uvloop: these need the loop, which a method has
        if isinstance(before, type) or (bound and name in ("run_forever", "close")):
            continue
        setattr(owner, name, staticmethod(warn_log_raise) if isinstance(before, staticmethod) else warn_log_raise)
        asked.append((owner, name, isinstance(owner, type)))
    install()
    assert len(replaced()) == len(found)

    wrong, frames = [], {}
    for owner, name, is_method in asked:
        call, arguments = getattr(owner, name), [types.SimpleNamespace()] if is_method else []
        if name in ("_join_exited_workers", "_repopulate_pool_static"):
            arguments *= 6
        if name in ("set_exception", "run_in_executor"):
            arguments += [None]
        logged.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            armed = True
            try:
                result, line = None, sys._getframe().f_lineno; result = call(*arguments)
                line = sys._getframe().f_lineno; result.send(None)
            except Probe as exc:
                stack = traceback.extract_tb(exc.__traceback__)
                frames[f"{getattr(owner, '__qualname__', owner.__name__)}.{name}"] = len(stack) - 2
            armed = False
        if [[each.filename, each.lineno] for each in warned] != [["<string>", line]] or logged != [["<string>", line]]:
            wrong.append([name, [str(each) for each in warned], logged, line])
    say(wrong=wrong, frames=frames, threads=threading.active_count())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_warnings_in_patched_functions_name_the_caller(tmp_path: Path) -> None:
    """In each function that install() patches ``stacklevel=2`` refers to the line that called the patch.

    The traceback of its exception has no frame of the agent for a fork, at most one for a method, and two for a
    function.
    """
    found = succeeded(EACH, tmp_path)
    assert found["wrong"] == []
    frames = found["frames"]
    assert {"os.fork", "os.kill", "Popen._execute_child", "BaseProcess.start", "ThreadPoolExecutor.shutdown"} <= set(
        frames
    )
    assert {"ProcessPoolExecutor.submit", "Pool.apply_async", "asyncio.events._set_running_loop"} <= set(frames)
    assert len(frames) >= 45
    assert frames["os.fork"] == frames["os.forkpty"] == 0
    assert {name: count for name, count in frames.items() if count > 2} == {}
    assert frames["Popen._execute_child"] == frames["Pool.apply_async"] == 1


ENCODINGS = """
    import subprocess, warnings
    import loopwatch
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loopwatch.install()
        first = sys._getframe().f_lineno; subprocess.run(["true"], text=True)
        second = sys._getframe().f_lineno; subprocess.Popen(["true"], text=True).wait()
        third = sys._getframe().f_lineno; subprocess.check_output(["true"], text=True)
    loopwatch.uninstall()
    wanted = [["<string>", line] for line in (first, second, third)]
    say(found=[[each.filename, each.lineno] for each in warned], wanted=wanted)
"""


def interpreted(source: str, *args: object, options: tuple[str, ...], **env: str) -> dict[str, object]:
    """Run a program with options of the interpreter."""
    run = f"""
    import runpy, subprocess
    code = {PRELUDE + source!r}
    import textwrap
    done = subprocess.run([sys.executable, *{options!r}, "-c", textwrap.dedent(code), *sys.argv[1:]])
    sys.exit(done.returncode)
    """
    return succeeded(run, *args, env=env)


@pytest.mark.skipif(not Path("/bin/true").exists(), reason="there is no /bin/true here")
def test_an_encoding_warning_names_the_call() -> None:
    """The warning about ``text=True`` without an encoding in Popen and its callers names the program's line."""
    found = interpreted(textwrap.dedent(ENCODINGS), options=("-X", "warn_default_encoding"))
    assert found["found"] == found["wanted"]


STRICT = """
    import concurrent.futures, multiprocessing, subprocess
    import loopwatch
    agent = loopwatch.install(
        threshold=0.05, journal=sys.argv[1], hang_after=0.3, prometheus_port=0, otlp_endpoint="http://127.0.0.1:9",
        export_interval=0.1, log_level="CRITICAL"
    )
    quiet()

    async def main():
        await blocked(0.5)
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(5)")
        await asyncio.to_thread(len, "abc")
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, len, "abc")
            await asyncio.to_thread(agent._parts.health._monitor.poll_now)
        child.kill()
        await child.wait()

    if __name__ == "__main__":
        asyncio.run(main())
        agent.flush(10)
        for _ in range(2):
            agent._parts.telemetry.metrics.read()
            agent.snapshot()
        faults = dict(agent.snapshot().agent.faults)
        stalls = len(agent.stalls())
        loopwatch.uninstall()
        say(faults=faults, stalls=stalls > 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_no_file_is_read_without_an_encoding(tmp_path: Path) -> None:
    """No part of the agent fails or warns when a missing encoding is an error."""
    options = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning")
    assert interpreted(textwrap.dedent(STRICT), tmp_path, options=options) == {"faults": {}, "stalls": True}


def _names_no_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" not in given
    if name in ("run", "Popen", "check_output", "check_call", "call"):
        return bool({"text", "universal_newlines"} & set(given)) and "encoding" not in given
    if name not in ("open", "fdopen") or not isinstance(call.func, ast.Name):
        return False
    mode = given.get("mode", call.args[1] if len(call.args) > 1 else ast.Constant("r"))
    return "encoding" not in given and not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


def test_no_call_leaves_out_the_encoding() -> None:
    """No call in the source leaves out the encoding, which also covers code that the test above does not run."""
    files = [*ROOT.rglob("*.py"), *(ROOT.parent / "integrations").glob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _names_no_encoding(node)
    ]
    assert wrong == [] and len(files) > 100


FORK_WARNS = """
    import multiprocessing, pty, warnings
    import loopwatch
    loopwatch.install()
    ended = threading.Event()
    threading.Thread(target=ended.wait).start()  # a thread of the program, so that the program is warned
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        first = sys._getframe().f_lineno; pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        second = sys._getframe().f_lineno; pid, _ = os.forkpty()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    ended.set()
    say(found=[[each.filename, each.lineno] for each in warned], wanted=[["<string>", first], ["<string>", second]])
"""


@pytest.mark.skipif(not SINCE_3_12, reason="there is no warning before 3.12")
@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="there is no fork here")
def test_a_fork_beside_threads_of_the_program_names_the_call() -> None:
    """The interpreter's warning about forks in a process with threads names the line that calls ``os.fork``."""
    found = program(FORK_WARNS).last
    assert found["found"] == found["wanted"]
