"""The report as one HTML page that needs nothing but itself: no network, no other file.

Names in a journal are foreign text. They travel as escaped JSON, enter the page as text nodes only, and the page's
policy (CSP with the hashes of its one script and one style sheet) forbids everything else to run or to load.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Hashable
from dataclasses import fields

from loopwatch.events import Evidence, Frame, Stall
from loopwatch.telemetry import report
from loopwatch.telemetry.journal import TORN, JournalContents, printable

MAX_STALLS = 20_000
"""Stalls in one page, the longest ones; a browser gets slow beyond. The page says how many are left out."""


def render(contents: JournalContents) -> str:
    """Return the page: tiles, timeline, culprits, flame graph and every stall, to sort, filter and click through.

    Example:
        >>> from loopwatch.telemetry.journal import read_journals
        >>> page = render(read_journals("/var/log/loopwatch"))  # doctest: +SKIP
    """
    # Inside <script>, "</script>" and "<!--" would be read by the HTML parser before JSON is.
    data = report.strict_json(_payload(contents))
    for char in "<>&":
        data = data.replace(char, f"\\u{ord(char):04x}")
    policy = (
        f"default-src 'none'; script-src '{_digest(_SCRIPT)}'; style-src '{_digest(_STYLE)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _PAGE.format(
        policy=policy,
        style=_STYLE,
        script=_SCRIPT,
        data=data,
        headline=html.escape(report.headline(contents)),
        text=html.escape(report.to_text(contents, width=110)),
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Table:
    """Gives equal values one number: names, frames and stacks repeat in every stall."""

    def __init__(self) -> None:
        self.rows: list[object] = []
        self._known: dict[Hashable, int] = {}

    def number(self, key: Hashable, row: object = None) -> int:
        """Return the number of ``key``; ``row`` (default: itself) is what stands in the table for it."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.rows)
            self.rows.append(key if row is None else row)
        return found


class _Payload:
    """Collects the tables while stalls are turned into rows."""

    def __init__(self, contents: JournalContents) -> None:
        self.runs = report.Runs(contents.headers)
        self.strings, self.frames, self.stacks = _Table(), _Table(), _Table()
        self.culprits, self.processes = _Table(), _Table()

    def row(self, stall: Stall) -> dict[str, object]:
        """Return one stall for the page; what is empty is left out."""
        culprit = stall.culprit
        who = report.culprit_name(stall), culprit.file if culprit else ""
        stacks = [
            (self._stack(stack or _stand_in(stall)), round(share, 6)) for stack, share in report.weighted_stacks(stall)
        ]
        row: dict[str, object] = {
            "id": printable(stall.id),
            "at": stall.started_at,
            "s": stall.duration,
            "c": str(stall.cause),
            "w": self.culprits.number(who, [printable(name) for name in who]),
            "line": culprit.line if culprit else 0,
            "p": self.processes.number(self.runs.of(stall.pid, stall.started_at)),
            "k": stacks,
            "f": self._stack(stall.stack) if stall.stack else -1,
            "l": self._string(stall.loop),
            "v": stall.victims,
            "more": self._string(stall.remedy),
            "task": self._string(stall.task or ""),
            "co": self._string(stall.coroutine or ""),
            "n": list(stall.samples),
            "u": stall.uncertainty,
            "on": int(stall.ongoing),
            "x": [[printable(str(name)), printable(str(value))] for name, value in stall.context.items()],
            "e": [_fact(field.name, getattr(stall.evidence, field.name)) for field in fields(Evidence)],
        }
        return row

    def _string(self, text: str) -> int:
        return self.strings.number(printable(text))

    def _stack(self, stack: tuple[Frame, ...]) -> int:
        return self.stacks.number(stack, [self._frame(frame) for frame in stack])

    def _frame(self, frame: Frame) -> int:
        name = printable(report.frame_name(frame))
        return self.frames.number(frame, [self._string(name), self._string(frame.file), frame.line])


def _payload(contents: JournalContents) -> dict[str, object]:
    collected = _Payload(contents)
    shown = contents.stalls
    if len(shown) > MAX_STALLS:
        longest = sorted(shown, key=lambda stall: -stall.duration)[:MAX_STALLS]
        shown = tuple(sorted(longest, key=lambda stall: stall.started_at))
    rows = [collected.row(stall) for stall in shown]
    runs = [run for run in collected.processes.rows if isinstance(run, tuple)]
    skipped = [
        report.skipped_sentence(item.file, item.lines, item.reason) for item in contents.skipped if item.reason != TORN
    ]
    return {
        "stalls": rows,
        "leftOut": len(contents.stalls) - len(rows),
        "strings": collected.strings.rows,
        "frames": collected.frames.rows,
        "stacks": collected.stacks.rows,
        "culprits": collected.culprits.rows,
        "processes": [printable(collected.runs.name(run)) for run in runs],
        "runs": len(report.processes(contents)),
        "hangs": [report.hang_sentence(hang) for hang in report.unended(contents)],
        "skipped": skipped,
        "facts": [field.name.replace("_", " ") for field in fields(Evidence)],
        "versions": sorted({printable(f"{h.version} on Python {h.python}") for h in contents.headers if h.version}),
    }


def _stand_in(stall: Stall) -> tuple[Frame, ...]:
    """A stall without a stack still has its place in the flame graph, as in collapsed stacks."""
    return (Frame(f"[{stall.cause}]", "", "", 0),)


_TIMES = frozenset(
    (
        *("wall", "cpu", "process_cpu", "run_queue", "throttled", "gc", "watcher_late", "gil_wait"),
        *("longest_callback", "dominant_callback", "switch_interval"),
    )
)
_SHARES = frozenset(("moving", "syscall_share", "hog"))


def _fact(name: str, value: object) -> str:
    """Return a field of Evidence for people, ``""`` where it says nothing."""
    if value is None or value is False or value == 0:
        return ""
    if isinstance(value, float) and name in _TIMES:
        return f"{value * 1000:.1f} ms" if value < 1 else report.seconds(value)
    if isinstance(value, float) and name in _SHARES:
        return f"{value:.0%}"
    return "yes" if value is True else printable(str(value))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>loopwatch report</title>
<style>{style}</style>
</head>
<body>
<header class="top">
  <svg class="logo" viewBox="0 0 32 32" aria-hidden="true">
    <path d="M26.5 16A10.5 10.5 0 1 1 20 6.3" /><circle cx="24.2" cy="9.2" r="3.2" />
  </svg>
  <b>loopwatch</b><span class="dim">event loop report</span><span class="grow"></span>
  <span class="dim" id="span"></span>
  <button id="theme" class="ghost" type="button" title="Light or dark">Theme</button>
</header>
<main>
  <p class="fault" id="fault" hidden>This page could not be drawn; the plain text below is complete.</p>
  <noscript><p class="fault">The interactive part needs JavaScript; the plain text below is complete.</p></noscript>
  <section class="hero"><h1 id="headline">{headline}</h1><div id="hangs"></div></section>
  <section id="app" hidden>
    <div class="tiles" id="tiles"></div>
    <div class="filters">
      <div class="chips" id="chips"></div>
      <div class="fields">
        <input id="search" type="search" placeholder="Filter by name, file, route, task, id" aria-label="Filter">
        <select id="process" aria-label="Process"></select>
        <button id="reset" class="ghost" type="button">Reset</button>
      </div>
    </div>
    <div class="card"><div class="title"><h2>Timeline</h2>
      <span class="dim">a bar is a stall, its height the length (logarithmic); drag to zoom, click to read</span></div>
      <div id="timeline"></div></div>
    <div class="card"><div class="title"><h2>Culprits</h2>
      <span class="dim">click one to see only its stalls</span></div>
      <div class="scroll"><table id="culprits"><thead></thead><tbody></tbody></table></div></div>
    <div class="card"><div class="title"><h2>Flame graph</h2>
      <span class="dim">blocked time by call stack, outermost on top; bold colour: the culprit; click to zoom</span>
      <span class="grow"></span><button id="unzoom" class="ghost" type="button" hidden>Zoom out</button></div>
      <div class="flames"><div id="flame"></div></div></div>
    <div class="card"><div class="title"><h2>Stalls</h2><span class="dim" id="count"></span></div>
      <div class="scroll"><table id="stalls"><thead></thead><tbody></tbody></table></div>
      <button id="more" class="ghost wide" type="button" hidden></button></div>
  </section>
  <div id="notes" class="dim"></div>
  <details class="card plain"><summary>Plain text, to copy</summary><pre>{text}</pre></details>
</main>
<aside id="detail" hidden></aside>
<div id="tip" hidden></div>
<script id="data" type="application/json">{data}</script>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root{color-scheme:light;--bg:#f4f5f7;--card:#fff;--ink:#171b22;--dim:#636c7a;--line:#e2e5ea;--soft:#f0f2f5;
--accent:#d9480f;--shade:0 1px 2px #1018280a,0 1px 6px #1018280a;--f1:#f2d9c3;--f2:#ecd0c4;--f3:#f4e2bf;--f4:#e9d9cf;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media(prefers-color-scheme:dark){:root:not([data-theme=light]){color-scheme:dark;--bg:#0d1015;--card:#151a21;
--ink:#e6e9ee;--dim:#8d97a6;--line:#252c36;--soft:#1b212a;--accent:#ff8a4c;--shade:none;--f1:#4a3527;--f2:#4b322d;
--f3:#4a3f26;--f4:#3f3630}}
:root[data-theme=dark]{color-scheme:dark;--bg:#0d1015;--card:#151a21;--ink:#e6e9ee;--dim:#8d97a6;--line:#252c36;
--soft:#1b212a;--accent:#ff8a4c;--shade:none;--f1:#4a3527;--f2:#4b322d;--f3:#4a3f26;--f4:#3f3630}
.python{--c:#3b82f6}.native_gil{--c:#8b5cf6}.native{--c:#06a6c4}.io{--c:#e59a0b}.sleep{--c:#14a38b}.lock{--c:#e5484d}
.gil{--c:#e0529c}.gc{--c:#6ba81e}.starved{--c:#f2711c}.suspended{--c:#8a7f78}.overload{--c:#5b63e8}.unknown{--c:#94a0b0}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-font-smoothing:antialiased}
.dim{color:var(--dim);font-weight:400}.grow{flex:1}
.top{display:flex;align-items:center;gap:10px;padding:12px 28px;border-bottom:1px solid var(--line);
background:var(--card)}
.top b{font-size:15px;letter-spacing:-.01em}
.logo{width:24px;height:24px;fill:none;stroke:var(--ink);stroke-width:3;stroke-linecap:round}
.logo circle{fill:var(--accent);stroke:none}
main{max-width:1320px;margin:0 auto;padding:26px 28px 60px}
h1{font-size:25px;line-height:1.3;letter-spacing:-.02em;font-weight:650;margin:0 0 18px;max-width:60ch;
overflow-wrap:anywhere;display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:4;overflow:hidden}
h2{font-size:15px;margin:0;letter-spacing:-.01em}
.fault,.hang{border:1px solid #e5484d66;background:#e5484d14;border-radius:10px;padding:10px 14px;margin:0 0 12px;
overflow-wrap:anywhere}
.hang b{color:#e5484d;margin-right:8px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:16px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:12px;box-shadow:var(--shade)}
.tile{padding:13px 16px}.tile span{display:block;color:var(--dim);font-size:12.5px}
.tile b{display:block;font-size:23px;letter-spacing:-.02em;font-weight:620;font-variant-numeric:tabular-nums;
margin-top:2px;white-space:nowrap}
.tile i{font-style:normal;color:var(--dim);font-size:12px}
.card{margin:0 0 16px;overflow:hidden}
.title{display:flex;gap:12px;align-items:baseline;padding:14px 18px 10px;flex-wrap:wrap}.title .dim{font-size:12.5px}
.filters{position:sticky;top:0;z-index:5;background:var(--bg);padding:8px 0 12px;display:flex;gap:12px;flex-wrap:wrap;
align-items:center;justify-content:space-between}
.chips{display:flex;flex-wrap:wrap;gap:6px}.fields{display:flex;gap:8px;flex:1 1 480px;min-width:0;
justify-content:flex-end}
button,input,select{font:inherit;color:inherit;border-radius:8px;border:1px solid var(--line);background:var(--card);
padding:6px 10px;min-width:0}
input{flex:1 1 210px;max-width:340px}select{max-width:190px}button{cursor:pointer}
button:focus-visible,input:focus-visible,select:focus-visible,tr:focus-visible,.fr:focus-visible{
outline:2px solid var(--accent);outline-offset:-1px}
button:disabled{opacity:.45;cursor:default}
.ghost:hover,.chip:hover{background:var(--soft)}.wide{width:100%;border:0;border-top:1px solid var(--line);
border-radius:0;padding:10px;background:none}
.chip{display:inline-flex;gap:7px;align-items:center;border-radius:99px;padding:4px 11px;font-size:13px}
.chip::before,.tag::before{content:"";width:9px;height:9px;border-radius:3px;background:var(--c);flex:none}
.chip[aria-pressed=false]{opacity:.42}.chip span{color:var(--dim);font-variant-numeric:tabular-nums}
.tag{display:inline-flex;gap:6px;align-items:center;white-space:nowrap;margin-right:10px}
.scroll{overflow-x:auto}#culprits td:first-child{min-width:260px}#stalls td:nth-child(4){min-width:200px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{font-weight:500;color:var(--dim);text-align:left;font-size:12.5px;border-bottom:1px solid var(--line);
padding:6px 10px;white-space:nowrap;cursor:pointer;user-select:none}
th[aria-sort]{color:var(--ink)}th[aria-sort=descending]::after{content:" \\2193"}
th[aria-sort=ascending]::after{content:" \\2191"}
td{padding:8px 10px;border-bottom:1px solid var(--line);vertical-align:top}tbody tr:last-child td{border-bottom:0}
th:first-child,td:first-child{padding-left:18px}th:last-child,td:last-child{padding-right:18px}
tbody tr{cursor:pointer}tbody tr:hover{background:var(--soft)}
tr.on,tr.on:hover{background:color-mix(in srgb,var(--accent) 11%,transparent)}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.name{font-family:var(--mono);font-size:12.5px;overflow-wrap:anywhere;font-weight:600}
.place{font-family:var(--mono);font-size:12px;color:var(--dim);overflow-wrap:anywhere}
td .place{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
.num .place{display:block}
.remedy{margin-top:4px;max-width:78ch;overflow-wrap:anywhere}
.nowrap{white-space:nowrap;font-variant-numeric:tabular-nums}
.clip{max-width:190px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.meter{height:4px;border-radius:2px;background:var(--c,var(--accent));margin-top:5px;margin-left:auto;min-width:1px}
.none{padding:34px 18px;text-align:center;color:var(--dim)}
#timeline{padding:0 18px 12px}#timeline svg{display:block;width:100%;touch-action:pan-y;cursor:crosshair}
#timeline text{fill:var(--dim);font-size:11px;font-variant-numeric:tabular-nums}
#timeline line{stroke:var(--line);shape-rendering:crispEdges}
.bar{fill:var(--c);cursor:pointer;opacity:.88}.bar:hover{opacity:1;stroke:var(--ink);stroke-width:1}
.bar.on{stroke:var(--ink);stroke-width:2;opacity:1}.bar.open{fill-opacity:.55;stroke:var(--c);stroke-dasharray:3 2}
.brush{fill:var(--accent);opacity:.16;pointer-events:none}
.flames{max-height:560px;overflow-y:auto;padding:0 18px 16px}#flame{position:relative}
.fr{position:absolute;height:21px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis;font:12px/20px var(--mono);
padding:0 5px;border:0;border-right:1px solid var(--card);border-bottom:1px solid var(--card);border-radius:3px;
cursor:pointer;text-align:left;background:var(--f1);color:var(--ink)}
.fr.thin{padding:0}.h1{background:var(--f1)}.h2{background:var(--f2)}.h3{background:var(--f3)}.h4{background:var(--f4)}
.fr.root{background:var(--soft);color:var(--dim)}.fr.guilty{background:var(--accent);color:#fff;font-weight:600}
:root[data-theme=dark] .fr.guilty{color:#1a0d05}
@media(prefers-color-scheme:dark){:root:not([data-theme=light]) .fr.guilty{color:#1a0d05}}
.fr.above{opacity:.6}.fr:hover{filter:brightness(.93) saturate(1.25)}
#tip{position:fixed;z-index:30;max-width:460px;background:#12161c;color:#eef1f5;border-radius:9px;padding:9px 12px;
font-size:12.5px;pointer-events:none;box-shadow:0 6px 24px #0005;overflow-wrap:anywhere;border:1px solid #2b333f}
#tip b{display:block;font-family:var(--mono);font-size:12px}#tip span{display:block;color:#a9b4c2}
#detail{position:fixed;right:0;top:0;bottom:0;width:min(480px,100vw);background:var(--card);z-index:20;
padding:20px 22px;border-left:1px solid var(--line);box-shadow:-8px 0 36px #0002;overflow-y:auto}
#detail h3{margin:0 0 2px;font-size:19px;letter-spacing:-.01em}#detail .close{float:right}
#detail h4{margin:18px 0 6px;font-size:12.5px;color:var(--dim);font-weight:500}
#detail .do{border-left:3px solid var(--accent);background:var(--soft);padding:10px 13px;border-radius:0 9px 9px 0;
margin:14px 0 0;overflow-wrap:anywhere}
#detail ol{margin:0;padding:0;list-style:none}#detail li{padding:4px 0 4px 10px;border-left:2px solid var(--line)}
#detail li.guilty{border-color:var(--accent);background:color-mix(in srgb,var(--accent) 10%,transparent)}
dl{display:grid;grid-template-columns:auto 1fr;gap:3px 16px;margin:0}dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
#notes{margin:4px 2px 16px;font-size:12.5px;overflow-wrap:anywhere}
.plain summary{padding:13px 18px;cursor:pointer;font-weight:600}
.plain pre{margin:0;padding:4px 18px 18px;overflow-x:auto;font:12px/1.45 var(--mono)}
@media(max-width:760px){main{padding:18px 14px 40px}.top{padding:10px 14px}#span{display:none}h1{font-size:20px}}
@media print{.filters,#theme,#more,#detail,.plain{display:none!important}.flames{max-height:none}body{background:#fff}
.card,.tile{break-inside:avoid}}
"""

_SCRIPT = r"""
(() => {
"use strict";
const root = document.documentElement, $ = (id) => document.getElementById(id);
const fail = (what) => { root.dataset.fault = String(what); $("fault").hidden = false; };
addEventListener("error", (event) => fail(event.message));
addEventListener("securitypolicyviolation", (event) => fail("policy: " + event.violatedDirective));

const data = JSON.parse($("data").textContent), all = data.stalls, SVG = "http://www.w3.org/2000/svg";
const PAGE = 100, ROW = 21, text = (number) => data.strings[number];
all.forEach((stall, i) => { stall.i = i; stall.end = stall.at + stall.s; });

// Everything foreign goes through textContent here, nothing through innerHTML.
function el(tag, cls, content) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (content !== undefined) node.textContent = content;
  return node;
}
function put(parent, ...children) { parent.append(...children); return parent; }
function svg(tag, attributes, content) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (content !== undefined) node.textContent = content;
  return node;
}
const sum = (values) => values.reduce((a, b) => a + b, 0);
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), 0);
function length(s) {
  if (s < 0.9995) return s < 0.00995 ? (s * 1000).toFixed(1) + " ms" : (s * 1000).toFixed(0) + " ms";
  if (s < 59.995) return s.toFixed(2) + " s";
  const whole = Math.round(s);
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
}
const iso = (at) => new Date(Math.round(at * 1000)).toISOString();
const day = (at) => iso(at).slice(0, 10), clock = (at, digits) => iso(at).slice(11, digits ? 20 + digits : 19);
const percent = (part, whole) => whole ? (100 * part / whole).toFixed(part / whole < 0.0995 ? 1 : 0) + "%" : "0%";
const count = (n) => n.toLocaleString("en-US");
function quantile(values, q) {
  if (!values.length) return 0;
  const sorted = [...values].sort((a, b) => a - b), at = (sorted.length - 1) * q, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}
const routeOf = (stall) => (stall.x.find((pair) => pair[0] === "http.route") || ["", ""])[1];

const start = { off: new Set(), process: -1, culprit: -1, query: "", range: null };
let state = { ...start }, selected = -1, shown = PAGE, zoom = [], view = [];
const sorts = { culprits: ["total", -1], stalls: ["at", 1] };

const haystacks = all.map((stall) => [stall.id, stall.c, ...data.culprits[stall.w], text(stall.task), text(stall.co),
  text(stall.l), ...stall.x.flat(), data.processes[stall.p]].join("\n").toLowerCase());
function passes(stall, without) {
  return (without === "cause" || !state.off.has(stall.c)) && (state.process < 0 || stall.p === state.process)
    && (state.culprit < 0 || stall.w === state.culprit)
    && (!state.range || without === "range" || (stall.end >= state.range[0] && stall.at <= state.range[1]))
    && (!state.query || haystacks[stall.i].includes(state.query));
}
function change(what) { state = { ...state, ...what }; shown = PAGE; zoom = []; draw(); }
function draw() {
  view = all.filter((stall) => passes(stall));
  drawTiles(); drawChips(); drawTimeline(); drawCulprits(); drawFlame(); drawStalls();
  $("process").value = state.process;
  const same = Object.keys(start).every((key) => key === "off" ? !state.off.size : state[key] === start[key]);
  $("reset").disabled = same;
}

function drawTiles() {
  const spent = view.map((stall) => stall.s), total = sum(spent), of = view.length < all.length;
  const open = view.filter((stall) => stall.on).length, waited = sum(view.map((stall) => stall.v || 0));
  const tile = (name, value, note) => put(el("div", "tile"), el("span", "", name), el("b", "", value),
    el("i", "", note));
  const from = least(view.map((stall) => stall.at)), to = most(view.map((stall) => stall.end));
  const note = of ? `of ${count(all.length)}` : open ? `${count(open)} never ended` : "all of them";
  const used = new Set(view.map((stall) => stall.p)).size;
  $("tiles").replaceChildren(
    tile("Stalls", count(view.length), note),
    tile("Blocked", length(total), view.length ? `within ${length(to - from)}` : "never"),
    tile("Longest", length(most(spent)), `p99 ${length(quantile(spent, 0.99))}`),
    tile("Typical", length(quantile(spent, 0.5)), "median of one stall"),
    tile("Kept waiting", count(waited), "callbacks, timers, events"),
    tile("Processes", count(used), `of ${count(data.runs)} that were watched`),
  );
}

function drawChips() {
  const rest = all.filter((stall) => passes(stall, "cause")), times = new Map();
  for (const stall of all) times.set(stall.c, 0);
  for (const stall of rest) times.set(stall.c, times.get(stall.c) + stall.s);
  const whole = sum([...times.values()]);
  $("chips").replaceChildren(...[...times].sort((a, b) => b[1] - a[1]).map(([cause, time]) => {
    const chip = el("button", "chip " + cause, cause);
    chip.type = "button";
    chip.setAttribute("aria-pressed", String(!state.off.has(cause)));
    chip.title = `${length(time)}; click to hide or show, double-click for this one alone`;
    chip.append(el("span", "", percent(time, whole)));
    chip.onclick = () => {
      const off = new Set(state.off);
      if (!off.delete(cause)) off.add(cause);
      change({ off });
    };
    chip.ondblclick = () => change({ off: new Set([...times.keys()].filter((name) => name !== cause)) });
    return chip;
  }));
}

// ---- timeline
const STEPS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400,
  43200, 86400, 604800, 2592000, 31536000];
const nothing = () => all.length ? "No stall passes the filters." : "No stall was journaled.";
function drawTimeline() {
  const box = $("timeline"), bars = all.filter((stall) => passes(stall, "range"));
  if (!bars.length) { box.replaceChildren(el("p", "none", nothing())); return; }
  let [from, to] = state.range || [least(bars.map((s) => s.at)), most(bars.map((s) => s.end))];
  // Air at both ends, and a lone stall shall not fill the whole picture.
  if (!state.range) { const pad = Math.max((to - from) * 0.015, (3 - (to - from)) / 2); from -= pad; to += pad; }
  const used = [...new Set(bars.map((stall) => stall.p))].sort((a, b) => a - b);
  const lanes = used.length > 8 ? [null] : used, tall = lanes.length === 1 ? 170 : lanes.length < 4 ? 92 : 64, gap = 20;
  const width = Math.max(320, box.clientWidth - 36), left = 54, high = lanes.length * (tall + gap) + 24;
  const x = (at) => left + (at - from) / (to - from) * (width - left);
  const shortest = least(bars.map((s) => s.s)), top = Math.max(most(bars.map((s) => s.s)), 1e-3);
  // Lengths run from a tenth of a second to minutes: on a linear scale only the worst one could be seen.
  const floor = Math.min(Math.max(shortest, 1e-4) / 2, top / 4), scale = Math.log(top / floor);
  const height = (s) => Math.max(3, Math.log(Math.max(s, floor) / floor) / scale * (tall - 8));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${high}`, height: high, role: "img", "aria-label": "Timeline" });
  const step = STEPS.find((size) => (to - from) / size <= width / 95) || 31536000;
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    const label = step >= 86400 ? day(at) : clock(at, step < 1 ? 3 : 0);
    picture.append(svg("line", { x1: x(at), x2: x(at), y1: 4, y2: high - 20 }),
      svg("text", { x: x(at), y: high - 5, "text-anchor": "middle" }, x(at) > width - 32 ? "" : label));
  }
  lanes.forEach((lane, row) => {
    const base = row * (tall + gap) + tall + gap - 2;
    const name = lane === null ? `all ${used.length} processes` : data.processes[lane];
    picture.append(svg("line", { x1: left, x2: width, y1: base, y2: base }),
      svg("text", { x: left + 4, y: base - tall - 6 }, name));
    for (const mark of [0.01, 0.1, 1, 10, 100].filter((s) => s > floor * 1.3 && s < top)) {
      const y = base - height(mark);
      picture.append(svg("line", { x1: left, x2: width, y1: y, y2: y, "stroke-dasharray": "2 4" }),
        svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, mark < 1 ? mark * 1000 + " ms" : mark + " s"));
    }
    // The shorter on top, or long ones would hide them.
    for (const stall of [...bars].sort((a, b) => b.s - a.s)) {
      if ((lane !== null && stall.p !== lane) || stall.end < from || stall.at > to) continue;
      const x1 = Math.max(left, x(stall.at)), tip = height(stall.s);
      const marks = (stall.on ? " open" : "") + (stall.i === selected ? " on" : "");
      picture.append(svg("rect", { class: `bar ${stall.c}${marks}`, x: x1.toFixed(1), y: (base - tip).toFixed(1), rx: 1,
        height: tip.toFixed(1), width: Math.max(2.5, Math.min(width, x(stall.end)) - x1).toFixed(1),
        "data-i": stall.i }));
    }
  });
  brush(picture, { from, to, left, width, high });
  box.replaceChildren(picture);
}
function brush(picture, { from, to, left, width, high }) {
  let begun = null, mark = null;
  const inside = (event) => {
    const box = picture.getBoundingClientRect();
    return Math.min(width, Math.max(left, (event.clientX - box.left) / box.width * width));
  };
  const at = (x) => from + (x - left) / (width - left) * (to - from);
  picture.onpointerdown = (event) => { begun = inside(event); };
  picture.onpointermove = (event) => {
    if (begun === null) { hover(event); return; }
    const now = inside(event);
    if (!mark && Math.abs(now - begun) > 5) {
      mark = svg("rect", { class: "brush", y: 0, height: high });
      picture.append(mark);
      picture.setPointerCapture(event.pointerId);
      hideTip();
    }
    if (mark) { mark.setAttribute("x", Math.min(now, begun)); mark.setAttribute("width", Math.abs(now - begun)); }
  };
  picture.onpointerup = (event) => {
    const now = inside(event), dragged = mark !== null, first = begun;
    begun = mark = null;
    if (dragged) change({ range: [at(Math.min(now, first)), at(Math.max(now, first))] });
    else if (event.target.dataset.i) select(Number(event.target.dataset.i));
  };
  picture.onpointerleave = hideTip;
}
function hover(event) {
  if (!event.target.dataset.i) { hideTip(); return; }
  const stall = all[Number(event.target.dataset.i)];
  tip(event, data.culprits[stall.w][0], `${length(stall.s)}, ${stall.c}${stall.on ? ", never ended" : ""}`,
    `${day(stall.at)} ${clock(stall.at, 3)} UTC`, data.processes[stall.p], routeOf(stall));
}
function tip(event, title, ...lines) {
  const box = $("tip");
  box.replaceChildren(el("b", "", title), ...lines.filter(Boolean).map((line) => el("span", "", line)));
  box.hidden = false;
  const low = event.clientY + 18 + box.offsetHeight > innerHeight;
  box.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)) + "px";
  box.style.top = (low ? Math.max(4, event.clientY - box.offsetHeight - 12) : event.clientY + 18) + "px";
}
function hideTip() { $("tip").hidden = true; }

// ---- tables
function table(id, columns, rows, fill) {
  const [key, direction] = sorts[id], place = $(id);
  rows.sort((a, b) => {
    const x = a[key], y = b[key];
    return direction * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
  });
  place.tHead.replaceChildren(put(el("tr"), ...columns.map(([name, title, cls]) => {
    const head = el("th", cls, title);
    head.scope = "col";
    if (name === key) head.setAttribute("aria-sort", direction < 0 ? "descending" : "ascending");
    head.onclick = () => { sorts[id] = [name, name === key ? -direction : cls === "num" ? -1 : 1]; draw(); };
    return head;
  })));
  place.tBodies[0].replaceChildren(...rows.map((row) => {
    const line = el("tr");
    line.tabIndex = 0;
    line.onkeydown = (event) => { if (event.key === "Enter") line.onclick(); };
    line.append(...fill(row, line));
    return line;
  }));
  if (!rows.length) {
    const empty = el("td", "none", nothing());
    empty.colSpan = columns.length;
    const line = put(el("tr"), empty);
    line.className = "empty";
    place.tBodies[0].append(line);
  }
}
function meter(value, whole, cause) {
  const bar = el("div", "meter " + (cause || ""));
  bar.style.width = 100 * (whole ? value / whole : 0) + "%";
  return bar;
}
function drawCulprits() {
  const groups = new Map();
  for (const stall of view) {
    if (!groups.has(stall.w)) groups.set(stall.w, []);
    groups.get(stall.w).push(stall);
  }
  const rows = [...groups].map(([who, stalls]) => {
    const spent = stalls.map((stall) => stall.s), causes = new Map();
    const worst = stalls.reduce((a, b) => a.s >= b.s ? a : b);
    for (const stall of stalls) causes.set(stall.c, (causes.get(stall.c) || 0) + stall.s);
    return { who, name: data.culprits[who][0], times: stalls.length, total: sum(spent), p50: quantile(spent, 0.5),
      max: worst.s, victims: sum(stalls.map((stall) => stall.v || 0)), worst,
      cause: [...causes].sort((a, b) => b[1] - a[1]).map((pair) => pair[0]),
      routes: [...new Set(stalls.map(routeOf).filter(Boolean))] };
  });
  const whole = sum(rows.map((row) => row.total)), columns = [["name", "Culprit"], ["cause", "Cause"],
    ["times", "Stalls", "num"], ["total", "Blocked", "num"], ["p50", "Median", "num"], ["max", "Longest", "num"],
    ["victims", "Waited", "num"]];
  table("culprits", columns, rows, (row, line) => {
    const who = el("td"), causes = el("td"), file = data.culprits[row.who][1];
    who.append(el("div", "name", row.name));
    if (file) who.append(el("div", "place", `${file}:${row.worst.line}`));
    if (row.routes.length) {
      const more = row.routes.length > 3 ? ` and ${row.routes.length - 3} more` : "";
      who.append(el("div", "place", row.routes.slice(0, 3).join(", ") + more));
    }
    if (text(row.worst.more)) who.append(el("div", "remedy", text(row.worst.more)));
    causes.append(...row.cause.map((cause) => el("span", "tag " + cause, cause)));
    const total = put(el("td", "num", length(row.total)), el("div", "place", percent(row.total, whole)));
    total.append(meter(row.total, most(rows.map((other) => other.total)), row.cause[0]));
    if (row.who === state.culprit) line.className = "on";
    line.onclick = () => change({ culprit: row.who === state.culprit ? -1 : row.who });
    return [who, causes, el("td", "num", count(row.times)), total, el("td", "num", length(row.p50)),
      el("td", "num", length(row.max)), el("td", "num", count(row.victims))];
  });
}
function drawStalls() {
  const columns = [["at", "Time (UTC)"], ["s", "Length", "num"], ["c", "Cause"], ["name", "Culprit"],
    ["route", "Route"], ["task", "Task"], ["process", "Process"], ["v", "Waited", "num"]];
  const rows = view.map((stall) => ({ at: stall.at, s: stall.s, c: stall.c, name: data.culprits[stall.w][0],
    route: routeOf(stall), task: text(stall.task), process: data.processes[stall.p], v: stall.v || 0, stall }));
  const [key, direction] = sorts.stalls, longest = most(view.map((stall) => stall.s));
  rows.sort((a, b) => direction * (typeof a[key] === "number" ? a[key] - b[key] : a[key].localeCompare(b[key])));
  const several = view.length > 1 && day(view[0].at) !== day(view[view.length - 1].at);
  table("stalls", columns, rows.slice(0, shown), (row, line) => {
    const stall = row.stall, spent = put(el("td", "num", length(stall.s)), meter(stall.s, longest, stall.c));
    const who = put(el("td"), el("div", "name", row.name)), file = data.culprits[stall.w][1];
    if (file) who.append(el("div", "place", `${file}:${stall.line}`));
    if (stall.on) spent.append(el("div", "place", "never ended"));
    const clip = (value) => { const cell = el("td", "clip", value); cell.title = value; return cell; };
    line.dataset.i = stall.i;
    if (stall.i === selected) line.className = "on";
    line.onclick = () => select(stall.i);
    return [el("td", "nowrap", (several ? day(stall.at) + " " : "") + clock(stall.at, 3)), spent,
      put(el("td"), el("span", "tag " + stall.c, stall.c)), who, clip(row.route), clip(row.task), clip(row.process),
      el("td", "num", stall.v === null ? "" : count(stall.v))];
  });
  const left = view.length - Math.min(shown, view.length);
  $("count").textContent = left ? `first ${count(shown)} of ${count(view.length)}` : count(view.length);
  $("more").hidden = !left;
  $("more").textContent = `Show ${count(Math.min(left, 5 * PAGE))} more`;
}

// ---- one stall
function select(number) {
  selected = number === selected ? -1 : number;
  for (const node of document.querySelectorAll(".bar.on, #stalls tr.on")) node.classList.remove("on");
  if (selected >= 0) {
    for (const node of document.querySelectorAll(`.bar[data-i="${selected}"], #stalls tr[data-i="${selected}"]`)) {
      node.classList.add("on");
    }
  }
  drawDetail();
}
function facts(pairs) {
  const list = el("dl");
  for (const [name, value] of pairs) if (value) list.append(el("dt", "", name), el("dd", "", value));
  return list;
}
function drawDetail() {
  const box = $("detail"), stall = all[selected];
  box.hidden = !stall;
  if (!stall) return;
  const close = el("button", "ghost close", "Close");
  close.onclick = () => select(-1);
  const [name, file] = data.culprits[stall.w], parts = [close, put(el("div"), el("span", "tag " + stall.c, stall.c)),
    el("h3", "", `${length(stall.s)}${stall.on ? " and more, never ended" : ""}`), el("div", "name", name)];
  if (file) parts.push(el("div", "place", `${file}:${stall.line}`));
  if (text(stall.more)) parts.push(el("p", "do", text(stall.more)));
  const agree = stall.n[1] ? `${stall.n[0]} of ${stall.n[1]} samples agree` : "";
  parts.push(el("h4", "", "Where and when"), facts([["time", `${day(stall.at)} ${clock(stall.at, 3)} UTC`],
    ["process", data.processes[stall.p]], ["loop", text(stall.l)], ["task", text(stall.task)],
    ["coroutine", text(stall.co)], ["waited", stall.v === null ? "" : count(stall.v)],
    ["uncertainty", stall.u ? length(stall.u) : ""], ["confidence", agree], ...stall.x, ["stall", stall.id]]));
  if (stall.f >= 0) {
    const list = el("ol");
    for (const number of data.stacks[stall.f]) {
      const [label, path, line] = data.frames[number];
      const guilty = text(label) === name && text(path) === file;
      const place = el("div", "place", `${text(path)}:${line}`);
      list.append(put(el("li", guilty ? "guilty" : ""), el("div", "name", text(label)), place));
    }
    parts.push(el("h4", "", "Stack, outermost first"), list);
  }
  parts.push(el("h4", "", "Evidence"), facts(data.facts.map((fact, i) => [fact, stall.e[i]])));
  box.replaceChildren(...parts);
  box.scrollTop = 0;
}

// ---- flame graph
function grow() {
  const top = { name: "all", place: "", value: 0, depth: 0, kids: new Map(), up: null, guilty: false };
  for (const stall of view) {
    const [name, file] = data.culprits[stall.w];
    for (const [stack, spent] of stall.k) {
      let node = top;
      node.value += spent;
      for (const number of data.stacks[stack]) {
        const [label, path, line] = data.frames[number], key = label + " " + path;
        if (!node.kids.has(key)) {
          node.kids.set(key, { key, name: text(label), place: text(path), lines: new Set(), value: 0,
            depth: node.depth + 1, kids: new Map(), up: node, guilty: false });
        }
        node = node.kids.get(key);
        node.value += spent;
        node.lines.add(line);
        if (file && node.name === name && node.place === file) node.guilty = true;
      }
    }
  }
  return top;
}
function shade(name) {
  let hash = 7;
  for (const char of name.split(".")[0]) hash = (hash * 31 + char.codePointAt(0)) % 9973;
  return "h" + (1 + hash % 4);
}
function drawFlame() {
  const box = $("flame"), top = grow(), frames = [];
  let focus = top, deepest = 0;
  for (const key of zoom) focus = focus.kids.get(key) || focus;
  const add = (node, left, width, above) => {
    const thin = width < 1.2, look = node === top ? "root" : node.guilty ? "guilty" : shade(node.name);
    const frame = el("div", "fr " + look);
    if (above) frame.classList.add("above");
    if (thin) frame.classList.add("thin");
    frame.textContent = thin ? "" : node === top ? `all ${length(top.value)}` : node.name;
    frame.style.left = left.toFixed(3) + "%";
    frame.style.width = width.toFixed(3) + "%";
    frame.style.top = node.depth * ROW + "px";
    frame.tabIndex = 0;
    frame.onclick = () => { zoom = pathTo(node); drawFlame(); };
    frame.onkeydown = (event) => { if (event.key === "Enter") frame.onclick(); };
    frame.onpointermove = (event) => tip(event, node.name,
      `${length(node.value)}, ${percent(node.value, top.value)} of the blocked time` + (focus === top ? "" :
        `, ${percent(node.value, focus.value)} of the view`),
      node.place && node.place + ":" + [...node.lines].sort((a, b) => a - b).slice(0, 5).join(","));
    frame.onpointerleave = hideTip;
    frames.push(frame);
    deepest = Math.max(deepest, node.depth);
  };
  for (let node = focus.up; node; node = node.up) add(node, 0, 100, true);
  // A list instead of recursion: stacks may be deeper than the browser's own.
  const open = top.value > 0 ? [[focus, 0, 100]] : [];
  while (open.length) {
    const [node, left, width] = open.pop();
    add(node, left, width, false);
    let at = left;
    for (const kid of [...node.kids.values()].sort((a, b) => b.value - a.value)) {
      const part = width * kid.value / (node.value || 1);
      if (part >= 0.08) open.push([kid, at, part]);
      at += part;
    }
  }
  box.style.height = (deepest + 1) * ROW + "px";
  box.replaceChildren(...(frames.length ? frames : [el("p", "none", "Nothing to show.")]));
  $("unzoom").hidden = focus === top;
}
function pathTo(node) {
  const path = [];
  for (; node.up; node = node.up) path.unshift(node.key);
  return path;
}

// ---- begin
$("hangs").append(...data.hangs.map((hang) => put(el("p", "hang"), el("b", "", "Never ended"), hang)));
if (all.length) {
  const last = most(all.map((stall) => stall.end)), from = all[0].at;
  const until = day(from) === day(last) ? clock(last) : `${day(last)} ${clock(last)}`;
  $("span").textContent = `${day(from)} ${clock(from)} to ${until} UTC`;
}
$("process").append(...["All processes", ...data.processes].map((name, i) => {
  const option = el("option", "", name);
  option.value = i - 1;
  return option;
}));
const notes = [];
if (data.leftOut) notes.push(`The longest ${count(all.length)} stalls are shown, ${count(data.leftOut)} are left out.`);
if (data.skipped.length) notes.push("Passed over: " + data.skipped.join("; ") + ".");
if (data.versions.length) notes.push("Written by loopwatch " + data.versions.join(", ") + ".");
$("notes").append(...notes.map((note) => el("p", "", note)));
$("process").onchange = (event) => change({ process: Number(event.target.value) });
$("search").oninput = (event) => change({ query: event.target.value.trim().toLowerCase() });
$("reset").onclick = () => { $("search").value = ""; change({ ...start, off: new Set() }); };
$("more").onclick = () => { shown += 5 * PAGE; drawStalls(); };
$("unzoom").onclick = () => { zoom = []; drawFlame(); };
$("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
addEventListener("keydown", (event) => { if (event.key === "Escape" && selected >= 0) select(-1); });
let waiting = 0;
addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(drawTimeline); });
$("app").hidden = false;
draw();
root.dataset.ready = "yes";
})();
"""
