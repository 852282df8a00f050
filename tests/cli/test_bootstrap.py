"""Start-up of every Python process under ``loopwatch run``, at next to no cost."""

from __future__ import annotations

import sys
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest
from cli_helpers import BLOCKS, FACTS, bootstrapped, environ, execute, facts, pids_with

from loopwatch.cli.run import BOOTSTRAP

pytestmark = pytest.mark.timeout(30)

AGENT = """\
import sys
try:
    import sitecustomize
except Exception:
    sitecustomize = None
early = [name for name in sys.modules if name.startswith("loopwatch.")]
import asyncio, json, threading, loopwatch
print(json.dumps({
    "early": early,
    "agent": loopwatch.current_agent() is not None,
    "threads": [thread.name for thread in threading.enumerate()],
    "sitecustomize": getattr(sitecustomize, "__file__", None),
    "mark": getattr(sitecustomize, "MARK", None),
}))
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------ costs nothing


def test_process_without_asyncio_loads_nothing_of_loopwatch(tmp_path: Path) -> None:
    """A Python process that never imports asyncio has the same modules, path and threads as without loopwatch."""
    plain = facts(python(FACTS), tmp_path, environ())
    ours = facts(python(FACTS), tmp_path, bootstrapped())
    assert ours["modules"] == plain["modules"]
    assert ours["path"] == plain["path"]
    assert ours["threads"] == plain["threads"] == 1
    assert ours["finders"] == ["_OnceAsyncioIsWanted", *plain["finders"]]


def agents(modules: Iterable[str]) -> set[str]:
    """Return the agent's modules, which a process need not load while there is nothing to watch: all but core."""
    waiting = {"loopwatch", "loopwatch._installed", "loopwatch.errors"}
    return {name for name in modules if name not in waiting and not name.startswith("loopwatch.core")}


LOADED = """
import json, sys
def loaded():
    return sorted(name for name in sys.modules if name.partition(".")[0] in ("loopwatch", "psutil", "opentelemetry"))
"""


def test_process_that_runs_no_loop_loads_no_agent(tmp_path: Path) -> None:
    """A process that imports asyncio, executors and multiprocessing, and makes a thread pool, loads a few light modules
    of loopwatch and no additional ones of the standard library.
    """
    code = (
        "import asyncio, subprocess, concurrent.futures.process, concurrent.futures.thread, multiprocessing.pool\n"
        "asyncio.new_event_loop().close()\n"
        "concurrent.futures.ThreadPoolExecutor()\nsubprocess.run([sys.executable, '-c', ''])\n"
        "print(json.dumps({'ours': loaded(), 'all': sorted(sys.modules)}))"
    )
    plain = facts(python(LOADED + code), tmp_path, environ())
    ours = facts(python(LOADED + code), tmp_path, bootstrapped())
    places = {"loopwatch.health", "loopwatch.health.naming"}  # where the thread pool was made
    assert agents(ours["ours"]) == places
    more = {name for name in set(ours["all"]) - set(plain["all"]) if not name.startswith("loopwatch")}
    assert more <= {"__future__", "typing", "_typing", "importlib.util", "importlib._abc", "_xxsubinterpreters"}


USES = {
    "loop": "asyncio.run(asyncio.sleep(0))",
    "own loop": "loop = asyncio.new_event_loop(); loop.call_soon(loop.stop); loop.run_forever(); loop.close()",
    "thread pool": "with concurrent.futures.ThreadPoolExecutor(1) as pool: pool.submit(len, '').result()",
    "process pool": "concurrent.futures.ProcessPoolExecutor(1).shutdown()",
    "multiprocessing pool": "multiprocessing.Pool(1).terminate()",
    "process": "multiprocessing.get_context('spawn').Process(target=len, args=('',)).start()",
    "fork": "os.fork() or os._exit(0); os.wait()",
    "question": "import loopwatch; loopwatch.current_agent()",
}


@pytest.mark.parametrize("kind", USES)
def test_agent_comes_with_the_first_use(tmp_path: Path, kind: str) -> None:
    """The first loop, used pool or started process installs the complete agent, and not before."""
    code = (
        f"import asyncio, concurrent.futures, multiprocessing, multiprocessing.pool, os, warnings\n"
        f"warnings.simplefilter('ignore')\nif __name__ == '__main__':\n    before = loaded()\n    {USES[kind]}\n"
        "    after = loaded()\n    import loopwatch\n    agent = loopwatch.current_agent()\n"
        "    print(json.dumps([before, 'loopwatch.agent' in after, agent.snapshot().agent.faults]))\n"
    )
    write(tmp_path, "uses.py", LOADED + code)
    before, has_come, faults = facts(
        [sys.executable, "uses.py"], tmp_path, bootstrapped(LOOPWATCH_LOG_LEVEL="CRITICAL")
    )
    assert agents(before) == set()
    assert (has_come, faults) == (True, {})


def test_agent_comes_with_a_loop_of_uvloop(tmp_path: Path) -> None:
    """uvloop has its own reference to asyncio's hook for running loops; its loop is watched all the same."""
    pytest.importorskip("uvloop")
    code = (
        "import uvloop, loopwatch\nbefore = loaded()\nasync def main():\n"
        "    return [loop.name for loop in loopwatch.current_agent().snapshot().loops], 'loopwatch.agent' in early\n"
        "async def first():\n    global early\n    early = loaded()\n    return await main()\n"
        "spec = type(uvloop.__spec__).__name__, vars(uvloop.__spec__).get('loopwatch')\n"
        "print(json.dumps([before, spec, *uvloop.run(first())]))"
    )
    before, spec, kinds, has_come = facts(python(LOADED + code), tmp_path, bootstrapped())
    assert agents(before) == set()
    assert (spec, len(kinds), has_come) == (["ModuleSpec", None], 1, True)


def test_uninstall_restores_the_bootstrap(tmp_path: Path) -> None:
    """``uninstall()`` before the first use and after it restores functions, classes and finders."""
    code = (
        "import asyncio, concurrent.futures.process, multiprocessing.pool, multiprocessing.process, os, loopwatch\n"
        "def state():\n"
        "    owners = asyncio.events, os, concurrent.futures.ThreadPoolExecutor\n"
        "    owners += concurrent.futures.ProcessPoolExecutor, multiprocessing.pool.Pool\n"
        "    owners += (multiprocessing.process.BaseProcess,)\n"
        "    names = '__init__', '_set_running_loop', 'fork', 'forkpty', 'start', 'submit'\n"
        "    return [{name: vars(owner).get(name) for name in names} for owner in owners], list(sys.meta_path)\n"
        "during = state()\nloopwatch.uninstall()\nafter = state()\n"
        "asyncio.run(asyncio.sleep(0))\nloopwatch.install(); asyncio.run(asyncio.sleep(0)); loopwatch.uninstall()\n"
        "changed = {name for a, b in zip(during[0], after[0]) for name in b if a[name] is not b[name]}\n"
        "real = [os.fork.__module__, type(os.fork).__name__, type(asyncio.events._set_running_loop).__name__]\n"
        "print(json.dumps([sorted(changed), after == state(), loopwatch.current_agent() is None, real]))"
    )
    changed, same, is_gone, real = facts(python(LOADED + code), tmp_path, bootstrapped())
    assert changed == ["__init__", "_set_running_loop", "fork", "forkpty", "start", "submit"]
    assert (same, is_gone, real) == (True, True, ["posix", *["builtin_function_or_method"] * 2])


def test_thread_pool_made_before_the_first_loop_has_its_name(tmp_path: Path) -> None:
    """A pool made by a module in advance is watched from the first loop on, and named after its line."""
    code = (
        "import asyncio, json, loopwatch\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(1)\nasync def main():\n"
        "    await asyncio.get_running_loop().run_in_executor(pool, len, '')\n"
        "    print(json.dumps([each.name for each in loopwatch.current_agent().snapshot().pools]))\n"
        "asyncio.run(main()); pool.shutdown()"
    )
    write(tmp_path, "early.py", code)
    assert facts([sys.executable, "early.py"], tmp_path, bootstrapped()) == ["ThreadPoolExecutor at early.py:3"]


def test_agent_comes_when_asked_for_and_starts_no_thread(tmp_path: Path) -> None:
    """``current_agent()`` gives the agent right after ``import asyncio``; its threads wait for a running loop."""
    found = facts(python(AGENT), tmp_path, bootstrapped())
    assert found["early"] == []
    assert found["agent"]
    assert found["threads"] == ["MainThread"]


def test_asyncio_that_is_loaded_already_is_enough(tmp_path: Path) -> None:
    """If asyncio is imported before the bootstrap (by a .pth file), the agent is installed at once."""
    code = f"import asyncio, runpy, loopwatch; runpy.run_path({BOOTSTRAP + '/sitecustomize.py'!r}); "
    done = execute(python(code + "print(loopwatch.current_agent() is not None)"), tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("word", ["0", "false", "No", " off "])
def test_kill_switch_leaves_nothing(tmp_path: Path, word: str) -> None:
    """``LOOPWATCH_ENABLED=0``: no finder, no agent; the user's sitecustomize still runs."""
    write(tmp_path, "site/sitecustomize.py", "MARK = 'theirs'\n")
    env = bootstrapped(PYTHONPATH=str(tmp_path / "site"), LOOPWATCH_ENABLED=word)
    plain = facts(python(FACTS), tmp_path, environ(PYTHONPATH=str(tmp_path / "site")))
    assert facts(python(FACTS), tmp_path, env) == plain
    found = facts(python(AGENT), tmp_path, env)
    assert (found["agent"], found["mark"]) == (False, "theirs")


def test_looking_for_asyncio_is_not_importing_it(tmp_path: Path) -> None:
    """``find_spec("asyncio")`` installs nothing, and a later import still does."""
    code = (
        "import importlib.util, sys; importlib.util.find_spec('asyncio'); importlib.util.find_spec('asyncio')\n"
        "print('asyncio' in sys.modules, 'loopwatch._installed' in sys.modules)\n"
        "import asyncio, loopwatch; print(loopwatch.current_agent() is not None)"
    )
    done = execute(python(code), tmp_path, bootstrapped())
    assert (done.stdout, done.stderr) == ("False False\nTrue\n", "")


# ------------------------------------------------------------------------------------------- multiprocessing

CHILDREN = """\
import json, multiprocessing, os, re, sys
from multiprocessing import resource_tracker

def look(connection):
    connection.send({
        "asyncio": "asyncio" in sys.modules,
        "ours": [name for name in sys.modules if name.startswith("loopwatch")],
        "threads": len(os.listdir("/proc/self/task")),
    })

def outside(pid):
    maps = open(f"/proc/{pid}/maps").read()
    return {"asyncio": "_asyncio." in maps, "threads": len(os.listdir(f"/proc/{pid}/task"))}

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    mine, theirs = context.Pipe()
    process = context.Process(target=look, args=(theirs,))
    process.start()
    found = {"child": mine.recv()}
    process.join()
    resource_tracker.ensure_running()
    found["tracker"] = outside(resource_tracker._resource_tracker._pid)
    if sys.argv[1] == "forkserver":
        found["forkserver"] = outside(multiprocessing.forkserver._forkserver._forkserver_pid)
    print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_helper_processes_of_multiprocessing_stay_as_they_are(tmp_path: Path, method: str) -> None:
    """Children, fork server and resource tracker import no asyncio and run no thread because of loopwatch."""
    write(tmp_path, "children.py", CHILDREN)
    found = facts([sys.executable, "children.py", method], tmp_path, bootstrapped())
    assert found.pop("child") == {"asyncio": False, "ours": [], "threads": 1}
    assert set(found) == ({"tracker", "forkserver"} if method == "forkserver" else {"tracker"})
    assert all(seen == {"asyncio": False, "threads": 1} for seen in found.values())


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_that_run_a_loop_are_watched(tmp_path: Path, method: str) -> None:
    """A child of any start method that blocks its own loop leaves a journal of its own."""
    write(tmp_path, "blocks.py", BLOCKS)
    code = (
        "import asyncio, multiprocessing, blocks\ndef work():\n    asyncio.run(blocks.main())\n"
        f"if __name__ == '__main__':\n    p = multiprocessing.get_context({method!r}).Process(target=work)\n"
        "    p.start(); p.join(); print(p.pid, p.exitcode)\n"
    )
    write(tmp_path, "parent.py", code)
    done = execute([sys.executable, "parent.py"], tmp_path, bootstrapped(LOOPWATCH_JOURNAL=str(tmp_path / "s.jsonl")))
    pid, exitcode = done.stdout.split()
    assert exitcode == "0"
    assert pids_with("culprit", tmp_path / "s.jsonl") == {int(pid)}


# --------------------------------------------------------------------------------------- the user's sitecustomize


def test_users_sitecustomize_takes_its_place(tmp_path: Path) -> None:
    """The program's own sitecustomize is executed once, and ``import sitecustomize`` returns it."""
    own = write(
        tmp_path,
        "site/sitecustomize.py",
        "import sys\nMARK = sys.__dict__.setdefault('ran', []).append(1) or len(sys.ran)\n",
    )
    found = facts(python(AGENT), tmp_path, bootstrapped(PYTHONPATH=str(own.parent)))
    assert found["sitecustomize"] == str(own)
    assert found["mark"] == 1
    assert found["agent"]


def test_without_a_sitecustomize_there_is_none(tmp_path: Path) -> None:
    """If the user has none, ``import sitecustomize`` fails as it does without loopwatch."""
    code = "import sitecustomize"
    plain, ours = execute(python(code), tmp_path), execute(python(code), tmp_path, bootstrapped())
    assert "No module named 'sitecustomize'" in plain.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize(
    "text",
    [
        "raise RuntimeError('theirs')",
        "raise SystemExit(3)",
        "import no_such_module",
        "raise ImportError('no name')",
        "this is no Python",
        "import asyncio, sys; print('asyncio' in sys.modules)",
    ],
)
def test_users_sitecustomize_ends_as_without_us(tmp_path: Path, text: str) -> None:
    """Whatever the user's sitecustomize does, exit code and output are the same with and without loopwatch."""
    write(tmp_path, "site/sitecustomize.py", text + "\n")
    folder = str(tmp_path / "site")
    plain = execute(python("print('ran')"), tmp_path, environ(PYTHONPATH=folder))
    ours = execute(python("print('ran')"), tmp_path, bootstrapped(PYTHONPATH=folder))
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert [line for line in ours.stderr.splitlines() if not line.startswith("  ")] == [
        line for line in plain.stderr.splitlines() if not line.startswith("  ")
    ]


def test_users_sitecustomize_may_raise_and_the_agent_still_comes(tmp_path: Path) -> None:
    """An error in the user's sitecustomize does not keep the loops from being watched."""
    write(tmp_path, "site/sitecustomize.py", "raise RuntimeError('theirs')\n")
    done = execute(python(AGENT), tmp_path, bootstrapped(PYTHONPATH=str(tmp_path / "site")))
    assert '"agent": true' in done.stdout


# --------------------------------------------------------------------------------------------- faults of loopwatch


def test_interpreter_without_loopwatch_says_one_line_and_runs(tmp_path: Path) -> None:
    """In another environment one line names it, once asyncio is imported, and nothing is written before."""
    venv.create(tmp_path / "other", with_pip=False, symlinks=True)
    other = tmp_path / "other" / "bin" / "python"
    done = execute([other, "-c", "print('ran')"], tmp_path, bootstrapped())
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    code = "import importlib.util; importlib.util.find_spec('asyncio'); import asyncio; print('ran')"
    done = execute([other, "-c", code], tmp_path, bootstrapped())
    assert (done.returncode, done.stdout) == (0, "ran\n")
    (line,) = done.stderr.splitlines()
    assert "No module named 'loopwatch'" in line
    assert str(other) in line


@pytest.mark.parametrize("text", ["raise RuntimeError('two\\nlines')", "import no_such_dependency"])
def test_failing_import_of_loopwatch_is_one_line_and_the_program_runs(tmp_path: Path, text: str) -> None:
    """A loopwatch that cannot be imported costs one line; import of asyncio and the program go on."""
    write(tmp_path, "broken/loopwatch/__init__.py", text + "\n")
    env = bootstrapped(PYTHONPATH=str(tmp_path / "broken"))
    done = execute(python("import asyncio; asyncio.run(asyncio.sleep(0)); print('ran')"), tmp_path, env)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("loopwatch: this process is not watched: ")


def test_fault_while_installing_is_one_line_and_the_program_runs(tmp_path: Path) -> None:
    """An agent that cannot be installed costs one line, also with stderr closed."""
    write(tmp_path, "broken/mmap.py", "raise RuntimeError('broken')\n")
    env = bootstrapped(PYTHONPATH=str(tmp_path / "broken"), LOOPWATCH_THRESHOLD="0.05")
    # The broken module is loaded for a block, at the end at the latest.
    code = """
import asyncio, time
async def main(): time.sleep(0.2)
asyncio.run(main()); print('ran')
"""
    done = execute(python(code), tmp_path, env)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    (line,) = done.stderr.splitlines()
    assert "broken" in line
    done = execute(["sh", "-c", 'exec "$@" 2>&-', "sh", *python(code)], tmp_path, env)
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_bad_variable_is_one_line_and_the_program_runs(tmp_path: Path) -> None:
    """A bad ``LOOPWATCH_*`` variable is named; the program starts without the agent."""
    done = execute(python(AGENT), tmp_path, bootstrapped(LOOPWATCH_THRESHOLD="fast"))
    assert '"agent": false' in done.stdout
    (line,) = done.stderr.splitlines()
    assert "LOOPWATCH_THRESHOLD='fast'" in line
