// Puts the page together: which conversation and view are shown, the side list, settings, keys.

import * as chat from "./chat.js";
import { $, make, say } from "./dom.js";
import * as evaluate from "./evaluate.js";
import * as models from "./models.js";
import * as store from "./store.js";

const message = $("#message");
const narrow = matchMedia("(max-width: 760px)");

// -- settings

const FIELDS = { temperature: $("#temperature"), top_k: $("#top-k"), max_tokens: $("#max-tokens") };

function readSettings() {
  const values = {};
  for (const [name, field] of Object.entries(FIELDS)) {
    // A field that holds nothing usable is left to the server's own default.
    if (field.value !== "" && field.validity.valid) values[name] = Number(field.value);
  }
  return values;
}

for (const [name, value] of Object.entries(store.settings.get())) if (FIELDS[name]) FIELDS[name].value = value;
const showTemperature = () => { $("#temperature-shown").textContent = Number(FIELDS.temperature.value).toFixed(1); };
showTemperature();
$("#settings form").addEventListener("input", () => {
  showTemperature();
  store.settings.set(readSettings());
});
$("#settings form").addEventListener("submit", (event) => event.preventDefault());
// Whatever unfolds over the page folds up again by a click beside it.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("#settings[open], .more[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});

// -- the side list

function entry(conversation) {
  const name = store.title(conversation);
  const current = conversation.id === chat.conversation()?.id;
  const open = make("button", { type: "button", class: "open", "aria-current": current ? "true" : null, title: name,
    onclick: () => { go(conversation.id); location.hash = "#/"; } },
  chat.busy(conversation.id) && make("span", { class: "dot", role: "img", "aria-label": "answering" }), name);
  const menu = make("details", { class: "more" }, make("summary", { "aria-label": `More for ${name}` }, "⋯"),
    make("div", { class: "more-panel" },
      make("button", { type: "button", onclick: () => rename(conversation.id) }, "Rename"),
      make("button", { type: "button", onclick: () => download(conversation.id) }, "Save as a file"),
      make("button", { type: "button", class: "danger", onclick: () => remove(conversation.id) }, "Delete")));
  return make("li", {}, open, menu);
}

function list() {
  const all = store.all();
  const one = chat.conversation();
  document.title = one?.messages.length ? `${store.title(one)} · nanochat` : "nanochat";
  $("#conversations").replaceChildren(...all.map(entry));
}

function rename(id) {
  const conversation = id === chat.conversation()?.id ? chat.conversation() : store.load(id);
  const row = [...$("#conversations").children][store.all().findIndex((one) => one.id === id)];
  const field = make("input", { type: "text", class: "rename", maxlength: 60, value: store.title(conversation), "aria-label": "Name" });
  const done = (save) => {
    field.onblur = null;
    if (save && field.value.trim()) {
      conversation.title = field.value.trim();
      store.save(conversation);
    }
    list();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") done(true);
    else if (event.key === "Escape") done(false);
    event.stopPropagation();
  });
  field.onblur = () => done(true);
  row.replaceChildren(field);
  field.select();
}

function remove(id) {
  chat.discard(id);
  if (chat.conversation()?.id === id) begin();
  list();
  say("The conversation was deleted.");
}

function download(id) {
  const conversation = store.load(id);
  const name = models.byId(conversation.model)?.name ?? conversation.model ?? "";
  const url = URL.createObjectURL(new Blob([store.asMarkdown(conversation, name)], { type: "text/markdown" }));
  make("a", { href: url, download: `${store.title(conversation).replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "conversation"}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  list();
}

// -- which conversation

function go(id) {
  const conversation = store.load(id);
  if (!conversation) {
    begin();
    return;
  }
  if (chat.conversation()?.id !== id) chat.show(chat.busy(id) ? chat.running(id) : conversation);
  store.current.set(id);
  list();
  drawer(false);
}

function begin() {
  chat.show(store.create(chat.conversation()?.model ?? null));
  list();
  drawer(false);
  if (!narrow.matches) message.focus();
}

// -- the drawer of narrow screens

function drawer(open) {
  const shown = open || !narrow.matches;
  $("#side").classList.toggle("shown", open);
  $("#side").inert = !shown;
  $("#shade").hidden = !open;
  $("#menu").setAttribute("aria-expanded", open ? "true" : "false");
  if (open) $("#new").focus();
}
narrow.addEventListener("change", () => drawer(false));
$("#menu").addEventListener("click", () => drawer(!$("#side").classList.contains("shown")));
$("#shade").addEventListener("click", () => drawer(false));
$("#new").addEventListener("click", () => { location.hash = "#/"; begin(); });

// -- the view

function view() {
  const evaluating = location.hash === "#/evaluate";
  $("#chat").hidden = evaluating;
  $("#evaluate").hidden = !evaluating;
  $("#to-evaluate").toggleAttribute("aria-current", evaluating);
  evaluate.show(evaluating, chat.conversation()?.model);
  drawer(false);
}
addEventListener("hashchange", view);

// -- the composer

function grow() {
  message.style.height = "auto";
  message.style.height = `${Math.min(message.scrollHeight, innerHeight * 0.4)}px`;
}
message.addEventListener("input", grow);

function submit() {
  const text = message.value;
  if (chat.busy(chat.conversation()?.id)) {
    chat.stop();
    return;
  }
  const { id, model } = chat.conversation();
  if (!text.trim() || chat.busyElsewhere(id) || !models.usable(model)) return;
  message.value = "";
  grow();
  chat.send(text);
}
$("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
  message.focus();
});
message.addEventListener("keydown", (event) => {
  // Enter while a word of Japanese or Chinese is being chosen belongs to that.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!chat.busy(chat.conversation()?.id)) submit();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("#models").open) return;
  const unfolded = document.querySelector("#settings[open], .more[open]");
  if (unfolded) {
    unfolded.open = false;
    unfolded.querySelector("summary").focus();
  }
  else if ($("#side").classList.contains("shown")) drawer(false);
  else chat.stop();
});

// -- models

$("#model").addEventListener("click", () => models.open(models.usable(chat.conversation()?.model)?.id, (model) => {
  const conversation = chat.conversation();
  conversation.model = model.id;
  if (conversation.messages.length) store.save(conversation);
  if (!chat.busy(conversation.id)) chat.show(conversation);
  say(`${model.name} was chosen.`);
  message.focus();
}));
$("#models-close").addEventListener("click", () => $("#models").close());
$("#models").addEventListener("click", (event) => { if (event.target === $("#models")) $("#models").close(); });

async function look() {
  try {
    await models.refresh();
  } catch (error) {
    models.showChosen(null);
    $("#log").replaceChildren(make("div", { class: "card notice", role: "alert" }, make("h2", {}, error.message),
      make("p", {}, error.hint ?? ""), make("button", { type: "button", class: "button", onclick: look }, "Try again")));
    return;
  }
  chat.show(chat.conversation());
  view();
}

// -- the beginning

chat.start({ readSettings, onChange: list });
evaluate.start();
const last = store.current.get();
const kept = last && store.load(last);
if (kept) chat.show(kept);
else begin();
drawer(false);
list();
models.onCatalog(() => {
  // An empty conversation says what its model is; one with messages need not be drawn again.
  const one = chat.conversation();
  if (one && one.messages.length === 0) chat.show(one);
  else models.showChosen(models.usable(one?.model));
});
addEventListener("storage", (event) => {
  if (!store.isOurs(event.key)) return;
  chat.reread();
  list();
});
look();
