"""``loopwatch doctor``: features are tried out, and failures are named."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import cli, environ, execute

from loopwatch.cli import doctor
from loopwatch.cli.doctor import Check, State

pytestmark = pytest.mark.timeout(30)


def found(checks: tuple[Check, ...], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def examined(tmp_path: Path, *flags: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the doctor in an interpreter of its own; return its exit code and its findings by name."""
    done = execute([sys.executable, *flags, "-m", "loopwatch", "doctor", "--json"], tmp_path, environ(**variables))
    assert done.stderr == ""
    record = json.loads(done.stdout)
    assert record["schema"] == "loopwatch.doctor/1"
    assert record["usable"] == (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in record["checks"]}


def test_healthy_machine(tmp_path: Path) -> None:
    """On this machine loopwatch works: a real block is found on each kind of loop, exit code 0."""
    code, checks = examined(tmp_path)
    assert code == 0
    assert {checks[name]["state"] for name in ("Python", "agent", "source columns", "hang timer")} == {"ok"}
    for name in ("asyncio loop", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])):
        assert checks[name]["state"] == "ok", checks[name]
        assert "by sleep" in checks[name]["detail"]
    assert (checks["native part"]["state"], checks["native part"]["detail"]) == ("no", "not in this release")
    if sys.platform == "linux":
        assert {"thread clock", "schedstat", "syscall", "wchan", "cgroup"} <= set(checks)


def test_text_is_one_line_a_check(tmp_path: Path) -> None:
    """Without ``--json``: one line each with name and state, and the verdict in the last one."""
    done = cli("doctor", cwd=tmp_path)
    first, *lines, verdict = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first.startswith("loopwatch ")
    assert verdict == "loopwatch works here."
    assert len(lines) >= 12
    column = lines[0].index("  ok ") + 2
    assert {line[column - 2 : column] for line in lines} == {"  "}
    assert {line[column:].split()[0] for line in lines} <= set(State)


def test_leaves_nothing_in_the_process() -> None:
    """Loops, threads, files and timers of the examination are gone at its end; see the autouse fixture."""
    checks = doctor.examine({})
    assert doctor.usable(checks)
    assert found(checks, "settings").detail.startswith("no LOOPWATCH_* variable set")


def test_bad_variable_is_named_and_fatal(tmp_path: Path) -> None:
    """A variable that would keep the agent from starting is named with the allowed values, exit code 1."""
    code, checks = examined(tmp_path, LOOPWATCH_THRESHOLD="fast", LOOPWATCH_GRACE="2")
    assert code == 1
    assert checks["LOOPWATCH_THRESHOLD"]["state"] == "no"
    assert "must be a number" in checks["LOOPWATCH_THRESHOLD"]["detail"]
    assert checks["LOOPWATCH_GRACE"]["state"] == "ok"


def test_misspelt_and_switched_off(tmp_path: Path) -> None:
    """An unknown setting gets a suggestion, and the kill switch is mentioned."""
    code, checks = examined(tmp_path, LOOPWATCH_TRESHOLD="0.1", LOOPWATCH_ENABLED="0")
    assert code == 0
    assert checks["LOOPWATCH_TRESHOLD"]["advice"] == "did you mean LOOPWATCH_THRESHOLD?"
    assert "switched off" in checks["LOOPWATCH_ENABLED"]["detail"]


def test_callables_are_not_imported() -> None:
    """Settings that name code of the program are checked by their form only."""
    checks = doctor.examine({"LOOPWATCH_ON_STALL": "no_such_module:f", "LOOPWATCH_CONTEXT": "tenant,a:b c"})
    assert found(checks, "LOOPWATCH_ON_STALL").state is State.OK
    assert found(checks, "LOOPWATCH_CONTEXT").state is State.WARNING


def test_missing_dependency_is_fatal(tmp_path: Path) -> None:
    """An agent that cannot be imported: exit code 1, and the reason in one line."""
    (tmp_path / "psutil.py").write_text("raise ImportError('no psutil here')\n")
    code, checks = examined(tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert checks["agent"]["state"] == "no"
    assert "no psutil here" in checks["agent"]["detail"]


def test_source_columns_switched_off(tmp_path: Path) -> None:
    """``-X no_debug_ranges`` disables the names of calls, and the doctor says so."""
    code, checks = examined(tmp_path, "-X", "no_debug_ranges")
    assert code == 0
    assert checks["source columns"]["state"] == "warning"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc is not writable by any user")
def test_journal_directory(tmp_path: Path) -> None:
    """A writable journal is fine, one in an unwritable directory is named, and nothing is left in it."""
    code, checks = examined(tmp_path, LOOPWATCH_JOURNAL=str(tmp_path / "s.jsonl"))
    assert (code, checks["journal"]["state"]) == (0, "ok")
    assert list(tmp_path.iterdir()) == []
    _, checks = examined(tmp_path, LOOPWATCH_JOURNAL="/proc/s.jsonl")
    assert (checks["journal"]["state"], "/proc cannot be written" in checks["journal"]["detail"]) == ("warning", True)


def test_mixed_opentelemetry_is_named(tmp_path: Path) -> None:
    """Packages of different OpenTelemetry releases are named with the release to upgrade to."""
    pytest.importorskip("opentelemetry.sdk")
    information = tmp_path / "opentelemetry_exporter_otlp-1.20.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: opentelemetry-exporter-otlp\nVersion: 1.20.0\n")
    _, checks = examined(tmp_path, PYTHONPATH=str(tmp_path))
    newest = importlib.metadata.version("opentelemetry-sdk").split(".")[1]
    assert checks["OpenTelemetry"]["state"] == "warning"
    assert "opentelemetry-exporter-otlp 1.20.0" in checks["OpenTelemetry"]["detail"]
    assert f"1.{newest} / 0.{int(newest) + 21}b" in checks["OpenTelemetry"]["advice"]


def test_matching_opentelemetry_is_not_called_mixed() -> None:
    """1.N and 0.(N+21)b are one release."""
    check = doctor._otel_check({"opentelemetry-sdk": "1.45.2", "opentelemetry-semantic-conventions": "0.66b2"})
    assert "mixed" not in check.detail


def test_secrets_in_variables_are_not_shown(tmp_path: Path) -> None:
    """OTEL_* variables are listed by name: their values may be keys."""
    done = cli("doctor", cwd=tmp_path, env=environ(OTEL_EXPORTER_OTLP_HEADERS="api-key=geheim"))
    assert "OTEL_EXPORTER_OTLP_HEADERS" in done.stdout
    assert "geheim" not in done.stdout


def test_uvloop_with_unreadable_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uvloop that hides libuv is distinguished from one that works, and the consequence is named."""
    pytest.importorskip("uvloop")

    def refuse(*_: object) -> None:
        raise AttributeError("undefined symbol: uv_metrics_info")

    monkeypatch.setattr("loopwatch.watch.probes.uvloop.UvloopProbe.__init__", refuse)
    check = found(doctor.examine({}), "uvloop")
    assert check.state is State.WARNING
    assert "undefined symbol: uv_metrics_info" in check.detail
    assert "heartbeat" in check.advice


def test_gevent_that_has_patched_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process patched by gevent cannot be watched: it is named, and not usable."""
    monkey = types.ModuleType("gevent.monkey")
    monkey.is_module_patched = lambda _name: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    checks = tuple(doctor._gevent({}))
    assert [check.state for check in checks] == [State.NO]
    assert not doctor.usable(checks)


def test_trio_is_named_as_unsupported(tmp_path: Path) -> None:
    """Where trio is installed, the doctor says that its runs are not watched."""
    (tmp_path / "trio.py").write_text("")
    _, checks = examined(tmp_path, PYTHONPATH=str(tmp_path))
    assert (checks["trio"]["state"], "not supported" in checks["trio"]["detail"]) == ("warning", True)


def test_failing_check_is_a_finding() -> None:
    """A fault of the doctor itself is one more line, not a traceback."""

    def _broken_look(_environ: object) -> Any:
        yield from [Check("one", State.OK, "")][1:]
        raise RuntimeError("two\nlines")

    (check,) = doctor._guarded(_broken_look, {})
    assert (check.name, check.state) == ("broken look", State.NO)
    assert "RuntimeError: two lines" in check.detail
