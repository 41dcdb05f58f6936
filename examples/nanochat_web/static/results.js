// What came out of the evaluations, by model: a table that can be sorted, one task as a plot over steps, a CSV file.

import { $, make, whole } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const ALL = "All tasks";
const COLUMNS = [
  ["Model", (row) => row.model], ["Stage", (row) => row.stage], ["Step", (row) => row.step], ["Task", (row) => row.task],
  ["Score", (row) => row.score], ["Problems", (row) => row.problems], ["Date", (row) => row.date],
];
let rows = [];
let drawn = "";
let sorted = { by: 6, down: true };

export function start() {
  $("#results-task").addEventListener("change", show);
  $("#results-save").addEventListener("click", save);
}

// The id of a model is its stage, tag and step; newer nanochat has the name of an experiment before them.
function row({ model, task, progress, ended }) {
  const parts = model.split("/");
  const step = Number(parts.pop());
  const tag = parts.pop();
  const stage = parts.pop();
  return {
    model: [...parts, tag].join("/"), stage, step, task, score: progress.result, date: ended,
    problems: progress.unit === "core" ? null : progress.done, core: progress.unit === "core",
  };
}

const score = ({ score: value, core }) => (core ? value.toFixed(4) : `${value.toFixed(2)} %`);
const day = (seconds) => new Date(seconds * 1000).toLocaleString("sv").slice(0, 16);

export function draw(runs) {
  rows = runs.filter((run) => run.state === "done" && run.progress.result !== null).map(row);
  const state = JSON.stringify(rows);
  if (state === drawn) return;
  drawn = state;
  $("#results").hidden = rows.length === 0;
  const select = $("#results-task");
  const before = select.value || ALL;
  const tasks = [...new Set(rows.map(({ task }) => task))].sort();
  select.replaceChildren(...[ALL, ...tasks].map((task) => make("option", { value: task }, task)));
  select.value = tasks.includes(before) ? before : tasks.length === 1 ? tasks[0] : ALL;
  show();
}

function chosen() {
  const task = $("#results-task").value;
  const value = COLUMNS[sorted.by][1];
  const order = (a, b) => {
    const [x, y] = [value(a) ?? -1, value(b) ?? -1];
    return typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
  };
  const found = rows.filter((one) => task === ALL || one.task === task).sort(order);
  return sorted.down ? found.reverse() : found;
}

function show() {
  const head = COLUMNS.map(([name], at) => make("th", {
    scope: "col", "aria-sort": at === sorted.by ? (sorted.down ? "descending" : "ascending") : null,
  }, make("button", { type: "button", class: "sort", "data-column": name, onclick: () => {
    sorted = { by: at, down: at === sorted.by ? !sorted.down : at >= 4 };
    show();
    $(`#results-table [data-column="${name}"]`).focus();
  } }, name, at === sorted.by && make("span", { "aria-hidden": "true" }, sorted.down ? " ↓" : " ↑"))));
  const body = chosen().map((one) => make("tr", {},
    make("td", {}, one.model), make("td", {}, one.stage), make("td", { class: "number" }, whole(one.step)), make("td", {}, one.task),
    make("td", { class: "number" }, score(one)), make("td", { class: "number" }, one.problems === null ? "" : whole(one.problems)),
    make("td", {}, day(one.date))));
  $("#results-table").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  plot($("#results-task").value);
}

// -- the plot

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// About `count` round numbers that cover a range.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.floor(low / step) * step; at <= high + step * 0.999; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

const WIDTH = 720;
const HEIGHT = 260;
const LEFT = 56;
const RIGHT = 110;
const TOP = 14;
const BOTTOM = 40;

function plot(task) {
  const box = $("#plot");
  const points = rows.filter((one) => one.task === task);
  box.hidden = task === ALL || points.length === 0;
  if (box.hidden) return;
  const xs = ticks(Math.min(...points.map(({ step }) => step)), Math.max(...points.map(({ step }) => step)), 5);
  const ys = ticks(Math.min(0, ...points.map((one) => one.score)), Math.max(...points.map((one) => one.score)), 4);
  const x = (value) => LEFT + ((value - xs[0]) / (xs.at(-1) - xs[0] || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - ys[0]) / (ys.at(-1) - ys[0] || 1)) * (HEIGHT - TOP - BOTTOM);
  const text = (at, up, words, more = {}) => shape("text", { x: at, y: up, ...more }, words);
  const lines = new Map();
  for (const one of points) {
    const name = `${one.model} ${one.stage}`;
    lines.set(name, [...(lines.get(name) ?? []), one].sort((a, b) => a.step - b.step || a.date - b.date));
  }
  const parts = [
    ...ys.flatMap((value) => [
      shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      text(LEFT - 8, y(value) + 4, String(value), { "text-anchor": "end" })]),
    ...xs.map((value) => text(x(value), HEIGHT - BOTTOM + 18, whole(value), { "text-anchor": "middle" })),
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "step", { "text-anchor": "middle" }),
  ];
  let free = -Infinity;
  const labels = [...lines].map(([name, line], at) => ({ name, line, at })).sort((a, b) => y(a.line.at(-1).score) - y(b.line.at(-1).score));
  for (const { name, line, at } of labels) {
    const way = line.map((one) => `${x(one.step)},${y(one.score)}`).join(" ");
    const dots = line.map((one) => shape("circle", { cx: x(one.step), cy: y(one.score), r: 4 },
      shape("title", {}, `${name}, step ${whole(one.step)}: ${score(one)}`)));
    free = Math.max(free + 15, y(line.at(-1).score) + 4); // names do not lie upon one another
    parts.push(shape("g", { class: `series series-${at % 6}` }, shape("polyline", { points: way }), ...dots,
      text(x(line.at(-1).step) + 10, free, name)));
  }
  box.tabIndex = 0; // on a phone it is wider than the page
  const unit = points[0].core ? "CORE" : "% right";
  box.replaceChildren(make("p", { class: "small quiet" }, `${task}, ${unit}, over the step of the checkpoint`),
    shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${task} over steps; the table below has the numbers` }, ...parts));
}

// -- the file

function save() {
  const quoted = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
  const lines = chosen().map((one) => [one.model, one.stage, one.step, one.task, one.score, one.problems,
    new Date(one.date * 1000).toISOString()].map(quoted).join(","));
  const text = `${["model,stage,step,task,score,problems,date", ...lines].join("\r\n")}\r\n`;
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: url, download: "nanochat-results.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
