// The models: what there is, which one is chosen, and the dialog to choose another.

import * as api from "./api.js";
import { $, age, bytes, make, whole } from "./dom.js";
import { inline } from "./markdown.js";

const EVERY = 3000;

export const catalog = {
  models: [], default: null, looked_at: [], nanochat: "", loaded: false, limits: { message: 8000, conversation: 32000 },
};

const listeners = new Set();
export const onCatalog = (listener) => listeners.add(listener);
let last = "";

export const byId = (id) => catalog.models.find((model) => model.id === id) ?? null;

// The model of a conversation, or the default where it is gone or was never chosen.
export const usable = (id) => {
  const model = byId(id);
  return model && !model.problem ? model : byId(catalog.default);
};

export async function refresh() {
  const text = await api.text("models");
  if (text === last) return;
  last = text;
  Object.assign(catalog, JSON.parse(text), { loaded: true });
  for (const listener of listeners) listener();
  if ($("#models").open) redraw();
}

// New checkpoints appear by themselves, on a page that somebody looks at.
export function watch() {
  let asking = false; // one at a time: a browser has six connections to a server, and answers need them
  setInterval(async () => {
    if (document.hidden || !catalog.loaded || asking) return;
    asking = true;
    await refresh().catch(() => {}); // a server that is gone is told when it is needed
    asking = false;
  }, EVERY);
}

export function metric(model) {
  return model.metric ? `${model.metric.name} ${Number(model.metric.value.toPrecision(4))}` : null;
}

const parameters = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(2)} billion` : count >= 1e6
  ? `${Math.round(count / 1e6)} million` : whole(count));

// What one may say about a model in two sentences.
export function described(model) {
  const has = [];
  if (model.layers) has.push(`${model.layers} layer${model.layers === 1 ? "" : "s"}`);
  if (model.parameters) has.push(`${parameters(model.parameters)} parameters`);
  const facts = [has.length ? `has ${has.join(" and ")}` : null, model.context ? `reads ${whole(model.context)} tokens at once` : null];
  const told = facts.filter(Boolean).join(", and ");
  const about = model.about.charAt(0).toUpperCase() + model.about.slice(1);
  return `${about}. ${told ? `It ${told}.` : ""}`;
}

export function showChosen(model) {
  $("#model-name").textContent = model ? `${model.tag} · ${model.stage}` : catalog.loaded ? "No model" : "Looking for models…";
  // On a telephone there is room for little: "loss" is enough here, the list of models has the whole name.
  const short = model && metric(model)?.replace("validation ", "");
  const facts = model ? [`step ${whole(model.step)}`, short].filter(Boolean) : [];
  $("#model-facts").textContent = facts.join(" · ");
  $("#model").setAttribute("aria-label", model ? `Model: ${model.name}. Choose another` : "Choose a model");
}

function card(model, chosen, choose) {
  const state = model.state === "ready" ? "in memory" : model.state === "loading" ? "loading" : null;
  const fact = (name, value) => value && make("div", {}, make("dt", {}, name), make("dd", {}, value));
  const body = [
    make("span", { class: "card-title" }, model.tag,
      model.experiment && make("span", { class: "quiet small" }, ` ${model.experiment}`),
      state && make("span", { class: "chip" }, state),
      model.id === chosen && make("span", { class: "chip chosen" }, "chosen")),
    make("dl", { class: "facts" },
      fact("step", whole(model.step)),
      fact(model.metric?.name ?? "validation", model.metric ? String(Number(model.metric.value.toPrecision(4))) : "not recorded"),
      fact("size", bytes(model.bytes)),
      fact("saved", age(model.modified))),
  ];
  if (model.problem) {
    return make("li", {}, make("div", { class: "model-card broken" }, ...body,
      make("p", { class: "problem small" }, `Cannot be loaded: ${model.problem.what}.`),
      make("p", { class: "small" }, ...inline(model.problem.remedy))));
  }
  const button = make("button", {
    type: "button", class: "model-card", "data-model": model.id, "aria-pressed": model.id === chosen ? "true" : "false",
    onclick: () => choose(model),
  }, ...body);
  return make("li", {}, button);
}

let shown = { chosen: null, choose: () => {} };

// Opens the dialog; `choose` is called with the model.
export function open(chosen, choose) {
  const dialog = $("#models");
  shown = { chosen, choose: (model) => {
    dialog.close();
    choose(model);
  } };
  redraw();
  dialog.showModal();
  dialog.querySelector("[aria-pressed=true]")?.focus();
}

// The focus stays on the model that has it.
function redraw() {
  const focus = document.activeElement?.dataset?.model;
  const stages = new Map();
  for (const model of catalog.models) stages.set(model.stage, [...(stages.get(model.stage) ?? []), model]);
  const sections = [...stages].map(([stage, models]) => make("section", {},
    make("h3", {}, stage, make("span", { class: "quiet small" }, ` ${models[0].about}`)),
    make("ul", { class: "cards" }, ...models.map((model) => card(model, shown.chosen, shown.choose)))));
  $("#models-list").replaceChildren(...(sections.length ? sections : [nothing()]));
  if (focus) [...document.querySelectorAll("#models-list [data-model]")].find((one) => one.dataset.model === focus)?.focus();
}

// Where every model has a problem: what it is, and what to do.
export function noneUsable() {
  return make("div", { class: "card notice" }, make("h2", {}, "No model can be loaded"),
    ...catalog.models.slice(0, 3).flatMap(({ name, problem }) => [
      make("p", {}, make("strong", {}, `${name}: `), `${problem.what}.`), make("p", { class: "quiet" }, ...inline(problem.remedy))]));
}

// Where no model was found: where it was looked, and what to do.
export function nothing() {
  return make("div", { class: "card notice" },
    make("h2", {}, "No models yet"),
    make("p", {}, "No checkpoint of nanochat was found in:"),
    make("ul", { class: "paths" }, ...catalog.looked_at.map((folder) => make("li", {}, make("code", {}, folder)))),
    make("p", {}, "Train one as nanochat’s README says (", make("code", {}, "runs/speedrun.sh"), "), or start this server with ",
      make("code", {}, "NANOCHAT_BASE_DIR"), " set to the folder where yours are. New ones appear here by themselves."));
}
