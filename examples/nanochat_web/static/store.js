// Conversations in this browser: one entry of localStorage each, so that two tabs do not overwrite one another.

const PREFIX = "nanochat-web/conversation/";
const SETTINGS = "nanochat-web/settings";
const CURRENT = "nanochat-web/current";

export class StorageFull extends Error {}

let full = () => {};
export const onFull = (listener) => { full = listener; };

function read(key) {
  const text = localStorage.getItem(key);
  if (text === null) return null;
  try {
    return JSON.parse(text);
  } catch {
    // Kept under another name: it may be worth somebody's trouble, and must not break the page for ever.
    localStorage.setItem(`broken/${key}`, text);
    localStorage.removeItem(key);
    return null;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch (error) {
    throw new StorageFull("This browser has no room left for conversations: delete old ones.", { cause: error });
  }
}

const sound = (value) => value !== null && typeof value.id === "string" && Array.isArray(value.messages);

export function all() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(PREFIX)) continue;
    const conversation = read(key);
    if (sound(conversation)) found.push(conversation);
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export function load(id) {
  const conversation = read(PREFIX + id);
  return sound(conversation) ? conversation : null;
}

export function save(conversation) {
  write(PREFIX + conversation.id, conversation);
}

// Saves, and says on the page where that is not possible.
export function keep(conversation) {
  try {
    save(conversation);
  } catch (error) {
    if (!(error instanceof StorageFull)) throw error;
    full(error.message);
  }
}

export const has = (id) => localStorage.getItem(PREFIX + id) !== null;

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
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
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
    sessionStorage.setItem(CURRENT, id);
    localStorage.setItem(CURRENT, id);
  },
};

export const settings = {
  get: () => read(SETTINGS) ?? {},
  set: (value) => write(SETTINGS, value),
};

export const isOurs = (key) => key === null || key.startsWith(PREFIX);

export function asMarkdown(conversation, name) {
  const parts = [`# ${title(conversation)}`, `Model: ${name}`];
  for (const message of conversation.messages) {
    parts.push(`## ${message.role === "user" ? "You" : "Model"}`, message.content);
  }
  return `${parts.join("\n\n")}\n`;
}
