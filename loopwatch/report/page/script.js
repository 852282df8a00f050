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

// ---- time without a processor: the hatched part of a bar, and its words
const without = (stalls) => ({ s: sum(stalls.map((stall) => stall.s)), z: sum(stalls.map((stall) => stall.z)),
  q: sum(stalls.map((stall) => stall.q)) });
const notable = ({ s, z }) => z > 0 && z >= data.notable * s;
function starved(of) {
  if (!notable(of)) return "";
  const parts = [of.q, of.z - of.q].map((part, i) => part >= 0.01 * of.z ? `${length(part)} ${data.takers[i]}` : "");
  return `${length(of.z)} (${percent(of.z, of.s)}) without a processor: ${parts.filter(Boolean).join(", ")}`;
}
const routeOf = (stall) => (stall.x.find((pair) => pair[0] === "http.route") || ["", ""])[1];

const start = { off: new Set(), process: -1, culprit: -1, query: "", range: null };
let state = { ...start }, selected = -1, shown = PAGE, zoom = [], view = [];
const sorts = { culprits: ["total", -1], stalls: ["at", 1] };

const haystacks = all.map((stall) => [stall.id, stall.c, ...data.culprits[stall.w], text(stall.task), text(stall.co),
  text(stall.l), text(stall.was), ...stall.x.flat(), data.processes[stall.p]].join("\n").toLowerCase());
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
  const lost = without(view);
  $("legend").hidden = !view.some(notable) && !notable(lost);
  $("tiles").replaceChildren(
    tile("Stalls", count(view.length), note),
    tile("Blocked", length(total), view.length ? `within ${length(to - from)}` : "never"),
    tile("Longest", length(most(spent)), `p99 ${length(quantile(spent, 0.99))}`),
    tile("Typical", length(quantile(spent, 0.5)), "median of one stall"),
    tile("Kept waiting", count(waited), "callbacks, timers, events"),
    tile("Processes", count(used), `of ${count(data.runs)} that were watched`),
    ...(notable(lost) ? [tile("No processor", length(lost.z),
      `${percent(lost.z, lost.s)} of it; ${percent(lost.q, lost.z)} by CPU limit`)] : []),
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
  const lost = starved(without(bars)), label = `Timeline of ${count(bars.length)} stalls` + (lost && `; ${lost}`);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${high}`, height: high, role: "img", "aria-label": label });
  const hatch = svg("pattern", { id: "hatch", width: 4, height: 4, patternUnits: "userSpaceOnUse",
    patternTransform: "rotate(45)" });
  picture.append(put(svg("defs", {}), put(hatch, svg("rect", { width: 2, height: 4 }))));
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
      if (notable(stall)) {
        const bar = picture.lastChild, part = Math.min(stall.z / stall.s, 1) * tip;
        picture.append(svg("rect", { class: "without", x: bar.getAttribute("x"), y: bar.getAttribute("y"), rx: 1,
          width: bar.getAttribute("width"), height: part.toFixed(1), fill: "url(#hatch)" }));
      }
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
    starved(stall), `${day(stall.at)} ${clock(stall.at, 3)} UTC`, data.processes[stall.p], routeOf(stall));
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
function meter(of, whole, cause) {
  const bar = el("div", "meter " + (cause || "")), words = starved(of);
  bar.style.width = 100 * (whole ? of.s / whole : 0) + "%";
  if (!words) return [bar];
  const part = put(bar, el("div", "without")).lastChild;
  part.style.width = 100 * Math.min(of.z / of.s, 1) + "%";
  bar.title = words;
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", words);
  return [bar, el("div", "place", `${length(of.z)} without a processor`)];
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
      max: worst.s, of: without(stalls), victims: sum(stalls.map((stall) => stall.v || 0)), worst,
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
    total.append(...meter(row.of, most(rows.map((other) => other.total)), row.cause[0]));
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
    const stall = row.stall, spent = put(el("td", "num", length(stall.s)), ...meter(stall, longest, stall.c));
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
    ["without a processor", starved(stall).replace(" without a processor", "")], ["was in", text(stall.was)],
    ["severity", stall.sev], ["uncertainty", stall.u ? length(stall.u) : ""], ["confidence", agree], ...stall.x,
    ["stall", stall.id]]));
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
$("flaggedcard").hidden = !data.flagged.length;
$("flagged").append(...data.flagged.map(([cause, name, place, sentence, remedy]) => put(el("div", "flagged"),
  el("span", "tag " + cause, cause), el("div", "name", name), el("div", "place", place), el("div", "", sentence),
  el("div", "remedy", remedy))));
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
if (data.expected.length) notes.push("Expected, and not counted above: " + data.expected.join("; ") + ".");
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
