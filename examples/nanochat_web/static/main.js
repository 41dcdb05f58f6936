// Puts the page together: which conversation and view are shown, the side list, settings, keys.

import * as api from "./api.js";
import * as chat from "./chat.js";
import { $, arrange, make, say, whole } from "./dom.js";
import * as evaluate from "./evaluate.js";
import * as models from "./models.js";
import * as store from "./store.js";
import * as undo from "./undo.js";

const message = $("#message");
const narrow = matchMedia("(max-width: 760px)");
const touch = matchMedia("(pointer: coarse)");

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
// A double click on a button is one click: its second half would stop what was sent, or delete what was called off.
addEventListener("click", (event) => {
  if (event.detail < 2 || !event.target.closest(".button, .danger")) return;
  event.preventDefault();
  event.stopPropagation();
}, true);
// Whatever unfolds over the page folds up again by a click beside it.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("#settings[open], .more[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});

// -- the side list

const rows = new Map(); // conversation id -> its row, and what it shows

function entry(conversation, piece) {
  const name = store.title(conversation);
  const current = conversation.id === chat.conversation()?.id;
  const open = make("button", { type: "button", class: "open", "aria-current": current ? "true" : null, title: name,
    onclick: () => { go(conversation.id); location.hash = "#/"; } },
  chat.busy(conversation.id) && make("span", { class: "dot", role: "img", "aria-label": "answering" }), name,
  piece && make("span", { class: "piece" }, piece));
  const again = () => { // a menu that was closed asks anew
    deleter.textContent = "Delete";
    delete deleter.dataset.sure;
  };
  const deleter = make("button", { type: "button", class: "danger", onclick: () => remove(conversation.id, deleter) }, "Delete");
  const menu = make("details", { class: "more", ontoggle: again }, make("summary", { "aria-label": `More for ${name}` }, "⋯"),
    make("div", { class: "more-panel" },
      make("button", { type: "button", onclick: () => rename(conversation.id) }, "Rename"),
      make("button", { type: "button", onclick: () => download(conversation.id) }, "Save as a file"), deleter));
  return make("li", { "data-id": conversation.id }, open, menu);
}

// Rows that show what they showed stay as they are: another tab may write twice a second while one looks for a menu.
function row(conversation, piece) {
  const { id } = conversation;
  const state = JSON.stringify([store.title(conversation), id === chat.conversation()?.id, chat.busy(id), piece]);
  const old = rows.get(id);
  return old?.state === state ? old : { state, element: entry(conversation, piece) };
}

function list() {
  const words = $("#search").value.trim().toLowerCase();
  const all = store.all();
  const one = chat.conversation();
  const found = all.map((conversation) => [conversation, words ? store.find(conversation, words) : ""]).filter(([, piece]) => piece !== null);
  document.title = one?.messages.length ? `${store.title(one)} · nanochat` : "nanochat";
  if ($("#conversations .rename")) return; // while a name is typed, nothing moves
  $("#search").hidden = all.length < 2 && !words;
  const fresh = new Map(found.map(([conversation, piece]) => [conversation.id, row(conversation, piece)]));
  const focused = document.activeElement;
  const at = focused?.closest("#conversations li")?.dataset.id;
  rows.clear();
  for (const [id, one] of fresh) rows.set(id, one);
  arrange($("#conversations"), [...rows.values()].map(({ element }) => element));
  if (at && focused !== document.activeElement) {
    rows.get(at)?.element.querySelector(focused.localName === "summary" ? "summary" : ".open").focus();
  }
  $("#none-found").hidden = !words || found.length > 0;
}
$("#search").addEventListener("input", list);

function rename(id) {
  const { element } = rows.get(id);
  const field = make("input", { type: "text", class: "rename", maxlength: 60, value: store.title(chat.held(id)), "aria-label": "Name" });
  const done = (save) => {
    field.onblur = null;
    const conversation = chat.held(id); // as it is by now
    if (save && field.value.trim() && conversation) {
      conversation.title = field.value.trim();
      store.keep(conversation);
    }
    rows.delete(id);
    field.remove();
    list();
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault(); // or it would press what has the focus next
    done(event.key === "Enter");
    rows.get(id)?.element.querySelector(".open").focus();
  });
  field.onblur = () => done(true);
  element.replaceChildren(field);
  field.select();
}

// Asks once; and for a while it can be undone.
function remove(id, button) {
  if (!button.dataset.sure) {
    button.dataset.sure = "yes";
    button.textContent = "Delete it, really?";
    return;
  }
  const kept = chat.held(id);
  chat.discard(id);
  if (chat.conversation()?.id === id) begin();
  list();
  undo.offer(`“${store.title(kept)}” was deleted.`, () => {
    store.keep(kept);
    go(id);
    list();
  });
}

function download(id) {
  const conversation = store.load(id);
  const name = models.byId(conversation.model)?.name ?? conversation.model ?? "";
  const url = URL.createObjectURL(new Blob([store.asMarkdown(conversation, name)], { type: "text/markdown" }));
  make("a", { href: url, download: `${store.title(conversation).replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "conversation"}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  rows.get(id).element.querySelector("details").open = false;
}

// -- which conversation

function go(id) {
  const conversation = store.load(id);
  if (!conversation) {
    begin();
    return;
  }
  if (chat.conversation()?.id !== id) chat.show(conversation);
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
  if (!shown && $("#side").contains(document.activeElement)) $("#menu").focus();
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
  if (api.given()) look(); // the address that the server printed was opened in this tab
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

// Nothing that is pasted is cut off; what is too long is said, and not sent.
function measure() {
  const { length } = message.value;
  const limit = models.catalog.limits.message;
  const over = chat.tooLong(message.value);
  const box = $("#length");
  box.hidden = length < limit * 0.9;
  box.classList.toggle("problem", over > 0);
  box.textContent = over ? `${whole(length)} characters; the server takes ${whole(limit)} in one message: shorten it by ${whole(over)}.`
    : `${whole(length)} of ${whole(limit)} characters`;
  chat.showButtons();
}
message.addEventListener("input", () => {
  grow();
  measure();
});

function submit() {
  if (chat.busy(chat.conversation()?.id)) {
    chat.stop();
    return;
  }
  if (!chat.send(message.value)) return;
  message.value = "";
  grow();
  measure();
}
$("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
  message.focus();
});
// Where fingers type there is no Shift and Enter: Enter makes a line, and the button sends.
const keys = () => {
  message.enterKeyHint = touch.matches ? "enter" : "send";
  $("#keys").hidden = touch.matches;
};
keys();
touch.addEventListener("change", keys);
message.addEventListener("keydown", (event) => {
  // Enter while a word of Japanese or Chinese is being chosen belongs to that.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  if (!chat.busy(chat.conversation()?.id)) submit();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || $("#models").open) return;
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
  if (conversation.messages.length) store.keep(conversation);
  if (chat.busy(conversation.id)) models.showChosen(model);
  else chat.show(conversation);
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
    const again = make("button", { type: "button", class: "button", onclick: look }, "Try again");
    $("#log").replaceChildren(make("div", { class: "card notice", role: "alert" }, make("h2", {}, error.message),
      make("p", {}, error.status === 401 ? "Type it here, or open the address that the server printed." : error.hint ?? ""),
      error.status === 401 ? accessWord() : again));
    return;
  }
  chat.redraw();
  view();
}

function accessWord() {
  const field = make("input", { type: "password", id: "word", autocomplete: "current-password", required: true });
  return make("form", { class: "word", onsubmit: (event) => {
    event.preventDefault();
    api.enter(field.value.trim());
    look();
  } }, make("label", { for: "word" }, "Access word"), field, make("button", { type: "submit", class: "button" }, "Go on"));
}

// -- the beginning

if (!(localStorage instanceof Storage)) {
  $("#kept").textContent = "This browser lets the page keep nothing: conversations are gone when it is closed.";
}
store.onFull((text) => {
  say(text);
  $("#keys").hidden = false;
  $("#keys").textContent = text;
});
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
  chat.showButtons();
  evaluate.renew();
});
models.watch();
addEventListener("storage", (event) => {
  if (!store.isOurs(event.key)) return;
  chat.reread();
  list();
});
look();
