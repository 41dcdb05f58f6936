// Elements without innerHTML: everything that comes from a model or a person is text, never markup.

export const $ = (selector) => document.querySelector(selector);

// make("p", { class: "note", hidden: true, onclick: f }, "text", node, ...)
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Exactly these children, in this order. Those that are in place are not touched: they keep focus and scroll position.
export function arrange(box, wanted) {
  for (const child of [...box.childNodes]) if (!wanted.includes(child)) child.remove();
  let at = box.firstChild;
  for (const child of wanted) {
    if (child === at) at = at.nextSibling;
    else box.insertBefore(child, at);
  }
}

// So many characters at most, and no half of one.
export const beginning = (text, length) => text.slice(0, length).replace(/[\ud800-\udbff]$/, "");
export const ending = (text, length) => text.slice(-length).replace(/^[\udc00-\udfff]/, "");

// For people who do not look at the screen.
export function say(text) {
  $("#say").textContent = text;
}

export async function copy(button, text) {
  const before = button.dataset.label ?? button.textContent;
  button.dataset.label = before;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed"; // plain http on a network: the browser has no clipboard there
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

const BYTES = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < BYTES.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${BYTES[unit]}`;
}

const SPANS = [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]];

export function age(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  for (const [name, length] of SPANS) {
    const count = Math.floor(passed / length);
    if (count >= 1) return `${count} ${name}${count === 1 ? "" : "s"} ago`;
  }
  return "just now";
}

export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds)); // the server's clock may be ahead
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const whole = (count) => count.toLocaleString("en");
