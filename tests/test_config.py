"""Config: every invalid value is refused in one line with the allowed values; environment and arguments agree."""

from __future__ import annotations

import dataclasses
import logging
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.agent import Agent
from loopwatch.config import ENV_PREFIX, Config, field_names, from_env
from loopwatch.errors import ConfigError, LoopwatchError
from loopwatch.events import Stall


def hook(stall: Stall) -> None:
    """Stands for a user's callback, found by name."""


def tenant() -> dict[str, str]:
    """Stands for a user's source of labels, found by name."""
    return {}


SECONDS = "a number of seconds above 0, such as 0.1"
NOT_NEGATIVE = "a number of seconds, 0 or more"
LIMITS = "a mapping of route and task patterns to seconds above 0, such as {'GET /report/*': 0.5}"
FLAG = "True or False"
LEVEL = "a logging level: DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"
PREFIXES = "a sequence of path or module prefixes, such as ('app', '/srv/app')"
SOURCES = "a sequence of context-variable names and callables"
FUNCTIONS = "a sequence of names such as 'pkg.mod:function', 'pkg.mod:Class.method' or 'pkg.mod:*'"
SHARE = "a share of one core above 0 and up to 1, such as 0.01"
HEARTBEAT = "a number of seconds from 0.001 to 60"
ENDPOINT = "a URL such as 'http://127.0.0.1:4318', or None"
PORT = "a port from 1 to 65535, 0 for any free one, or None"
HOST = "an address to listen on, such as '127.0.0.1' or '0.0.0.0'"
NAMES = "a sequence of host names without ports, such as ('shop', '*.example.com')"
EXPORT = "a number of seconds from 0.1 to 3600, or None"
NAN, INF, HUGE = float("nan"), float("inf"), 10**400

BAD: dict[str, list[tuple[Any, str]]] = {
    "enabled": [(value, FLAG) for value in (1, 0, None, "yes", "", [])],
    "threshold": [(value, SECONDS) for value in (0, 0.0, -0.1, NAN, INF, HUGE, 3601, "0.1", None, True, [1], 1j)],
    "thresholds": [
        (value, LIMITS)
        for value in (
            None,
            5,
            "GET /a=1",
            ["GET /a"],
            {"": 1},
            {5: 1},
            {"a": 0},
            {"a": -1},
            {"a": NAN},
            {"a": 3601},
            {"a": "1"},
            {"a": True},
            [("a", 1, 2)],
        )
    ],
    "hang_after": [(value, SECONDS) for value in (0, -1, NAN, INF, 86401, "2", None, False)],
    "heartbeat": [(value, HEARTBEAT) for value in (0, 0.0009, 60.1, NAN, INF, "x", None, True)],
    "grace": [(value, NOT_NEGATIVE) for value in (-1e-9, NAN, INF, 86401, "0", None, False)],
    "max_stalls": [(value, "a whole number, 1 or more") for value in (0, -1, 1.0, 1.5, "5", None, True, NAN)],
    "max_frames": [(value, "a whole number, 1 or more") for value in (0, -5, 2.0, "5", None, True)],
    "max_culprits": [(value, "a whole number, 0 or more") for value in (-1, 2.0, "5", None, False)],
    "user_code": [
        *[(value, PREFIXES) for value in ("app", "", b"app", [""], ["a", 1])],
        *[(value, "a sequence") for value in (5, None)],
    ],
    "library_code": [("app", PREFIXES), ([Path("/srv")], PREFIXES), (3.0, "a sequence")],
    "cpu_budget": [(value, SHARE) for value in (0, -0.1, 1.01, NAN, INF, "1", None, True)],
    "journal": [(value, "a path or None") for value in ("", 5, b"x.jsonl", True, ["a"])],
    "journal_max_bytes": [(value, "a whole number of bytes, 4096 or more") for value in (4095, 0, -1, 1e6, "1", None)],
    "log_level": [(value, LEVEL) for value in ("LOUD", "", -1, 30.0, None, True, [])],
    "log_interval": [(value, NOT_NEGATIVE) for value in (-1, NAN, INF, "60", None, True)],
    "on_stall": [(value, "a callable that takes a Stall, or None") for value in (5, "pkg:name", [], False)],
    "context": [("tenant", SOURCES), ([""], SOURCES), ([5], SOURCES), ((None,), SOURCES), (5, "a sequence")],
    "routes": [(value, FLAG) for value in (1, "no", None)],
    "follow_fork": [(value, FLAG) for value in (1, "no", None)],
    "flag_after": [(value, "a whole number, 1 or more") for value in (0, -1, 3.0, "3", None, True)],
    "flag_window": [(value, SECONDS) for value in (0, -1, NAN, INF, 86401, "60", None, True)],
    "workers": [(value, "a whole number, 1 or more, or None") for value in (0, -1, 2.0, "2", True)],
    "offload_to": [(value, "one of process, thread, auto, inline") for value in ("", "worker", None, 1, [])],
    "auto_offload": [
        *[(value, FUNCTIONS) for value in ("a:b", [""], ["pkg.mod"], ["a:b", "a:b:c"], ["a:"], [":b"], ["a:1"], [5])],
        (None, "a sequence"),
    ],
    "transparent_offload": [("a:b", FUNCTIONS), (["a.:b"], FUNCTIONS), (["a:b.*"], FUNCTIONS), (5, "a sequence")],
    "hung_after": [(value, SECONDS) for value in (0, -1, NAN, INF, "60", None, True)],
    "otlp_endpoint": [
        (value, ENDPOINT)
        for value in (
            "",
            "collector:4318",
            "ftp://h",
            "http://",
            "http://h:port",
            "http://[::1",
            "http://h:0",
            4318,
            b"x",
        )
    ],
    "export_interval": [(value, EXPORT) for value in (0, 0.09, 3601, NAN, INF, "10", True)],
    "prometheus_port": [(value, PORT) for value in (-1, 65536, 9464.0, "9464", True)],
    "prometheus_host": [(value, HOST) for value in ("", " ", None, 5, b"0.0.0.0")],
    "prometheus_names": [
        *[(value, NAMES) for value in ("shop", ["shop:80"], ["a b"], [""], ["x.*"], ["*.*"], [5], ["a..b"], ["[::1]"])],
        (None, "a sequence"),
    ],
}


def test_tables_cover_every_field() -> None:
    """A new field must come with its bad values and its variable."""
    assert set(BAD) == set(field_names())
    assert set(GOOD_TEXT) == set(field_names()) == set(BAD_TEXT)


@pytest.mark.parametrize("name", BAD)
def test_bad_value_names_field_value_and_allowed_values(name: str) -> None:
    """An invalid value is a ConfigError and a ValueError, in one line with field, value and allowed values."""
    for value, allowed in BAD[name]:
        with pytest.raises(ConfigError) as caught:
            Config(**{name: value})
        assert str(caught.value) == f"{name}={value!r}: must be {allowed}"
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, LoopwatchError)


EDGES: list[tuple[str, Any, Any]] = [
    ("threshold", 3600, 3600.0),
    ("threshold", 1e-9, 1e-9),
    ("thresholds", {" GET /a ": 1, "b-*": 0.5}, (("GET /a", 1.0), ("b-*", 0.5))),
    ("thresholds", (("b", 0.5), ("a", 3600)), (("b", 0.5), ("a", 3600.0))),
    ("thresholds", {}, ()),
    ("heartbeat", 0.001, 0.001),
    ("heartbeat", 60, 60.0),
    ("grace", 0, 0.0),
    ("max_stalls", 1, 1),
    ("max_frames", 1, 1),
    ("max_culprits", 0, 0),
    ("cpu_budget", 1, 1.0),
    ("journal_max_bytes", 4096, 4096),
    ("log_interval", 0, 0.0),
    ("flag_after", 1, 1),
    ("flag_window", 86400, 86400.0),
    ("log_level", 0, 0),
    ("user_code", ["app", "/srv/app"], ("app", "/srv/app")),
    ("context", ["tenant", tenant], ("tenant", tenant)),
    ("export_interval", 1, 1.0),
    ("prometheus_port", 0, 0),
    ("prometheus_port", 65535, 65535),
    ("otlp_endpoint", "https://[::1]:4318/v1", "https://[::1]:4318/v1"),
]


def test_values_at_the_edge_are_kept() -> None:
    """The limits themselves are allowed; a value is kept in its one type: float seconds, tuples."""
    for name, value, kept in EDGES:
        found = getattr(Config(**{name: value}), name)
        assert found == kept
        assert type(found) is type(kept)


@given(st.sampled_from(["threshold", "grace", "heartbeat", "cpu_budget"]), st.floats() | st.integers())
def test_every_number_is_kept_or_refused(name: str, value: float) -> None:
    """Any number is either refused with ConfigError or kept as it is, finite and not negative."""
    try:
        kept = getattr(Config.of({name: value}), name)
    except ConfigError:
        return
    assert kept == float(value)
    assert 0 <= kept <= 86400


@pytest.mark.parametrize(
    ("given_level", "number"),
    [
        ("DEBUG", 10),
        ("debug", 10),
        ("Info", 20),
        ("WARN", 30),
        ("WARNING", 30),
        ("error", 40),
        ("CRITICAL", 50),
        (5, 5),
    ],
)
def test_log_level_is_a_number_or_a_name(given_level: int | str, number: int) -> None:
    """Names of levels are turned into their numbers, upper or lower case."""
    assert Config(log_level=given_level).log_level == number  # type: ignore[arg-type]


def test_log_level_of_ones_own() -> None:
    """A level added by the program is known by its name."""
    logging.addLevelName(35, "NOTICE")
    try:
        assert Config(log_level="NOTICE").log_level == 35  # type: ignore[arg-type]
    finally:
        logging._nameToLevel.pop("NOTICE")
        logging._levelToName.pop(35)


def test_journal_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative journal path is resolved at once, so a later change of directory does not matter."""
    monkeypatch.chdir(tmp_path)
    assert Config(journal="stalls.jsonl").journal == str(tmp_path / "stalls.jsonl")
    assert Config(journal=tmp_path).journal == str(tmp_path)
    assert Config(journal=tmp_path / "stalls.jsonl").journal == str(tmp_path / "stalls.jsonl")


@pytest.mark.parametrize("inside", ["stalls.jsonl", "deeper/"])
def test_journal_in_a_missing_directory(tmp_path: Path, inside: str) -> None:
    """A journal whose directory does not exist is refused, with the command that helps."""
    wanted = f"{tmp_path}/missing/{inside}"
    with pytest.raises(ConfigError) as caught:
        Config(journal=wanted)
    folder = Path(wanted) if inside.endswith("/") else Path(wanted).parent
    assert str(caught.value) == (
        f"journal={wanted!r}: must be in a directory that exists; create it first: mkdir -p {folder}"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Config.of({"treshold": 1}),
        lambda: Config().replaced(treshold=1),
        lambda: from_env({}, treshold=1),
        lambda: Agent().configure(treshold=1),
    ],
    ids=["of", "replaced", "from_env", "configure"],
)
def test_unknown_name_lists_the_known_ones(make: Any) -> None:
    """A misspelt setting is refused everywhere, with all existing names."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == f"unknown setting 'treshold': known are {', '.join(field_names())}"


def test_nothing_is_half_done() -> None:
    """One invalid value among valid ones changes nothing, neither in a Config nor in an agent."""
    agent = Agent(Config(threshold=0.2))
    before = agent.config
    with pytest.raises(ConfigError, match=r"^max_stalls=0: must be"):
        agent.configure(threshold=0.3, max_stalls=0)
    assert agent.config is before
    assert agent.config.threshold == 0.2
    with pytest.raises(ConfigError, match=r"^grace=-1: must be"):
        before.replaced(threshold=0.3, grace=-1)
    assert before.threshold == 0.2


def test_changes_from() -> None:
    """changes_from gives (old, new) of exactly the fields that differ."""
    old = Config()
    assert old.changes_from(Config()) == {}
    assert old.replaced(threshold=0.5, max_stalls=9).changes_from(old) == {
        "threshold": (0.1, 0.5),
        "max_stalls": (512, 9),
    }


def test_config_is_frozen() -> None:
    """A Config is immutable."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().threshold = 1.0  # type: ignore[misc]


HERE = __name__
GOOD_TEXT: dict[str, list[tuple[str, Any]]] = {
    "enabled": [("0", False), ("false", False), ("No", False), (" off ", False), ("1", True), ("TRUE", True)],
    "threshold": [("0.25", 0.25), ("1e-2", 0.01), (" 3 ", 3.0)],
    "thresholds": [
        ("GET /report/*=0.5", (("GET /report/*", 0.5),)),
        (" GET /a,b = 1 ,batch-*=2e0, ", (("GET /a,b", 1.0), ("batch-*", 2.0))),
        (",", ()),
    ],
    "hang_after": [("5", 5.0)],
    "heartbeat": [("0.01", 0.01)],
    "grace": [("30", 30.0)],
    "max_stalls": [("7", 7)],
    "max_frames": [("8", 8)],
    "max_culprits": [("0", 0)],
    "user_code": [("app, /srv/app,", ("app", "/srv/app")), (",", ())],
    "library_code": [("vendor", ("vendor",))],
    "cpu_budget": [("0.05", 0.05)],
    "journal": [("/", "/"), ("/stalls.jsonl", "/stalls.jsonl")],
    "journal_max_bytes": [("4096", 4096)],
    "log_level": [("error", 40), ("15", 15), (" INFO ", 20)],
    "log_interval": [("0", 0.0)],
    "on_stall": [(f"{HERE}:hook", hook)],
    "context": [(f"tenant, {HERE}:tenant", ("tenant", tenant))],
    "routes": [("off", False)],
    "follow_fork": [("no", False)],
    "flag_after": [("5", 5)],
    "flag_window": [("300", 300.0)],
    "workers": [("3", 3)],
    "offload_to": [(" thread ", "thread")],
    "auto_offload": [("a.b:c, a:D.e ,a:*,", ("a.b:c", "a:D.e", "a:*"))],
    "transparent_offload": [("a:b,a:b", ("a:b",))],
    "hung_after": [("120", 120.0)],
    "otlp_endpoint": [(" http://collector:4318 ", "http://collector:4318")],
    "export_interval": [("2.5", 2.5)],
    "prometheus_port": [("9464", 9464), ("0", 0)],
    "prometheus_host": [("0.0.0.0 ", "0.0.0.0")],
    "prometheus_names": [
        ("shop_api, *.svc.cluster.local,shop_api", ("shop_api", "*.svc.cluster.local")),
        ("*", ("*",)),
    ],
}
NUMBER, WHOLE = "a number, such as 0.1", "a whole number"
PAIRS = "of the form PATTERN=SECONDS, several separated by commas, such as 'GET /report/*=0.5,batch-*=2'"
FLAGS = "one of 1, true, yes, on, 0, false, no, off"
BAD_TEXT: dict[str, list[tuple[str, str]]] = {
    "enabled": [("maybe", FLAGS), ("2", FLAGS)],
    "threshold": [("fast", NUMBER), ("0", SECONDS), ("nan", SECONDS), ("inf", SECONDS), ("-1", SECONDS)],
    "thresholds": [
        *[(text, PAIRS) for text in ("GET /a", "=1", "a=", "a=b", "a=1 b", "a=1,,b")],
        *[(text, LIMITS) for text in ("a=0", "a=nan", "a=-1", "a=4000")],
    ],
    "hang_after": [("2s", NUMBER)],
    "heartbeat": [("0", HEARTBEAT)],
    "grace": [("-1", NOT_NEGATIVE)],
    "max_stalls": [("1.5", WHOLE), ("0", "a whole number, 1 or more")],
    "max_frames": [("many", WHOLE)],
    "max_culprits": [("-1", "a whole number, 0 or more")],
    "user_code": [],  # any text is a list of prefixes
    "library_code": [],
    "cpu_budget": [("2", SHARE), ("1%", NUMBER)],
    "journal": [("/no/such/folder/x", "in a directory that exists; create it first: mkdir -p /no/such/folder")],
    "journal_max_bytes": [("64MB", WHOLE), ("1", "a whole number of bytes, 4096 or more")],
    "log_level": [("LOUD", LEVEL), ("-5", LEVEL)],
    "log_interval": [("x", NUMBER)],
    "on_stall": [
        *[(text, "of the form pkg.mod:name") for text in ("print", "x:")],
        ("sys:maxsize", "a callable that takes a Stall, or None"),
    ],
    "context": [("sys:maxsize", SOURCES), (":x", "of the form pkg.mod:name")],
    "routes": [("?", FLAGS)],
    "follow_fork": [("?", FLAGS)],
    "flag_after": [("often", WHOLE), ("0", "a whole number, 1 or more")],
    "flag_window": [("1m", NUMBER), ("0", SECONDS)],
    "workers": [("all", WHOLE), ("0", "a whole number, 1 or more, or None")],
    "offload_to": [("worker", "one of process, thread, auto, inline")],
    "auto_offload": [("a.b", FUNCTIONS)],
    "transparent_offload": [("a:b,c", FUNCTIONS)],
    "hung_after": [("1m", NUMBER), ("0", SECONDS)],
    "otlp_endpoint": [("collector:4318", ENDPOINT)],
    "export_interval": [("10s", NUMBER), ("0", EXPORT)],
    "prometheus_port": [("http", WHOLE), ("70000", PORT)],
    "prometheus_host": [(" ", HOST)],
    "prometheus_names": [("http://shop", NAMES)],
}


@pytest.mark.parametrize("name", GOOD_TEXT)
def test_every_field_is_a_variable(name: str) -> None:
    """LOOPWATCH_<FIELD> sets the field, and no other."""
    for text, value in GOOD_TEXT[name]:
        found = from_env({ENV_PREFIX + name.upper(): text})
        assert getattr(found, name) == value
        assert type(getattr(found, name)) is type(value)
        assert set(found.changes_from(Config())) <= {name}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_variable_is_named(name: str) -> None:
    """An invalid variable is reported by its name, with its text and the allowed values."""
    variable = ENV_PREFIX + name.upper()
    for text, allowed in BAD_TEXT[name]:
        with pytest.raises(ConfigError) as caught:
            from_env({variable: text})
        assert str(caught.value) == f"{variable}={text!r}: must be {allowed}"


def test_explicit_wins() -> None:
    """An argument wins over its variable, even over an invalid one."""
    for name in field_names():
        default = getattr(Config(), name)
        bad = BAD_TEXT[name][0][0] if BAD_TEXT[name] else "x"
        assert getattr(from_env({ENV_PREFIX + name.upper(): bad}, **{name: default}), name) == default


def test_empty_and_foreign_variables_count_as_absent() -> None:
    """Empty values count as absent, and variables with other names are ignored."""
    empty = {ENV_PREFIX + name.upper(): "" for name in field_names()}
    assert from_env({**empty, "LOOPWATCH_NO_SUCH": "1", "THRESHOLD": "9"}) == Config()


def test_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping, os.environ is read."""
    monkeypatch.setenv("LOOPWATCH_THRESHOLD", "0.75")
    assert from_env().threshold == 0.75
    assert os.environ["LOOPWATCH_THRESHOLD"] == "0.75"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such_name", "AttributeError: module 'json' has no attribute 'no_such_name'"),
        ("broken_on_import:f", "RuntimeError: no database here"),
        ("not_python:f", "SyntaxError"),
        (".relative:f", "TypeError"),
        ("a..b:f", "ModuleNotFoundError"),
    ],
)
def test_callable_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    """Any failure to import a callable is a ConfigError with the reason, never another exception."""
    (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('no database here')")
    (tmp_path / "not_python.py").write_text("def (:")
    monkeypatch.syspath_prepend(tmp_path)
    for variable in ("LOOPWATCH_ON_STALL", "LOOPWATCH_CONTEXT"):
        with pytest.raises(ConfigError) as caught:
            from_env({variable: text})
        message = str(caught.value)
        assert message.startswith(f"{variable}={text!r}: must be pkg.mod:name of something that can be imported (")
        assert reason in message


def test_a_method_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pkg.mod:Class.method is followed through attributes."""
    source = """
        class Sink:
            @staticmethod
            def take(stall): ...
        """
    (tmp_path / "sinks_of_a_user.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    found = from_env({"LOOPWATCH_ON_STALL": "sinks_of_a_user:Sink.take"}).on_stall
    assert found is not None
    assert found.__qualname__ == "Sink.take"
