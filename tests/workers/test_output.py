"""Output of workers: forwarded line by line, with a prefix, without loss and without blocking the loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from loopwatch.errors import ConfigError, WorkerCrashed
from loopwatch.workers import output
from loopwatch.workers.pool import WorkerPool
from tests.conftest import Run, runner
from tests.workers.helpers import ROOT, WAYS, program, script


def say(*lines: str) -> int:
    """Write as a function of Python, of C, and as another process do; return the pid."""
    for line in lines:
        print(line)
        sys.stderr.write(f"{line} went wrong\n")
        os.write(1, f"{line} by descriptor\n".encode())
        subprocess.run(["echo", f"{line} by a process"], check=True)
    return os.getpid()


@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_lines_have_a_prefix(run: Run, capfd: pytest.CaptureFixture[str], method: str) -> None:
    """Each line a worker or its children write arrives in order, prefixed with the pool's name and the pid."""

    async def main() -> int:
        async with WorkerPool(1, start_method=method, name="images", prefix_output=True) as pool:
            return await pool.run(say, "one", "two")

    pid = run(main())
    out, err = capfd.readouterr()
    expected = [f"[images {pid}] {line}" for line in ("one", "one by descriptor", "one by a process")]
    assert out.splitlines() == [*expected, *(line.replace("one", "two") for line in expected)]
    assert err.splitlines() == [f"[images {pid}] {line} went wrong" for line in ("one", "two")]


def write(text: str, then: str = "") -> int:
    """Write text as it is; then perhaps die."""
    os.write(1, text.encode())
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_prefix_of_ones_own_and_ends(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """An unfinished line is written when its worker ends, also by a signal, and the prefix format can be set."""

    async def main() -> list[int]:
        async with WorkerPool(1, name="äx", prefix_output="{name}/{pid}: ") as pool:
            pids = [await pool.run(write, "a\n\nb"), await pool.run(write, "c\nd")]
            with pytest.raises(WorkerCrashed):
                await pool.run(write, "e", "die")
            pids.append(await pool.run(write, "\n"))
            return pids

    first, same, other = run(main())
    assert first == same != other
    expected = [f"äx/{first}: {line}" for line in ("a", "", "bc", "de")]
    assert capfd.readouterr().out.splitlines() == [*expected, f"äx/{other}: "]


def count(start: int, lines: int) -> int:
    """Write numbered lines of different lengths, in pieces that have nothing to do with lines."""
    text = "".join(f"{number}:{'x' * (number * 7919 % 3000)}.\n" for number in range(start, start + lines))
    for at in range(0, len(text), 1733):
        os.write(1, text[at : at + 1733].encode())
    return os.getpid()


@pytest.mark.long
@pytest.mark.parametrize(("loop_kind", "method"), WAYS)
def test_lines_stay_whole(run: Run, capfd: pytest.CaptureFixture[str], method: str) -> None:
    """Lines of several workers and pools stay whole, none is lost, and those of one worker keep their order."""

    async def main() -> None:
        async with (
            WorkerPool(2, start_method=method, name="a", prefix_output=True) as one,
            WorkerPool(2, start_method=method, name="b", prefix_output=True) as two,
        ):
            await asyncio.gather(*(pool.run(count, 400 * n, 400) for n in range(6) for pool in (one, two)))

    run(main())
    seen: dict[str, list[int]] = defaultdict(list)
    last: dict[str, int] = {}
    for line in capfd.readouterr().out.splitlines():
        prefix, _, rest = line.partition("] ")
        number, _, rest = rest.partition(":")
        assert rest == "x" * (int(number) * 7919 % 3000) + "."
        seen[prefix.partition(" ")[0]].append(int(number))
        assert int(number) % 400 == 0 or last[prefix] == int(number) - 1
        last[prefix] = int(number)
    assert {name: sorted(numbers) for name, numbers in seen.items()} == {"[a": [*range(2400)], "[b": [*range(2400)]}


def flood(size: int) -> int:
    """Write one very long line."""
    print("x" * size)
    return os.getpid()


def test_much_output(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """A line of 10 MB arrives in lines of 1 MB, while the loop keeps running and buffers little of it."""

    async def main() -> tuple[int, int]:
        async with WorkerPool(1, prefix_output=True) as pool:
            call, turns = asyncio.ensure_future(pool.run(flood, 10_000_000)), 0
            while not call.done():
                await asyncio.sleep(0)
                turns += 1
            return await call, turns

    pid, turns = run(main())
    lines = capfd.readouterr().out.splitlines()
    prefix = f"[pool {pid}] "
    assert all(line.startswith(prefix) for line in lines)
    assert "".join(line[len(prefix) :] for line in lines) == "x" * 10_000_000
    assert max(map(len, lines)) < output.LONGEST_LINE + output.READ + len(prefix)
    assert turns >= 10_000_000 / output.READ


FULL = """
import asyncio, os, sys
from loopwatch import WorkerPool

def flood():
    for _ in range(1000):
        os.write(1, b"x" * 9_999 + b"\\n")

def report():
    sys.stderr.write("still heard\\n")

async def main():
    async with WorkerPool(2, prefix_output="") as pool:
        flooding = asyncio.ensure_future(pool.run(flood))
        output = pool._dispatcher.supervisor._output
        while not output._writers[0].is_full:
            await asyncio.sleep(0.001)
        await asyncio.gather(*(pool.run(abs, n) for n in range(100)))
        await pool.run(report)
        sys.stderr.write(f"{flooding.done()} {output._writers[0]._size < 4_000_000}\\n")
        if sys.argv[1] == "read":
            await flooding
        else:
            await pool.close(force=True)
            await asyncio.wait([flooding])
            sys.stderr.write(f"{type(flooding.exception()).__name__}\\n")

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("then", ["read", "leave"])
def test_full_stdout(tmp_path: Path, then: str) -> None:
    """While standard output is not read only its writers wait; once it is read, nothing is missing."""
    path = tmp_path / "program.py"
    path.write_text(FULL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(path), then]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        reported = {process.stderr.readline() for _ in range(2)}
        assert reported == {b"still heard\n", b"False True\n"}
        if then == "leave":
            assert process.stderr.readline() == b"PoolClosed\n"
            assert process.wait(30) == 0
        out = process.stdout.read()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""
    assert out.startswith(b"x" * 9_999 + b"\n")
    if then == "read":
        assert out == (b"x" * 9_999 + b"\n") * 1000


@pytest.mark.parametrize("how", ["os.close(1)", "sys.stdout.close()", "os.dup2(broken(), 1)", "os.dup2(full(), 1)"])
def test_stdout_that_cannot_be_written(tmp_path: Path, how: str) -> None:
    """If standard output is closed, has no reader or is on a full disk, its data is lost; errors are still written."""
    result = script(
        tmp_path,
        f"""
        import asyncio, os, sys
        from loopwatch import WorkerPool

        def broken():
            read, write = os.pipe()
            os.close(read)
            return write

        def full():
            return os.open("/dev/full", os.O_WRONLY)

        def flood():
            os.write(1, b"x\\n" * 1_000_000)
            sys.stderr.write("done\\n")
            return 1

        async def main():
            {how}
            async with WorkerPool(1, prefix_output=True) as pool:
                sys.stderr.write(f"{{await pool.run(flood) + await pool.run(flood)}}\\n")

        if __name__ == "__main__":
            asyncio.run(main())
            os._exit(0)
        """,
    )
    assert result.stdout == "" and result.returncode == 0
    assert sorted(line.rpartition(" ")[2] for line in result.stderr.splitlines()) == ["2", "done", "done"]


def leave_behind() -> int:
    """Start a process that inherits standard output and outlives the worker."""
    print("left", flush=True)
    return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid


def test_process_that_outlives_its_worker(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """A process left behind by a call neither keeps the pool from closing nor keeps a pipe of the parent open."""

    async def main() -> int:
        async with WorkerPool(1, prefix_output=True) as pool:
            left: int = await pool.run(leave_behind)
            return left

    left = run(main())
    try:
        assert capfd.readouterr().out.endswith("] left\n")
        assert psutil.Process(left).is_running()
    finally:
        os.kill(left, signal.SIGKILL)


def standard() -> list[str]:
    """Return where the standard streams of this process point."""
    return [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]  # noqa: PTH115


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_without_prefix_there_is_no_pipe(run: Run) -> None:
    """Without the option a worker has the parent's standard streams, and the parent has no pipe or thread for it."""

    async def main() -> None:
        for asked in (False, True):
            async with WorkerPool(1, prefix_output=asked) as pool:
                theirs = await pool.run(standard)
                assert (theirs == standard()) is not asked
                assert all(each.startswith("pipe:") for each in theirs) or not asked
                assert not any(each.name == "loopwatch-output" for each in threading.enumerate())

    run(main())


def test_no_descriptors(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If no pipes can be opened a worker writes without a prefix, which is logged, and no half-open pair is left."""
    made: list[int] = []
    pipe = os.pipe

    def scarce() -> tuple[int, int]:
        if sys._getframe(1).f_code.co_name == "tap":
            if made:
                raise OSError(24, "Too many open files")
            made.extend(pipe())
            return made[0], made[1]
        return pipe()

    async def main() -> None:
        monkeypatch.setattr(os, "pipe", scarce)
        async with WorkerPool(1, prefix_output=True) as pool:
            assert await pool.run(standard) == standard()

    run(main())
    assert "is not prefixed: [Errno 24] Too many open files" in caplog.text


def test_fork_of_the_parent(tmp_path: Path) -> None:
    """A forked child of the parent reads nothing from the pipes and does not keep them open."""
    result = script(
        tmp_path,
        """
        import asyncio, os
        from loopwatch import WorkerPool

        def write(text):
            os.write(1, text)

        async def main():
            async with WorkerPool(1, prefix_output="> ") as pool:
                for _ in range(20):
                    call = asyncio.ensure_future(pool.run(write, b"x"))
                    await asyncio.sleep(0)
                    child = os.fork()
                    if not child:
                        os._exit(0)
                    os.waitpid(child, 0)
                    await call

        if __name__ == "__main__":
            asyncio.run(main())
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert (result.stdout, result.stderr) == (f"> {'x' * 20}\n", "")


def test_program_that_ends_without_closing(tmp_path: Path) -> None:
    """Output written before the program ends is forwarded, even if the pool is never closed."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            """
            import asyncio, os
            from loopwatch import WorkerPool

            def write(text):
                os.write(1, text)

            async def main():
                pool = WorkerPool(1, prefix_output="> ")
                await pool.run(write, b"one\\ntwo")

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    result = program([str(path)])
    assert (result.stdout, result.stderr) == ("> one\n> two\n", "")


@pytest.mark.parametrize("value", [1, None, b"x", "{worker} ", "{} ", "{pid", "{pid.x}"])
def test_bad_option(value: Any) -> None:
    """A value that cannot be a prefix is refused by name when the pool is made."""
    with pytest.raises(ConfigError, match="prefix_output="):
        WorkerPool(1, prefix_output=value)


def test_pieces() -> None:
    """A chunk ends with a line end and stays within the size limit, unless a single line is longer."""
    longest = b"y" * (2 * output.IN_ONE) + b"\n"
    lines = b"".join(b"x" * (n % 997) + b"\n" for n in range(2000)) + longest + b"z\n"
    pieces = list(output._pieces(lines))
    assert b"".join(pieces) == lines and all(piece.endswith(b"\n") for piece in pieces)
    assert [piece for piece in pieces if len(piece) > output.IN_ONE] == [longest]


def test_idle_writer_thread_ends() -> None:
    """The writer thread of an idle pool ends after a while and is started again when needed."""

    async def main() -> None:
        async with WorkerPool(1, prefix_output=True) as pool:
            for _ in range(2):
                await pool.run(write, "x\n")
                dispatcher = pool._dispatcher
                assert dispatcher is not None and dispatcher.supervisor._output is not None
                writer = dispatcher.supervisor._output._writers[0]
                while writer._thread is None:
                    await asyncio.sleep(0.001)
                while writer._thread is not None:
                    await asyncio.sleep(0.01)

    runner("asyncio")(main())
