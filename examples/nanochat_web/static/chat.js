// One conversation on the page: its messages, sending, streaming, stopping.

import * as api from "./api.js";
import { $, copy, make, say } from "./dom.js";
import * as elsewhere from "./elsewhere.js";
import { inline, update } from "./markdown.js";
import * as models from "./models.js";
import * as store from "./store.js";

const MAX_CONVERSATION = 32000;
const STAY = 3000;
const ASK_AGAIN = 3000;
const PROMPTS = {
  chat: ["Why is the sky blue?", "Write a short poem about a robot that learns to paint.", "What is 17 times 23?",
    "Who are you, and who trained you?"],
  text: ["The capital of France is", "Once upon a time, in a village by the sea,", "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be"],
};

// Answers under way: conversation id -> { conversation, message, abort, id, waiting }
const streams = new Map();
const others = new Set(); // conversations that another tab is writing in
let shown = null; // the conversation on the page
let leaving = false;
let settings = () => ({});
let changed = () => {};

export const busy = (id) => streams.has(id);
export const busyElsewhere = (id) => others.has(id);
export const conversation = () => shown;
export const running = (id) => streams.get(id).conversation;

export function start({ readSettings, onChange }) {
  settings = readSettings;
  changed = onChange;
  elsewhere.start(busy);
  $("#scroll").addEventListener("scroll", () => { $("#latest").hidden = atEnd(); }, { passive: true });
  $("#latest").addEventListener("click", toEnd);
  // The browser cuts the streams of a page that is left; that is no error to be kept with the conversation.
  addEventListener("pagehide", () => {
    leaving = true;
    for (const { conversation: one } of streams.values()) keep(one);
  });
  addEventListener("pageshow", () => { leaving = false; });
  addEventListener("beforeunload", () => {
    leaving = true;
    setTimeout(() => { leaving = false; }, STAY); // still here: it was called off
  });
}

function keep(one) {
  try {
    store.save(one);
  } catch (error) {
    if (!(error instanceof store.StorageFull)) throw error;
    say(error.message);
    $("#composer .hint").textContent = error.message;
  }
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
  draw(one);
  toEnd();
}

function draw(one) {
  shown = one;
  const model = models.usable(one.model);
  models.showChosen(model);
  const serving = streams.get(one.id)?.serving ?? model?.serving ?? null;
  showServing(serving);
  $("#log").replaceChildren(...(one.messages.length ? one.messages.map(article) : [empty(model)]));
  showButtons();
  if (unfinished(one)) ask(one);
}

const unfinished = (one) => !busy(one.id) && one.messages.some(({ state }) => state === "streaming");

// An answer that is stored unfinished is being written by another tab, or was when its page was closed.
async function ask(one) {
  const written = await elsewhere.writes(one.id);
  if (written) others.add(one.id);
  else others.delete(one.id);
  if (one !== shown || !unfinished(one)) return; // it was read anew meanwhile, and asked for again
  for (const message of one.messages) {
    if (message.state !== "streaming") continue;
    if (!written) {
      message.state = "cut";
      message.note = "Cut off: the page was closed while this was being written.";
    }
    steadily(() => paint(message));
  }
  showButtons();
  if (written) setTimeout(() => { if (one === shown && unfinished(one)) ask(one); }, ASK_AGAIN);
}

// Another tab has stored something: the conversation on this page may be behind, and would overwrite it when sent to.
export function reread() {
  if (!shown || busy(shown.id)) return;
  const stored = store.load(shown.id);
  if (!stored || JSON.stringify(stored) === JSON.stringify(shown)) return;
  if (!unfinished(stored)) others.delete(stored.id);
  steadily(() => draw(stored));
}

function showButtons() {
  const answering = shown !== null && busy(shown.id);
  const waits = shown !== null && others.has(shown.id);
  $("#send").textContent = answering ? "Stop" : "Send";
  $("#send").classList.toggle("stop", answering);
  $("#send").disabled = waits;
  $("#send").title = waits ? "Another tab is writing in this conversation" : "";
  $("#log").setAttribute("aria-busy", answering || waits ? "true" : "false");
}

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
  if (!model) {
    return make("div", { class: "card notice" }, make("h2", {}, "No model can be loaded"),
      make("p", {}, "Every checkpoint that was found is damaged. The list of models says what is wrong with each."));
  }
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
  const body = make("div", { class: "body" });
  const element = make("article", { class: `message ${message.role}` },
    make("h2", { class: "who" }, name), body, !mine && make("div", { class: "after" }));
  elements.set(message, element);
  if (mine) body.append(message.content);
  paint(message);
  return element;
}

const elements = new WeakMap(); // message -> its article, so that nothing of the page is saved with it

function paint(message) {
  const element = elements.get(message);
  if (!element || message.role === "user") return;
  const body = element.querySelector(".body");
  const stream = [...streams.values()].find((one) => one.message === message);
  element.classList.toggle("streaming", Boolean(stream));
  body.setAttribute("aria-busy", stream ? "true" : "false");
  if (stream && message.content === "") {
    body.rendered = undefined;
    body.replaceChildren(make("p", { class: "waiting" }, stream.waiting));
    return;
  }
  if (!body.rendered) body.replaceChildren();
  update(body, message.content);
  after(element.querySelector(".after"), message, Boolean(stream));
}

function after(box, message, running) {
  const parts = [];
  if (!running && message.content) {
    const button = make("button", { type: "button", class: "copy" }, "Copy");
    button.addEventListener("click", () => copy(button, message.content));
    parts.push(button);
  }
  if (!running && message.state === "streaming" && others.has(shown.id)) {
    parts.push(make("span", { class: "note" }, "Another tab is writing this…"));
  }
  if (!running && message.note) parts.push(make("span", { class: "note" }, message.note));
  if (message.error) parts.push(trouble(message));
  box.replaceChildren(...parts);
}

function trouble(message) {
  const { error, hint, log } = message.error;
  return make("div", { class: "trouble", role: "alert" },
    make("p", { class: "what" }, error),
    hint && make("p", {}, ...inline(hint)),
    log?.length > 0 && make("details", {}, make("summary", {}, "The last lines it wrote"),
      make("pre", { tabindex: "0" }, log.join("\n"))),
    message === shown?.messages.at(-1) && make("button", { type: "button", class: "button again", onclick: again }, "Try again"));
}

// -- sending

function again() {
  const failed = shown.messages.at(-1);
  const asked = shown.messages.at(-2);
  if (busy(shown.id) || asked?.role !== "user") return;
  shown.messages.splice(-2, 2);
  elements.get(failed)?.remove();
  elements.get(asked)?.remove();
  send(asked.content);
  $("#message").focus();
}

// What the model is given: pairs that have an answer, then the new message; the oldest go where it is too much.
function request(messages) {
  const turns = [];
  for (let at = 0; at + 1 < messages.length - 1; at += 2) {
    if (messages[at + 1].content) turns.push([messages[at], messages[at + 1]]);
  }
  const last = messages.at(-2);
  const length = () => last.content.length + turns.flat().reduce((sum, one) => sum + one.content.length, 0);
  let left = 0;
  while (turns.length && (length() > MAX_CONVERSATION || turns.length > 249)) {
    turns.shift();
    left += 2;
  }
  // An answer may be longer than the server takes as one message.
  const body = [...turns.flat(), last].map(({ role, content }) => ({ role, content: content.slice(0, 8000) }));
  return { body, left };
}

export async function send(text) {
  const one = shown;
  const model = one && models.usable(one.model);
  if (!one || !model || busy(one.id) || others.has(one.id) || !text.trim()) return false;
  const first = one.messages.length === 0;
  const message = { role: "assistant", content: "", model: model.id, state: "streaming" };
  one.model = model.id;
  one.messages.push({ role: "user", content: text }, message);
  one.updated = Date.now();
  const stream = { conversation: one, message, abort: new AbortController(), id: null, waiting: "Sending…", serving: null };
  streams.set(one.id, stream);
  const { body, left } = request(one.messages);
  stream.dropped = left;
  if (first) $("#log").replaceChildren();
  $("#log").append(...one.messages.slice(-2).map(article));
  toEnd();
  showButtons();
  keep(one);
  store.current.set(one.id);
  changed();
  say("Sent. The model is answering.");
  try {
    for await (const event of api.stream("chat/completions", { messages: body, model: model.id, ...settings() }, stream.abort.signal)) {
      take(stream, event);
    }
  } catch (error) {
    if (error.name === "AbortError") message.note = "Stopped.";
    else if (error instanceof api.ServerError) message.error = { error: error.message, hint: error.hint, log: error.log };
    else throw error;
  } finally {
    finish(stream);
  }
  return true;
}

function take(stream, event) {
  const { message } = stream;
  if (event.id) {
    stream.id = event.id;
    if (stream.stopping) api.post("stop", { id: stream.id }).catch(() => stream.abort.abort());
  } else if (event.status === "queued") {
    stream.waiting = event.ahead === 0 ? "Yours is next; the model is busy with others…"
      : `Waiting: ${event.ahead} message${event.ahead === 1 ? " is" : "s are"} ahead of yours…`;
  } else if (event.status === "loading") {
    stream.waiting = `The model is not in memory yet: ${event.stage}… ${event.seconds} s`;
  } else if (event.serving) {
    stream.serving = event.serving;
    stream.waiting = "Reading your message…";
    if (stream.conversation === shown) steadily(() => showServing(event.serving));
  } else if (event.dropped) {
    stream.dropped += event.dropped;
  } else if (event.token) {
    message.content += event.token;
  } else if (event.done) {
    const rate = event.seconds > 0 ? `, ${(event.tokens / event.seconds).toFixed(1)} a second` : "";
    const speed = `${event.tokens} token${event.tokens === 1 ? "" : "s"}${rate}`;
    const why = event.stopped ? "Stopped." : event.reason === "length" ? "Cut at the longest answer allowed." : "";
    const forgotten = stream.dropped ? `The first ${stream.dropped} messages no longer fit and were left out.` : "";
    message.note = [why, event.tokens === undefined ? "" : speed, forgotten].filter(Boolean).join(" · ");
    if (!message.content && !event.stopped) message.note = `The model had nothing to say. ${message.note}`;
  } else if (event.error) {
    message.error = { error: event.error, hint: event.hint, log: event.log };
  }
  repaint(stream);
}

// Once a frame at the most, however fast the tokens come. A tab in the background has no frames, but stores all the same.
function repaint(stream) {
  if (!stream.discarded) stream.saving ??= setTimeout(() => {
    stream.saving = undefined;
    keep(stream.conversation);
  }, 500);
  if (stream.queued) return;
  stream.queued = true;
  requestAnimationFrame(() => {
    stream.queued = false;
    if (stream.conversation === shown) steadily(() => paint(stream.message));
  });
}

function finish(stream) {
  if (leaving) {
    setTimeout(() => finish(stream), STAY + 100);
    return;
  }
  const { conversation: one, message } = stream;
  clearTimeout(stream.saving);
  streams.delete(one.id);
  message.state = message.error ? "failed" : "done";
  one.updated = Date.now();
  if (!stream.discarded) keep(one);
  if (one === shown) {
    steadily(() => paint(message));
    showButtons();
    say(message.error ? message.error.error : `Answer: ${message.content.slice(0, 400)}`);
  }
  changed();
  models.refresh().catch(() => {}); // which models are in memory has changed; of no matter if it fails
}

export function stop() {
  const stream = shown && streams.get(shown.id);
  if (!stream) return;
  stream.stopping = true;
  if (stream.id === null) stream.abort.abort();
  else api.post("stop", { id: stream.id }).catch(() => stream.abort.abort());
}

export function discard(id) {
  const stream = streams.get(id);
  if (stream) {
    stream.discarded = true; // its end must not bring it back
    clearTimeout(stream.saving);
    stream.abort.abort();
  }
  store.remove(id);
}
