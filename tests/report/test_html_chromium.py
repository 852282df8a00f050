"""The page in a real browser: it draws everything, reacts to clicks, and foreign names stay inert."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from stalls import T0, frame, make_contents, make_stall

from loopwatch.events import Cause, StackCount, Stall
from loopwatch.report.html import render
from loopwatch.report.reader import JournalContents
from loopwatch.report.tables import Report
from loopwatch.sinks.hang_file import HangDump

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the chromium browser in PATH"),
]

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--hide-scrollbars", "--window-size=1280,1600", "--enable-logging=stderr"),
)


class Dom(HTMLParser):
    """The elements of a page after its scripts ran."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []  # tag, attributes, texts up to the next tag
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1][2].append(data)

    @property
    def root(self) -> dict[str, str]:
        return self.elements[0][1]

    def texts(self, tag: str, cls: str = "") -> list[str]:
        """Return the text of each element of this tag that has this class."""
        found = [(attrs, texts) for name, attrs, texts in self.elements if name == tag]
        return ["".join(texts).strip() for attrs, texts in found if not cls or cls in attrs.get("class", "").split()]

    def count(self, tag: str, cls: str = "") -> int:
        return len(self.texts(tag, cls))

    def flames(self) -> dict[str, str]:
        """Return the style of each frame of the flame graph by its name."""
        frames = [(attrs, texts) for _, attrs, texts in self.elements if "fr" in attrs.get("class", "").split()]
        return {"".join(texts).strip(): attrs["style"] for attrs, texts in frames}

    def tiles(self) -> dict[str, str]:
        """Return the numbers at the top of the page by their names."""
        start = next(i for i, (_, attrs, _) in enumerate(self.elements) if attrs.get("id") == "tiles")
        texts = ["".join(texts) for _, _, texts in self.elements[start + 1 : start + 1 + 6 * 4]]
        return {texts[i + 1]: texts[i + 2] for i in range(0, len(texts), 4)}


def browse(folder: Path, page: str, *options: str, quiet: bool = True) -> str:
    """Return chromium's output for the page, which must (not) write to the console."""
    assert CHROMIUM is not None
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, file.as_uri()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=45)
        finally:
            # Its child processes are in its group, and may outlive it.
            if process.poll() is None or _alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert quiet != ("CONSOLE" in err), err
    return out


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def dom(folder: Path, contents: JournalContents, script: str = "") -> Dom:
    """Return the page after its scripts ran, and after ``script``, which acts as the user."""
    page = render(Report.of(contents))
    if script:
        # The policy would block a foreign script; other tests show that it does.
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        tools = "const one = (s) => document.querySelector(s), all = (s) => [...document.querySelectorAll(s)];"
        page = page.replace("</body>", f"<script>{tools}{script}</script></body>")
    found = Dom(browse(folder, page, "--dump-dom"))
    assert found.root.get("data-fault") is None
    assert found.root["data-ready"] == "yes"
    return found


def some_stalls() -> list[Stall]:
    """Return 12 stalls: 8 of resize (python, 0.25 seconds, process 100), 4 of query (io, 1 second, process 101)."""
    query = frame("app.db.query", 9)
    small = [make_stall(i, victims=2) for i in range(8)]
    stack = (frame("app.main.handle", 7), query)
    fields = {"duration": 1.0, "cause": Cause.IO, "culprit": query, "stack": stack, "pid": 101}
    return small + [make_stall(8 + i, **fields) for i in range(4)]


def test_everything_is_drawn(tmp_path: Path) -> None:
    """There is one bar per stall, one row per culprit and stall, one chip per cause, one frame per call path."""
    found = dom(tmp_path, make_contents(*some_stalls()))
    assert found.count("rect", "bar") == 12
    assert (found.count("rect", "python"), found.count("rect", "io")) == (8, 4)
    assert found.count("tr") == 2 + 2 + 12  # two headings, culprits, stalls
    assert sorted(found.texts("div", "fr")) == ["all 6.00 s", "app.db.query", "app.images.resize", "app.main.handle"]
    assert found.count("div", "guilty") == 2
    assert found.count("button", "chip") == 2
    figures = {"Stalls": "12", "Blocked": "6.00 s", "Longest": "1.00 s", "Typical": "250 ms", "Kept waiting": "16"}
    assert found.tiles() == figures | {"Processes": "2"}


def starving_stalls() -> list[Stall]:
    """Return two stalls of resize with 0.6 of 2 seconds without a processor, and one of 1 second with 0.05."""
    return [
        make_stall(0, duration=1.0, starved=0.5, throttled=0.4),
        make_stall(1, duration=1.0, starved=0.1),
        make_stall(2, duration=1.0, starved=0.05, culprit=frame("app.db.query", 9), cause=Cause.IO),
    ]


def attributes(found: Dom, cls: str) -> list[dict[str, str]]:
    return [attrs for _, attrs, _ in found.elements if cls in attrs.get("class", "").split()]


def test_time_without_a_processor_is_hatched(tmp_path: Path) -> None:
    """The hatched parts are as large as their share, in timeline and tables, and their words are there to be read."""
    found = dom(tmp_path, make_contents(*starving_stalls()))
    bars, hatched = attributes(found, "bar"), attributes(found, "without")
    timeline = [attrs for attrs in hatched if "fill" in attrs]
    assert [attrs["fill"] for attrs in timeline] == ["url(#hatch)"] * 2
    shares = [float(attrs["height"]) / float(bars[0]["height"]) for attrs in timeline]
    assert shares == pytest.approx([0.5, 0.1], abs=0.01)
    meters = [attrs["style"] for attrs in hatched if "style" in attrs]
    assert meters == ["width: 30%;", "width: 50%;", "width: 10%;"]
    words = "600 ms (30%) without a processor: 400 ms CPU limit of the container, 200 ms other processes"
    images = [attrs for attrs in attributes(found, "meter") if attrs.get("role") == "img"]
    assert [attrs["title"] for attrs in images] == [attrs["aria-label"] for attrs in images]
    assert images[0]["title"] == words
    assert found.texts("div", "place").count("600 ms without a processor") == 1
    (label,) = [attrs["aria-label"] for tag, attrs, _ in found.elements if tag == "svg" and "aria-label" in attrs]
    assert label.startswith("Timeline of 3 stalls; 650 ms (22%) without a processor: 400 ms CPU limit")
    (legend,) = [attrs for _, attrs, _ in found.elements if attrs.get("id") == "legend"]
    assert "hidden" not in legend and legend["title"]
    tile = found.texts("b")[found.texts("b").index("650 ms")], "22% of it; 62% by CPU limit" in found.texts("i")
    assert tile == ("650 ms", True)


def test_nothing_is_hatched_without_need(tmp_path: Path) -> None:
    """Below 10 %, or in journals that do not have the time, there is neither a hatched part nor a legend."""
    found = dom(tmp_path, make_contents(*some_stalls(), starving_stalls()[2]))
    assert attributes(found, "without") == []
    (legend,) = [attrs for _, attrs, _ in found.elements if attrs.get("id") == "legend"]
    assert "hidden" in legend
    assert "No processor" not in found.texts("span")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_hatching_can_be_seen_in_both_themes(tmp_path: Path, theme: str) -> None:
    """Stripes have the colour of the card, which differs from that of the bar, and nothing is fetched for them."""
    act = f"""
    document.documentElement.dataset.theme = {theme!r};
    const color = (s, name) => getComputedStyle(one(s))[name];
    const data = document.documentElement.dataset;
    data.stripe = color('#hatch rect', 'fill'); data.card = color('.card', 'backgroundColor');
    data.bar = color('.bar', 'fill'); data.meter = color('.meter .without', 'backgroundImage');
    """
    root = dom(tmp_path, make_contents(*starving_stalls()), act).root
    assert root["data-stripe"] == root["data-card"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 26, 33)"}[theme]
    assert root["data-bar"] == "rgb(59, 130, 246)"
    assert root["data-meter"].startswith("repeating-linear-gradient") and root["data-card"] in root["data-meter"]


def test_the_panel_of_a_stall_has_its_time_without_a_processor(tmp_path: Path) -> None:
    """The side panel names the seconds, who took them, and the code that was running and is not to blame."""
    stall = make_stall(0, duration=1.0, starved=0.95, throttled=0.95, culprit=None, cause=Cause.STARVED, was_in=frame())
    found = dom(tmp_path, make_contents(stall), "one('#stalls tbody tr').click()")
    assert "950 ms (95%): 950 ms CPU limit of the container" in found.texts("dd")
    assert str(frame()) in found.texts("dd")


def test_the_widths_of_the_flame_graph_are_the_times(tmp_path: Path) -> None:
    """4 of 6 seconds are 66.667 %; a profile divides a stall 3:1."""
    found = dom(tmp_path, make_contents(*some_stalls()))
    styles = found.flames()
    assert "width: 66.667%" in styles["app.db.query"]
    assert "width: 33.333%" in styles["app.images.resize"]
    deep = (frame("app.a.slow"), frame("app.a.inner"))
    stall = make_stall(0, culprit=deep[0], profile=(StackCount(deep, 3), StackCount(deep[:1], 1)))
    found = dom(tmp_path, make_contents(stall))
    styles = found.flames()
    assert "width: 100%" in styles["app.a.slow"]
    assert "width: 75%" in styles["app.a.inner"]


@pytest.mark.parametrize(
    ("act", "stalls", "blocked"),
    [
        ("one('#culprits tbody tr').click()", "4", "4.00 s"),
        ("one('.chip.io').click()", "8", "2.00 s"),
        ("one('.chip.python').dispatchEvent(new MouseEvent('dblclick'))", "8", "2.00 s"),
        ("const s = one('#search'); s.value = 'DB.query'; s.dispatchEvent(new Event('input'))", "4", "4.00 s"),
        ("const p = one('#process'); p.selectedIndex = 1; p.dispatchEvent(new Event('change'))", "8", "2.00 s"),
        ("one('.chip.io').click(); one('#reset').click()", "12", "6.00 s"),
        ("one('.chip.io').click(); one('.chip.python').click()", "0", "0.0 ms"),
    ],
)
def test_filters_apply_to_everything(tmp_path: Path, act: str, stalls: str, blocked: str) -> None:
    """Tiles, bars, rows and flame graph all follow each filter, and the reset removes all filters."""
    found = dom(tmp_path, make_contents(*some_stalls()), act)
    assert (found.tiles()["Stalls"], found.tiles()["Blocked"]) == (stalls, blocked)
    assert found.count("rect", "bar") == int(stalls)
    assert len([attrs for tag, attrs, _ in found.elements if tag == "tr" and "data-i" in attrs]) == int(stalls)
    assert found.texts("div", "root") == ([f"all {blocked}"] if stalls != "0" else [])


def test_dragging_over_the_timeline_zooms(tmp_path: Path) -> None:
    """The right half of the timeline holds only the stalls of that time, in all parts of the page."""
    act = """
    const box = one('#timeline svg').getBoundingClientRect();
    const at = (type, x) => one('#timeline svg').dispatchEvent(new PointerEvent(type,
      { clientX: x, clientY: box.top + 5, bubbles: true, pointerId: 1 }));
    SVGElement.prototype.setPointerCapture = () => {};
    at('pointerdown', box.left + box.width * 0.7); at('pointermove', box.right); at('pointerup', box.right);
    """
    found = dom(tmp_path, make_contents(*some_stalls()), act)
    assert (found.tiles()["Stalls"], found.count("rect", "bar")) == ("4", 4)


def test_click_on_a_bar_shows_the_stall(tmp_path: Path) -> None:
    """The side panel names culprit, remedy, route and stack; bar and row are marked; a second click closes it."""
    act = """
    const bar = one('.bar');
    for (const type of ['pointerdown', 'pointerup']) bar.dispatchEvent(new PointerEvent(type, { bubbles: true }));
    """
    first = make_stall(0, context={"http.route": "/thumb"}, task="Task-7")
    found = dom(tmp_path, make_contents(first, make_stall(1)), act)
    texts = found.texts("dd")
    assert {"/thumb", "Task-7", "app.py (pid 100)", "9 of 9 samples agree", "s0"} <= set(texts)
    assert found.texts("p", "do") == [first.remedy]
    assert found.count("li") == 2
    assert found.count("li", "guilty") == 1
    assert (found.count("rect", "on"), found.count("tr", "on")) == (1, 1)
    assert dom(tmp_path, make_contents(first), act + act.replace("const bar", "const again")).count("rect", "on") == 0


def test_click_on_a_flame_zooms_and_hovering_shows_its_share(tmp_path: Path) -> None:
    """A zoomed frame has the full width, frames outside of it are gone, and the tooltip shows seconds and percent."""
    act = """
    const query = all('.fr').find((f) => f.textContent === 'app.db.query');
    query.dispatchEvent(new PointerEvent('pointermove'));
    query.click();
    """
    found = dom(tmp_path, make_contents(*some_stalls()), act)
    assert found.texts("div", "fr") == ["app.main.handle", "all 6.00 s", "app.db.query"]
    tip = next(i for i, (_, attrs, _) in enumerate(found.elements) if attrs.get("id") == "tip")
    texts = ["".join(texts).strip() for _, _, texts in found.elements[tip + 1 : tip + 4]]
    assert texts[:3] == ["app.db.query", "4.00 s, 67% of the blocked time", "/srv/app/db.py:9"]


def test_headings_sort(tmp_path: Path) -> None:
    """Click on "Length": longest first; again: shortest first; the heading says so to screen readers."""
    act = "one('#stalls th:nth-child(2)').click(); one('#culprits th:nth-child(3)').click();"
    found = dom(tmp_path, make_contents(*(make_stall(i, duration=0.1 * (i + 1)) for i in range(5))), act)
    rows = [int(attrs["data-i"]) for tag, attrs, _ in found.elements if tag == "tr" and "data-i" in attrs]
    assert rows == [4, 3, 2, 1, 0]
    again = dom(
        tmp_path,
        make_contents(*(make_stall(i, duration=0.1 * (i + 1)) for i in range(5))),
        act + "one('#stalls th:nth-child(2)').click();",
    )
    assert [attrs["data-i"] for tag, attrs, _ in again.elements if tag == "tr" and "data-i" in attrs] == list("01234")
    assert [attrs["aria-sort"] for _, attrs, _ in again.elements if "aria-sort" in attrs] == ["descending", "ascending"]


HOSTILE = "</script><img src=x onerror=\"document.documentElement.dataset.owned='yes'\"><script>alert(1)</script>"


def test_flagged_functions_are_drawn(tmp_path: Path) -> None:
    """Each has its name, location, numbers and remedy, hostile ones as text; without any the card is hidden."""
    bad = frame(HOSTILE)
    stalls = [make_stall(i, culprit=culprit, remedy=HOSTILE) for i in range(3) for culprit in (frame(), bad)]
    found = dom(tmp_path, make_contents(*stalls))
    assert found.count("div", "flagged") == 2
    assert {"app.images:resize", f"{bad.module}:{bad.function}"} <= set(found.texts("div", "name"))
    assert "data-owned" not in found.root
    assert found.count("img") == 0
    for contents, hidden in ((make_contents(*stalls), False), (make_contents(make_stall()), True)):
        page = dom(tmp_path, contents)
        (card,) = [attrs for _, attrs, _ in page.elements if attrs.get("id") == "flaggedcard"]
        assert ("hidden" in card) == hidden


def test_hostile_names_are_shown_and_stay_inert(tmp_path: Path) -> None:
    """Markup in every name is text in the page: no element made of it, no script run, also with the stall opened."""
    bad = frame(HOSTILE)
    fields = {"id": HOSTILE, "culprit": bad, "leaf": bad, "stack": (bad, bad), "task": HOSTILE, "remedy": HOSTILE}
    stalls = [make_stall(i, **fields, context={"http.route": HOSTILE, "__proto__": "x"}) for i in range(2)]
    contents = replace(make_contents(*stalls), hangs=(HangDump("main", 100, (bad,), T0 + 99),))
    act = "one('#stalls tbody tr').click(); one('.fr.guilty').dispatchEvent(new PointerEvent('pointermove'));"
    for script in ("", act):
        found = dom(tmp_path, contents, script)
        assert "data-owned" not in found.root
        assert found.count("img") == 0
        assert found.count("script") == 2 + bool(script)
        assert found.texts("p", "remedy") == []
        assert HOSTILE in found.texts("div", "remedy")
        assert found.count("rect", "bar") == 2


def test_policy_blocks_injected_scripts(tmp_path: Path) -> None:
    """An injected script does not run, and the page is drawn all the same."""
    page = render(Report.of(make_contents(make_stall()))).replace(
        "<main>", "<main><script>document.documentElement.dataset.owned = 'yes'</script><img src='file:///x.png'>"
    )
    found = Dom(browse(tmp_path, page, "--dump-dom", quiet=False))
    assert "data-owned" not in found.root
    assert found.root["data-ready"] == "yes"


def test_no_stall_is_a_page_that_says_so(tmp_path: Path) -> None:
    """An empty journal gives a heading and empty tables with a sentence, without an error."""
    found = dom(tmp_path, JournalContents())
    assert found.texts("h1") == ["No stall was journaled."]
    assert found.texts("td", "none") == ["No stall was journaled."] * 2
    assert found.count("rect", "bar") == 0


def test_one_stall_is_drawn(tmp_path: Path) -> None:
    """A single stall, without stack, culprit or duration, has its bar, row and frame."""
    found = dom(tmp_path, make_contents(make_stall(0, culprit=None, duration=0.0, cause=Cause.STARVED)))
    assert (found.count("rect", "bar"), found.count("rect", "starved")) == (1, 1)
    found = dom(tmp_path, make_contents(make_stall(0, culprit=None, cause=Cause.STARVED)))
    assert found.texts("div", "fr") == ["all 250 ms", "[starved]"]


def test_ten_thousand_stalls_are_drawn(tmp_path: Path) -> None:
    """All stalls have a bar, the table shows a hundred and a button for more, and the browser finishes in time."""
    stalls = [make_stall(i, pid=100 + i % 12, culprit=frame(f"app.f{i % 40}.run")) for i in range(10_000)]
    found = dom(tmp_path, make_contents(*stalls), "one('#more').click()")
    assert found.count("rect", "bar") == 10_000
    assert found.count("tr") == 2 + 40 + 600
    assert found.tiles()["Stalls"] == "10,000"
    assert "all 12 processes" in found.texts("text")


def test_a_stack_of_five_thousand_frames_is_drawn(tmp_path: Path) -> None:
    """A deep stack neither exhausts the browser's stack nor loses a frame of the graph."""
    deep = tuple(frame(f"app.deep.f{i}") for i in range(5_000))
    found = dom(tmp_path, make_contents(make_stall(0, stack=deep, culprit=deep[-1])))
    assert found.count("div", "fr") == 5_001


def test_processes_have_their_own_lanes(tmp_path: Path) -> None:
    """Up to eight processes are drawn below each other, each under its name."""
    found = dom(tmp_path, make_contents(*(make_stall(i, pid=100 + i % 3) for i in range(9))))
    assert [text for text in found.texts("text") if "pid" in text] == [f"app.py (pid {100 + i})" for i in range(3)]


def test_the_page_can_be_photographed(tmp_path: Path) -> None:
    """A screenshot has the requested size and is not blank."""
    picture = tmp_path / "page.png"
    browse(tmp_path, render(Report.of(make_contents(*some_stalls()))), f"--screenshot={picture}")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 1600)
    assert len(content) > 30_000
