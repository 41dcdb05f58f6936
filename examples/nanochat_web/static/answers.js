// Answers under way. The server makes them whether or not anybody reads: a page that was reloaded, a second tab, or one
// whose connection was lost asks for the answer by its name and gets it from the beginning.

import * as api from "./api.js";
import * as store from "./store.js";

const RECONNECT = [500, 1000, 2000, 4000, 8000, 8000];
const SAVE_EVERY = 500;

// conversation id -> { conversation, message, abort, waiting, serving, dropped, heard, discarded }
const streams = new Map();
let changed = () => {}; // called with a stream whenever there is something new to see
let ended = () => {};

export const busy = (id) => streams.has(id);
export const of = (id) => streams.get(id);
export const making = (message) => [...streams.values()].find((stream) => stream.message === message);

export function start(onChange, onEnd) {
  changed = onChange;
  ended = onEnd;
}

const name = () => [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const pause = (time, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, time);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    reject(new DOMException("", "AbortError"));
  }, { once: true });
});

// A new answer. `message` is the conversation's last, and what it holds already is gone on with.
export function ask(conversation, message, body) {
  Object.assign(message, { state: "sending", answer: name(), before: message.content, note: "", error: undefined });
  const stream = open(conversation, message, body.left);
  const asked = { ...body.request, id: message.answer, keep: true };
  run(stream, () => api.stream("chat/completions", asked, stream.abort.signal));
}

// An answer that was under way when the page was closed, or that another tab has asked for.
export function pickUp(conversation) {
  const message = conversation.messages.at(-1);
  if (!store.unfinished(conversation) || busy(conversation.id)) return;
  const stream = open(conversation, message, 0);
  stream.waiting = "Looking for the rest of this answer…";
  stream.known = true;
  stream.pickedUp = true;
  run(stream, () => again(stream));
}

function open(conversation, message, left) {
  const stream = { conversation, message, abort: new AbortController(), waiting: "Sending…", serving: null, dropped: left };
  streams.set(conversation.id, stream);
  changed(stream);
  return stream;
}

const again = (stream) => api.stream(`chat/answers/${stream.message.answer}`, null, stream.abort.signal);

async function run(stream, first) {
  const { message } = stream;
  let lost = 0;
  let source = first;
  try {
    for (;;) {
      try {
        for await (const event of source()) {
          lost = 0;
          take(stream, event);
        }
        break;
      } catch (error) {
        if (!(error instanceof api.ServerError)) throw error;
        if (error.status === 503) await busyServer(stream, error);
        else if (stream.known && [0, 502, 504].includes(error.status) && lost < RECONNECT.length) {
          stream.waiting = "The connection was lost; trying to pick the answer up…";
          changed(stream);
          await pause(RECONNECT[lost++], stream.abort.signal);
          source = () => again(stream);
        } else {
          failed(stream, error);
          break;
        }
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    done(stream, { stopped: true });
  } finally {
    finish(stream);
  }
}

// The line is full. The page waits by itself, and says so.
async function busyServer(stream, error) {
  for (let left = error.after ?? 5; left > 0; left -= 1) {
    stream.waiting = `${error.message} Trying again in ${left} s…`;
    changed(stream);
    await pause(1000, stream.abort.signal);
  }
}

function failed(stream, error) {
  const { message } = stream;
  message.cut = message.content !== "";
  if (error.status === 404 && message.state === "sending" && stream.known) {
    message.note = "Not sent: the page was closed before the server took it.";
    stream.unsaved = true; // another tab may be about to send it
  } else if (error.status === 404 && stream.known) {
    message.note = "Cut off: the server no longer has this answer.";
    message.state = "done";
  } else {
    message.error = { error: error.message, hint: error.hint, log: error.log };
    message.state = "failed";
  }
}

function take(stream, event) {
  const { message } = stream;
  if (event.id) {
    stream.known = true;
    message.state = "streaming";
    stream.heard = message.before ?? "";
    save(stream);
  } else if (event.status === "queued") stream.waiting = queued(event);
  else if (event.status === "loading") {
    stream.waiting = `The model is not in memory yet: ${event.stage}… ${event.seconds} s`;
  } else if (event.serving) {
    stream.serving = event.serving;
    stream.waiting = "Reading your message…";
  } else if (event.dropped) stream.dropped += event.dropped;
  else if (event.token) {
    stream.heard += event.token;
    // One that is picked up comes from its beginning; what is there already stays while it does.
    if (stream.heard.length > message.content.length) message.content = stream.heard;
    stream.saving ??= setTimeout(() => {
      stream.saving = undefined;
      save(stream);
    }, SAVE_EVERY);
  } else if (event.done) done(stream, event);
  else if (event.error) {
    message.error = { error: event.error, hint: event.hint, log: event.log };
    message.state = "failed";
    message.cut = message.content !== "";
  }
  changed(stream);
}

// What the chat waits for, as the server says it.
function queued({ for: what, model, ahead, on }) {
  const before = ahead === 0 ? "yours is next" : `${ahead} before you`;
  if (what !== "room") return `Waiting for a place on ${model}: ${before}…`;
  const leaves = on ? `${on.model} goes when its ${on.chats === 1 ? "chat has" : `${on.chats} chats have`} ended; ` : "";
  return `Waiting for room for ${model}: ${leaves}${before}…`;
}

function done(stream, event) {
  const { message } = stream;
  const rate = event.seconds > 0 ? `, ${(event.tokens / event.seconds).toFixed(1)} a second` : "";
  const speed = event.tokens === undefined ? "" : `${event.tokens} token${event.tokens === 1 ? "" : "s"}${rate}`;
  const why = event.stopped ? "Stopped." : event.reason === "length" ? "Cut at the longest answer allowed." : "";
  const forgotten = stream.dropped ? `The first ${stream.dropped} messages no longer fit and were left out.` : "";
  message.note = [why, speed, forgotten].filter(Boolean).join(" · ");
  if (!message.content && !event.stopped) message.note = `The model had nothing to say. ${message.note}`;
  message.state = "done";
  message.cut = why !== "" && message.content !== "";
}

function save(stream) {
  // Only the tab that asked stores an answer on its way. Where two did, each would take the other's for a new one.
  if (stream.pickedUp && !isAwaited(stream)) return;
  // A conversation that was deleted meanwhile, here or in another tab, is not brought back.
  const stored = store.load(stream.conversation.id);
  if (stream.discarded || stream.unsaved || !stored) return;
  // Its name and model may have been chosen in another tab, which has not the answer.
  Object.assign(stream.conversation, { title: stored.title, model: stored.model });
  store.keep(stream.conversation);
}

// Whether what is stored still waits for this answer, and this tab has its end.
function isAwaited({ conversation, message }) {
  const stored = store.load(conversation.id);
  const last = stored?.messages.at(-1);
  const ended = message.state !== "streaming" && message.state !== "sending";
  return ended && Boolean(stored) && store.unfinished(stored) && last.answer === message.answer;
}

function finish(stream) {
  clearTimeout(stream.saving);
  if (streams.get(stream.conversation.id) === stream) streams.delete(stream.conversation.id);
  if (stream.leaving || stream.discarded) return;
  stream.conversation.updated = Date.now();
  save(stream);
  ended(stream);
}

export function stop(id) {
  const stream = streams.get(id);
  if (!stream) return;
  // At once: it must be possible while the server is out of reach, or all connections of the browser are taken.
  stream.abort.abort();
  api.post("stop", { id: stream.message.answer }).catch(() => {});
}

// Ends an answer that nobody wants any more.
export function discard(id) {
  const stream = streams.get(id);
  if (!stream) return;
  stream.discarded = true;
  stop(id);
  streams.delete(id);
}

// The page is left: what the browser cuts off then is no end of the answer.
addEventListener("pagehide", () => {
  for (const stream of streams.values()) {
    save(stream);
    stream.leaving = true;
  }
});
addEventListener("pageshow", () => { for (const stream of streams.values()) stream.leaving = false; });
