"""``loopwatch report``: reads journals, prints reports, and never a traceback."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cli_helpers import COMMAND, cli, environ, execute

from loopwatch.events import Cause, Evidence, Frame, Stall
from loopwatch.sinks.files import journal_path
from loopwatch.sinks.journal import JournalWriter

pytestmark = pytest.mark.timeout(30)


def make_stall(number: int) -> Stall:
    culprit = Frame(f"resize_{number}", "app.images", "/srv/app/images.py", 42)
    return Stall(
        id=f"s{number}",
        loop="main",
        started_at=1_767_261_600.0 + number,
        duration=0.25,
        cause=Cause.PYTHON,
        evidence=Evidence(wall=0.25, cpu=0.24, samples=9),
        culprit=culprit,
        leaf=culprit,
        stack=(Frame("handle", "app.main", "/srv/app/main.py", 7), culprit),
        samples=(9, 9),
        remedy="Move it off the loop.",
        pid=os.getpid(),
    )


def write_journal(setting: Path, count: int = 1) -> Path:
    """Write ``count`` stalls, each with a culprit of its own, and return the file."""
    path = journal_path(str(setting), os.getpid())
    writer = JournalWriter(path, 64 * 1024 * 1024)
    for number in range(count):
        writer.write(make_stall(number))
    writer.close()
    return path


@pytest.mark.parametrize("given", ["stalls.jsonl", "file", ".", "stalls.*.jsonl"])
def test_report_names_the_culprit(tmp_path: Path, given: str) -> None:
    """The text names culprit, line, cause and remedy, for the configured name, a file, a directory and a pattern."""
    path = write_journal(tmp_path / "stalls.jsonl")
    done = cli("report", str(path) if given == "file" else given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "held once, for 250 ms, by app.images.resize_0 (/srv/app/images.py:42)" in " ".join(done.stdout.split())
    assert "cause: python 1" in done.stdout
    assert "-> Move it off the loop." in done.stdout


def test_width(tmp_path: Path) -> None:
    """``--width N`` keeps every line within N columns; without it the terminal's width is taken."""
    write_journal(tmp_path / "stalls.jsonl", 3)
    narrow = cli("report", "--width", "50", "stalls.jsonl", cwd=tmp_path).stdout.splitlines()
    assert 40 < max(map(len, narrow)) <= 50
    wide = cli("report", "stalls.jsonl", cwd=tmp_path, env=environ(COLUMNS="90")).stdout.splitlines()
    assert 80 < max(map(len, wide)) <= 90


def test_json(tmp_path: Path) -> None:
    """``--json`` is one JSON object with the documented schema."""
    write_journal(tmp_path / "stalls.jsonl", 2)
    record = json.loads(cli("report", "--json", "stalls.jsonl", cwd=tmp_path).stdout)
    assert record["schema"] == "loopwatch.report/1"
    assert (record["times"], record["blocked"]) == (2, 0.5)


def test_collapsed(tmp_path: Path) -> None:
    """``--collapsed`` prints the format of flame graph tools: frames, outermost first, and milliseconds."""
    write_journal(tmp_path / "stalls.jsonl")
    done = cli("report", "--collapsed", "stalls.jsonl", cwd=tmp_path)
    assert done.stdout == "app.main.handle;app.images.resize_0 250\n"


def test_html_is_a_private_file(tmp_path: Path) -> None:
    """``--html FILE`` writes the page, readable by its owner only, and prints the summary in one sentence."""
    write_journal(tmp_path / "stalls.jsonl")
    done = cli("report", "--html", "page.html", "stalls.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resize_0" in done.stdout
    assert done.stdout.endswith("Written to page.html\n")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "resize_0" in page
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600


@pytest.mark.parametrize("form", [["--collapsed"], []])
def test_broken_pipe_is_silent(tmp_path: Path, form: list[str]) -> None:
    """``loopwatch report ... | head -1``: no message, and the exit code of a program ended by SIGPIPE."""
    write_journal(tmp_path / "stalls.jsonl", 5000 if form else 1)
    command = [*COMMAND, "report", *form, "stalls.jsonl"]
    # A pipe whose reader is gone when the first byte is written.
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            command, cwd=tmp_path, env=environ(), stdout=pipe, stderr=subprocess.PIPE, timeout=25, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_one_line(tmp_path: Path) -> None:
    """Output that cannot be written is one line on stderr and exit code 2."""
    write_journal(tmp_path / "stalls.jsonl")
    done = execute(["sh", "-c", 'exec "$@" > /dev/full', "sh", *COMMAND, "report", "stalls.jsonl"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "loopwatch: No space left on device\n")


@pytest.mark.parametrize("args", [["report", "s.jsonl"], ["run", "-m", "no_such"], ["run", "--journal", "j", "x.py"]])
def test_removed_working_directory_is_one_line(tmp_path: Path, args: list[str]) -> None:
    """A working directory that is gone is an error in one line too."""
    (tmp_path / "gone").mkdir()
    done = execute(["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *COMMAND, *args], tmp_path / "gone")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("loopwatch: ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal(tmp_path: Path, encoding: str) -> None:
    """If the terminal cannot show a bar or an ellipsis, the report uses a replacement."""
    write_journal(tmp_path / "stalls.jsonl")
    done = subprocess.run(
        [*COMMAND, "report", "stalls.jsonl"], cwd=tmp_path, env=environ(PYTHONIOENCODING=encoding),
        capture_output=True, timeout=25, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert "resize_0" in done.stdout.decode(encoding)


def test_torn_last_line_is_no_fault(tmp_path: Path) -> None:
    """The journal of a killed process ends within a line: everything before it is reported."""
    path = write_journal(tmp_path / "stalls.jsonl", 3)
    path.write_bytes(path.read_bytes()[:-40])
    done = cli("report", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "held 2 times" in done.stdout


def test_process_without_a_stall_is_no_fault(tmp_path: Path) -> None:
    """A journal with only a header gives a report without stalls."""
    path = write_journal(tmp_path / "stalls.jsonl")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    done = cli("report", path, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "No stall was journaled.")


BAD = {
    "nothing given": ([], "required: JOURNAL"),
    "missing": (["missing.jsonl"], "no such journal"),
    "empty directory": (["folder"], "no *.jsonl file in this directory"),
    "empty file": (["empty.jsonl"], "is empty"),
    "truncated header": (["cut.jsonl"], "is not a loopwatch journal"),
    "foreign text": (["foreign.jsonl"], "is not a loopwatch journal"),
    "binary": (["binary.jsonl"], "is not a loopwatch journal"),
    "later schema": (["later.jsonl"], "update loopwatch"),
    "device": (["/dev/null"], "is not a regular file"),
    "name too long": (["x" * 5000], "File name too long"),
    "two files": (["ours.jsonl", "empty.jsonl"], "unknown option or argument empty.jsonl"),
    "two forms": (["--json", "--collapsed", "ours.jsonl"], "not allowed with argument"),
    "width 0": (["--width", "0", "ours.jsonl"], "must be a whole number, 40 or more"),
    "width wide": (["--width", "wide", "ours.jsonl"], "must be a whole number, 40 or more"),
    "html in a missing directory": (["--html", "no/page.html", "ours.jsonl"], "cannot be written"),
    "html is a directory": (["--html", "folder", "ours.jsonl"], "cannot be written"),
    "unknown option": (["--svg", "ours.jsonl"], "unknown option or argument --svg"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, case: str) -> None:
    """Invalid arguments or files give one line that names the problem, exit code 2, and no traceback."""
    args, expected = BAD[case]
    ours = write_journal(tmp_path / "made.jsonl").rename(tmp_path / "ours.jsonl").read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "cut.jsonl").write_bytes(ours[:30])
    (tmp_path / "foreign.jsonl").write_text('{"level": "info", "msg": "started"}\n' * 200)
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "later.jsonl").write_bytes(ours.replace(b"journal/1", b"journal/2"))
    done = cli("report", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("loopwatch: ")
    assert expected in line
