// Requests to the server, and its event streams.

const TOKEN = "nanochat-web/token";
let here = null; // the access word where there is no room to store it

// The address that the server printed carries its access word behind the #, which browsers send to nobody.
export function given() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return false;
  try {
    enter(decodeURIComponent(found[1]));
  } catch {
    enter(found[1]); // a % that stands for itself
  }
  history.replaceState(null, "", location.pathname);
  return true;
}
given();

// Asked once in a browser, not in each of its tabs.
export function enter(word) {
  here = word;
  localStorage.removeItem(TOKEN);
  try {
    localStorage.setItem(TOKEN, word);
  } catch {
    // it is asked for again after a reload
  }
}

export class ServerError extends Error {
  constructor(message, { status = 0, hint = "", log = [], after = null } = {}) {
    super(message);
    this.status = status;
    this.after = after;
    this.hint = hint;
    this.log = log;
  }
}

async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const token = localStorage.getItem(TOKEN) ?? here;
  // No header can carry other letters, and no server has such a word: it will ask for its own.
  if (token && /^[\x21-\x7e]+$/.test(token)) headers.authorization = `Bearer ${token}`;
  if (method !== "GET") headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: method === "GET" ? undefined : JSON.stringify(body ?? {}) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.", { hint: "Is it still running? Start it again in its terminal." });
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let detail = `${answer.status} ${answer.statusText}`;
  try {
    const body = await answer.json();
    detail = typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail);
  } catch {
    // a proxy's own page, most likely: the status has to do
  }
  const hints = {
    401: "The server was started with an access word: reload this page to type it, or open the address that the server printed.",
  };
  const after = Number(answer.headers.get("retry-after")) || null;
  const text = detail.charAt(0).toUpperCase() + detail.slice(1);
  return new ServerError(/[.!?]$/.test(text) ? text : `${text}.`, {
    status: answer.status, hint: hints[answer.status] ?? "", after,
  });
}

export const get = async (path) => (await ask(path)).json();
export const text = async (path) => (await ask(path)).text();
export const post = async (path, body) => (await ask(path, { method: "POST", body })).json();

// The events of an answer, one object after the other. An answer that ends without a last event is an error.
export async function* stream(path, body, signal) {
  const answer = await ask(path, { method: body ? "POST" : "GET", body, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let ended = false;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      break; // cut off: told below
    }
    if (piece.done) break;
    held += piece.value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = JSON.parse(event.slice(6));
      ended ||= data.done === true || data.error !== undefined;
      yield data;
    }
  }
  if (!ended) {
    throw new ServerError("The connection was cut before the answer was complete.", {
      hint: "The server was stopped, or the network failed. What came is kept; try again.",
    });
  }
}
