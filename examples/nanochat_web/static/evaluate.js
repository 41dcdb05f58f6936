// Evaluations: start one, watch it, call it off, read what came out.

import * as api from "./api.js";
import { $, age, arrange, copy, make, say, span, whole } from "./dom.js";
import { catalog, metric, usable } from "./models.js";
import * as results from "./results.js";

const EVERY = 1000;
const STATES = {
  queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled", interrupted: "Cut off",
};
let visible = false;
let timer = null;
let known = new Map(); // id -> its element and the state it shows
let lost = false; // the server could not be asked
let seen = new Map(); // id -> state, for what is said aloud

export function start() {
  $("#evaluation-model").addEventListener("change", offer);
  $("#evaluation").addEventListener("submit", submit);
  results.start();
}

export function show(yes, chosen) {
  visible = yes;
  clearTimeout(timer);
  if (!yes) return;
  choose(usable(chosen)?.id);
  poll();
}

// The list of models has changed.
export function renew() {
  if (visible) choose();
}

function choose(chosen) {
  const select = $("#evaluation-model");
  const before = select.value || chosen;
  select.replaceChildren(...catalog.models.filter((model) => !model.problem).map((model) => make("option", { value: model.id },
    [model.name, metric(model)].filter(Boolean).join(" · "))));
  if (before) select.value = before;
  if (select.selectedIndex < 0) select.selectedIndex = 0; // the checkpoint is gone
  $("#evaluation").hidden = select.options.length === 0;
  offer();
}

async function offer() {
  const model = $("#evaluation-model").value;
  if (!model) return;
  let tasks;
  try {
    ({ tasks } = await api.get(`evaluations/tasks?model=${encodeURIComponent(model)}`));
  } catch (error) {
    complain(error);
    return;
  }
  if (model !== $("#evaluation-model").value) return;
  const before = document.querySelector("input[name=task]:checked")?.value;
  const first = tasks.find((task) => !task.refusal);
  const chosen = tasks.find((task) => task.name === before && !task.refusal) ?? first;
  const focused = $("#tasks").contains(document.activeElement);
  $("#tasks").replaceChildren(...tasks.map((task) => make("label", { class: `task ${task.refusal ? "off" : ""}` },
    make("input", { type: "radio", name: "task", value: task.name, disabled: Boolean(task.refusal), checked: task === chosen }),
    make("span", { class: "task-name" }, task.name),
    make("span", { class: "quiet small" }, task.refusal ?? about(task)))));
  if (focused) document.querySelector("input[name=task]:checked")?.focus();
  $("#start").disabled = !first;
}

function about({ name, about: what, size, data }) {
  const first = data.there ? "" : `; downloads ${data.name} first`;
  return `${what}; ${whole(size)} ${name === "CORE" ? "tasks" : "problems"}${first}`;
}

function complain(error) {
  if (!(error instanceof api.ServerError)) throw error;
  const box = $("#evaluation-error");
  box.hidden = false;
  box.textContent = [error.message, error.hint].filter(Boolean).join(" ");
}

async function submit(event) {
  event.preventDefault();
  const task = document.querySelector("input[name=task]:checked")?.value;
  const limit = $("#limit").value === "" ? null : Number($("#limit").value);
  $("#evaluation-error").hidden = true;
  try {
    await api.post("evaluations", { model: $("#evaluation-model").value, task, limit });
    say(`${task} was put in line.`);
    await poll();
  } catch (error) {
    complain(error);
  }
}

async function poll() {
  clearTimeout(timer);
  try {
    draw(await api.get("evaluations"));
    if (lost) {
      $("#evaluation-error").hidden = true;
      choose(); // its tasks may not have come either
    }
    lost = false;
  } catch (error) {
    if (!(error instanceof api.ServerError)) throw error;
    lost = true;
    const words = `${error.message} ${error.hint}`;
    if ($("#runs-error").textContent !== words) $("#runs-error").textContent = words; // said aloud once, not every second
  }
  $("#runs-error").hidden = !lost;
  if (visible) timer = setTimeout(poll, EVERY);
}

function draw({ runs, folder, broken }) {
  results.draw(runs);
  const fresh = new Map();
  const put = (id, state, build) => {
    const old = known.get(id);
    fresh.set(id, old?.state === state ? old : { state, element: replace(old?.element, build()) });
  };
  if (runs.length === 0) {
    put("none", folder, () => make("p", { class: "quiet" }, "None yet. Results are kept in ", make("code", {}, folder), "."));
  }
  for (const run of runs) {
    put(run.id, JSON.stringify(run), () => card(run));
    if (seen.has(run.id) && seen.get(run.id) !== run.state) say(`${run.task}: ${STATES[run.state]}. ${result(run) ?? ""}`);
    seen.set(run.id, run.state);
  }
  const words = `Left out, cannot be read: ${broken.join("; ")}`;
  if (broken.length) put("broken", words, () => make("p", { class: "problem small" }, words));
  known = fresh;
  arrange($("#runs"), [...fresh.values()].map((one) => one.element));
  tick();
}

// A log that is open stays open, at the same place; and the focus stays where it was.
function replace(old, element) {
  const focus = old?.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  const log = old?.querySelector("details[open] pre");
  const top = log?.scrollTop;
  old?.replaceWith(element);
  if (log) {
    const pre = element.querySelector("pre");
    pre.textContent = log.textContent;
    element.querySelector("details").open = true;
    pre.scrollTop = top;
  }
  if (focus) element.querySelector(`[data-name="${focus}"]`)?.focus();
  return element;
}

function result(run) {
  const { result: value, right, done, unit } = run.progress;
  if (value === null) return null;
  return unit === "core" ? `CORE ${value.toFixed(4)}` : `${value.toFixed(2)} % · ${whole(right)} of ${whole(done)} right`;
}

function card(run) {
  const { done, total, right, unit } = run.progress;
  const act = (name, path) => make("button", {
    type: "button", class: "button small-button", "data-name": name,
    onclick: () => api.post(`evaluations/${run.id}/${path}`).then(poll, complain),
  }, name);
  const over = !["queued", "running"].includes(run.state);
  const counted = done > 0 && unit !== "core" ? ` · ${whole(right)} right so far` : "";
  const bar = run.state === "running" && make("div", { class: "progress" },
    make("progress", { max: total || null, value: done > 0 ? done : null, "aria-label": `${run.task} progress` }),
    make("span", { class: "small" }, done > 0 ? `${whole(done)} of ${whole(total)}${counted}`
      : "under way; this script tells nothing until it has results"));
  const pre = make("pre", { tabindex: "0", "data-name": "text" });
  const details = make("details", { ontoggle: async () => {
    if (!details.open) return;
    try {
      const text = await api.text(`evaluations/${run.id}/log`) || "Nothing was written yet.";
      const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 8;
      pre.textContent = text;
      if (atEnd) pre.scrollTop = pre.scrollHeight;
    } catch (error) {
      pre.textContent = error.message;
    }
  } }, make("summary", { "data-name": "log" }, "Log"), pre);
  const copier = make("button", { type: "button", class: "copy", "data-name": "copy" }, "Copy the command");
  copier.addEventListener("click", () => copy(copier, run.command));
  const when = run.started
    ? make("span", { "data-from": run.started, "data-to": run.ended }, "")
    : make("span", {}, `asked for ${age(run.created)}`);
  return make("article", { class: `card run ${run.state}`, "data-run": run.id },
    make("header", {}, make("h3", {}, run.task, make("span", { class: "quiet small" }, ` ${run.name}`)),
      make("span", { class: `chip ${run.state}` }, STATES[run.state])),
    result(run) && make("p", { class: "result" }, result(run)),
    bar,
    run.note && make("p", { class: run.state === "failed" ? "problem" : "quiet" }, run.note),
    make("p", { class: "quiet small" }, run.limit ? `at most ${whole(run.limit)} problems · ` : "", when),
    make("div", { class: "run-foot" }, details, copier, over ? act("Delete", "delete") : act("Cancel", "cancel")));
}

// Times that go on are written without making the cards anew.
function tick() {
  for (const element of document.querySelectorAll("#runs [data-from]")) {
    const to = element.dataset.to ? Number(element.dataset.to) : null;
    const took = span((to ?? Date.now() / 1000) - Number(element.dataset.from));
    element.textContent = to === null ? `for ${took}` : `took ${took}, ${age(to)}`;
  }
}
