"""The journal keeps its records, stays within its bounds, and survives every kind of damage."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stalls import T0, frame, make_stall
from stalls import stalls as any_stall

from loopwatch.diagnosis.flagging import Flagging
from loopwatch.errors import LoopwatchError
from loopwatch.events import Evidence, FlaggedFunction, StackCount, Stall
from loopwatch.report.reader import TORN, read_journals
from loopwatch.sinks.files import hang_path, journal_path
from loopwatch.sinks.hang_file import hang_header, parse_hang
from loopwatch.sinks.journal import JournalWriter

MIB = 1 << 20
SUPPORT = Path(__file__).parents[1] / "support"


def write(path: Path, *stalls: Stall, max_bytes: int = MIB) -> JournalWriter:
    writer = JournalWriter(path, max_bytes)
    for stall in stalls:
        assert writer.write(stall)
    writer.close()
    return writer


def run(program: str, *args: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=env)
    assert done.returncode == expect, done.stderr
    return done


# ---------------------------------------------------------------------------------------------- names


def test_names(tmp_path: Path) -> None:
    """Each process has a file of its own, whether a file, a name without suffix or a directory is configured."""
    assert journal_path(f"{tmp_path}/stalls.jsonl", 12) == tmp_path / "stalls.12.jsonl"
    assert journal_path(f"{tmp_path}/stalls", 12) == tmp_path / "stalls.12.jsonl"
    assert journal_path(f"{tmp_path}/stalls.log", 12) == tmp_path / "stalls.log.12.jsonl"
    assert journal_path(str(tmp_path), 12) == tmp_path / "loopwatch.12.jsonl"
    assert hang_path(f"{tmp_path}/stalls.jsonl", 12) == tmp_path / "stalls.12.hang"
    assert hang_path(str(tmp_path), 12) == tmp_path / "loopwatch.12.hang"


# --------------------------------------------------------------------------------------------- writing


def test_nothing_is_made_before_the_first_stall(tmp_path: Path) -> None:
    """A program without stalls leaves no file."""
    JournalWriter(tmp_path / "j.1.jsonl", MIB).close()
    assert list(tmp_path.iterdir()) == []


def test_first_line_is_a_header_and_the_file_is_private(tmp_path: Path) -> None:
    """The file has mode 0600 under any umask, and begins with a header on its process, without paths or arguments."""
    path = tmp_path / "j.1.jsonl"
    path.write_bytes(b"")
    path.chmod(0o644)
    write(path, make_stall())
    first, second = path.read_text().splitlines()
    header = json.loads(first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (header["type"], header["schema"], header["pid"]) == ("header", "loopwatch.journal/1", os.getpid())
    assert "/" not in header["argv0"]
    assert json.loads(second)["type"] == "stall"
    assert Stall.from_dict(json.loads(second)) == make_stall()


@given(any_stall)
def test_a_stall_survives_json(stall: Stall) -> None:
    """to_dict() -> JSON -> from_dict() gives an equal record, whatever characters are in its names."""
    assert Stall.from_dict(json.loads(json.dumps(stall.to_dict()))) == stall


@settings(max_examples=40, deadline=None)
@given(st.lists(any_stall, max_size=4, unique_by=lambda stall: stall.id))
def test_a_stall_survives_the_journal(stalls: list[Stall]) -> None:
    """Written stalls are read back equal, in order of time, and no line is skipped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "j.1.jsonl")
        write(path, *stalls, max_bytes=16 * MIB)
        if stalls:
            contents = read_journals(str(path))
            assert contents.stalls == tuple(sorted(stalls, key=lambda stall: (stall.started_at, stall.pid, stall.id)))
            assert (len(contents.headers), contents.skipped) == (1, ())


def test_rotation_keeps_the_newest_within_the_bound(tmp_path: Path) -> None:
    """The two files together stay within max_bytes and hold the latest stalls without a gap."""
    path, most = tmp_path / "j.5.jsonl", 20_000
    writer = JournalWriter(path, most)
    for number in range(200):
        assert writer.write(make_stall(number))
        assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= most
    writer.close()
    assert {entry.name for entry in tmp_path.iterdir()} == {"j.5.jsonl", "j.5.1.jsonl"}
    contents = read_journals(str(tmp_path))
    numbers = [int(stall.id[1:]) for stall in contents.stalls]
    assert numbers == list(range(200 - len(numbers), 200))
    assert len(numbers) * len(json.dumps(make_stall().to_dict())) > most // 3
    assert (len(contents.headers), contents.skipped) == (1, ())


def test_long_record_loses_its_stacks_not_its_verdict(tmp_path: Path) -> None:
    """A record longer than its share of the bound is written without profile and stack; culprit and times stay."""
    deep = tuple(frame(f"app.deep.f{i}") for i in range(50))
    stall = make_stall(stack=deep, profile=tuple(StackCount(deep, n) for n in range(20)), leaf=deep[-1])
    path = tmp_path / "j.1.jsonl"
    write(path, stall, max_bytes=4096)
    (read,) = read_journals(str(path)).stalls
    assert (read.stack, read.profile) == ((), ())
    assert (read.culprit, read.duration, read.remedy) == (stall.culprit, 0.25, stall.remedy)
    assert path.stat().st_size <= 2048


def test_record_that_cannot_be_shortened_is_counted(tmp_path: Path) -> None:
    """A record that cannot be made to fit is dropped and counted, and the journal goes on."""
    writer = JournalWriter(tmp_path / "j.1.jsonl", 4096)
    assert not writer.write(make_stall(coroutine="x" * 5000))
    assert writer.write(make_stall(1))
    assert writer.dropped == 1
    writer.close()
    assert [stall.id for stall in read_journals(str(tmp_path)).stalls] == ["s1"]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_special_file_at_the_name_is_refused(tmp_path: Path, kind: str) -> None:
    """A symbolic link, named pipe or directory at the journal's name is an OSError at once; the target is untouched."""
    path, victim = tmp_path / "j.1.jsonl", tmp_path / "victim"
    victim.write_text("precious")
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError):
        JournalWriter(path, MIB).write(make_stall())
    assert victim.read_text() == "precious"


def test_a_hard_link_to_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """If the journal's name is a hard link to another file, neither its content nor its mode changes."""
    path, victim = tmp_path / "j.1.jsonl", tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o644)
    path.hardlink_to(victim)
    with pytest.raises(
        PermissionError, match=r"hard link to a file that has 2 names; remove it, or set journal to"
    ) as caught:
        JournalWriter(path, MIB).write(make_stall())
    assert str(path) in str(caught.value)
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("precious", 0o644)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """A file of another user stays as it is, even if it is writable."""
    path = tmp_path / "j.1.jsonl"
    path.write_text("theirs")
    path.chmod(0o666)
    os.chown(path, 65534, 65534)
    with pytest.raises(PermissionError, match="it belongs to another user; remove it"):
        JournalWriter(path, MIB).write(make_stall())
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("theirs", 0o666)


def test_a_link_made_later_does_not_stop_rotation(tmp_path: Path) -> None:
    """A backup that hard-links the journal while it is written keeps its link; the journal is rotated as usual."""
    path = tmp_path / "j.1.jsonl"
    writer = JournalWriter(path, 8192)
    writer.write(make_stall())
    (tmp_path / "backup").hardlink_to(path)
    for number in range(1, 20):
        writer.write(make_stall(number))
    writer.close()
    assert path.stat().st_size <= 4096
    assert (tmp_path / "j.1.1.jsonl").stat().st_size <= 4096


def test_a_rotation_that_does_nothing_is_an_error(tmp_path: Path) -> None:
    """If old and new name are one file, rename() does nothing (rename(2)): an error is raised, and nothing grows."""
    path = tmp_path / "j.1.jsonl"
    writer = JournalWriter(path, 8192)
    writer.write(make_stall())
    (tmp_path / "j.1.1.jsonl").hardlink_to(path)
    with pytest.raises(PermissionError, match="hard link"):
        for number in range(1, 20):
            writer.write(make_stall(number))
    assert path.stat().st_size <= 4096


def test_a_file_closed_in_the_midst_of_writes_loses_nothing(tmp_path: Path) -> None:
    """A setting may replace the journal while a stall is written: each is in the file, which is closed afterwards."""
    path = journal_path(str(tmp_path), 7)
    writer, stalls = JournalWriter(path, MIB), [make_stall(number) for number in range(200)]
    writing = threading.Thread(target=lambda: [writer.write(stall) for stall in stalls])
    writing.start()
    while writing.is_alive():
        writer.close()
    writing.join()
    writer.close()
    assert [stall.id for stall in read_journals(str(path)).stalls] == [stall.id for stall in stalls]


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_removed_file_is_created_again(tmp_path: Path, how: str) -> None:
    """After logrotate or a clean-up the next stall goes to a new file of the right name, with a header."""
    path = tmp_path / "j.1.jsonl"
    writer = JournalWriter(path, MIB)
    writer.write(make_stall(0))
    if how == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "j.old")
    writer.write(make_stall(1))
    writer.close()
    contents = read_journals(str(path))
    assert [stall.id for stall in contents.stalls] == ["s1"]
    assert len(contents.headers) == 1


_FULL_DISK = """
import resource, sys
from pathlib import Path
from stalls import make_stall
from loopwatch.sinks.journal import JournalWriter
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
writer = JournalWriter(path, 1 << 20)
number = 0
try:
    while True:
        writer.write(make_stall(number))
        number += 1
except OSError as exc:
    first = exc.errno
try:
    writer.write(make_stall(number))
except OSError as exc:
    print(number, first, exc.errno)
# Room again: the journal goes on after a whole line.
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
writer.write(make_stall(number + 1))
"""


def test_a_full_disk_is_an_error_and_leaves_no_torn_line(tmp_path: Path) -> None:
    """If the system writes only a part of a line, the part is cut off and an error is raised, each time."""
    path = tmp_path / "j.1.jsonl"
    number, first, second = map(int, run(_FULL_DISK, path).stdout.split())
    contents = read_journals(str(path))
    assert number >= 5
    assert first and second
    assert [stall.id for stall in contents.stalls] == [*(f"s{i}" for i in range(number)), f"s{number + 1}"]
    assert contents.skipped == ()


_WRITE_FOR_EVER = """
import os, sys
from pathlib import Path
from stalls import make_stall
from loopwatch.sinks.journal import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), 1 << 30)
for number in range(10**9):
    writer.write(make_stall(number))
    if number == 200:
        print("ready", flush=True)
"""


def test_kill_9_costs_one_line_at_most(tmp_path: Path) -> None:
    """After SIGKILL during a write, every stall but at most the last is read, none twice, none altered."""
    path = tmp_path / "j.1.jsonl"
    command = [sys.executable, "-c", _WRITE_FOR_EVER, str(path)]
    env = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
    contents = read_journals(str(path))
    assert len(contents.stalls) >= 201
    assert contents.stalls == tuple(make_stall(number) for number in range(len(contents.stalls)))
    assert sum(item.lines or 0 for item in contents.skipped) <= 1
    assert {item.reason for item in contents.skipped} <= {TORN}


# --------------------------------------------------------------------------------------------- reading


def test_torn_last_line_is_reported(tmp_path: Path) -> None:
    """A file truncated in its last line gives all stalls before it, and reports one torn line."""
    path = tmp_path / "j.1.jsonl"
    write(path, make_stall(0), make_stall(1))
    path.write_bytes(path.read_bytes()[:-40])
    contents = read_journals(str(path))
    assert [stall.id for stall in contents.stalls] == ["s0"]
    assert [(item.lines, item.reason) for item in contents.skipped] == [(1, TORN)]


def test_process_with_the_same_id_appends_after_a_torn_line(tmp_path: Path) -> None:
    """The torn line of a killed and restarted process 1 of a container is reported, and the new run loses nothing."""
    path = tmp_path / "j.1.jsonl"
    write(path, make_stall(0), make_stall(1))
    path.write_bytes(path.read_bytes()[:-40])
    write(path, make_stall(2))
    contents = read_journals(str(path))
    assert [stall.id for stall in contents.stalls] == ["s0", "s2"]
    assert len(contents.headers) == 2
    ((lines, reason),) = [(item.lines, item.reason) for item in contents.skipped]
    assert lines == 1
    assert reason != TORN


def test_foreign_lines_in_the_middle_are_counted(tmp_path: Path) -> None:
    """Lines that are no stall, or a stall with a field of the wrong type, are skipped and counted by reason."""
    path = tmp_path / "j.1.jsonl"
    write(path, make_stall(0))
    wrong = [{**make_stall(1).to_dict(), "type": "stall", **fields} for fields in ({"duration": "1"}, {"stack": [1]})]
    unknown = {"type": "decision", "to": "process"}
    with path.open("a") as file:
        file.write("garbage\n\n" + "".join(json.dumps(record) + "\n" for record in [*wrong, unknown]))
    write(path, make_stall(2))
    contents = read_journals(str(path))
    assert [stall.id for stall in contents.stalls] == ["s0", "s2"]
    assert sorted(item.lines or 0 for item in contents.skipped) == [1, 1, 2]


def test_a_flagged_function_is_a_line_of_its_own(tmp_path: Path) -> None:
    """A flagged function is read back unchanged, is no news to the reader, and does not affect the stalls around it."""
    path = tmp_path / "j.1.jsonl"
    flagging = Flagging(after=1, window=60.0, max_culprits=1)
    function = flagging.add(make_stall(0))
    assert function is not None
    writer = write(path, make_stall(0))
    assert writer.write_flagged(function)
    assert writer.write(make_stall(1))
    writer.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    (record,) = [record for record in records if record["type"] == "flagged"]
    assert FlaggedFunction.from_dict(record) == function
    contents = read_journals(str(path))
    assert ([stall.id for stall in contents.stalls], contents.skipped) == (["s0", "s1"], ())


def test_a_damaged_or_too_long_flagged_function_is_counted(tmp_path: Path) -> None:
    """The reader counts invalid records, and the writer drops and counts records that do not fit."""
    path = tmp_path / "j.1.jsonl"
    function = Flagging(after=1, window=60.0, max_culprits=1).add(make_stall(0))
    assert function is not None
    writer = write(path, make_stall(0), max_bytes=4096)
    assert not writer.write_flagged(dataclasses.replace(function, remedy="x" * 5000))
    assert writer.dropped == 1
    writer.close()
    with path.open("a") as file:
        file.write(json.dumps({"type": "flagged", **function.to_dict(), "causes": [["boredom", 1]]}) + "\n")
    contents = read_journals(str(path))
    assert len(contents.stalls) == 1
    assert [item.lines for item in contents.skipped] == [1]


def test_final_record_replaces_the_ongoing_one(tmp_path: Path) -> None:
    """Of an ongoing record and its final one, also across a rotation, only the final one is left."""
    early = make_stall(0, ongoing=True, duration=2.0)
    write(tmp_path / "j.100.1.jsonl", early)
    write(tmp_path / "j.100.jsonl", make_stall(1, ongoing=True, duration=3.0))
    header = (tmp_path / "j.100.1.jsonl").read_text().splitlines()[0]
    lines = (tmp_path / "j.100.jsonl").read_text().splitlines()
    final = json.dumps({"type": "stall", **make_stall(0, duration=5.0).to_dict()})
    (tmp_path / "j.100.jsonl").write_text("\n".join([header, lines[1], final]) + "\n")
    stalls = read_journals(str(tmp_path)).stalls
    assert [(stall.id, stall.ongoing, stall.duration) for stall in stalls] == [("s0", False, 5.0), ("s1", True, 3.0)]


def test_ongoing_record_after_the_final_one_is_ignored(tmp_path: Path) -> None:
    """In whatever order the lines come (files concatenated by hand), the final record wins."""
    path = tmp_path / "j.1.jsonl"
    write(path, make_stall(0, duration=5.0), make_stall(0, ongoing=True, duration=2.0))
    ((ongoing, duration),) = [(stall.ongoing, stall.duration) for stall in read_journals(str(path)).stalls]
    assert (ongoing, duration) == (False, 5.0)


def test_stalls_of_two_runs_with_equal_ids_are_two(tmp_path: Path) -> None:
    """Process id and stall id may repeat after a restart; both stalls are kept."""
    path = tmp_path / "j.1.jsonl"
    write(path, make_stall(0))
    write(path, make_stall(0, started_at=T0 + 500))
    assert [stall.started_at for stall in read_journals(str(path)).stalls] == [T0, T0 + 500]


@pytest.mark.parametrize("target", ["stalls.jsonl", "stalls", "", "stalls.*.jsonl", "stalls.7.jsonl"])
def test_journals_are_found_by_any_name(tmp_path: Path, target: str) -> None:
    """The configured name, a directory, a pattern and a file all find the journals, in order of time."""
    write(tmp_path / "stalls.7.jsonl", make_stall(3, pid=7))
    if target != "stalls.7.jsonl":
        write(tmp_path / "stalls.7.1.jsonl", make_stall(1, pid=7))
        write(tmp_path / "stalls.8.jsonl", make_stall(2, pid=8))
    contents = read_journals(str(tmp_path / target))
    expected = ["s3"] if target == "stalls.7.jsonl" else ["s1", "s2", "s3"]
    assert [stall.id for stall in contents.stalls] == expected
    assert contents.skipped == ()


_HEADER_2 = b'{"type":"header","schema":"loopwatch.journal/2","pid":1,"started_at":1.0}\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x7fELF\x00\x01\x02" * 99, "not a loopwatch journal"),
        (b'{"a": 1}\n{"b": 2}\n', "not a loopwatch journal"),
        (b"[" * 100_000, "not a loopwatch journal"),
        (b'{"type":"header","schema":"other/1","pid":1}\n', "not a loopwatch journal"),
        (_HEADER_2 + b'{"type":"stall"}\n', "loopwatch.journal/2, this version reads loopwatch.journal/1; update"),
    ],
)
def test_foreign_file_is_a_one_line_error(tmp_path: Path, content: bytes, says: str) -> None:
    """A named file that is no journal is a one-line error with its name, the problem and the remedy."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(LoopwatchError) as caught:
        read_journals(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert says in message
    assert "; " in message
    assert "\n" not in message


@pytest.mark.parametrize("target", ["nothing.jsonl", "no/dir/x.jsonl", "*.jsonl", "", "x" * 300, "fifo.jsonl"])
def test_nothing_to_read_is_a_one_line_error(tmp_path: Path, target: str) -> None:
    """A missing file, an empty directory, a pattern without match, an impossible name and a pipe are all reported."""
    if target == "fifo.jsonl":
        os.mkfifo(tmp_path / target)
    with pytest.raises(LoopwatchError) as caught:
        read_journals(str(tmp_path / target))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_file_among_journals_is_reported_not_fatal(tmp_path: Path) -> None:
    """A directory with one journal and one other file is read, and the other file reported."""
    write(tmp_path / "j.1.jsonl", make_stall())
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    contents = read_journals(str(tmp_path))
    assert len(contents.stalls) == 1
    assert [(Path(item.file).name, item.lines) for item in contents.skipped] == [("other.jsonl", None)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1500), st.integers(0, 50), st.binary(max_size=50))
def test_any_damage_gives_stalls_or_one_clear_error(start: int, length: int, damage: bytes) -> None:
    """Bytes overwritten anywhere in a journal make the reader raise nothing but LoopwatchError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "j.1.jsonl")
        write(path, make_stall(0), make_stall(1, culprit=None))
        content = bytearray(path.read_bytes())
        content[start : start + length] = damage
        path.write_bytes(content)
        try:
            contents = read_journals(str(path))
        except LoopwatchError as exc:
            assert "\n" not in str(exc)
        else:
            assert len(contents.stalls) <= 2
            assert all(isinstance(stall.evidence, Evidence) for stall in contents.stalls)


# ------------------------------------------------------------------------------------------ hang files

_HANG = """
import faulthandler, re, sys, threading, time
from loopwatch.sinks.hang_file import hang_header
import os

def match_slowly():
    re.match(r'(a+)+$', 'a' * 28 + 'b')

def outer():
    match_slowly()

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
file = open(sys.argv[1], "w")
file.write(hang_header(os.getpid(), {threading.get_ident(): "main"}))
file.flush()
faulthandler.dump_traceback_later(0.3, repeat=True, file=file)
print(os.getpid(), flush=True)
outer()
"""


def test_a_real_hang_that_keeps_the_gil_is_read(tmp_path: Path) -> None:
    """faulthandler's dump of a regex that holds the GIL names function and line, also after kill -9."""
    path = tmp_path / "j.1.hang"
    command = [sys.executable, "-c", _HANG, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            while "in outer" not in path.read_text():
                os.sched_yield()
        finally:
            process.kill()
    (dump,) = read_journals(str(tmp_path)).hangs
    assert (dump.loop, dump.pid) == ("main", pid)
    functions = [entry.function for entry in dump.frames]
    assert functions[:3] == ["<module>", "outer", "match_slowly"]
    line = _HANG[: _HANG.index("re.match(")].count("\n") + 1
    assert (dump.frames[2].file, dump.frames[2].line) == ("<string>", line)
    assert dump.at == path.stat().st_mtime


_DUMP = """Timeout (0:00:02)!
Thread 0x00000000000000aa (most recent call first):
  File "/old.py", line 1 in old

Timeout (0:00:02)!
Thread 0x00000000000000bb [io] (most recent call first):
  File "/other.py", line 9 in other

Current thread 0x00000000000000aa [MainThread] (most recent call first):
  File "/srv/\\xfcber.py", line 12 in gr\\xf6\\u540d
  File "/srv/a.py", line ??? in outer
  ...
"""


def test_last_of_several_dumps_counts_and_only_loops_are_read() -> None:
    """Both thread line formats, escapes, unknown lines and threads without a loop are understood."""
    (dump,) = parse_hang(hang_header(5, {0xAA: "main", 0xCC: "gone"}) + _DUMP)
    assert (dump.loop, dump.pid) == ("main", 5)
    expected = [("outer", "/srv/a.py", 0), ("gr\xf6\u540d", "/srv/\xfcber.py", 12)]
    assert [(entry.function, entry.file, entry.line) for entry in dump.frames] == expected


def test_a_hang_file_without_a_dump_is_no_hang(tmp_path: Path) -> None:
    """A process that armed its timer and never hung adds no hang, and is no error."""
    write(tmp_path / "j.1.jsonl", make_stall())
    (tmp_path / "j.1.hang").write_text(hang_header(1, {0xAA: "main"}))
    (tmp_path / "j.2.hang").write_text("")
    contents = read_journals(str(tmp_path))
    assert contents.hangs == ()
    assert [(Path(item.file).name, item.reason) for item in contents.skipped] == [("j.2.hang", "is empty")]


@given(st.text())
def test_the_hang_parser_takes_any_text(text: str) -> None:
    """No text makes the parser raise, with or without a valid header before it."""
    assert isinstance(parse_hang(text), tuple)
    assert isinstance(parse_hang(hang_header(1, {0xAA: "main"}) + text), tuple)


@given(st.integers(0, 1000))
def test_torn_dump_has_no_partial_names(length: int) -> None:
    """Truncated anywhere, a dump gives only names that are complete."""
    text = hang_header(5, {0xAA: "main"}) + _DUMP
    functions = {entry.function for dump in parse_hang(text[: len(text) - length]) for entry in dump.frames}
    assert functions <= {"old", "outer", "gr\xf6\u540d"}
