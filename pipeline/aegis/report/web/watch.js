// the numbers of a training, asked for again and again
const EVERY_MS = 2000;
const SILENT_S = 120;
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM] = [480, 200, 56, 24];
let state = null;
let lost = false;
let shownReport = null;

const last = (values) => values.findLast((value) => value !== null) ?? null;
const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));

async function look() {
  try {
    const response = await fetch("/state");
    if (!response.ok) throw new Error(String(response.status));
    state = await response.json();
    lost = false;
  } catch {
    lost = true;
  }
  draw();
  setTimeout(look, EVERY_MS);
}

function draw() {
  if (state !== null) {
    byId("title").textContent = state.name;
    document.title = `${state.name} – AEGIS`;
    drawTiles(state.series);
    byId("charts").replaceChildren(...charts(state.series));
    drawAnswers(state.answers);
    drawReport();
  }
  byId("state").className = lost ? "bad" : "soft";
  byId("state").textContent = lost ? text("lost") : sentence();
}

function sentence() {
  const silent = state.state === "running" && state.age !== null && state.age > SILENT_S;
  return silent ? text("watch_silent", { age: duration(state.age) }) : text(`watch_${state.state === "ended" && state.report ? "reported" : state.state}`);
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? text("watch_minutes", { minutes, seconds: Math.floor(seconds % 60) })
    : text("watch_hours", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}

function drawTiles(series) {
  const step = last(series.step) ?? 0;
  const phase = state.phase === null ? "" : text(`watch_phase_${state.phase}`);
  const tiles = [
    ["watch_step", state.planned === null ? String(step) : text("watch_steps", { step, planned: state.planned })],
    ["watch_left", state.seconds_left === null ? "–" : duration(state.seconds_left)],
    ["watch_epoch", short(state.epoch)],
    ["watch_loss", short(last(smoothed(series.task_loss))), short(last(series.task_loss))],
    ["watch_heldout", short(last(series.heldout_loss))],
    ["watch_kept", short(last(series.keep_kl))],
    ["watch_alpha", short(last(series.alpha)), `g ${short(last(series.gate))} ${phase}`],
    ["watch_speed", short(last(series.tokens_per_second))],
    ["watch_memory", state.peak_bytes ? `${(state.peak_bytes / 2 ** 30).toFixed(2)} GiB` : "–"],
  ];
  byId("tiles").hidden = state.state === "waiting";
  byId("tiles").replaceChildren(
    ...tiles.map(([key, value, note]) => {
      const tile = make("div");
      const shown = make("dd", "", value);
      if (note) shown.append(make("small", "", note));
      tile.append(make("dt", "", text(key)), shown);
      return tile;
    }),
  );
  byId("progress").hidden = state.planned === null || state.state === "waiting";
  byId("progress").value = state.planned ? step / state.planned : 0;
}

// a moving average over about a fortieth of the curve, so that a long one is as smooth as a short one
function smoothed(values) {
  const kept = 1 - 1 / Math.max(4, values.length / 40);
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = kept * sum + (1 - kept) * value;
    weight = kept * weight + 1 - kept;
    return sum / weight;
  });
}

function charts(series) {
  const losses = [
    { kind: "faint", key: "watch_training", values: series.task_loss },
    { kind: "first", key: "watch_smoothed", values: smoothed(series.task_loss) },
    { kind: "second", key: "watch_heldout", values: series.heldout_loss },
  ];
  const gates = [
    { kind: "first", name: "α", values: series.alpha },
    { kind: "second", name: "g", values: series.gate },
  ];
  return [
    chart("watch_loss", series.step, losses),
    chart("watch_kept", series.step, [{ kind: "first", values: series.keep_kl }]),
    chart("watch_alpha", series.step, gates),
    chart("watch_speed", series.step, [{ kind: "first", values: series.tokens_per_second }]),
  ].filter((found) => found !== null);
}

// a chart with a line per series; null if there are no two points to connect
function chart(title, steps, lines) {
  const known = lines.filter((line) => line.values.filter((value) => value !== null).length > 1);
  if (!known.length) return null;
  const all = known.flatMap((line) => line.values).filter((value) => value !== null);
  let [low, high] = [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  if (low === high) [low, high] = [low - 1, high + 1];
  const end = Math.max(state.planned ?? 0, last(steps));
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / end;
  const y = (value) => 8 + ((HEIGHT - BOTTOM - 8) * (high - value)) / (high - low);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text(title) });
  for (const part of [0, 0.5, 1]) {
    const value = low + part * (high - low);
    svg.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toPrecision(3)))));
    const anchor = { 0: "start", 0.5: "middle", 1: "end" }[part];
    svg.append(drawn("text", { x: x(part * end), y: HEIGHT - 6, "text-anchor": anchor }, String(Math.round(part * end))));
  }
  for (const line of known) {
    const points = steps.flatMap((step, i) => (line.values[i] === null ? [] : [`${x(step)},${y(line.values[i])}`]));
    svg.append(drawn("polyline", { class: line.kind, points: points.join(" ") }));
  }
  const box = make("section");
  const legend = make("p", "legend");
  if (lines.length > 1) legend.append(...known.map((line) => make("span", line.kind, line.name ?? text(line.key))));
  box.append(make("h2", "", text(title)), legend, svg);
  return box;
}

function drawn(tag, attributes, words = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = words;
  return element;
}

function drawAnswers(answers) {
  byId("answers").hidden = !answers.length;
  if (!answers.length) return;
  byId("answered").textContent = text("watch_answers", { step: answers[0].step });
  byId("asked").replaceChildren(
    ...answers.map(({ question, answer, cut, reference }) => {
      const box = make("dl");
      box.append(
        pair("question", "watch_question", question),
        pair("", "watch_answer", answer + (cut ? "…" : "") || "–"),
        ...(reference ? [pair("", "watch_reference", reference)] : []),
      );
      return box;
    }),
  );
}

function pair(kind, key, words) {
  const box = make("div", kind);
  box.append(make("dt", "", text(key)), make("dd", "", words));
  return box;
}

function drawReport() {
  byId("report").hidden = state.report === null;
  if (state.report === null || state.report === shownReport) return;
  shownReport = state.report;
  byId("frame").src = `/report?${state.report}`;
}

document.addEventListener("translated", () => state && draw());
translate();
look();
