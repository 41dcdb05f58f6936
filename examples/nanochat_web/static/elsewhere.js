// One conversation in two tabs: is another one writing the answer? They are asked, for what is stored cannot tell a tab
// that writes from one that was closed while it did.

const PATIENCE = 700; // a tab in the background answers at once, a frozen one never

const channel = new BroadcastChannel("nanochat-web");
const asked = new Map(); // conversation id -> what to call when a tab says that it is writing

export function start(writing) {
  channel.addEventListener("message", ({ data }) => {
    if (data.asked !== undefined && writing(data.asked)) channel.postMessage({ writing: data.asked });
    for (const found of asked.get(data.writing) ?? []) found();
  });
}

export async function writes(id) {
  const waiting = asked.get(id) ?? new Set();
  asked.set(id, waiting);
  let found;
  const answer = new Promise((resolve) => {
    found = () => resolve(true);
    waiting.add(found);
    setTimeout(() => resolve(false), PATIENCE);
  });
  channel.postMessage({ asked: id });
  try {
    return await answer;
  } finally {
    waiting.delete(found);
    if (waiting.size === 0) asked.delete(id);
  }
}
