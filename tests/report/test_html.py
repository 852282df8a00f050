"""The page contains the journal's data, and foreign names cannot inject markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stalls import T0, frame, make_contents, make_stall
from stalls import stalls as any_stall

from loopwatch.events import Evidence, StackCount, Stall
from loopwatch.report import html
from loopwatch.report.reader import JournalContents, Skipped
from loopwatch.report.tables import Report
from loopwatch.sinks.hang_file import HangDump


class Page(HTMLParser):
    """Elements, script and style texts, and the content security policy of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.text = ""
        self.feed(page)
        self.data: dict[str, Any] = json.loads(self.raw[1], parse_constant=pytest.fail)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and self.cdata_elem:
            self.raw[-1] += data
        self.text += data


def test_page_is_self_contained() -> None:
    """No element refers to another resource, and the policy lets only the page's own two blocks run."""
    page = html.render(Report.of(make_contents(make_stall())))
    parsed = Page(page)
    assert not [attrs for tag, attrs in parsed.tags if {"src", "href", "action", "onclick", "style"} & attrs.keys()]
    assert {tag for tag, _ in parsed.tags} & {"link", "img", "iframe", "object", "base", "form"} == set()
    (policy,) = [attrs["content"] for _, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    style, _, script = parsed.raw
    for kind, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in (policy or "")
    assert (policy or "").startswith("default-src 'none'; ")
    assert "unsafe" not in (policy or "")
    assert "innerHTML" not in script.replace("nothing through innerHTML", "")
    assert "http" not in re.sub(r'"http.route"|http://www.w3.org/2000/svg', "", script)


HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


def test_hostile_names_make_no_element() -> None:
    """A page with markup in every name has the same elements as a page without any."""
    bad = frame(HOSTILE)
    stall = make_stall(
        *(0,),
        id=HOSTILE,
        culprit=bad,
        leaf=bad,
        stack=(bad,),
        task=HOSTILE,
        coroutine=HOSTILE,
        loop=HOSTILE,
        remedy=HOSTILE,
        context={HOSTILE: HOSTILE, "http.route": HOSTILE},
        evidence=Evidence(wall=1.0, syscall=HOSTILE),
    )
    hang = HangDump(HOSTILE, 100, (bad,), T0 + 99)
    hostile = Page(html.render(Report.of(make_contents(stall, hangs=(hang,), skipped=(Skipped(HOSTILE, 1, HOSTILE),)))))
    plain = Page(html.render(Report.of(make_contents(make_stall()))))
    assert hostile.tags[0] == plain.tags[0]
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.data["stalls"][0]["id"] == HOSTILE
    assert hostile.data["hangs"][0].count(HOSTILE) == 2


def test_flagged_functions_are_in_the_page() -> None:
    """Cause, name, location, numbers and remedy of a flagged function are in the page's data and text."""
    parsed = Page(html.render(Report.of(make_contents(*(make_stall(i) for i in range(3))))))
    ((cause, name, place, sentence, remedy),) = parsed.data["flagged"]
    assert (cause, name, place) == ("python", "app.images:resize", "/srv/app/images.py:42")
    assert sentence.startswith("flagged once, at 2026-01-01 10:00:20 UTC, in app.py (pid 100): 3 stalls, 750 ms")
    assert remedy == make_stall().remedy
    assert "FLAGGED FUNCTIONS" in parsed.text
    assert Page(html.render(Report.of(make_contents(make_stall())))).data["flagged"] == []


@settings(max_examples=50, deadline=None)
@given(st.lists(any_stall, max_size=4))
def test_any_stalls_make_a_page(stalls: list[Stall]) -> None:
    """Whatever the records hold, the page is UTF-8, its data strict JSON, and no stall or second is missing."""
    page = html.render(Report.of(make_contents(*stalls)))
    page.encode("utf-8")
    data = Page(page).data
    assert [stall["s"] for stall in data["stalls"]] == [stall.duration for stall in stalls]
    for row, stall in zip(data["stalls"], stalls, strict=True):
        assert sum(share for _, share in row["k"]) == pytest.approx(stall.duration, abs=1e-5)


def test_the_numbers_of_a_stall_are_in_the_data() -> None:
    """Time, length, cause, location, stack shares, route and facts of a stall can be read from the page."""
    deep = (frame("app.main.handle", 7), frame())
    stall = make_stall(
        0,
        duration=1.0,
        victims=3,
        context={"http.route": "/thumb"},
        profile=(StackCount(deep, 3), StackCount(deep[:1], 1)),
        evidence=Evidence(wall=1.0, cpu=0.5, gil_wait=0.0051, syscall="recvfrom", syscall_share=0.97),
    )
    data = Page(html.render(Report.of(make_contents(stall)))).data
    (row,) = data["stalls"]
    assert (row["at"], row["s"], row["c"], row["v"], row["line"]) == (T0, 1.0, "python", 3, 42)
    assert data["culprits"][row["w"]] == ["app.images.resize", "/srv/app/images.py"]
    assert data["processes"][row["p"]] == "app.py (pid 100)"
    assert [share for _, share in row["k"]] == [0.75, 0.25]
    names = [data["strings"][data["frames"][number][0]] for number in data["stacks"][row["k"][0][0]]]
    assert names == ["app.main.handle", "app.images.resize"]
    assert row["x"] == [["http.route", "/thumb"]]
    facts = dict(zip(data["facts"], row["e"], strict=True))
    assert facts["cpu"] == "500.0 ms"
    assert facts["gil wait"] == "5.1 ms"
    assert (facts["wall"], facts["syscall"], facts["syscall share"]) == ("1.00 s", "recvfrom", "97%")
    assert facts["run queue"] == ""


def test_time_without_a_processor_is_in_the_data() -> None:
    """Each stall has its seconds without a processor, by quota, and what was running, whatever the journal holds."""
    stalls = (
        make_stall(0, duration=0.62, starved=0.21, throttled=0.2),
        make_stall(1, duration=0.62, starved=float("inf"), throttled=float("nan")),
        make_stall(2, duration=0.62, culprit=None, was_in=frame()),
    )
    page = Page(html.render(Report.of(make_contents(*stalls))))
    assert [(row["z"], row["q"]) for row in page.data["stalls"]] == [(0.21, 0.2), (0.62, 0.0), (0.0, 0.0)]
    assert [page.data["strings"][row["was"]] for row in page.data["stalls"]] == ["", "", str(frame())]
    assert "830 ms (45%) without a processor" in page.text


def test_equal_stacks_are_in_the_page_once() -> None:
    """10,000 stalls of one stack make a page of a few megabytes, which has the stack once."""
    stack = tuple(frame(f"app.deep.function_number_{i}") for i in range(50))
    page = html.render(Report.of(make_contents(*(make_stall(i, stack=stack) for i in range(10_000)))))
    data = Page(page).data
    assert len(data["stalls"]) == 10_000
    assert (len(data["stacks"]), len(data["frames"])) == (1, 50)
    assert len(page) < 5_000_000


def test_too_many_stalls_keep_the_longest_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound the longest stalls are kept, in order of time, and the page has the number of omitted ones."""
    monkeypatch.setattr(html, "MAX_STALLS", 3)
    data = Page(html.render(Report.of(make_contents(*(make_stall(i, duration=1.0 + i % 5) for i in range(10)))))).data
    assert ([row["id"] for row in data["stalls"]], data["leftOut"]) == (["s3", "s4", "s9"], 7)


def test_page_without_scripts_has_the_text_report() -> None:
    """The text report is part of the page, for mail clients and readers without JavaScript."""
    page = html.render(Report.of(make_contents(make_stall())))
    assert "WORST CULPRITS" in Page(page).text
    assert "app.images.resize (/srv/app/images.py:42)" in Page(page).text


def test_no_stall_makes_a_page() -> None:
    """An empty journal gives a page that says so."""
    parsed = Page(html.render(Report.of(JournalContents())))
    assert parsed.data["stalls"] == []
    assert "No stall was journaled." in parsed.text
