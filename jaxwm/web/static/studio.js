"use strict";
/* The pages of the studio. One file, no build step, nothing from elsewhere. `window.studio` is for tests and the curious. */

// --- Small things ---------------------------------------------------------------------------------------------------
const $ = (selector, root = document) => root.querySelector(selector);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const plain = (x, digits = 3) => x === null || x === undefined || !Number.isFinite(x) ? "–" : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(digits));
const query = (entries) => new URLSearchParams(entries.filter(([, x]) => x !== null && x !== undefined && x !== "")).toString();
const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const HUES = ["blue", "dream", "green", "violet", "red", "ink"];
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4]];
const state = { latencies: [], player: null, errors: [] };
window.studio = state;

function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

async function api(path, entries = []) {
  const answer = await fetch(`api/${path}${entries.length ? `?${query(entries)}` : ""}`);
  const found = await answer.json().catch(() => ({ error: `the studio answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error || found.detail || `the studio answered ${answer.status}`);
  return found;
}

let fading = 0;
function toast(text) {
  const box = $("#toast");
  box.textContent = text;
  box.classList.add("on");
  clearTimeout(fading);
  fading = setTimeout(() => box.classList.remove("on"), 4500);
}

const busy = (text) => h("div", { class: "note busy", role: "status" }, text);
const wrong = (text) => h("div", { class: "note wrong", role: "alert" }, text);
const field = (label, input, output) => h("label", { class: "field" }, h("span", {}, label, output || null), input);

function slider(label, min, max, step, value, change, show = (x) => plain(x)) {
  const output = h("output", { class: "num" }, show(value));
  const input = h("input", { type: "range", min: String(min), max: String(max), step: String(step) });
  input.value = String(value);
  input.setAttribute("aria-label", label);
  input.addEventListener("input", () => { output.textContent = show(+input.value); change(+input.value); });
  const node = field(label, input, output);
  node.set = (x) => { input.value = String(x); output.textContent = show(+input.value); };
  node.input = input;
  return node;
}

function choice(label, options, value, change) {
  const input = h("select", { "aria-label": label }, options.map(([key, text]) => h("option", { value: String(key) }, text)));
  input.value = String(value);
  input.addEventListener("change", () => change(input.value));
  const node = field(label, input);
  node.input = input;
  return node;
}

/** A socket that answers in order: `ask` resolves with the reply. */
class Line {
  constructor(path, entries, heard, closed) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/ws/${path}?${query(entries)}`);
    this.waiting = new Map();
    this.count = 0;
    this.socket.addEventListener("message", (event) => {
      const message = JSON.parse(event.data);
      const own = this.waiting.get(message.id);
      if (own) { this.waiting.delete(message.id); own(message); } else heard(message);
    });
    this.socket.addEventListener("close", () => {
      for (const own of this.waiting.values()) own({ kind: "error", text: "the connection is gone" });
      this.waiting.clear();
      closed();
    });
  }
  get open() { return this.socket.readyState === WebSocket.OPEN; }
  ask(message) {
    if (!this.open) return Promise.resolve({ kind: "error", text: "the connection is gone: open the page again" });
    const id = ++this.count;
    return new Promise((done) => { this.waiting.set(id, done); this.socket.send(JSON.stringify({ ...message, id })); });
  }
  close() { this.socket.close(); }
}

// --- Drawing --------------------------------------------------------------------------------------------------------
/** Size a canvas for the screen; its context, width and height in CSS pixels. */
function sheet(canvas, height) {
  const width = Math.max(40, canvas.clientWidth || canvas.parentElement?.clientWidth || 300), ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

const decoded = new Map();
async function picture(data) {
  if (!decoded.has(data)) {
    const image = new Image();
    image.src = `data:image/png;base64,${data}`;
    decoded.set(data, image.decode().then(() => image));
    if (decoded.size > 800) decoded.delete(decoded.keys().next().value);
  }
  return decoded.get(data);
}

function paint(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) { canvas.width = image.width; canvas.height = image.height; }
  canvas.getContext("2d").drawImage(image, 0, 0);
}

function ticks(low, high, most) {
  const span = high - low || 1, raw = span / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= raw) || power * 10;
  const found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-6; x += step) found.push(+x.toPrecision(12));
  return found;
}

const redraws = new Set();
/** A line chart: series of {name, hue, dash, x, y, low, high}; a null is a gap. Points at the pointer are read out. */
class Chart {
  constructor(options = {}) {
    this.options = { height: 220, xlabel: "", ylabel: "", zero: false, legend: true, ...options };
    this.canvas = h("canvas", { class: "chart", role: "img", "aria-label": this.options.title || this.options.ylabel });
    this.keys = h("div", { class: "legend" });
    this.node = h("div", {}, this.canvas, this.options.legend ? this.keys : null);
    this.series = [];
    this.at = null;
    this.draw = this.draw.bind(this);
    this.canvas.addEventListener("pointermove", (event) => { this.at = event.offsetX; this.draw(); });
    this.canvas.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
    redraws.add(this);
  }
  set(series, options = {}) {
    Object.assign(this.options, options);
    this.series = series;
    this.keys.replaceChildren(...series.filter((s) => s.name).map((s) => {
      const key = h("i", { class: `key${s.dash > 1 ? " dot" : s.dash ? " dash" : ""}` });
      key.style.color = `var(--${s.hue})`;
      return h("span", {}, key, s.name);
    }));
    this.draw();
  }
  limits() {
    let low = Infinity, high = -Infinity, left = Infinity, right = -Infinity;
    for (const s of this.series) {
      s.x.forEach((x, i) => {
        for (const y of [s.y[i], s.low?.[i], s.high?.[i]]) if (Number.isFinite(y) && y !== null) { low = Math.min(low, y); high = Math.max(high, y); left = Math.min(left, x); right = Math.max(right, x); }
      });
    }
    if (low > high) return null;
    if (this.options.zero) low = Math.min(0, low);
    if (low === high) { low -= this.options.zero ? 0 : 0.5; high += 0.5; }
    const pad = (high - low) * 0.05;
    return { low: this.options.zero && low === 0 ? 0 : low - pad, high: high + pad, left, right: right > left ? right : left + 1 };
  }
  draw() {
    if (!this.canvas.isConnected) return;
    const { pen, width, height } = sheet(this.canvas, this.options.height), box = this.limits();
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    pen.fillStyle = shade("soft");
    if (!box) { pen.textAlign = "center"; pen.fillText(this.options.empty || "nothing to draw yet", width / 2, height / 2); return; }
    const yticks = ticks(box.low, box.high, 4), labels = yticks.map((y) => plain(y, 4));
    const margin = { left: 12 + Math.max(...labels.map((text) => pen.measureText(text).width)), right: 10, top: 18, bottom: 34 };
    const X = (x) => margin.left + (x - box.left) / (box.right - box.left) * (width - margin.left - margin.right);
    const Y = (y) => height - margin.bottom - (y - box.low) / (box.high - box.low) * (height - margin.top - margin.bottom);
    pen.strokeStyle = shade("line"); pen.lineWidth = 1;
    pen.textAlign = "right"; pen.textBaseline = "middle";
    yticks.forEach((y, i) => { pen.beginPath(); pen.moveTo(margin.left, Y(y)); pen.lineTo(width - margin.right, Y(y)); pen.stroke(); pen.fillText(labels[i], margin.left - 6, Y(y)); });
    pen.textAlign = "center"; pen.textBaseline = "top";
    for (const x of ticks(box.left, box.right, Math.max(2, width / 110))) pen.fillText(plain(x, 4), clamp(X(x), 16, width - 18), height - margin.bottom + 5);
    pen.fillText(this.options.xlabel, (margin.left + width - margin.right) / 2, height - 14);
    pen.textAlign = "left"; pen.fillText(this.options.ylabel, 0, 0);
    for (const s of this.series) this.line(pen, s, X, Y);
    if (this.at !== null) this.read(pen, X, Y, box, width, height, margin);
  }
  line(pen, s, X, Y) {
    const colour = shade(s.hue);
    if (s.low) {
      pen.fillStyle = colour; pen.globalAlpha = 0.16; pen.beginPath();
      const there = s.x.map((_, i) => i).filter((i) => Number.isFinite(s.low[i]) && s.low[i] !== null);
      there.forEach((i, n) => pen[n ? "lineTo" : "moveTo"](X(s.x[i]), Y(s.high[i])));
      there.reverse().forEach((i) => pen.lineTo(X(s.x[i]), Y(s.low[i])));
      pen.fill(); pen.globalAlpha = 1;
    }
    pen.strokeStyle = colour; pen.lineWidth = s.thin ? 1 : 2; pen.globalAlpha = s.thin ? 0.55 : 1; pen.setLineDash(DASHES[s.dash || 0]); pen.lineJoin = "round"; pen.beginPath();
    let on = false;
    s.y.forEach((y, i) => { if (y === null || !Number.isFinite(y)) on = false; else { pen[on ? "lineTo" : "moveTo"](X(s.x[i]), Y(y)); on = true; } });
    pen.stroke(); pen.setLineDash([]); pen.globalAlpha = 1;
    const points = s.y.filter((y) => y !== null && Number.isFinite(y));
    if (points.length === 1) { const i = s.y.findIndex((y) => y !== null && Number.isFinite(y)); pen.fillStyle = colour; pen.beginPath(); pen.arc(X(s.x[i]), Y(s.y[i]), 3, 0, 7); pen.fill(); }
  }
  read(pen, X, Y, box, width, height, margin) {
    const x = box.left + (this.at - margin.left) / (width - margin.left - margin.right) * (box.right - box.left);
    const rows = [];
    let at = null;
    for (const s of this.series.filter((each) => each.name)) {
      let best = -1;
      s.x.forEach((v, i) => { if (s.y[i] !== null && Number.isFinite(s.y[i]) && (best < 0 || Math.abs(v - x) < Math.abs(s.x[best] - x))) best = i; });
      if (best >= 0) { rows.push([s, s.y[best]]); at ??= s.x[best]; pen.fillStyle = shade(s.hue); pen.beginPath(); pen.arc(X(s.x[best]), Y(s.y[best]), 3.5, 0, 7); pen.fill(); }
    }
    if (!rows.length) return;
    const texts = [`${this.options.xlabel.split(",")[0]} ${plain(at, 5)}`, ...rows.map(([s, y]) => `${s.name}  ${plain(y, 4)}`)];
    const wide = Math.max(...texts.map((text) => pen.measureText(text).width)) + 16, tall = texts.length * 17 + 8;
    const left = clamp(X(at) + 10 + wide > width ? X(at) - 10 - wide : X(at) + 10, 0, Math.max(0, width - wide));
    pen.fillStyle = shade("card"); pen.strokeStyle = shade("line"); pen.beginPath(); pen.roundRect(left, margin.top, wide, tall, 6); pen.fill(); pen.stroke();
    pen.textAlign = "left"; pen.textBaseline = "top"; pen.fillStyle = shade("ink");
    texts.forEach((text, i) => pen.fillText(text, left + 8, margin.top + 6 + i * 17));
  }
}

/** One quantity over the last ticks: reality in ink, the dream in orange, a second branch dashed. */
class Strip {
  constructor(name, options = {}) {
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.now = h("span", { class: "now" });
    this.node = h("div", { class: "strip" }, h("span", { class: "muted" }, name), this.canvas, this.now);
    this.options = options;
  }
  set(lines, at, from, to) {
    const { pen, width, height } = sheet(this.canvas, 38);
    const all = lines.flatMap((line) => line.values.slice(from, to + 1)).filter((x) => x !== null && x !== undefined);
    let [low, high] = this.options.range || [Math.min(...all, 0), Math.max(...all, 0)];
    if (high - low < 0.2) { high = Math.max(high, low + 0.1); low = Math.min(low, high - 0.2); }
    const X = (t) => 3 + (t - from) / Math.max(1, to - from) * (width - 6), Y = (y) => 4 + (1 - (clamp(y, low, high) - low) / (high - low)) * (height - 8);
    pen.strokeStyle = shade("line"); pen.lineWidth = 1;
    if (low <= 0 && high >= 0) { pen.beginPath(); pen.moveTo(0, Y(0)); pen.lineTo(width, Y(0)); pen.stroke(); }
    pen.beginPath(); pen.moveTo(X(at), 0); pen.lineTo(X(at), height); pen.stroke();
    for (const { values, hue, dash } of lines) {
      pen.strokeStyle = pen.fillStyle = shade(hue); pen.lineWidth = 1.75; pen.setLineDash(dash ? [4, 3] : []); pen.beginPath();
      let on = false;
      for (let t = from; t <= to; t += 1) {
        const y = values[t];
        if (y === null || y === undefined) on = false; else { pen[on ? "lineTo" : "moveTo"](X(t), Y(y)); on = true; }
      }
      pen.stroke(); pen.setLineDash([]);
      if (!dash && values[at] !== null && values[at] !== undefined) { pen.beginPath(); pen.arc(X(at), Y(values[at]), 2.5, 0, 7); pen.fill(); }
    }
    const [real, dream] = lines.filter((line) => !line.dash);
    const short = (x) => x === null || x === undefined ? "–" : Math.abs(x) >= 100 ? plain(x, 4) : String(+x.toFixed(3));
    this.now.replaceChildren(short(real?.values[at]), dream ? h("i", {}, short(dream.values[at])) : "");
  }
}

// --- Maze: explore, dream, plan -------------------------------------------------------------------------------------
const ARROWS = { ArrowUp: 0, ArrowDown: 1, ArrowLeft: 2, ArrowRight: 3 };
const WAYS = [[0, -1], [0, 1], [-1, 0], [1, 0]];

class MazeView {
  constructor(title, subtitle, planning, seed) {
    this.planning = planning;
    this.canvas = h("canvas", { role: "img", "aria-label": title });
    this.said = h("span", { class: "muted num small" });
    this.wait = busy("compiling the agent, a few seconds …");
    this.node = h("div", { class: "card maze" }, h("div", { class: "row spread" }, h("h2", {}, title), this.said), h("p", { class: "muted small" }, subtitle), this.wait, this.canvas);
    this.canvas.hidden = true;
    this.last = null;
    this.way = [];
    this.flash = [];
    this.line = new Line("maze", [["seed", seed]], (message) => { if (message.kind === "error") toast(message.text); else if (message.kind === "ready") this.ready?.(); }, () => {});
    redraws.add(this);
  }
  async turn(turns, epsilon, action = null) {
    const found = await this.line.ask({ do: "turn", turns, planning: this.planning(), epsilon, action });
    if (found.kind === "error") return toast(found.text);
    this.last = found;
    this.wait.hidden = true; this.canvas.hidden = false;
    this.flash = found.drawn;
    this.said.textContent = `${found.episodes} ${found.episodes === 1 ? "time" : "times"} at the goal · ${found.count.toLocaleString("en")} steps · ${found.dreamed.toLocaleString("en")} dreamed`;
    this.draw();
    return found;
  }
  async reset(task) { this.last = null; this.way = []; await this.line.ask({ do: "reset", task }); }
  async plan() { this.way = (await this.line.ask({ do: "way" })).cells || []; this.draw(); }
  draw() {
    if (!this.last || !this.canvas.isConnected) return;
    const { rows, columns, walls, goal, start, value, q, known, next, place } = this.last;
    const cell = Math.floor((this.canvas.clientWidth || 400) / columns), { pen } = sheet(this.canvas, cell * rows);
    const wall = new Set(walls.map(([r, c]) => r * columns + c)), top = Math.max(...value, 1e-6);
    const low = shade("low"), high = shade("high");
    for (let s = 0; s < rows * columns; s += 1) {
      const x = s % columns * cell, y = Math.floor(s / columns) * cell;
      pen.fillStyle = low; pen.fillRect(x + 1, y + 1, cell - 2, cell - 2);
      if (wall.has(s)) { pen.fillStyle = shade("wall"); pen.fillRect(x + 1, y + 1, cell - 2, cell - 2); continue; }
      pen.globalAlpha = value[s] / top * 0.85; pen.fillStyle = high; pen.fillRect(x + 1, y + 1, cell - 2, cell - 2); pen.globalAlpha = 1;
      const best = Math.max(...q[s]);
      known[s].forEach((there, a) => {
        if (!there || next[s][a] === s) return;
        const chosen = best > 0 && q[s][a] >= best - 1e-6;
        this.arrow(pen, x + cell / 2, y + cell / 2, WAYS[a], cell, chosen ? shade("ink") : shade("soft"), chosen ? 2 : 0.8);
      });
    }
    this.marks(pen, cell, columns, goal, start, place);
  }
  marks(pen, cell, columns, goal, start, place) {
    const middle = (s) => [(s % columns + 0.5) * cell, (Math.floor(s / columns) + 0.5) * cell];
    pen.fillStyle = shade("dream-fill");
    for (const pair of this.flash) {
      const [x, y] = middle(Math.floor(pair / 4)), [dx, dy] = WAYS[pair % 4];
      pen.globalAlpha = 0.55; pen.beginPath(); pen.arc(x + dx * cell * 0.28, y + dy * cell * 0.28, cell * 0.09, 0, 7); pen.fill(); pen.globalAlpha = 1;
    }
    if (this.way.length > 1) {
      pen.strokeStyle = shade("dream-fill"); pen.lineWidth = 4; pen.lineJoin = pen.lineCap = "round"; pen.beginPath();
      this.way.forEach((s, i) => pen[i ? "lineTo" : "moveTo"](...middle(s))); pen.stroke();
    }
    pen.font = `600 ${Math.round(cell * 0.36)}px system-ui, "DejaVu Sans", sans-serif`; pen.textAlign = "center"; pen.textBaseline = "middle"; pen.fillStyle = shade("ink");
    pen.fillText("S", ...middle(start[0] * columns + start[1])); pen.fillText("G", ...middle(goal[0] * columns + goal[1]));
    const [x, y] = middle(place);
    pen.fillStyle = shade("red"); pen.strokeStyle = shade("card"); pen.lineWidth = 2; pen.beginPath(); pen.arc(x, y, cell * 0.22, 0, 7); pen.fill(); pen.stroke();
  }
  arrow(pen, x, y, [dx, dy], cell, colour, width) {
    const from = cell * 0.12, to = cell * 0.4, tip = cell * 0.09;
    pen.strokeStyle = colour; pen.lineWidth = width; pen.beginPath(); pen.moveTo(x + dx * from, y + dy * from); pen.lineTo(x + dx * to, y + dy * to);
    pen.lineTo(x + dx * (to - tip) + dy * tip, y + dy * (to - tip) + dx * tip); pen.moveTo(x + dx * to, y + dy * to); pen.lineTo(x + dx * (to - tip) - dy * tip, y + dy * (to - tip) - dx * tip); pen.stroke();
  }
}

function mazePage(root) {
  const seed = Math.floor(Math.random() * 1e9), options = { speed: 50, planning: 50, epsilon: 0.1, task: "DynaMaze" };
  const pair = [
    new MazeView("Without dreams", "Learns from its real steps only.", () => 0, seed),
    new MazeView("With dreams", "The same agent; between its steps it dreams of steps it remembers.", () => options.planning, seed),
  ];
  const chart = new Chart({ height: 190, xlabel: "time at the goal", ylabel: "steps to the goal", zero: true, title: "Steps to the goal" });
  let on = true, stopped = false, working = false;
  const play = h("button", { class: "main", id: "maze-play", onclick: () => { on = !on; play.textContent = on ? "Pause" : "Play"; if (on) for (const view of pair) view.way = []; } }, "Pause");
  const redraw = () => {
    const lines = pair.map((view, i) => ({ name: ["without dreams", "with dreams"][i], hue: ["ink", "dream"][i], dash: i ? 0 : 1, x: (view.last?.lengths || []).map((_, n) => n + 1), y: view.last?.lengths || [] }));
    chart.set(lines, { empty: "nobody has found the goal yet" });
  };
  async function step(action = null) {
    if (working || stopped) return;
    working = true;
    const turns = action === null ? Math.max(1, Math.round(options.speed / 25)) : 1;
    await Promise.all(pair.map((view) => view.turn(turns, options.epsilon, action)));
    redraw();
    working = false;
  }
  (async function loop() {
    while (!stopped) {
      const began = performance.now();
      if (on && !document.hidden && pair.every((view) => view.line.open)) await step();
      await new Promise((done) => setTimeout(done, Math.max(8, 1000 / Math.min(25, options.speed) - (performance.now() - began))));
    }
  })();
  const own = (action) => { on = false; play.textContent = "Play"; for (const view of pair) view.way = []; step(action); };
  const keys = (event) => {
    if (!(event.key in ARROWS) || event.target.matches("input, select")) return;
    event.preventDefault();
    own(ARROWS[event.key]);
  };
  const again = async (task) => { options.task = task; working = true; await Promise.all(pair.map((view) => view.reset(task))); working = false; redraw(); step(); };
  document.addEventListener("keydown", keys);
  root.append(
    h("h1", {}, "Explore, dream, plan"),
    h("p", { class: "lead" }, "Two agents meet a maze they know nothing about, and learn it in front of you. Both remember what each step led to: that memory is a world model. The right one also dreams: between two real steps it replays remembered steps in its mind, and learns from those as well (Dyna-Q, Sutton 1990)."),
    h("div", { class: "card row" }, play,
      h("button", { onclick: () => { on = false; play.textContent = "Play"; pair.forEach((view) => view.plan()); } }, "Show the plan"),
      h("button", { onclick: () => again(options.task) }, "Forget everything"),
      choice("Maze", [["DynaMaze", "Dyna maze"], ["BlockingMaze", "a way that closes"], ["ShortcutMaze", "a shortcut that opens"]], options.task, again),
      slider("Speed", 1, 500, 1, options.speed, (x) => { options.speed = x; }, (x) => `${x} steps/s`),
      slider("Dreams per step", 0, 50, 1, options.planning, (x) => { options.planning = x; }),
      slider("Exploration", 0, 1, 0.05, options.epsilon, (x) => { options.epsilon = x; }, (x) => `${Math.round(100 * x)} %`)),
    h("div", { class: "cols grid-gap" }, pair.map((view) => view.node)),
    h("div", { class: "cols" },
      h("div", { class: "card" }, h("h2", {}, "How long the way to the goal takes"), chart.node),
      h("div", { class: "card" }, h("h2", {}, "What you see"),
        h("p", { class: "small" }, "Blue is what a place is worth to the agent. A thin arrow is a step that its model knows, a bold one the step that it would take. Orange dots are the steps that it has just dreamed. “Show the plan” draws the way that it would go, through its model alone, without a real step."),
        h("p", { class: "small" }, "Lead both yourself with the arrow keys, or here:"),
        h("div", { class: "dpad" }, h("span"), h("button", { "aria-label": "up", onclick: () => own(0) }, "↑"), h("span"), h("button", { "aria-label": "left", onclick: () => own(2) }, "←"), h("button", { "aria-label": "down", onclick: () => own(1) }, "↓"), h("button", { "aria-label": "right", onclick: () => own(3) }, "→")))));
  root.querySelectorAll(".card, .cols").forEach((node, i) => { if (node.parentElement === root && i) node.style.marginTop = "16px"; });
  state.maze = pair;
  return () => { stopped = true; document.removeEventListener("keydown", keys); pair.forEach((view) => { view.line.close(); redraws.delete(view); }); };
}

// --- Runs -----------------------------------------------------------------------------------------------------------
function runsPage(root) {
  const chosen = new Map(), list = h("div", { class: "card scroll" }, busy("looking for runs")), detail = h("div", { class: "grid" });
  const chart = new Chart({ height: 300, title: "Curves of the chosen runs" }), differ = h("div", { class: "card scroll" });
  let metric = "return", stopped = false, known = [], shown = "";
  const picker = h("select", { "aria-label": "Metric", id: "metric", onchange: () => { metric = picker.value; curves(); } }, h("option", { value: "return" }, "training return"));
  const card = h("div", { class: "card" }, h("div", { class: "row spread" }, h("h2", {}, "Curves"), picker), chart.node, h("p", { class: "muted small" }, "Lines are means of the members, bands reach from the least to the greatest of them."));
  card.hidden = differ.hidden = true;
  const labels = () => [...chosen.keys()].map((label) => ["run", label]);

  async function curves() {
    card.hidden = !chosen.size;
    if (!chosen.size) { differ.hidden = true; return; }
    try {
      const [lines, about] = await Promise.all([api("curves", [...labels(), ["metric", metric]]), api("metrics", labels())]);
      if (stopped) return;
      const names = about.metrics.map((m) => m.name).join();
      if (picker.dataset.names !== names) {
        picker.replaceChildren(...about.metrics.map((m) => h("option", { value: m.name }, m.title === m.name ? m.name : `${m.title}`)));
        picker.dataset.names = names;
        picker.value = metric = about.metrics.some((m) => m.name === metric) ? metric : "return";
      }
      const good = about.metrics.find((m) => m.name === metric);
      chart.set(lines.map((line) => {
        const i = [...chosen.keys()].indexOf(line.label), there = (row) => row.filter((x) => x !== null);
        const over = (fold) => line.values.map((row) => there(row).length ? fold(there(row)) : null);
        return { name: line.label, hue: HUES[i % HUES.length], dash: i % DASHES.length, x: line.steps, y: over((row) => row.reduce((a, b) => a + b) / row.length), low: over((row) => Math.min(...row)), high: over((row) => Math.max(...row)) };
      }), { xlabel: lines[0]?.unit || "", ylabel: `${good.title}${good.note ? `, ${good.note}` : ""}` });
      const rows = Object.entries(about.differ);
      differ.hidden = chosen.size < 2 || !rows.length;
      differ.replaceChildren(h("h2", {}, `Where their settings differ (${rows.length})`), h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "setting"), [...chosen.keys()].map((x) => h("th", {}, x)))),
        h("tbody", {}, rows.slice(0, 60).map(([name, values]) => h("tr", {}, h("td", {}, name), values.map((x) => h("td", { class: "num" }, x.slice(0, 60))))))));
    } catch (error) { toast(error.message); }
  }

  async function open(run) {
    shown = run.label;
    const names = run.state === "weights" ? [] : await api("pictures", [["run", run.label]]).catch(() => []);
    if (shown !== run.label || stopped) return;
    detail.replaceChildren(h("div", { class: "card" },
      h("div", { class: "row spread" }, h("h2", {}, run.label), h("div", { class: "row" }, run.playable ? [h("a", { class: "button", href: `#play?${query([["run", run.label]])}` }, "Play in it"), h("a", { class: "button", href: `#dreams?${query([["run", run.label]])}` }, "Dream quality")] : h("span", { class: "muted small" }, "no checkpoint yet: nothing to play in"))),
      run.fault ? wrong(run.fault) : null,
      run.score !== undefined ? h("p", { class: "num" }, `Evaluation: mean ${plain(run.score)}, worst member ${plain(run.worst)}, random ${plain(run.random)}.`) : null,
      names.length ? h("div", { class: "pictures" }, names.map((name) => h("figure", {}, h("figcaption", { class: "muted small" }, name), h("img", { loading: "lazy", alt: name, src: `api/picture?${query([["run", run.label], ["name", name]])}` }))))
        : run.state === "weights" ? null : h("p", { class: "muted small" }, "No pictures yet: ", h("code", {}, `jaxwm dream ${run.label}`), " and ", h("code", {}, `jaxwm watch ${run.label}`), " draw some.")));
  }

  function row(run) {
    const i = [...chosen.keys()].indexOf(run.label), mark = h("i", { class: `key${i % DASHES.length > 1 ? " dot" : i % DASHES.length ? " dash" : ""}` });
    mark.style.color = i < 0 ? "transparent" : `var(--${HUES[i % HUES.length]})`;
    const box = h("input", { type: "checkbox", "aria-label": `Draw ${run.label}`, checked: chosen.has(run.label), disabled: ["weights", "damaged"].includes(run.state), onchange: () => { box.checked ? chosen.set(run.label, run) : chosen.delete(run.label); render(); curves(); } });
    const bar = h("i");
    bar.style.width = `${clamp(100 * (run.done || 0) / (run.total || 1), 0, 100)}%`;
    return h("tr", {}, h("td", {}, h("span", { class: "row tight" }, box, mark)), h("td", {}, h("button", { class: "plain link", onclick: () => open(run) }, run.label), h("div", { class: "muted small" }, [run.agent, run.env].filter(Boolean).join(" · "))), h("td", {}, h("span", { class: `tag ${run.state}` }, run.state), run.fault && run.state !== "damaged" ? h("span", { class: "tag fault", title: run.fault }, "fault") : null),
      h("td", {}, run.total ? h("div", { title: `${run.done} of ${run.total} ${run.unit}` }, h("div", { class: "progress" }, bar), h("span", { class: "muted small num" }, `${(run.done || 0).toLocaleString("en")} / ${run.total.toLocaleString("en")}`)) : null),
      h("td", { class: "r" }, String(run.members || "")), h("td", { class: "r" }, plain(run.return)), h("td", { class: "r" }, run.score === undefined ? "–" : plain(run.score)));
  }
  function render() {
    if (!known.length) return list.replaceChildren(h("p", { class: "note" }, "No runs here yet. Train one with ", h("code", {}, "jaxwm train dreamer-v3"), ", then this page shows it while it learns. Or start with the ", h("a", { href: "#maze" }, "maze"), ", which needs none."));
    list.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, ["", "run", "state", "progress"].map((x) => h("th", {}, x)), ["members", "return now", "evaluated"].map((x) => h("th", { class: "r" }, x)))), h("tbody", {}, known.map(row))));
  }
  async function refresh() {
    try {
      const found = await api("runs");
      if (stopped) return;
      if (!known.length) {
        const newest = found.runs.filter((run) => run.done).sort((a, b) => a.age - b.age)[0];
        for (const run of found.runs.filter((each) => newest && each.done && each.env === newest.env).slice(0, 6)) chosen.set(run.label, run);
        if (found.runs.length) open(newest || found.runs[0]);
      }
      const first = !known.length;
      known = found.runs;
      if (!list.contains(document.activeElement) || first) render();
      if (first || found.runs.some((run) => run.state === "running" && chosen.has(run.label))) await curves();
    } catch (error) { if (!known.length) list.replaceChildren(wrong(error.message)); }
    if (!stopped) timer = setTimeout(refresh, 4000);
  }
  let timer = 0;
  root.append(h("h1", {}, "Runs"), h("p", { class: "lead" }, "Everything that was trained here, and what is being trained now. Choose runs to compare their curves."), h("div", { class: "grid" }, list, card, differ, detail));
  refresh();
  return () => { stopped = true; clearTimeout(timer); };
}

// --- Play -----------------------------------------------------------------------------------------------------------
const USUAL = [[/^(.*\s)?left$|^left /, "ArrowLeft"], [/^(.*\s)?right$|^right /, "ArrowRight"], [/^up$|\bup$/, "ArrowUp"], [/^down$|\bdown$/, "ArrowDown"], [/^(fire|do|main engine|pick up)$/, " "], [/^(stay|nothing|noop|no .*)$/, "0"]];
const SPARE = "123456789qwertyasfghzxcvjklm";
const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space" };

/** Which key means which action: arrows for directions, the space bar to act, 0 to stay, and others in turn. */
function keysOf(names) {
  const keys = names.map(() => null), taken = new Set();
  names.forEach((name, i) => { for (const [pattern, key] of USUAL) if (!keys[i] && !taken.has(key) && pattern.test(name)) { keys[i] = key; taken.add(key); } });
  const spare = [...SPARE].filter((key) => !taken.has(key));
  return keys.map((key) => key || spare.shift() || null);
}

/** What a visitor plays: branches of ticks on this side, the same as the server's. */
class Player {
  constructor(run, member, seed) {
    this.run = run; this.member = member; this.branches = new Map(); this.current = "A"; this.t = 0; this.other = null;
    this.policy = false; this.rate = 0; this.held = null; this.working = false; this.next = null; this.listeners = new Set();
    this.status = "connecting"; this.problem = null; this.settings = { mode: "greedy", sight: "real" };
    this.line = new Line("play", [["run", run], ["member", member], ["seed", seed]], (message) => this.heard(message), () => {
      if (this.status !== "failed") { this.status = "failed"; this.problem ??= "The connection is gone. The server may have been stopped."; this.tell("status"); }
    });
  }
  tell(what) { for (const listener of this.listeners) listener(what); }
  async heard(message) {
    if (message.kind === "progress") { this.progress = message.text; this.tell("status"); }
    if (message.kind === "error") { if (message.fatal) { this.status = "failed"; this.problem = message.text; this.tell("status"); } else toast(message.text); }
    if (message.kind === "ready") {
      this.about = message.about; this.session = message.session; this.plans = message.plans;
      await this.begin({ do: "begin", ahead: 0 });
      this.status = this.problem ? "failed" : "ready";
      this.tell("status");
    }
  }
  get branch() { return this.branches.get(this.current); }
  get tick() { return this.branch?.ticks[this.t]; }
  async ask(message) {
    const found = await this.line.ask(message);
    if (found.kind === "error") toast(found.text);
    return found;
  }
  async begin(message) {
    const found = await this.ask(message);
    if (found.kind !== "begin") return;
    this.branches = new Map([["A", { parent: null, ticks: found.ticks }]]);
    this.current = "A"; this.other = null; this.t = found.ticks.length - 1;
    this.tell("branches");
  }
  /** The branch of an answer; a new one shares what came before. */
  adopt(found) {
    if (!this.branches.has(found.branch)) {
      const [name, t] = found.parent;
      this.branches.set(found.branch, { parent: found.parent, ticks: this.branches.get(name).ticks.slice(0, t + 1) });
      this.other = name;
    }
    this.current = found.branch;
    return this.branches.get(found.branch);
  }
  /** One step by an action, or by the policy (null). `since` is when the visitor pressed; only the last press waits. */
  async step(action, since = null) {
    if (this.status !== "ready") return;
    if (this.working) { this.next = { action, since }; return; }
    this.working = true;
    const found = await this.ask({ do: "step", branch: this.current, t: this.t, action });
    if (found.kind === "tick") {
      const count = this.branches.size, branch = this.adopt(found);
      branch.ticks.push(found.tick);
      this.t = branch.ticks.length - 1;
      this.tell(this.branches.size > count ? "branches" : "tick");
      if (since !== null) this.measure(since);
    } else { this.rate = 0; this.tell("status"); }
    this.working = false;
    if (this.next) { const { action: then, since: when } = this.next; this.next = null; this.step(then, when); }
  }
  async measure(since) {
    await this.drawn;
    requestAnimationFrame(() => { state.latencies.push(performance.now() - since); if (state.latencies.length > 2000) state.latencies.shift(); });
  }
  async dream() {
    const found = await this.ask({ do: "dream", branch: this.current, t: this.t });
    if (found.kind !== "anchor") return;
    const branch = this.adopt(found);
    branch.ticks[found.ticks[0].t] = found.ticks[0];
    this.tell("branches");
  }
  async set(options) { const found = await this.ask({ do: "set", ...options }); if (found.kind === "set") Object.assign(this.settings, options); }
  seek(t) { this.t = clamp(t, 0, this.branch.ticks.length - 1); this.tell("tick"); }
  close() { this.status = "failed"; this.listeners.clear(); this.line.close(); }
}

function playerFor(run, member = 0, seed = null) {
  if (state.player && state.player.run === run && state.player.member === member && state.player.status !== "failed") return state.player;
  state.player?.close();
  state.player = new Player(run, member, seed);
  return state.player;
}

/** Reality and dream of one branch, as two frames. */
class Stage {
  constructor(player, branch) {
    this.player = player; this.branch = branch;
    const panel = (name) => {
      const canvas = h("canvas", { role: "img", "aria-label": name, id: `${name}-${branch}` }), over = h("div", { class: "over", hidden: true }), note = h("span");
      const frame = h("div", { class: `frame${player.about.smooth ? "" : " grid"}` }, canvas, over);
      return { canvas, over, note, frame, node: h("figure", { class: `panel ${name}` }, h("figcaption", {}, h("b", {}, name === "real" ? "Reality" : "Dream"), note), frame) };
    };
    this.real = panel("real"); this.dream = panel("dream");
    this.node = h("div", {}, this.title = h("h3", {}), h("div", { class: "stage" }, this.real.node, player.about.dreams ? this.dream.node : null));
    if (player.about.board) this.real.canvas.addEventListener("pointerdown", (event) => this.click(event));
  }
  click(event) {
    const { rows, columns, by } = this.player.about.board, box = this.real.canvas.getBoundingClientRect();
    const r = Math.floor((event.clientY - box.top) / box.height * rows), c = Math.floor((event.clientX - box.left) / box.width * columns);
    this.onmove?.(by === "column" ? c : r * columns + c, event.timeStamp);
  }
  async draw(t, single) {
    const ticks = this.player.branches.get(this.branch).ticks, tick = ticks[Math.min(t, ticks.length - 1)], about = this.player.about;
    this.title.textContent = single ? "" : `Branch ${this.branch}${t >= ticks.length ? `, ended at step ${ticks.length - 1}` : ""}`;
    this.title.hidden = single;
    const dreamed = tick.dreward !== undefined;
    this.dream.node.classList.toggle("on", dreamed);
    this.real.note.textContent = `step ${tick.t}`;
    this.dream.note.textContent = dreamed ? `${tick.t - tick.anchor} dreamed` : "sees reality";
    const over = (panel, text) => { panel.over.hidden = !text; panel.over.textContent = text || ""; };
    over(this.real, tick.image === undefined && about.picture ? "the recording went another way" : tick.last ? (tick.result || "episode over") : tick.first && tick.t ? "a new episode" : "");
    over(this.dream, dreamed && tick.dcont < 0.5 ? "the dream ends here" : dreamed && tick.dimage === undefined && about.picture ? "this model has no decoder: see the strips" : "");
    const images = await Promise.all([tick.image, tick.dimage ?? (dreamed ? null : tick.image)].map((data) => data ? picture(data) : null));
    [this.real, this.dream].forEach((panel, i) => { if (images[i]) paint(panel.canvas, images[i]); else if (panel.canvas.width) panel.canvas.getContext("2d").clearRect(0, 0, panel.canvas.width, panel.canvas.height); });
  }
}

/** The buttons of a game, its keys, and what is held down. */
class Pad {
  constructor(player) {
    this.player = player;
    const { kind, names, n, size } = player.about.action;
    this.kind = kind; this.names = names || [];
    this.keys = kind === "Discrete" ? keysOf(this.names) : [];
    this.values = kind === "Discrete" ? null : [...(n || []).map(() => 0), ...Array(kind === "Box" ? this.names.length : size || 0).fill(0)];
    this.down = new Map();
    this.node = h("div", { class: "pad" });
    this.render();
  }
  render() {
    const legal = this.player.tick?.legal;
    if (this.kind === "Discrete") {
      this.buttons = this.names.map((name, i) => {
        const shown = legal ? legal[i] : name;
        if (legal && shown === undefined) return null;
        const button = h("button", { "data-action": String(i) }, shown, this.keys[i] && !legal ? h("kbd", {}, SIGNS[this.keys[i]] || this.keys[i]) : null);
        button.addEventListener("pointerdown", (event) => { if (event.button) return; this.press(i, `pointer${event.pointerId}`, event.timeStamp); button.setPointerCapture(event.pointerId); });
        for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, (event) => this.release(`pointer${event.pointerId}`));
        button.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); this.press(i, "enter", event.timeStamp); this.release("enter"); } });
        return button;
      });
      this.node.replaceChildren(...this.buttons.filter(Boolean));
      return;
    }
    const about = this.player.about.action, count = (about.n || []).length;
    this.sliders = this.values.map((_, i) => i < count
      ? choice(`choice ${i + 1}`, Array.from({ length: about.n[i] }, (x, k) => [k, String(k)]), 0, (x) => { this.values[i] = +x; })
      : slider(this.names[i - count] || `entry ${i + 1}`, -1, 1, 0.05, 0, (x) => { this.values[i] = x; }, (x) => x.toFixed(2)));
    this.sliders.forEach((node) => { node.style.flex = "1 1 150px"; });
    const go = h("button", { class: "main", "data-action": "step" }, "Step", h("kbd", {}, "space"));
    go.addEventListener("click", (event) => this.player.step([...this.values], event.timeStamp));
    this.node.replaceChildren(...this.sliders, go);
  }
  /** A key of the game: what it does, as {id, action}, or null. */
  meaning(key) {
    if (this.kind === "Discrete") { const i = this.keys.indexOf(key.length === 1 ? key.toLowerCase() : key); return i < 0 ? null : { action: i }; }
    if (key === " ") return { action: [...this.values] };
    const entry = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1] }[key];
    if (this.kind !== "Box" || !entry || entry[0] >= this.values.length) return null;
    const values = [...this.values];
    values[entry[0]] = entry[1];
    return { action: values };
  }
  press(action, source, since) {
    this.down.set(source, action);
    this.player.held = action;
    this.mark(action, true);
    if (this.player.rate) return;
    if (this.onmove) this.onmove(action, since); else this.player.step(action, since);
  }
  release(source) {
    if (!this.down.has(source)) return;
    this.mark(this.down.get(source), false);
    this.down.delete(source);
    this.player.held = [...this.down.values()].pop() ?? null;
  }
  mark(action, on) {
    if (this.kind === "Discrete") this.buttons[action]?.classList.toggle("hit", on);
    else this.sliders.forEach((node, i) => node.set?.(on ? action[i] : this.values[i]));
  }
  idle() {
    if (this.kind !== "Discrete") return [...this.values];
    const still = this.keys.indexOf("0");
    return still >= 0 ? still : 0;
  }
}

function playPage(root, options) {
  root.append(h("h1", {}, "Play"));
  const lead = h("p", { class: "lead" }, "The same keys move the real game and the model’s dream of it. Watch where they part.");
  const body = h("div", {}, busy("looking for runs"));
  root.append(lead, body);
  let stop = () => {}, gone = false;
  api("runs").then(({ runs, recording }) => {
    if (gone) return;
    const playable = runs.filter((run) => run.playable && run.agent);
    if (!playable.length) return body.replaceChildren(h("p", { class: "note" }, "There is no run with a checkpoint here. Train one with ", h("code", {}, "jaxwm train dreamer-v3"), ", or visit the ", h("a", { href: "#maze" }, "maze"), "."));
    const wanted = options.get("run") || state.player?.run || playable[0].label;
    const run = runs.find((each) => each.label === wanted);
    const member = +(options.get("member") ?? (state.player?.run === wanted ? state.player.member : 0));
    const go = (label, m) => { location.hash = `#play?${query([["run", label], ["member", m]])}`; };
    const chooser = h("div", { class: "card row" },
      choice("Run", playable.map((each) => [each.label, `${each.label} · ${each.agent} · ${each.env}`]), wanted, (label) => go(label, 0)),
      run && run.members > 1 ? choice("Member", Array.from({ length: run.members }, (_, i) => [i, String(i)]), member, (m) => go(wanted, m)) : null,
      recording ? h("span", { class: "muted small" }, `recording: ${recording.name}`) : null);
    const table = h("div", {});
    table.style.marginTop = "16px";
    body.replaceChildren(chooser, table);
    const player = playerFor(wanted, member, options.get("seed"));
    stop = seat(table, player, recording);
  }, (error) => body.replaceChildren(wrong(error.message)));
  return () => { gone = true; stop(); };
}

/** The table at which a visitor plays, drawn anew when the player is ready. */
function seat(root, player, recording) {
  let leave = () => {};
  const show = () => {
    leave(); leave = () => {};
    if (player.status === "failed") root.replaceChildren(wrong(player.problem), h("p", {}, h("button", { onclick: () => { state.player = null; route(); } }, "Try again")));
    else if (player.status !== "ready") root.replaceChildren(busy(`Getting ready, so that no key has to wait later: ${player.progress || "connecting"} …`));
    else leave = table(root, player, recording);
  };
  const listener = (what) => { if (what === "status") show(); };
  player.listeners.add(listener);
  show();
  return () => { leave(); player.listeners.delete(listener); player.rate = 0; };
}

function table(root, player, recording) {
  const { about } = player, pad = new Pad(player), stages = h("div", { class: "grid" }), chips = h("div", { class: "row tight" });
  const numbers = about.numbers || [], strips = {
    reward: new Strip("reward"), cont: new Strip("continue", { range: [0, 1] }), error: new Strip("error"), doubt: new Strip("uncertainty"), value: new Strip("value"),
  };
  numbers.forEach((name, i) => { strips[`n${i}`] = new Strip(name); });
  const bars = h("div", { class: "bars" }), odds = h("div", { class: "card" }, h("h2", {}, "What the policy would do"), bars);
  const time = slider("Step", 0, 1, 1, 0, (t) => player.seek(t), (t) => `${t} of ${player.branch.ticks.length - 1}`);
  const policy = h("button", { "aria-pressed": "false", id: "policy", onclick: () => drive(!player.policy) }, about.board ? "It answers " : "Policy drives ", h("kbd", {}, "p"));
  const rate = choice("Pace", [[0, "one step per key"], [2, "2 steps/s"], [4, "4 steps/s"], [8, "8 steps/s"], [15, "15 steps/s"]], 0, (x) => pace(+x));
  const latency = h("span", { class: "muted small num", id: "latency" });
  let views = [], timer = 0, wants = 0, lastPad = {};

  function drive(on) { player.policy = on; policy.setAttribute("aria-pressed", String(on)); if (on && !player.rate && !about.board) { rate.input.value = "4"; pace(4); } if (!on && !about.board && rate.input.value === "4") { rate.input.value = "0"; pace(0); } }
  function pace(x) { player.rate = x; clearInterval(timer); if (x) timer = setInterval(() => { if (!document.hidden && !player.working) player.step(player.policy ? null : player.held ?? pad.idle()); }, 1000 / x); }
  const move = async (action, since) => { if (player.policy && !about.board) drive(false); await player.step(action, since); if (about.board && player.policy && !player.tick.last) await player.step(null); };

  function branches() {
    const names = [...player.branches.keys()];
    if (!player.branches.has(player.other) || player.other === player.current) player.other = names.find((name) => name !== player.current) ?? null;
    chips.replaceChildren(...names.map((name) => {
      const { parent, ticks } = player.branches.get(name);
      return h("button", { class: "small", "aria-pressed": String(name === player.current), title: parent ? `from ${parent[0]} at step ${parent[1]}` : "the first", onclick: () => { player.current = name; player.t = Math.min(player.t, ticks.length - 1); player.tell("branches"); } }, `${name} · ${ticks.length - 1}`);
    }), names.length > 1 ? h("label", { class: "row tight small" }, h("input", { type: "checkbox", id: "compare", checked: player.compare, onchange: (event) => { player.compare = event.target.checked; branches(); } }), `compare with ${player.other}`) : h("span", { class: "muted small" }, "Go back and press another key: a second branch begins."));
    const shown = player.compare && player.other ? [player.current, player.other] : [player.current];
    views = shown.map((name) => { const view = new Stage(player, name); view.onmove = move; return view; });
    stages.replaceChildren(...views.map((view) => view.node));
    const wanted = query([["session", player.session], ...shown.map((name) => ["branch", name])]);
    save.setAttribute("href", `api/gif?${wanted}`);
    tick();
  }

  function tick() {
    const { ticks } = player.branch, t = player.t, now = ticks[t];
    time.input.max = String(ticks.length - 1); time.set(t);
    player.drawn = Promise.all(views.map((view) => view.draw(t, views.length < 2)));
    if (now.legal) pad.render();
    const chip = chips.querySelector('[aria-pressed="true"]');
    if (chip) chip.textContent = `${player.current} · ${ticks.length - 1} step${ticks.length === 2 ? "" : "s"}`;
    const wide = player.compare && player.other ? player.branches.get(player.other).ticks : null;
    const last = Math.max(ticks.length, wide?.length || 0) - 1, from = Math.max(0, Math.min(t - 60, last - 120)), to = Math.min(last, Math.max(from + 120, 12));
    const lines = (real, dream) => [
      { values: ticks.map((x) => real(x) ?? null), hue: "ink" }, ...(dream && about.dreams ? [{ values: ticks.map((x) => dream(x) ?? null), hue: "dream" }] : []),
      ...(wide ? [{ values: wide.map((x) => real(x) ?? null), hue: "soft", dash: true }, ...(dream && about.dreams ? [{ values: wide.map((x) => dream(x) ?? null), hue: "dream", dash: true }] : [])] : []),
    ];
    const fill = { reward: lines((x) => x.reward, (x) => x.dreward), cont: lines((x) => x.cont, (x) => x.dcont), error: lines((x) => x.error), doubt: lines(() => null, (x) => x.doubt), value: lines((x) => x.value) };
    numbers.forEach((_, i) => { fill[`n${i}`] = lines((x) => x.numbers?.[i], (x) => x.dnumbers?.[i]); });
    for (const [name, strip] of Object.entries(strips)) {
      strip.node.hidden = !fill[name].some((line) => line.values.some((x) => x !== null));
      if (!strip.node.hidden) strip.set(fill[name], t, from, to);
    }
    odds.hidden = !now.odds;
    if (now.odds) chances(now);
    if (state.latencies.length && performance.now() - wants > 500) {
      wants = performance.now();
      const sorted = [...state.latencies].sort((a, b) => a - b), at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
      latency.textContent = `key to paint: median ${at(0.5).toFixed(0)} ms, 95th percentile ${at(0.95).toFixed(0)} ms`;
    }
  }

  function chances(now) {
    const names = about.action.names.map((name, i) => now.legal ? now.legal[i] : name);
    const shown = now.odds.map((p, i) => [p, i]).filter(([, i]) => names[i] !== undefined).sort((a, b) => now.odds.length > 10 ? b[0] - a[0] : a[1] - b[1]).slice(0, 10);
    bars.replaceChildren(...shown.map(([p, i]) => {
      const fill = h("div", { class: "fill" });
      fill.style.width = `${100 * p}%`;
      return h("div", { class: "bar" }, h("span", {}, names[i]), h("div", { class: "track" }, fill), h("span", { class: "n" }, `${Math.round(100 * p)} %`));
    }));
  }

  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input:not([type=checkbox]):not([type=range])")) return;
    if (event.target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    const own = { p: () => drive(!player.policy), n: () => player.begin({ do: "begin", ahead: 0 }), d: () => player.dream(), "[": () => player.seek(player.t - 1), "]": () => player.seek(player.t + 1), Backspace: () => player.seek(player.t - 1) }[event.key];
    const meant = pad.meaning(event.key);
    if (!own && !meant) return;
    if (event.key === " " && event.target.matches("button, a")) event.target.blur();
    event.preventDefault();
    if (own) { if (!event.repeat) own(); return; }
    if (event.repeat) { if (!player.rate) player.step(meant.action); return; }
    if (player.policy && !about.board) drive(false);
    pad.press(meant.action, `key ${event.key}`, event.timeStamp);
  };
  const up = (event) => pad.release(`key ${event.key}`);
  const lost = () => { for (const source of [...pad.down.keys()]) pad.release(source); };
  document.addEventListener("keydown", keys); document.addEventListener("keyup", up); window.addEventListener("blur", lost);

  let polling = requestAnimationFrame(function poll() {
    for (const device of navigator.getGamepads?.() || []) {
      if (!device) continue;
      const axis = (i) => device.axes[i] || 0, on = { ArrowUp: device.buttons[12]?.pressed || axis(1) < -0.5, ArrowDown: device.buttons[13]?.pressed || axis(1) > 0.5, ArrowLeft: device.buttons[14]?.pressed || axis(0) < -0.5, ArrowRight: device.buttons[15]?.pressed || axis(0) > 0.5, " ": device.buttons[0]?.pressed, 1: device.buttons[1]?.pressed, 2: device.buttons[2]?.pressed, 3: device.buttons[3]?.pressed };
      for (const [key, pressed] of Object.entries(on)) {
        const meant = pressed !== !!lastPad[key] ? pad.meaning(key) : null;
        if (meant && pressed) pad.press(meant.action, `gamepad ${key}`, performance.now());
        if (meant && !pressed) pad.release(`gamepad ${key}`);
      }
      lastPad = on;
    }
    polling = requestAnimationFrame(poll);
  });

  const save = h("a", { class: "button", id: "gif", download: "dream.gif", hidden: !about.picture }, "Save as GIF");
  const ahead = slider("after so many steps of the policy", 0, 200, 1, 0, () => {});
  const start = h("div", { class: "card grid" }, h("h2", {}, "Where to begin"), ahead, h("button", { id: "new", onclick: () => player.begin({ do: "begin", ahead: +ahead.input.value }) }, "New episode ", h("kbd", {}, "n")), recording ? recorded(player, recording) : null);
  const heat = about.temperature !== null ? slider("Temperature of the dream", 0.1, 3, 0.05, about.temperature, (x) => player.set({ temperature: x })) : null;
  const tune = h("div", { class: "card grid" }, h("h2", {}, "The policy and the dream"),
    choice("plays", [["greedy", "its best (greedy)"], ["explore", "as in training (explore)"]], player.settings.mode, (mode) => player.set({ mode })),
    about.dreams ? choice("sees", [["real", "reality"], ["dream", "the dream"]], player.settings.sight, (sight) => player.set({ sight })) : null, heat,
    about.dreams && about.picture ? h("label", { class: "row tight small" }, h("input", { type: "checkbox", id: "doubt", checked: player.settings.doubt, onchange: (event) => player.set({ doubt: event.target.checked }) }), "measure uncertainty (eight dreams per step)") : null,
    about.quick ? null : h("p", { class: "muted small" }, "This policy plans for long, so it is asked only where it plays."));
  const swatches = about.legend.map(([colour, word]) => { const box = h("i", { class: "swatch" }); box.style.background = colour; return h("span", {}, box, word); });
  const left = h("div", { class: "grid" },
    h("div", { class: "card grid" }, about.picture ? stages : h("p", { class: "note" }, "These observations are numbers: follow them on the strips, reality in ink and the dream in orange."), swatches.length ? h("div", { class: "legend" }, swatches) : null,
      pad.node, h("div", { class: "row transport" }, policy, h("button", { onclick: () => player.step(null) }, about.board ? "Let it move" : "One step of the policy"), about.dreams ? h("button", { id: "dream-here", title: "The model sees reality up to here, and dreams on", onclick: () => player.dream() }, "Dream from here ", h("kbd", {}, "d")) : null, about.board ? null : rate),
      time, h("div", { class: "row spread" }, chips, h("div", { class: "row" }, latency, save))));
  const right = h("div", { class: "grid" }, h("div", { class: "card" }, h("div", { class: "row spread" }, h("h2", {}, "Step by step"), h("div", { class: "legend" }, key("ink", "real"), about.dreams ? key("dream", "dreamed") : null)), Object.values(strips).map((strip) => strip.node)), odds, start, tune);
  root.replaceChildren(h("div", { class: "side" }, left, right));
  const listener = (what) => { if (what === "branches") branches(); else if (what === "tick") tick(); };
  if (about.board) { drive(true); pad.onmove = move; }
  player.listeners.add(listener);
  redraws.add({ draw: tick, canvas: root, mark: player });
  branches();
  return () => { player.listeners.delete(listener); clearInterval(timer); cancelAnimationFrame(polling); document.removeEventListener("keydown", keys); document.removeEventListener("keyup", up); window.removeEventListener("blur", lost); for (const each of redraws) if (each.mark === player) redraws.delete(each); player.policy = false; };
}

function key(hue, word) { const line = h("i", { class: "key" }); line.style.color = `var(--${hue})`; return h("span", {}, line, word); }

function recorded(player, recording) {
  let episode = 0, at = 0;
  const step = slider("at its step", 0, Math.max(0, recording.lengths[0] - 2), 1, 0, (x) => { at = x; });
  const which = slider("Episode of the recording", 0, recording.lengths.length - 1, 1, 0, (x) => { episode = x; step.input.max = String(Math.max(0, recording.lengths[x] - 2)); at = Math.min(at, +step.input.max); step.set(at); });
  return h("div", { class: "grid" }, which, step, h("button", { id: "recall", onclick: () => player.begin({ do: "recall", episode, at }) }, "Begin in the recording"));
}

// --- Dreams: how good they are --------------------------------------------------------------------------------------
const CURVES = { dream: ["dream", 0], shuffled: ["blue", 1], copy: ["green", 2] };

function dreamsPage(root, options) {
  const body = h("div", {}, busy("looking for runs"));
  root.append(h("h1", {}, "Dream quality"), h("p", { class: "lead" }, "The model sees some real steps, then dreams on under the actions that were really taken. Two baselines say what its error is worth: a world that never changes, and a dream under the actions of another moment."), body);
  let gone = false;
  api("runs").then(({ runs }) => {
    if (gone) return;
    const able = runs.filter((run) => run.playable && run.agent);
    if (!able.length) return body.replaceChildren(h("p", { class: "note" }, "There is no run with a checkpoint here yet."));
    let label = options.get("run") || state.player?.run || able[0].label, member = +(options.get("member") || 0), temperature = null, asked = 0;
    const bar = h("div", { class: "card row" }), found = h("div", { class: "grid" });
    found.style.marginTop = "16px";
    body.replaceChildren(bar, found);
    async function load() {
      const mine = ++asked, run = able.find((each) => each.label === label);
      found.replaceChildren(busy("Playing, dreaming and comparing. The first time compiles, which takes a while …"));
      bar.replaceChildren(choice("Run", able.map((each) => [each.label, `${each.label} · ${each.agent} · ${each.env}`]), label, (x) => { label = x; member = 0; temperature = null; load(); }),
        run && run.members > 1 ? choice("Member", Array.from({ length: run.members }, (_, i) => [i, String(i)]), member, (x) => { member = +x; load(); }) : "");
      try {
        const about = await api("quality", [["run", label], ["member", member], ["temperature", temperature]]);
        if (gone || mine !== asked) return;
        draw(about);
      } catch (error) { if (!gone && mine === asked) found.replaceChildren(wrong(error.message)); }
    }
    function draw(about) {
      const charts = Object.entries(about.quantities).map(([name, { unit, curves }]) => {
        const chart = new Chart({ height: 220, xlabel: "steps dreamed", ylabel: unit, zero: true, title: `Error of ${name}` });
        return { chart, name, curves, node: h("div", { class: "card" }, h("h2", {}, name), chart.node) };
      });
      let horizon = about.horizon;
      const crop = () => charts.forEach(({ chart, curves }) => chart.set(Object.entries(curves).map(([curve, { mean, half }]) => {
        const x = mean.slice(0, horizon).map((_, i) => i + 1), off = (sign) => mean.slice(0, horizon).map((y, i) => y === null || half[i] === null ? null : y + sign * half[i]);
        return { name: about.labels[curve], hue: CURVES[curve][0], dash: CURVES[curve][1], x, y: mean.slice(0, horizon), low: off(-1), high: off(1) };
      })));
      const long = slider("Horizon", 2, about.horizon, 1, horizon, (x) => { horizon = x; crop(); }, (x) => `${x} steps`);
      long.id = "horizon";
      let waiting = 0;
      const heat = about.temperature === null ? null : slider("Temperature", 0.1, 3, 0.05, temperature ?? about.temperature, (x) => { clearTimeout(waiting); waiting = setTimeout(() => { temperature = x; load(); }, 400); });
      while (bar.children.length > 2 || (bar.lastElementChild && bar.lastElementChild.querySelector("input"))) bar.lastElementChild.remove();
      bar.append(long, ...(heat ? [heat] : []));
      found.replaceChildren(h("div", { class: "card" }, h("h2", {}, "In words"), about.verdict.map((text) => h("p", {}, text)), h("p", { class: "muted small" }, `${about.windows} moments, ${about.context} real steps before each. Bands are 95 % intervals of the mean.`)),
        h("div", { class: "cols" }, charts.map((each) => each.node)), spreadCard(label, () => member, () => temperature, about), worstCard(about));
      crop();
    }
    load();
  }, (error) => body.replaceChildren(wrong(error.message)));
  return () => { gone = true; };
}

function worstCard(about) {
  if (!about.worst.length) return null;
  return h("div", { class: "card" }, h("h2", {}, "Where the model is most wrong"), h("div", { class: "worst" }, about.worst.map((each) => h("figure", {}, h("div", { class: "three" }, each.pictures.map((data, i) => h("img", { alt: ["truth", "dream", "error"][i], src: `data:image/png;base64,${data}` }))), h("figcaption", { class: "muted small" }, `truth, dream and error after ${each.step} dreamed steps (${plain(each.error)})`)))));
}

function spreadCard(label, member, temperature, about) {
  const image = h("img", { class: "sheet", alt: "sixteen dreams of one moment" }), chart = new Chart({ height: 180, xlabel: "steps dreamed", ylabel: "standard deviation over 16 dreams", zero: true });
  let found = null, step = 1, mine = 0;
  const show = () => { if (found?.sheets.length) image.src = `data:image/png;base64,${found.sheets[clamp(step, 1, found.sheets.length) - 1]}`; };
  const when = slider("Step", 1, about.horizon, 1, 1, (x) => { step = x; show(); });
  const which = slider("Moment", 0, about.windows - 1, 1, 0, () => { clearTimeout(mine); mine = setTimeout(load, 250); });
  const box = h("div", {}, h("button", { id: "spread", onclick: () => load() }, "Dream sixteen times"));
  async function load() {
    if (!found) box.replaceChildren(busy("dreaming sixteen times …"));
    try {
      found = await api("spread", [["run", label], ["member", member()], ["moment", +which.input.value], ["temperature", temperature()]]);
      box.replaceChildren(h("div", { class: "row" }, which, when), ...(found.sheets.length ? [h("p", { class: "muted small" }, "Left the truth, right sixteen dreams of it under the same actions."), image] : []), chart.node);
      chart.set(Object.entries(found.apart).map(([name, y], i) => ({ name, hue: HUES[i % HUES.length], dash: i % DASHES.length, x: y.map((_, t) => t + 1), y })));
      show();
    } catch (error) { box.replaceChildren(wrong(error.message)); }
  }
  return h("div", { class: "card" }, h("h2", {}, "How far sixteen dreams of one moment are apart"), box);
}

// --- Plan -----------------------------------------------------------------------------------------------------------
function planPage(root) {
  root.append(h("h1", {}, "Plan"), h("p", { class: "lead" }, "What the policy intends at the moment where you are in Play: its search tree, where it searches one, and sixteen futures in which it dreams that it acts."));
  const player = state.player, body = h("div", { class: "grid" });
  root.append(body);
  if (!player) { body.append(h("p", { class: "note" }, "First open a run on the page ", h("a", { href: "#play" }, "Play"), "; then come back here.")); return () => {}; }
  let gone = false;
  const load = async () => {
    if (player.status !== "ready") { body.replaceChildren(player.status === "failed" ? wrong(player.problem) : busy(`getting ready: ${player.progress || "connecting"} …`)); return; }
    body.replaceChildren(busy("planning (the first time compiles) …"));
    const found = await player.ask({ do: "plan", branch: player.current, t: player.t });
    if (gone) return;
    if (found.kind !== "plan") return body.replaceChildren(wrong(found.text));
    const canvas = h("canvas", {}), now = player.tick;
    if (now.image) picture(now.image).then((image) => paint(canvas, image));
    const head = h("div", { class: "card row" }, now.image ? h("div", { class: `frame${player.about.smooth ? "" : " grid"}` }, canvas) : null, h("div", {}, h("p", {}, h("b", {}, player.run), `, branch ${player.current}, step ${player.t}`), h("div", { class: "row" }, h("button", { onclick: async () => { await player.step(null); load(); } }, "One step of the policy"), h("a", { class: "button", href: "#play" }, "Back to Play"))));
    if (now.image) head.firstChild.style.width = "160px";
    body.replaceChildren(head, ...(found.tree ? treeCards(found.tree) : []), ...(found.futures ? [futureCard(found.futures)] : []));
    for (const each of redraws) each.draw();
  };
  const listener = (what) => { if (what === "status") load(); };
  player.listeners.add(listener);
  load();
  return () => { gone = true; player.listeners.delete(listener); };
}

function treeCards(tree) {
  const canvas = h("canvas", { class: "chart", role: "img", "aria-label": "search tree" }), most = Math.max(...tree.root.map((row) => row.visits), 1);
  const draw = () => {
    if (!canvas.isConnected) return;
    const children = new Map(), byId = new Map(tree.nodes.map((node) => [node.id, node]));
    tree.nodes.forEach((node) => { if (node.parent !== null) children.set(node.parent, [...(children.get(node.parent) || []), node]); });
    let leaves = 0, deep = 0;
    (function place(node, depth) { node.depth = depth; deep = Math.max(deep, depth); const own = children.get(node.id) || []; own.forEach((child) => place(child, depth + 1)); node.x = own.length ? own.reduce((a, c) => a + c.x, 0) / own.length : leaves++; })(byId.get(0), 0);
    const { pen, width, height } = sheet(canvas, clamp(60 + deep * 62, 160, 560));
    const X = (node) => 26 + (leaves > 1 ? node.x / (leaves - 1) : 0.5) * (width - 52), Y = (node) => 24 + node.depth / Math.max(1, deep) * (height - 52);
    const values = tree.nodes.map((node) => node.value), low = Math.min(...values), high = Math.max(...values);
    for (const node of tree.nodes) { if (node.parent === null) continue; const above = byId.get(node.parent); pen.strokeStyle = shade("soft"); pen.globalAlpha = 0.6; pen.lineWidth = 0.7 + 5 * node.visits / tree.simulations; pen.beginPath(); pen.moveTo(X(above), Y(above)); pen.lineTo(X(node), Y(node)); pen.stroke(); pen.globalAlpha = 1; }
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif"; pen.textAlign = "center";
    for (const node of tree.nodes) {
      const radius = 4 + 12 * Math.sqrt(node.visits / tree.simulations);
      pen.fillStyle = shade("card"); pen.beginPath(); pen.arc(X(node), Y(node), radius, 0, 7); pen.fill();
      pen.globalAlpha = high > low ? 0.15 + 0.85 * (node.value - low) / (high - low) : 0.6; pen.fillStyle = shade("high"); pen.fill(); pen.globalAlpha = 1;
      pen.strokeStyle = shade("soft"); pen.lineWidth = 1; pen.stroke();
      pen.fillStyle = shade("ink");
      if (leaves <= width / 46 || node.depth < 2) pen.fillText(node.action.slice(0, 12), X(node), Y(node) + radius + 12);
    }
  };
  redraws.add({ draw, canvas });
  const row = (each) => { const fill = h("div", { class: "fill" }); fill.style.width = `${100 * each.visits / most}%`; return h("tr", {}, h("td", {}, each.action), h("td", {}, h("div", { class: "bar" }, h("div", { class: "track" }, fill))), h("td", { class: "r" }, String(each.visits)), h("td", { class: "r" }, plain(each.q)), h("td", { class: "r" }, `${Math.round(100 * each.prior)} %`)); };
  const rows = h("table", {}, h("thead", {}, h("tr", {}, ["action", ""].map((x) => h("th", {}, x)), ["visits", "value", "prior"].map((x) => h("th", { class: "r" }, x)))), h("tbody", {}, tree.root.map(row)));
  rows.querySelectorAll(".bar").forEach((bar) => { bar.style.gridTemplateColumns = "minmax(60px, 1fr)"; });
  return [h("div", { class: "card" }, h("h2", {}, `Search tree, ${tree.simulations} visits of the root`), canvas, h("p", { class: "muted small" }, "A larger node was visited more often, a darker one is worth more. The most visited nodes only.")), h("div", { class: "card scroll" }, h("h2", {}, "The root"), rows)];
}

function futureCard(found) {
  const returns = new Chart({ height: 210, xlabel: "steps ahead", ylabel: "return so far", legend: false }), image = h("img", { class: "sheet", alt: "sixteen futures laid over each other" });
  returns.set(found.returns.map((y) => ({ hue: "dream", thin: true, x: y.map((_, t) => t), y })).concat([{ name: "mean", hue: "ink", x: found.returns[0].map((_, t) => t), y: found.returns[0].map((_, t) => found.returns.reduce((a, y) => a + y[t], 0) / found.returns.length) }]));
  const counts = new Map();
  found.first.forEach((name) => counts.set(name, (counts.get(name) || 0) + 1));
  const more = Object.entries(found.numbers || {}).map(([name, lines]) => { const chart = new Chart({ height: 150, xlabel: "steps ahead", ylabel: name, legend: false }); chart.set(lines.map((y) => ({ hue: "dream", thin: true, x: y.map((_, t) => t + 1), y }))); return h("div", {}, chart.node); });
  const ghosts = found.ghosts?.length ? h("div", {}, slider("Steps ahead", 1, found.ghosts.length, 1, 1, (t) => { image.src = `data:image/png;base64,${found.ghosts[t - 1]}`; }), image) : null;
  if (ghosts) { image.src = `data:image/png;base64,${found.ghosts[0]}`; image.style.width = "auto"; image.style.height = "300px"; }
  return h("div", { class: "card" }, h("h2", {}, "Sixteen futures"), h("p", { class: "muted small" }, `First action: ${[...counts].sort((a, b) => b[1] - a[1]).slice(0, 6).map(([name, n]) => `${name} (${n})`).join(", ")}. `), h("div", { class: "cols" }, returns.node, ghosts), more.length ? h("div", { class: "cols" }, more) : null);
}

// --- Pages ----------------------------------------------------------------------------------------------------------
const PAGES = { maze: mazePage, runs: runsPage, play: playPage, dreams: dreamsPage, plan: planPage };
let leave = () => {};

function route() {
  const [name, rest] = location.hash.slice(1).split("?"), page = name in PAGES ? name : "maze", root = $("#page");
  leave();
  for (const each of redraws) if (!each.mark) redraws.delete(each);
  document.querySelectorAll("nav a").forEach((link) => { if (link.hash === `#${page}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current"); });
  document.title = `${page} · jaxwm studio`;
  root.replaceChildren();
  leave = PAGES[page](root, new URLSearchParams(rest || "")) || (() => {});
}

function theme(next) {
  const kept = localStorage.getItem("theme");
  const value = next ? { light: "dark", dark: "light" }[kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")] : kept;
  if (value) { document.documentElement.dataset.theme = value; if (next) localStorage.setItem("theme", value); }
  redraw();
}
function redraw() { for (const each of redraws) if (each.canvas.isConnected) each.draw(); }

$("#theme").addEventListener("click", () => theme(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let resizing = 0;
window.addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(redraw, 80); });
window.addEventListener("hashchange", route);
theme(false);
route();
