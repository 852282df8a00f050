"""``loopwatch run``: any program is watched, and otherwise unchanged."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from cli_helpers import BLOCKS, COMMAND, cli, environ, execute, free_port, get, pids_with, serving, stalls, until

from loopwatch.cli.run import BOOTSTRAP, environment, find_program, settings_for
from loopwatch.errors import ConfigError, LoopwatchError

pytestmark = [pytest.mark.measures, pytest.mark.timeout(30)]

LIBRARY = """\
import os, time
from fastapi import FastAPI

app = FastAPI()

def culprit():
    time.sleep(0.25)

@app.get("/block")
async def block():
    culprit()
    return {"pid": os.getpid()}

@app.get("/")
async def ready():
    return {"pid": os.getpid()}
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "stalls.jsonl"


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    path = tmp_path / "blocks.py"
    path.write_text(BLOCKS)
    return path


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# -------------------------------------------------------------------------------------------- running programs


def test_script_is_watched(tmp_path: Path, blocks: Path, journal: Path) -> None:
    """A script's block is in the journal with its culprit; options behind the script's name are the script's."""
    done = cli("run", "--journal", "stalls.jsonl", "blocks.py", "--help", "--threshold", "9", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "arguments --help --threshold 9\n")
    (stall,) = stalls(journal)
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.culprit.file, stall.culprit.line) == ("culprit", str(blocks), 4)
    assert stall.cause == "sleep"
    assert 0.3 <= stall.duration < 0.6


@pytest.mark.parametrize("target", [["-m", "blocks"], ["-mblocks"], ["-m", "package"], ["-m", "package.part"]])
def test_module_is_watched(tmp_path: Path, blocks: Path, journal: Path, target: list[str]) -> None:
    """``-m MODULE`` finds what ``python -m`` finds in the working directory, and hands on the arguments."""
    (tmp_path / "package").mkdir()
    for name in ("__init__.py", "__main__.py", "part.py"):
        (tmp_path / "package" / name).write_text("" if name == "__init__.py" else BLOCKS)
    done = cli("run", "--journal", journal, *target, "-h", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "arguments -h\n")
    assert len(pids_with("culprit", journal)) == 1


def test_checking_a_module_executes_none_of_it(tmp_path: Path) -> None:
    """The parents of a dotted module are not imported by the launcher: their code runs once, in the program."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("print('imported')\n")
    (tmp_path / "package" / "part.py").write_text("")
    assert cli("run", "-m", "package.part", cwd=tmp_path).stdout == "imported\n"


@pytest.mark.parametrize("kind", ["directory", "zip", "executable zip", "plain file", "dashed", "executable script"])
def test_everything_python_can_run_is_run_by_this_python(tmp_path: Path, journal: Path, kind: str) -> None:
    """Directories and archives with a ``__main__``, and files without a suffix, run as ``python FILE`` runs them."""
    name = {"directory": "folder", "zip": "app.zip", "executable zip": "./app.zip", "dashed": "-x.py"}.get(
        kind, "program"
    )
    if kind == "directory":
        (tmp_path / name).mkdir()
        (tmp_path / name / "__main__.py").write_text(BLOCKS)
    elif "zip" in kind:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("__main__.py", BLOCKS)
        (tmp_path / name).chmod(0o755 if "executable" in kind else 0o644)
    elif kind == "executable script":
        name = "./program.py"
        executable(tmp_path / name, BLOCKS)  # no shebang line
    else:
        (tmp_path / name).write_text(BLOCKS)
    done = cli("run", "--journal", journal, *(["--"] if kind == "dashed" else []), name, "a", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "arguments a\n")
    assert len(pids_with("culprit", journal)) == 1


@pytest.mark.parametrize("by", ["path", "PATH"])
def test_command_is_executed_and_its_python_watched(tmp_path: Path, journal: Path, by: str) -> None:
    """A command is executed unchanged: its interpreter is its own, and is watched."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "mycommand", f"#!{sys.executable}\n{BLOCKS}")
    (tmp_path / "mycommand").write_text("raise SystemExit('the file, not the command')\n")
    env = environ(PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    name = "mycommand" if by == "PATH" else "bin/mycommand"
    done = cli("run", "--journal", journal, name, "--version", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (0, "arguments --version\n")
    assert len(pids_with("culprit", journal)) == 1


def test_console_script_beside_this_python_is_found_without_activation(tmp_path: Path) -> None:
    """Commands of loopwatch's own environment are found although it is not on PATH."""
    program = find_program(["pytest", "--version"])
    assert Path(program.path).is_file()
    assert program.argv == ("pytest", "--version")
    done = cli("run", "pytest", "--version", cwd=tmp_path, env=environ(PATH="/usr/bin:/bin"))
    assert done.returncode == 0
    assert "pytest" in done.stdout


# --------------------------------------------------------------------------------------- nothing else changes


def test_opentelemetry_instrument_around_loopwatch(tmp_path: Path, blocks: Path, journal: Path) -> None:
    """``opentelemetry-instrument loopwatch run SCRIPT``: the program is instrumented, and its loop is watched."""
    pytest.importorskip("opentelemetry.instrumentation.asyncio")
    blocks.write_text(
        BLOCKS
        + "    from opentelemetry.instrumentation.asyncio import AsyncioInstrumentor\n"
        + "    print('instrumented', AsyncioInstrumentor().is_instrumented_by_opentelemetry)\n"
    )
    none = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    done = execute([instrument, *COMMAND, "run", "--journal", journal, blocks], tmp_path, environ(**none))
    assert done.returncode == 0, done.stderr
    assert "instrumented True" in done.stdout
    assert [stall.culprit.function for stall in stalls(journal) if stall.culprit] == ["culprit"]


def test_program_keeps_its_input_output_and_exit_code(tmp_path: Path) -> None:
    """stdin, stdout, stderr and the exit code are the program's own."""
    (tmp_path / "echo.py").write_text(
        "import sys\nprint(sys.stdin.read().upper())\nprint('e', file=sys.stderr)\nsys.exit(7)\n"
    )
    done = cli("run", "echo.py", cwd=tmp_path, stdin="text")
    assert (done.returncode, done.stdout, done.stderr) == (7, "TEXT\n", "e\n")


def test_signal_reaches_the_program_itself(tmp_path: Path) -> None:
    """The program has the started process id, so it receives signals itself, and ends by them."""
    (tmp_path / "wait.py").write_text(
        "import os, pathlib, signal\npathlib.Path('pid').write_text(str(os.getpid()))\nsignal.pause()\n"
    )
    with serving([*COMMAND, "run", "wait.py"], tmp_path) as program:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        assert (tmp_path / "pid").read_text() == str(program.pid)
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == -signal.SIGTERM


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_program_inherits_no_signal_setting_of_python(tmp_path: Path) -> None:
    """A command that is not Python has its usual signal dispositions (Python ignores SIGPIPE)."""
    direct = execute(["grep", "^Sig[IB]", "/proc/self/status"], tmp_path).stdout
    assert cli("run", "grep", "^Sig[IB]", "/proc/self/status", cwd=tmp_path).stdout == direct


SHOW = "import json, os, sys\nprint(json.dumps([dict(os.environ), sys.argv, sys.path]))\n"


def test_options_become_variables(tmp_path: Path) -> None:
    """Each option becomes a variable, which every process inherits; relative paths are made absolute."""
    (tmp_path / "show.py").write_text(SHOW)
    options = ["--threshold=0.2", "--hang-after", "3", "--grace", "1", "--journal", "j.jsonl", "--log-level", "error"]
    options += ["--context", "tenant", "--context", "app:labels", "--user-code", "src/app", "--user-code", "mine"]
    options += ["--library-code", "theirs", "--thresholds", "GET /report/*=0.5", "--thresholds=nightly-*=5"]
    env = environ(LOOPWATCH_THRESHOLD="9", LOOPWATCH_MAX_STALLS="7")
    done = cli("run", *options, "show.py", cwd=tmp_path, env=env)
    variables, argv, path = json.loads(done.stdout)
    assert {name: value for name, value in variables.items() if name.startswith("LOOPWATCH_")} == {
        "LOOPWATCH_THRESHOLD": "0.2",
        "LOOPWATCH_THRESHOLDS": "GET /report/*=0.5,nightly-*=5",
        "LOOPWATCH_HANG_AFTER": "3",
        "LOOPWATCH_GRACE": "1",
        "LOOPWATCH_JOURNAL": str(tmp_path / "j.jsonl"),
        "LOOPWATCH_LOG_LEVEL": "error",
        "LOOPWATCH_CONTEXT": "tenant,app:labels",
        "LOOPWATCH_USER_CODE": f"{tmp_path / 'src' / 'app'},mine",
        "LOOPWATCH_LIBRARY_CODE": "theirs",
        "LOOPWATCH_MAX_STALLS": "7",
    }
    assert argv == ["show.py"]
    assert path[0] == str(tmp_path)
    assert BOOTSTRAP not in path


def test_nested_run_adds_the_path_once(tmp_path: Path) -> None:
    """``loopwatch run loopwatch run`` puts the bootstrap directory on PYTHONPATH once, before the user's entries."""
    (tmp_path / "show.py").write_text(SHOW)
    nested = [*COMMAND, "run", "--grace", "1", *COMMAND, "run", "--threshold", "0.3", "show.py"]
    done = execute(nested, tmp_path, environ(PYTHONPATH="/mine:/other"))
    variables, _, _ = json.loads(done.stdout)
    assert variables["PYTHONPATH"] == f"{BOOTSTRAP}:/mine:/other"
    assert (variables["LOOPWATCH_GRACE"], variables["LOOPWATCH_THRESHOLD"]) == ("1", "0.3")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, BOOTSTRAP),
        ("", BOOTSTRAP),
        (BOOTSTRAP, BOOTSTRAP),
        ("/a", os.pathsep.join([BOOTSTRAP, "/a"])),
        (os.pathsep.join(["/a", BOOTSTRAP, "/b"]), os.pathsep.join([BOOTSTRAP, "/a", "/b"])),
        (os.pathsep.join(["", "/a"]), os.pathsep.join([BOOTSTRAP, "", "/a"])),
    ],
)
def test_pythonpath(before: str | None, after: str) -> None:
    """The bootstrap directory comes first and once; the rest stays, empty entries (the working directory) too."""
    environ = {} if before is None else {"PYTHONPATH": before}
    assert environment(environ, {"X": "1"}) == {"PYTHONPATH": after, "X": "1"}


# ------------------------------------------------------------------------------------------------- servers


def ask_at_once(port: int) -> set[int]:
    """Send four requests at once, so that one process cannot answer all; return the processes that answered."""
    answered: set[int] = set()

    def ask() -> None:
        answer = get(port, "/block")
        if answer is not None:
            answered.add(answer["pid"])

    sides = [threading.Thread(target=ask) for _ in range(4)]
    for side in sides:
        side.start()
    for side in sides:
        side.join()
    return answered


@pytest.mark.long
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_every_uvicorn_worker_is_watched(tmp_path: Path, journal: Path, loop: str) -> None:
    """``uvicorn --workers 2``: both workers have journals of their own that name the culprit, on both loops."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    if importlib.util.find_spec(loop) is None:
        pytest.skip("uvloop is not installed")
    (tmp_path / "app.py").write_text(LIBRARY)
    port = free_port()
    program = ["uvicorn", "app:app", "--workers", "2", "--port", str(port), "--loop", loop, "--log-level", "warning"]
    with serving([*COMMAND, "run", "--journal", str(journal), *program], tmp_path) as server:
        until(lambda: get(port, "/"))
        workers: set[int] = set()

        def reported_by_both() -> bool:
            workers.update(ask_at_once(port))
            return len(workers) == 2 and pids_with("culprit", journal) == workers

        until(reported_by_both)
        assert server.pid not in workers
    found = [stall for stall in stalls(journal) if stall.culprit and stall.culprit.function == "culprit"]
    assert {stall.cause for stall in found} == {"sleep"}
    assert {Path(stall.culprit.file).name for stall in found if stall.culprit} == {"app.py"}
    assert all(0.2 < stall.duration < 5 for stall in found)


@pytest.mark.long
def test_reloaded_uvicorn_is_watched(tmp_path: Path, journal: Path) -> None:
    """``uvicorn --reload``: the server process is watched, and so is the one that follows after a change."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    app = tmp_path / "app.py"
    app.write_text(LIBRARY)
    port = free_port()
    program = ["-m", "uvicorn", "app:app", "--reload", "--port", str(port), "--log-level", "warning"]
    with serving([*COMMAND, "run", "--journal", str(journal), *program], tmp_path):
        until(lambda: get(port, "/block") and pids_with("culprit", journal))
        (first,) = pids_with("culprit", journal)
        app.write_text(LIBRARY.replace("culprit", "another"))
        os.utime(app, (app.stat().st_mtime + 5,) * 2)
        until(lambda: get(port, "/block") and pids_with("another", journal))
        (second,) = pids_with("another", journal)
        assert second != first


# ---------------------------------------------------------------------------------------------- bad inputs

BAD = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["jump"], "invalid choice: 'jump'"),
    "nothing to run": (["run"], "nothing to run"),
    "unknown option": (["run", "--fast", "ok.py"], "unknown option or argument --fast"),
    "abbreviated option": (["run", "--thresh", "1", "ok.py"], "unknown option or argument --thresh"),
    "option without value": (["run", "--threshold"], "--threshold: expected one argument"),
    "threshold 0": (["run", "--threshold", "0", "ok.py"], "--threshold '0': must be a number of seconds above 0"),
    "threshold fast": (["run", "--threshold", "fast", "ok.py"], "--threshold 'fast': must be a number"),
    "threshold nan": (["run", "--threshold", "nan", "ok.py"], "--threshold 'nan': must be"),
    "threshold empty": (["run", "--threshold", "", "ok.py"], "--threshold '': must not be empty"),
    "threshold negative": (["run", "--threshold=-1", "ok.py"], "--threshold '-1': must be"),
    "hang-after": (["run", "--hang-after", "soon", "ok.py"], "--hang-after 'soon': must be"),
    "grace": (["run", "--grace", "-1x", "ok.py"], "--grace"),
    "log level": (["run", "--log-level", "LOUD", "ok.py"], "--log-level 'LOUD': must be a logging level"),
    "journal in a missing directory": (["run", "--journal", "no/where/s.jsonl", "ok.py"], "mkdir -p"),
    "journal is in a file": (["run", "--journal", "ok.py/s.jsonl", "ok.py"], "must be in a directory that exists"),
    "missing script": (["run", "missing.py"], "no such file: missing.py"),
    "missing path": (["run", "./missing"], "no such file: ./missing"),
    "missing command": (["run", "no-such-command"], "no command 'no-such-command' on PATH"),
    "module without -m": (["run", "json.tool"], "write -m json.tool if it is a module"),
    "missing module": (["run", "-m", "no_such_module.part"], "no module named 'no_such_module'"),
    "module without name": (["run", "-m"], "the name of a module is missing"),
    "no module name": (["run", "-m", "../x"], "no module named ''"),
    "main": (["run", "-m", "__main__"], "no module named '__main__'"),
    "empty name": (["run", ""], "is empty"),
    "stdin": (["run", "-"], "no command '-' on PATH"),
    "plain directory": (["run", "folder"], "a directory without __main__.py"),
    "not a program": (["run", "./noformat"], "cannot execute"),
    "isolated interpreter": (["run", "./isolated"], "starts Python with -sE, which ignores PYTHONPATH"),
    "interpreter is missing": (["run", "./nointerpreter"], "cannot execute"),
    "doctor with argument": (["doctor", "now"], "unknown option or argument now"),
    "demo on curio": (["demo", "--loop", "curio"], "invalid choice: 'curio'"),
    "demo for 0 s": (["demo", "--seconds", "0"], "must be a number of seconds above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, case: str) -> None:
    """Any invalid input gives one line that names it, exit code 2, no traceback, and runs nothing."""
    args, expected = BAD[case]
    (tmp_path / "ok.py").write_text("print('ran')\n")
    (tmp_path / "folder").mkdir()
    executable(tmp_path / "noformat", "\x00\x01\x02 neither ELF nor #!\n")
    executable(tmp_path / "isolated", f"#!{sys.executable} -sE\n")
    executable(tmp_path / "nointerpreter", "#!/no/such/interpreter\n")
    done = cli(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("loopwatch: ")
    assert expected in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_journal_in_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A journal that could never be written is refused before the program starts."""
    (tmp_path / "locked").mkdir(0o555)
    with pytest.raises(ConfigError, match="can be written to"):
        settings_for({"journal": str(tmp_path / "locked" / "s.jsonl")})


def test_settings_of_callables_import_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--context pkg.mod:name`` names code of the program; the launcher does not import it."""
    monkeypatch.chdir(tmp_path)
    assert settings_for({"context": "no_such_module:labels"}) == {"LOOPWATCH_CONTEXT": "no_such_module:labels"}


def test_file_that_may_not_be_read_is_still_a_program(tmp_path: Path) -> None:
    """Finding a program does not need to read it."""
    path = executable(tmp_path / "program", "#!/bin/sh\n")
    path.chmod(0o111)
    assert find_program([str(path)]).path == str(path)
    with pytest.raises(LoopwatchError, match="no such file"):
        find_program([str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("#!", False),
        ("#!/bin/sh -E", False),
        ("#!/usr/bin/python3", False),
        ("#!/usr/bin/python3 -sP", False),
        ("#!/usr/bin/env python3", False),
        ("#!/usr/bin/python3 -I", True),
        ("#! /usr/bin/python3.12 -sEP", True),
        ("#!/usr/bin/env -S python3 -u -I", True),
        ("\xff\x00", False),
    ],
)
def test_only_a_python_that_ignores_the_environment_is_refused(tmp_path: Path, line: str, refused: bool) -> None:
    """A command that would run unwatched is an error with the remedy; any other first line is left to the system."""
    path = executable(tmp_path / "program", f"{line}\n")
    if refused:
        with pytest.raises(LoopwatchError, match="write: loopwatch run"):
            find_program([str(path)])
    else:
        assert find_program([str(path)]).path == str(path)


@pytest.mark.parametrize("command", [[], ["run"], ["report"], ["demo"], ["doctor"]])
def test_help_is_on_stdout(tmp_path: Path, command: list[str]) -> None:
    """``--help`` of each command is text on stdout, exit code 0."""
    done = cli(*command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" ".join(["usage: loopwatch", *command]))


def test_version(tmp_path: Path) -> None:
    """``--version`` is the package's."""
    import loopwatch

    assert cli("--version", cwd=tmp_path).stdout == f"loopwatch {loopwatch.__version__}\n"
