// One conversation on the page: its messages, and what can be done with them.

import * as answers from "./answers.js";
import { $, beginning, copy, ending, make, say } from "./dom.js";
import { inline, update } from "./markdown.js";
import * as models from "./models.js";
import * as store from "./store.js";
import * as undo from "./undo.js";

const PROMPTS = {
  chat: ["Why is the sky blue?", "Write a short poem about a robot that learns to paint.", "What is 17 times 23?",
    "Who are you, and who trained you?"],
  text: ["The capital of France is", "Once upon a time, in a village by the sea,", "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be"],
};

const elements = new WeakMap(); // message -> its article, so that nothing of the page is saved with it
let shown = null; // the conversation on the page
let settings = () => ({});
let changed = () => {};

export const conversation = () => shown;
export const busy = answers.busy;
// As this page works with it; else as it is stored.
export const held = (id) => (shown?.id === id ? shown : answers.of(id)?.conversation) ?? store.load(id);

export function start({ readSettings, onChange }) {
  settings = readSettings;
  changed = onChange;
  answers.start(repaint, finished);
  $("#scroll").addEventListener("scroll", () => { $("#latest").hidden = atEnd(); }, { passive: true });
  $("#latest").addEventListener("click", toEnd);
  for (const one of store.all()) answers.pickUp(one);
}

// -- what is seen

const atEnd = () => {
  const box = $("#scroll");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 48;
};

function toEnd() {
  const box = $("#scroll");
  box.scrollTop = box.scrollHeight;
  $("#latest").hidden = true;
}

// Runs a change of the page and stays at the end if the reader was there; elsewhere nothing moves.
function steadily(change) {
  const follow = atEnd();
  change();
  if (follow) toEnd();
  else $("#latest").hidden = atEnd();
}

export function show(one) {
  draw(answers.of(one.id)?.conversation ?? one);
  toEnd();
}

function draw(one) {
  shown = one;
  // What another tab is still sending comes here when the server has taken it.
  if (one.messages.at(-1)?.state === "streaming") answers.pickUp(one);
  const model = models.usable(one.model);
  models.showChosen(model);
  showServing(answers.of(one.id)?.serving ?? model?.serving ?? null);
  if (one.messages.length) $("#log").replaceChildren(...one.messages.map(article));
  else {
    const fresh = empty(model);
    // Where nothing of it has changed, the focus stays on what has it.
    if ($("#log").childNodes.length !== 1 || !$("#log").firstChild.isEqualNode(fresh)) $("#log").replaceChildren(fresh);
  }
  showButtons();
}

// Another tab has stored something: the conversation on this page may be behind, and would overwrite it when sent to.
export function reread() {
  if (!shown || busy(shown.id)) return;
  const stored = store.load(shown.id);
  if (!stored || !store.isKept(shown) || JSON.stringify(stored) === JSON.stringify(shown)) return;
  redraw(stored);
}

// Draws the conversation anew, where the reader is in it. A message that is being edited goes on being edited.
export function redraw(one = shown) {
  const field = $("#log .edit");
  const focused = field !== null && field === document.activeElement;
  const at = field ? [...$("#log").children].indexOf(field.closest("article")) : -1;
  steadily(() => draw(one));
  if (one.messages[at]?.role === "user") edit(one.messages[at], field.value, focused);
}

export function showButtons() {
  const answering = shown !== null && busy(shown.id);
  $("#send").textContent = answering ? "Stop" : "Send";
  $("#send").classList.toggle("stop", answering);
  $("#send").disabled = !answering && (tooLong($("#message").value) > 0 || !models.usable(shown?.model));
  $("#log").setAttribute("aria-busy", answering ? "true" : "false");
}

export const tooLong = (text) => Math.max(0, text.length - models.catalog.limits.message);

function showServing(serving) {
  const box = $("#serving");
  box.hidden = !serving;
  if (!serving) return;
  const open = box.querySelector("details")?.open ?? false;
  box.className = `serving ${serving.tone}`;
  box.replaceChildren(make("details", { open },
    make("summary", {}, serving.text),
    make("ul", {}, ...serving.details.map((detail) => make("li", {}, detail)))));
}

function empty(model) {
  if (!models.catalog.loaded) return make("p", { class: "quiet" }, "");
  if (models.catalog.models.length === 0) return models.nothing();
  if (!model) return models.noneUsable();
  const prompts = PROMPTS[model.style].map((prompt) => make("button", {
    type: "button", class: "prompt", onclick: () => { send(prompt); $("#message").focus(); },
  }, prompt));
  return make("div", { class: "empty" },
    make("h1", {}, model.style === "chat" ? `Talk to ${model.tag}` : `Let ${model.tag} go on`),
    make("p", { class: "lead" }, models.described(model)),
    make("p", { class: "quiet" }, model.style === "chat"
      ? "It is a small model. It will be wrong with confidence, and that is worth looking at closely."
      : "Write the beginning of a text; the model writes what might come next."),
    make("p", { class: "try" }, "Try one of these"),
    make("div", { class: "prompts" }, ...prompts));
}

function article(message) {
  const mine = message.role === "user";
  const name = mine ? "You" : models.byId(message.model)?.name ?? message.model ?? "Model";
  const element = make("article", { class: `message ${message.role}` },
    make("h2", { class: mine ? "who hidden" : "who" }, name), make("div", { class: "body" }), make("div", { class: "after" }));
  elements.set(message, element);
  paint(message);
  return element;
}

function paint(message) {
  const element = elements.get(message);
  if (!element) return;
  const body = element.querySelector(".body");
  if (message.role === "user") {
    body.textContent = message.content;
    element.querySelector(".after").replaceChildren(...mine(message));
    return;
  }
  const stream = answers.making(message);
  element.classList.toggle("streaming", Boolean(stream));
  body.setAttribute("aria-busy", stream ? "true" : "false");
  if (stream && message.content === (message.before ?? "")) {
    if (!message.before) body.replaceChildren();
    body.querySelector(".waiting")?.remove();
    body.rendered = message.before ? body.rendered : undefined;
    body.append(make("p", { class: "waiting" }, stream.waiting));
  } else {
    if (!body.rendered || body.querySelector(".waiting")) {
      body.replaceChildren();
      body.rendered = undefined;
    }
    update(body, message.content);
  }
  element.querySelector(".after").replaceChildren(...(stream ? [] : after(message)));
}

const act = (name, onclick, more = {}) => make("button", { type: "button", class: "copy", onclick, ...more }, name);

function mine(message) {
  const copier = act("Copy", () => copy(copier, message.content));
  return [copier, act("Edit", () => { if (!busy(shown.id)) edit(message); })];
}

// What stands below an answer.
function after(message) {
  const parts = [];
  const last = message === shown?.messages.at(-1);
  if (message.content) {
    const copier = act("Copy", () => copy(copier, message.content));
    parts.push(copier);
  }
  if (last && !message.error && message.state !== "sending") {
    parts.push(act("Answer again", again, { title: "Ask for another answer to the same message" }));
  }
  if (last && message.cut) parts.push(act("Continue", goOn, { title: "Let the model go on where this answer ends" }));
  if (message.note) parts.push(make("span", { class: "note" }, message.note));
  if (last && message.state === "sending") {
    parts.push(!message.note && make("span", { class: "note" }, "Not sent yet."), act("Send it now", again));
  }
  if (message.error) parts.push(trouble(message, last));
  return parts.filter(Boolean);
}

function trouble(message, last) {
  const { error, hint, log } = message.error;
  return make("div", { class: "trouble", role: "alert" },
    make("p", { class: "what" }, error),
    hint && make("p", {}, ...inline(hint)),
    log?.length > 0 && make("details", {}, make("summary", {}, "The last lines it wrote"),
      make("pre", { tabindex: "0" }, log.join("\n"))),
    last && make("button", { type: "button", class: "button again", onclick: again }, "Try again"));
}

// -- what can be done

// What the model is given: pairs that have an answer, then the new message; the oldest go where it is too much.
function request(messages, extend) {
  const turns = [];
  for (let at = 0; at + 1 < messages.length - 1; at += 2) {
    if (messages[at + 1].content) turns.push([messages[at], messages[at + 1]]);
  }
  // An answer may be longer than the server takes as one message; what goes on, goes on at its end.
  const limit = models.catalog.limits.message;
  const part = (one) => (extend && one === messages.at(-1) ? ending : beginning)(one.content, limit);
  const last = extend ? messages.slice(-2) : [messages.at(-2)];
  const length = () => [...turns.flat(), ...last].reduce((sum, one) => sum + part(one).length, 0);
  let left = 0;
  while (turns.length && (length() > models.catalog.limits.conversation || turns.length > 249)) {
    turns.shift();
    left += 2;
  }
  return { left, messages: [...turns.flat(), ...last].map((one) => ({ role: one.role, content: part(one) })) };
}

function ask(one, model, extend = false) {
  const { messages, left } = request(one.messages, extend);
  one.model = model.id;
  one.updated = Date.now();
  store.current.set(one.id);
  answers.ask(one, one.messages.at(-1), { left, request: { messages, model: model.id, extend, ...settings() } });
  store.keep(one);
  draw(one);
  toEnd();
  changed();
  say("Sent. The model is answering.");
}

function ready() {
  const model = shown && models.usable(shown.model);
  return shown && model && !busy(shown.id) ? model : null;
}

export function send(text) {
  const model = ready();
  if (!model || !text.trim() || tooLong(text)) return false;
  shown.messages.push({ role: "user", content: text }, { role: "assistant", content: "", model: model.id });
  ask(shown, model);
  return true;
}

function again() {
  const model = ready();
  if (!model) return;
  const one = shown;
  const kept = structuredClone(one.messages);
  one.messages.splice(-1, 1, { role: "assistant", content: "", model: model.id });
  ask(one, model);
  if (kept.at(-1).content) undo.offer("Asked for another answer.", () => restore(one, kept));
  $("#message").focus();
}

function goOn() {
  const model = ready();
  if (!model) return;
  ask(shown, model, true);
  $("#message").focus();
}

function edit(message, text = message.content, focus = true) {
  const element = elements.get(message);
  const field = make("textarea", { class: "edit", "aria-label": "Your message", rows: 3, value: text });
  const done = () => {
    paint(message);
    element.querySelector(".after").lastChild.focus();
  };
  const resend = () => {
    const model = ready();
    if (!model || !field.value.trim() || tooLong(field.value)) return;
    const one = shown;
    const kept = structuredClone(one.messages);
    const answer = { role: "assistant", content: "", model: model.id };
    one.messages.splice(one.messages.indexOf(message), Infinity, { role: "user", content: field.value }, answer);
    ask(one, model);
    undo.offer("What came after this message was replaced.", () => restore(one, kept));
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      done();
    }
  });
  element.querySelector(".body").replaceChildren(field);
  element.querySelector(".after").replaceChildren(
    make("button", { type: "button", class: "button small-button", onclick: done }, "Cancel"),
    make("button", { type: "button", class: "button small-button", onclick: resend }, "Send again"));
  if (focus) field.focus();
}

function restore(one, messages) {
  answers.discard(one.id);
  one.messages = messages;
  store.keep(one);
  if (shown?.id === one.id) show(one);
  changed();
}

export const stop = () => shown && answers.stop(shown.id);

export function discard(id) {
  answers.discard(id);
  store.remove(id);
}

// -- what the answers say

// Once a frame at the most, however fast the tokens come.
function repaint(stream) {
  if (stream.queued) return;
  stream.queued = true;
  requestAnimationFrame(() => {
    stream.queued = false;
    if (stream.conversation.id !== shown?.id || !answers.making(stream.message)) return;
    steadily(() => {
      if (stream.serving) showServing(stream.serving);
      paint(stream.message);
    });
  });
}

function finished({ conversation: one, message, serving }) {
  if (one.id === shown?.id) {
    steadily(() => {
      if (serving) showServing(serving); // a short answer may be whole before the page's next frame
      paint(message);
    });
    showButtons();
    say(message.error ? message.error.error : `Answer: ${message.content.slice(0, 400)}`);
    reread(); // what another tab has stored meanwhile
  }
  changed();
  models.refresh().catch(() => {}); // which models are in memory has changed; of no matter if it fails
}
