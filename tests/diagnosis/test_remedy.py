"""remedy(): one concrete sentence for every cause and every call."""

from __future__ import annotations

import doctest
import re
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.diagnosis.cause_facts import CAUSES, those
from loopwatch.diagnosis.own_part import Parts
from loopwatch.diagnosis.public_names import public
from loopwatch.diagnosis.remedy import is_generic, remedy
from loopwatch.diagnosis.remedy_table import ANY, TABLE, Advice
from loopwatch.events import Cause, Frame

CULPRIT = Frame("Images.resize", "app.images", "/app/images.py", 12)
REQUESTS = (
    "requests.api.get",
    "requests.sessions.Session.request",
    "urllib3.connectionpool.HTTPConnectionPool.urlopen",
    "http.client.HTTPConnection.getresponse",
    "socket.socket.recv_into",
    ".recv_into",
)


def winner(cause: Cause, *calls: str) -> Advice | None:
    """Return the table entry with the given sentence, found by its text; None for a fallback."""
    text = remedy(cause, calls, CULPRIT)
    for advice in TABLE:
        if any(re.fullmatch(_shape(advice.text, call), text) for call in calls):
            return advice
    return None


def _shape(text: str, call: str) -> str:
    named = re.escape(text).replace(re.escape("{call}"), re.escape(f"{public(call)}()"))
    return re.sub(re.escape(r"\{") + r"(offload|thread)" + re.escape(r"\}"), ".*", named)


def is_one_sentence(text: str) -> bool:
    return text.endswith(".") and not text.endswith("..") and text.splitlines() == [text] and text.strip() == text


@pytest.mark.parametrize("advice", TABLE, ids=lambda advice: advice.patterns[0])
def test_every_pattern_wins_for_its_own_call(advice: Advice) -> None:
    """No entry is unreachable: a call spelled like the pattern gets that entry's advice, for each of its causes."""
    for pattern in advice.patterns:
        for cause in advice.causes:
            assert winner(cause, pattern) is advice, (pattern, cause)


@pytest.mark.parametrize("advice", TABLE, ids=lambda advice: advice.patterns[0])
def test_every_advice_is_one_short_sentence(advice: Advice) -> None:
    """A table entry is one line, ends with one full stop, stays short and leaves no placeholder unfilled."""
    assert is_one_sentence(advice.text)
    assert ". " not in advice.text
    assert len(advice.text) <= 200
    assert advice.causes <= ANY | {Cause.GIL, Cause.GC}
    for cause in advice.causes:
        assert not {"{", "}"} & set(remedy(cause, advice.patterns[:1], None))


def test_no_pattern_stands_twice_for_one_cause() -> None:
    """The table has one answer for each pattern and cause, so the order of its entries does not matter."""
    keys = Counter((pattern, cause) for advice in TABLE for pattern in advice.patterns for cause in advice.causes)
    assert [key for key, count in keys.items() if count > 1] == []


def test_the_table_is_broad() -> None:
    """The table has more than 80 rows, each with an operation of its own, a reason and a reference."""
    assert len(TABLE) >= 80
    assert len({advice.operation for advice in TABLE}) == len(TABLE)
    assert all(advice.reason and advice.reference.startswith("https://") for advice in TABLE)


def test_rows_that_are_awaited_name_what_a_task_uses() -> None:
    """Where the sentence says ``await``, the row names the asynchronous form for places that cannot await."""
    assert [advice.operation for advice in TABLE if "await" in advice.text and not advice.form] == []
    assert [advice.operation for advice in TABLE if "asyncio.to_thread" in advice.text and not advice.form] == []


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("culprit", [None, CULPRIT])
def test_every_cause_has_a_sentence_without_any_call(cause: Cause, culprit: Frame | None) -> None:
    """Without any call each cause still gives a sentence, different from that of every other cause."""
    sentence = remedy(cause, (), culprit)
    assert is_one_sentence(sentence)
    assert sentence not in {remedy(other, (), culprit) for other in Cause if other is not cause}


def test_causes_are_divided_in_two() -> None:
    """Each cause either has a sentence of its own or has a fallback, never both."""
    assert set(CAUSES) == set(Cause)
    assert all(("{call}" in facts.remedy) >= facts.is_of_call for facts in CAUSES.values())


@pytest.mark.parametrize("cause", sorted(those("is_of_call", False)))
def test_call_is_ignored_for_causes_outside_of_it(cause: Cause) -> None:
    """For gc, gil, starved, suspended and overload the advice is about the cause, whatever the call."""
    assert remedy(cause, REQUESTS, CULPRIT) == remedy(cause, (), CULPRIT)


def test_gil_names_the_hog_and_a_process() -> None:
    """For gil the culprit is the code of the other thread, and the advice is to move it to a process."""
    sentence = remedy(Cause.GIL, (), CULPRIT)
    assert "Images.resize()" in sentence
    assert "ProcessPoolExecutor" in sentence
    assert "that thread" in remedy(Cause.GIL, (), None)


@pytest.mark.parametrize(
    ("parts", "cures"),
    [
        (Parts(0.1, 0.9, 0.9), "raise the CPU limit of the container, or run fewer workers in it"),
        (Parts(0.1, 0.9, 0.0), "run fewer busy processes on this machine, or give this one a processor of its own"),
        (Parts(0.1, 0.9, 0.5), "raise the CPU limit of the container, and run fewer busy processes on this machine"),
    ],
)
def test_starved_is_cured_by_processors(parts: Parts, cures: str) -> None:
    """For starved the advice is about the quota, the neighbours, or both, in one sentence, and not about code."""
    sentence = remedy(Cause.STARVED, ("json.loads",), CULPRIT, parts)
    assert sentence == f"The loop was given no processor: {cures}."


def test_both_cures_are_named() -> None:
    """A block with a cause of its own that also lacked a processor has a second sentence, from 30 % of it on."""
    alone = remedy(Cause.SLEEP, ("time.sleep",), CULPRIT)
    assert remedy(Cause.SLEEP, ("time.sleep",), CULPRIT, Parts(0.71, 0.29, 0.29)) == alone
    both = remedy(Cause.SLEEP, ("time.sleep",), CULPRIT, Parts(0.3, 0.3, 0.3))
    assert both == (
        f"{alone} It also had no processor for 300 ms: raise the CPU limit of the container, or run fewer workers "
        "in it."
    )


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_the_second_cure_but_starved(cause: Cause) -> None:
    """Half of a block without a processor is dealt with under every cause, exactly once."""
    sentence = remedy(cause, (), CULPRIT, Parts(0.5, 0.5, 0.0))
    assert is_one_sentence(sentence)
    assert sentence.count("run fewer busy processes on this machine") == 1
    assert ("It also had no processor for 500 ms" in sentence) == (cause is not Cause.STARVED)


def test_unknown_cause_says_so() -> None:
    """An unknown cause with an unknown call is reported as unknown."""
    assert "does not show why Images.resize() held the loop" in remedy(Cause.UNKNOWN, (), CULPRIT)


def test_fallback_names_the_outermost_call_then_the_culprit() -> None:
    """An unlisted library is named as the user called it; without a call the culprit is named."""
    assert "acme.sdk.fetch()" in remedy(Cause.IO, ("acme.sdk.fetch", "acme.wire.pull"), CULPRIT)
    assert "Images.resize()" in remedy(Cause.PYTHON, ("", " "), CULPRIT)
    assert "the blocking code" in remedy(Cause.PYTHON, (), None)


def test_computing_goes_to_a_process_unless_the_gil_is_released() -> None:
    """A thread is advised only if C code released the GIL; otherwise a process is."""
    for calls in [(), ("zlib.compress",), ("PIL.Image.Image.resize", ".resize")]:
        assert "asyncio.to_thread" in remedy(Cause.NATIVE, calls, CULPRIT)
        for cause in (Cause.PYTHON, Cause.NATIVE_GIL):
            assert "ProcessPoolExecutor" in remedy(cause, calls, CULPRIT)
            assert "to_thread" not in remedy(cause, calls, CULPRIT)


@pytest.mark.parametrize("cause", sorted(ANY))
def test_outermost_wins(cause: Cause) -> None:
    """The remedy of a stall in requests is about requests, not about the socket that it reads from."""
    sentence = remedy(cause, REQUESTS, CULPRIT)
    assert "requests.get()" in sentence
    assert "httpx.AsyncClient" in sentence
    assert "sock_" not in sentence


def test_inner_call_counts_where_the_outer_one_is_not_known() -> None:
    """An unlisted wrapper does not hide the listed call it makes."""
    assert "httpx.AsyncClient" in remedy(Cause.IO, ("acme.sdk.fetch", *REQUESTS), CULPRIT)


def test_an_entry_for_another_cause_does_not_win() -> None:
    """A template that waits for a lazy query gets advice about the query; one that computes, about the template."""
    calls = ("jinja2.environment.Template.render", "sqlalchemy.orm.query.Query.all", "socket.socket.recv")
    assert "create_async_engine" in remedy(Cause.IO, calls, CULPRIT)
    assert "rendered fragments" in remedy(Cause.PYTHON, calls, CULPRIT)


@pytest.mark.parametrize("generic", [".execute", ".read", ".recv", "builtins.open"])
def test_specific_pattern_wins_over_generic(generic: str) -> None:
    """A named library wins over a bare method or builtin, even when the latter is further out."""
    assert winner(Cause.IO, generic) is not None
    for calls in [(generic, "psycopg2.connect"), ("psycopg2.connect", generic)]:
        assert "psycopg.AsyncConnection" in remedy(Cause.IO, calls, CULPRIT)


@pytest.mark.parametrize(
    ("cause", "call", "expected"),
    [
        (Cause.NATIVE, "hashlib.pbkdf2_hmac", "slow on purpose"),
        (Cause.NATIVE_GIL, "requests.models.Response.json", "orjson"),
        (Cause.PYTHON, "boto3.session.Session.client", "once at start-up"),
        (Cause.IO, "os.fsync", "sync once"),
        (Cause.IO, "posix.waitpid", "process.wait()"),
        (Cause.NATIVE_GIL, "re._compiler.compile", "at import"),
    ],
)
def test_longer_pattern_wins_over_shorter(cause: Cause, call: str, expected: str) -> None:
    """Within one call the most specific pattern decides."""
    assert expected in remedy(cause, (call,), CULPRIT)


@pytest.mark.parametrize(
    "call",
    [
        "osgeo.gdal.Open",
        "requests_html.get",
        "httpx._client.AsyncClient.send",
        "redis.asyncio.client.Redis.execute_command",
        "psycopg.cursor_async.AsyncCursor.execute",
        "grpc.aio._channel.Channel.close",
        "pymongo.asynchronous.collection.AsyncCollection.find_one",
        ".executed",
    ],
)
def test_patterns_end_at_a_dot_and_spare_asyncio_clients(call: str) -> None:
    """``os`` does not match ``osgeo``, and an asyncio client is never advised to become one."""
    assert winner(Cause.IO, call) is None


@pytest.mark.parametrize(
    ("cause", "call", "expected"),
    [
        (Cause.SLEEP, "time.sleep", "await asyncio.sleep()"),
        (Cause.IO, "subprocess.run", "create_subprocess_exec"),
        (Cause.IO, "subprocess.Popen.wait", "create_subprocess_exec"),
        (Cause.IO, "urllib.request.urlopen", "aiohttp"),
        (Cause.IO, "httpx._api.get", "AsyncClient"),
        (Cause.IO, "socket.getaddrinfo", "loop.getaddrinfo()"),
        (Cause.NATIVE, "sqlite3.Cursor.execute", "aiosqlite"),
        (Cause.IO, "redis.client.Redis.execute_command", "redis.asyncio"),
        (Cause.IO, "django.db.models.query.QuerySet.get", "sync_to_async"),
        (Cause.IO, "builtins.open", "Run open() and"),
        (Cause.IO, "builtins.print", "QueueHandler"),
        (Cause.IO, "logging.Logger.info", "QueueListener"),
        (Cause.LOCK, "threading.Lock.acquire", "asyncio.Lock"),
        (Cause.LOCK, "queue.Queue.get", "asyncio.Queue"),
        (Cause.LOCK, "threading.Thread.join", "asyncio.to_thread"),
        (Cause.LOCK, "threading.Thread.start", "waited for a new thread"),
        (Cause.LOCK, "concurrent.futures.thread.ThreadPoolExecutor.submit", "waited for a new thread"),
        (Cause.LOCK, "concurrent.futures._base.Future.result", "wrap_future"),
        (Cause.IO, "nest_asyncio._patch_asyncio.<locals>.run", "Await the coroutine"),
        (Cause.PYTHON, "importlib._bootstrap._find_and_load", "start-up"),
        (Cause.NATIVE_GIL, "json.loads", "orjson"),
        (Cause.NATIVE_GIL, "re.Pattern.match", "backtrack"),
        (Cause.PYTHON, "copy.deepcopy", "instead of copy.deepcopy()"),
        (Cause.PYTHON, "gc.collect", "gc.freeze()"),
        (Cause.LOCK, ".acquire", "asyncio.Lock"),
        (Cause.LOCK, ".result", "asyncio.wrap_future()"),
        (Cause.LOCK, ".join", "asyncio.to_thread"),
        (Cause.LOCK, ".wait", "asyncio.Event"),
        (Cause.IO, ".wait", "create_subprocess_exec"),
        (Cause.IO, ".execute", "async driver"),
        (Cause.IO, ".accept", "loop.sock_*"),
        (Cause.IO, ".readline", "to_thread"),
        (Cause.NATIVE_GIL, ".sort", "Sort in the database"),
    ],
)
def test_the_advice_fits_the_call(cause: Cause, call: str, expected: str) -> None:
    """The calls that block loops most often get the usual asynchronous replacement."""
    assert expected in remedy(cause, (call,), CULPRIT)


def test_bare_method_does_not_match_an_unfitting_cause() -> None:
    """A bare method name is weak evidence: a ``.join`` that computes is str.join, not a thread's."""
    assert winner(Cause.NATIVE_GIL, ".join") is None
    assert all(advice.causes < ANY for advice in TABLE if advice.patterns[0].startswith("."))


def test_generic_patterns() -> None:
    """Bare methods, builtins and raw files are generic; anything in another module is specific."""
    assert all(is_generic(pattern) for pattern in (".read", "builtins.sum", "_io.open", "io"))
    assert not any(is_generic(pattern) for pattern in ("json", "ioctl.x", "time.sleep"))


@pytest.mark.parametrize(
    "name", ["a\nb", "a\r\nb.c", "x\u2028y", "{offload}", "{0}", "%s", "\n", "<lambda>", "a..b", "."]
)
@pytest.mark.parametrize("cause", Cause)
def test_odd_names_stay_one_line(cause: Cause, name: str) -> None:
    """Generated code may have any name: it can neither break the line nor act as a placeholder."""
    assert is_one_sentence(remedy(cause, (name,), Frame(name, "", "<string>", 1)))
    assert is_one_sentence(remedy(cause, (), Frame(name, "", "<string>", 1)))


known_calls = st.sampled_from([pattern for advice in TABLE for pattern in advice.patterns])
any_call = st.one_of(known_calls, st.text(), st.builds("{}.{}".format, known_calls, st.text()))
any_culprit = st.one_of(st.none(), st.builds(Frame, st.text(), st.text(), st.text(), st.integers()))


@given(cause=st.sampled_from(Cause), calls=st.lists(any_call), culprit=any_culprit)
def test_any_input_gives_one_line(cause: Cause, calls: list[str], culprit: Frame | None) -> None:
    """Whatever the names are, the answer is one non-empty line that ends in a full stop; nothing is raised."""
    assert is_one_sentence(remedy(cause, calls, culprit))


@given(cause=st.sampled_from(sorted(ANY)), calls=st.lists(any_call, min_size=1))
def test_more_inner_calls_never_change_a_specific_answer(cause: Cause, calls: list[str]) -> None:
    """Once a specific call decided, inner calls of other packages do not matter."""
    known = remedy(cause, ("subprocess.run",), CULPRIT)
    assert remedy(cause, ("subprocess.run", *calls), CULPRIT) == known


def test_the_documented_example_is_true() -> None:
    """The example in the docstring gives the documented result."""
    result = doctest.testmod(sys.modules[remedy.__module__])
    assert (result.attempted, result.failed) == (2, 0)
