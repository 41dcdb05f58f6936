// Conversations in this browser: one entry of localStorage each, so that two tabs do not overwrite one another.

import { beginning } from "./dom.js";

const PREFIX = "nanochat-web/conversation/";
const SETTINGS = "nanochat-web/settings";
const CURRENT = "nanochat-web/current";

const unkept = new WeakSet(); // conversations for which there was no room
let full = () => {};
export const onFull = (listener) => { full = listener; };

function read(key) {
  const text = localStorage.getItem(key);
  if (text === null) return null;
  try {
    return JSON.parse(text);
  } catch {
    // Kept under another name: it may be worth somebody's trouble, and must not break the page for ever.
    localStorage.removeItem(key);
    try {
      localStorage.setItem(`broken/${key}`, text);
    } catch {
      localStorage.setItem(key, text); // no room for the longer name
    }
    return null;
  }
}

// What the page can do without where there is no room.
function jot(storage, key, text) {
  try {
    storage.setItem(key, text);
  } catch {
    // it is not there after a reload
  }
}

const sound = (value, id) => value?.id === id && Array.isArray(value.messages) &&
  value.messages.every((message) => typeof message?.role === "string" && typeof message.content === "string");

export function all() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(PREFIX)) continue;
    const conversation = read(key);
    if (sound(conversation, key.slice(PREFIX.length))) found.push(conversation);
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export function load(id) {
  const conversation = read(PREFIX + id);
  return sound(conversation, id) ? conversation : null;
}

// Saves, and says on the page where that is not possible.
export function keep(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    unkept.delete(conversation);
  } catch {
    unkept.add(conversation);
    full("This browser has no room left for conversations: delete old ones.");
  }
}

// False for one of which only this page has the newest state.
export const isKept = (conversation) => !unkept.has(conversation);

// Its last answer was not there yet when this was stored.
export const unfinished = (conversation) => ["sending", "streaming"].includes(conversation.messages.at(-1)?.state);

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export function create(model) {
  const id = [...crypto.getRandomValues(new Uint8Array(8))].map((n) => n.toString(16).padStart(2, "0")).join("");
  return { id, title: "", model, created: Date.now(), updated: Date.now(), messages: [] };
}

// The beginning of the first message, unless the person gave it a name.
export function title(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  const text = conversation.title || first?.content || "New conversation";
  return text.length > 60 ? `${beginning(text, 59)}…` : text;
}

// Where a conversation has the words that are looked for: "" in its title, a piece of the text otherwise; null if not.
export function find(conversation, words) {
  if (title(conversation).toLowerCase().includes(words)) return "";
  for (const { content } of conversation.messages) {
    const at = content.toLowerCase().indexOf(words);
    if (at >= 0) return `${at > 20 ? "…" : ""}${content.slice(Math.max(0, at - 20), at + 60)}`;
  }
  return null;
}

export const current = {
  get: () => sessionStorage.getItem(CURRENT) ?? localStorage.getItem(CURRENT),
  // This tab's own, and the one that the next new tab begins with.
  set: (id) => {
    jot(sessionStorage, CURRENT, id);
    jot(localStorage, CURRENT, id);
  },
};

export const settings = {
  get: () => read(SETTINGS) ?? {},
  set: (value) => jot(localStorage, SETTINGS, JSON.stringify(value)),
};

export const isOurs = (key) => key === null || key.startsWith(PREFIX);

export function asMarkdown(conversation, name) {
  const parts = [`# ${title(conversation)}`, `Model: ${name}`];
  for (const message of conversation.messages) {
    parts.push(`## ${message.role === "user" ? "You" : "Model"}`, message.content);
  }
  return `${parts.join("\n\n")}\n`;
}
