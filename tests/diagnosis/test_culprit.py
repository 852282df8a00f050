"""Site: which code a frame belongs to, and which of the user's functions is responsible."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch.diagnosis.culprit import AGREE, Stack, judge
from loopwatch.diagnosis.site import Site
from loopwatch.events import Frame

STDLIB = "/usr/lib/python3.12"
SITE = Site((STDLIB,))


def user(function: str, line: int = 1, file: str = "/srv/app/views.py") -> Frame:
    return Frame(function, "app.views", file, line)


def std(function: str, module: str = "json.decoder", line: int = 1) -> Frame:
    return Frame(function, module, f"{STDLIB}/{module.replace('.', '/')}.py", line)


def package(function: str, module: str = "requests.sessions", line: int = 1) -> Frame:
    return Frame(function, module, f"/srv/venv/lib/python3.12/site-packages/{module.replace('.', '/')}.py", line)


FROZEN = Frame("_find_and_load", "importlib._bootstrap", "<frozen importlib._bootstrap>", 1)
EXECED = Frame("<module>", "", "<string>", 1)


@pytest.mark.parametrize(
    ("frame", "is_user", "is_stdlib"),
    [
        (user("handler"), True, False),
        (std("JSONDecoder.decode"), False, True),
        (package("Session.request"), False, False),
        (FROZEN, False, True),
        (EXECED, False, False),
        (Frame("__init__", "attr", "<attrs generated init app.Quote>", 1), False, False),
        (Frame("f", "app", "<sqlalchemy generated>", 1), False, False),
        (Frame("__create_fn__.<locals>.__init__", "__main__", "<stdin>", 1), False, False),
        (Frame("root", "", "<template>", 1), False, False),
        (Frame("render_body", "", "memory:0x7f00", 1), False, False),
        (Frame("f", "__main__", "<stdin>", 1), True, False),
        (Frame("f", "__main__", "<python-input-3>", 1), True, False),
        (Frame("f", "x", "/usr/lib/python3/dist-packages/x.py", 1), False, False),
        (Frame("f", "x", f"{STDLIB}/site-packages/x.py", 1), False, False),
        (Frame("f", "x", f"{STDLIB}-backports/x.py", 1), True, False),
        (Frame("f", "x", "/srv/my-site-packages-tool/x.py", 1), True, False),
        (Frame("f", "x", "relative/x.py", 1), True, False),
        (Frame("f", "", "", 1), True, False),
        (Frame("f", "x", "C:\\venv\\Lib\\site-packages\\x.py", 1), True, False),
    ],
)
def test_frames_are_classified(frame: Frame, is_user: bool, is_stdlib: bool) -> None:
    """Standard library, frozen modules, installed packages and generated code are not the user's; everything else
    is."""
    assert (SITE.is_user(frame), SITE.is_stdlib(frame)) == (is_user, is_stdlib)


def test_here_knows_this_interpreter() -> None:
    """The rules of this interpreter distinguish this test from json and from an installed package."""
    import json

    here = Site.here()
    assert here.is_stdlib(Frame("loads", "json", json.__file__, 1))
    assert not here.is_user(Frame("main", "pytest", pytest.__file__, 1))
    assert here.is_user(Frame("f", __name__, __file__, 1))
    assert here.is_stdlib(Frame("f", "sysconfig", sysconfig.__file__, 1))


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        ("requests", package("get", "requests"), package("get", "requests_oauthlib")),
        ("requests", package("get", "requests.api"), package("get", "requestsx.api")),
        ("requests.api", package("get", "requests.api"), package("get", "requests.sessions")),
        (
            "/srv/venv/lib/python3.12/site-packages/ours",
            package("f", "ours.views"),
            package("f", "ours2.views"),
        ),
        ("/srv/venv/lib/python3.12/site-packages/ours/", package("f", "ours.views"), package("f", "theirs.views")),
        (
            "/srv/venv/lib/python3.12/site-packages/one/file.py",
            package("f", "one.file"),
            package("f", "one.file2"),
        ),
    ],
)
def test_user_code_prefixes(prefix: str, inside: Frame, outside: Frame) -> None:
    """A module or path prefix makes code the user's, on whole names only."""
    site = Site((STDLIB,), user_code=(prefix,))
    assert site.is_user(inside)
    assert not site.is_user(outside)


@pytest.mark.parametrize("prefix", ["app.framework", "/srv/app/framework"])
def test_library_code_prefixes(prefix: str) -> None:
    """A module or path prefix excludes code from the user's, on whole names only."""
    site = Site((STDLIB,), library_code=(prefix,))
    assert not site.is_user(Frame("run", "app.framework.core", "/srv/app/framework/core.py", 1))
    assert site.is_user(Frame("run", "app.frameworks", "/srv/app/frameworks.py", 1))


def test_user_code_wins() -> None:
    """A prefix in both lists is the user's, and the standard library can be listed too."""
    site = Site((STDLIB,), user_code=("app.framework.mine", "json"), library_code=("app.framework",))
    assert site.is_user(Frame("f", "app.framework.mine", "/srv/app/framework/mine.py", 1))
    assert not site.is_user(Frame("f", "app.framework.other", "/srv/app/framework/other.py", 1))
    assert site.is_user(std("loads", "json"))


def test_no_samples() -> None:
    """Without a stack there is no culprit."""
    verdict = judge(SITE, [])
    assert (verdict.culprit, verdict.stack, verdict.agreeing) == (None, (), 0)


def test_the_users_frame_below_the_library() -> None:
    """The user's innermost function is the culprit, not the library that it called."""
    stack = (user("handler", 7), user("load", 20), package("Session.request"), std("recv_into", "socket"))
    verdict = judge(SITE, [stack] * 5)
    assert verdict.culprit == user("load", 20)
    assert verdict.stack == stack
    assert verdict.agreeing == 5


def test_callbacks_from_the_library_into_the_users_code() -> None:
    """A user's function called back by a library is deeper, and is the culprit."""
    stack = (user("handler"), package("Session.request"), user("hook", 33), std("loads", "json"))
    assert judge(SITE, [stack]).culprit == user("hook", 33)


def test_helpers_that_alternate() -> None:
    """A function that calls several helpers in turn is the culprit, and none of the helpers is."""
    stacks = [(user("handler"), user("work", 10 + i), user(f"helper{i % 3}", 50)) for i in range(9)]
    verdict = judge(SITE, stacks)
    assert verdict.culprit is not None
    assert verdict.culprit.function == "work"
    assert verdict.agreeing == 9


@pytest.mark.parametrize(("with_helper", "culprit"), [(6, "helper"), (5, "work"), (10, "helper"), (0, "work")])
def test_six_of_ten_must_agree(with_helper: int, culprit: str) -> None:
    """A function is deep enough to be the culprit if at least 60 percent of the samples show it."""
    both = [(user("handler"), user("work"), user("helper"))] * with_helper
    verdict = judge(SITE, both + [(user("handler"), user("work"))] * (10 - with_helper))
    assert verdict.culprit is not None
    assert verdict.culprit.function == culprit
    assert verdict.agreeing == (with_helper if culprit == "helper" else 10)
    assert AGREE == 0.6


def test_line_of_the_culprit_is_the_most_frequent_one() -> None:
    """Of a function's lines the most frequent one is reported, with a stack that shows it."""
    stacks: list[Stack] = [(user("work", line), std("sub", "re")) for line in (10, 12, 12, 12, 11)]
    verdict = judge(SITE, stacks)
    assert verdict.culprit == user("work", 12)
    assert verdict.culprit in verdict.stack
    assert verdict.agreeing == 5


def test_recursion_counts_once_a_sample() -> None:
    """A recursive function is one culprit, however often it is on the stack, at its innermost line."""
    stacks = [(user("handler"), *[user("walk", 5)] * depth, user("walk", 8)) for depth in (3, 9, 6)]
    verdict = judge(SITE, stacks)
    assert verdict.culprit == user("walk", 8)
    assert verdict.agreeing == 3


@pytest.mark.parametrize(
    "name",
    [
        "handler.<locals>.<lambda>",
        "rows.<locals>.<genexpr>",
        "Images.resize",
        "Outer.Inner.method",
        "handler.<locals>.inner",
        "stream",
        "Cached.__call__",
    ],
)
def test_qualified_names_are_kept(name: str) -> None:
    """Lambdas, generators, methods, coroutines and closures are culprits under their qualified names."""
    verdict = judge(SITE, [(user("handler"), user(name, 9), std("sub", "re"))] * 3)
    assert verdict.culprit == user(name, 9)


def test_same_name_in_two_files_is_two_functions() -> None:
    """Functions are distinguished by their file too."""
    one, other = user("run", 1, "/srv/app/a.py"), user("run", 1, "/srv/app/b.py")
    verdict = judge(SITE, [(user("main"), one)] * 3 + [(user("main"), other)] * 3)
    assert verdict.culprit == user("main")


def test_decorator_of_a_library_around_the_users_function() -> None:
    """A library's wrapper is skipped, and the function inside it is named."""
    stack = (user("handler"), package("retry.<locals>.wrapper", "tenacity"), user("fetch", 3), std("recv", "socket"))
    assert judge(SITE, [stack] * 4).culprit == user("fetch", 3)


def test_decorator_of_the_users_own() -> None:
    """Inside the user's own wrapper the wrapped function is deeper, and is named."""
    stack = (user("timed.<locals>.wrapper"), user("fetch", 3), std("recv", "socket"))
    assert judge(SITE, [stack] * 4).culprit == user("fetch", 3)


def test_code_made_by_exec_and_missing_files() -> None:
    """Generated code belongs to its caller, the program of ``python -c`` is the user's; so is code whose file does not
    exist."""
    assert judge(SITE, [(user("handler"), EXECED)]).culprit == user("handler")
    main = Frame("main", "__main__", "<string>", 3)
    unnamed = Frame("main", "", "<string>", 3)  # as faulthandler dumps it
    for frame in (main, unnamed):
        assert judge(Site((STDLIB,), is_argument=True), [(user("handler"), frame)]).culprit == frame
    gone = user("f", 3, "/no/such/file.py")
    assert judge(SITE, [(gone, std("loads", "json"))]).culprit == gone


def test_library_only() -> None:
    """In a program without code of its own the outermost function of a library is named that is no server machinery."""
    stack = (std("run", "asyncio.runners"), package("serve", "uvicorn.server"), package("parse", "h11._reader"))
    verdict = judge(SITE, [stack] * 4)
    assert verdict.culprit == package("parse", "h11._reader")
    assert judge(SITE, [stack[:2]] * 4).culprit == package("serve", "uvicorn.server")
    app = package("get_request_handler.<locals>.app", "fastapi.routing")
    encoding = package("serialize_response", "fastapi.routing")
    assert judge(SITE, [(*stack[:2], app, encoding, std("dumps", "json"))]).culprit == encoding
    assert (verdict.stack, verdict.agreeing) == (stack, 4)


def test_standard_library_only() -> None:
    """If only the standard library was seen no culprit is named, and the most frequent stack is kept."""
    often, once = (std("a", "json"), std("b", "json")), (std("c", "json"),)
    verdict = judge(SITE, [often, once, often])
    assert (verdict.culprit, verdict.stack, verdict.agreeing) == (None, often, 0)


def test_one_late_sample_of_loop_machinery_does_not_decide() -> None:
    """Samples without user code lower the agreement, and do not remove the culprit."""
    verdict = judge(SITE, [(user("work"),)] * 2 + [(std("run", "threading"),)] * 3)
    assert verdict.culprit == user("work")
    assert verdict.agreeing == 2


_frames = st.builds(
    lambda make, name, line: make(name, line=line),
    st.sampled_from([user, std, package]),
    st.sampled_from(["a", "b", "c", "d"]),
    st.integers(1, 4),
)
_stacks = st.lists(st.lists(_frames, min_size=1, max_size=6).map(tuple), max_size=12)


@given(_stacks)
def test_culprit_is_always_on_a_sampled_stack(stacks: list[Stack]) -> None:
    """For any stacks: the culprit is on its stack, the stack was sampled, and the count is at most the total."""
    verdict = judge(SITE, stacks)
    assert 0 <= verdict.agreeing <= len(stacks)
    assert not stacks or verdict.stack in stacks
    if verdict.culprit is not None:
        assert verdict.culprit in verdict.stack
        assert verdict.agreeing >= 1
    if any(SITE.is_user(frame) for stack in stacks for frame in stack):
        assert verdict.culprit is not None
        assert SITE.is_user(verdict.culprit)


def test_prefix_may_be_a_windows_path() -> None:
    """A prefix with backslashes is a path too."""
    site = Site((), library_code=("C:\\app\\vendor",))
    assert not site.is_user(Frame("f", "x", "C:\\app\\vendor\\x.py", 1))
    assert site.is_user(Frame("f", "x", "C:\\app\\vendors\\x.py", 1))


def test_stdlib_directory_is_not_a_prefix_of_its_neighbours() -> None:
    """A folder whose name begins like the standard library's is not part of it."""
    here = Site.here()
    neighbour = str(Path(here.stdlib[0]).parent / (Path(here.stdlib[0]).name + "x") / "m.py")
    assert not here.is_stdlib(Frame("f", "m", neighbour, 1))


# -- calls that last ------------------------------------------------------------------------------------------------


def test_short_calls_belong_to_their_caller() -> None:
    """A function whose calls do not last from one sample to the next is not the culprit: its caller is."""
    stack = (user("consume", 5), user("parse", 9), std("split", "re"))
    verdict = judge(SITE, [stack] * 4, [3, 1, 1, 1])
    assert (verdict.culprit, verdict.agreeing, verdict.repeated) == (user("consume", 5), 4, user("parse", 9))
    assert judge(SITE, [stack] * 2, [3, 1]).culprit == user("consume", 5)


def test_a_call_that_lasts_is_the_culprit() -> None:
    """A call that later samples show as well is the culprit, whatever it calls; one sample alone proves no less."""
    stack = (user("handler"), user("compute", 9), user("step", 20))
    verdict = judge(SITE, [stack] * 4, [3, 2, 2, 2])
    assert (verdict.culprit, verdict.repeated) == (user("compute", 9), user("step", 20))
    assert judge(SITE, [stack] * 4, [3, 3, 3, 3]) == judge(SITE, [stack] * 4)
    assert judge(SITE, [stack], [3]).culprit == user("step", 20)


def test_new_callbacks_are_judged_by_all_of_their_calls() -> None:
    """A stack of which nothing of the user's code lasted is judged as a whole."""
    stack = (std("run", "asyncio.events"), user("callback"))
    assert judge(SITE, [stack] * 4, [2, 1, 0, 1]).culprit == user("callback")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -c pass", True),
        ("python -Ic pass", True),
        ("python -W ignore -X dev -uc pass", True),
        ("python -Wignore -Xdev -c pass", True),
        ("python --check-hash-based-pycs always -c pass", True),
        ("python -m gunicorn -c settings.py", False),
        ("python /srv/bin/celery -c 4", False),
        ("python -W c app.py", False),
        ("python -Wc app.py", False),
        ("python - -c x", False),
        ("python", False),
    ],
)
def test_programs_given_on_the_command_line(command: str, expected: bool) -> None:
    """Only an option of the interpreter makes the text of ``<string>`` the program, not one of the program's own."""
    assert Site.here(command=command.split()).is_argument is expected
