// A small Markdown renderer. It builds elements and text nodes only, so whatever a model writes stays inert.
// blocks(text) cuts a text into blocks; render(block) makes one element; update(parent, text) changes only what changed.

import { copy, make } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

// nanochat's calculator calls, which come as special tokens, as a person would write them.
const TOOL = /<\|python_start\|>([\s\S]*?)<\|python_end\|>(?:<\|output_start\|>([\s\S]*?)<\|output_end\|>)?/g;

export function readable(text) {
  return text.replace(TOOL, (_, asked, got) => (got === undefined ? `\`${asked}\`` : `\`${asked}\` = **${got}**`));
}

const starts = (line, next) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || QUOTE.test(line) ||
  (line.includes("|") && next !== undefined && next.includes("-") && TABLE_RULE.test(next));

export function blocks(text) {
  const lines = readable(text).split("\n");
  const found = [];
  let at = 0;
  const take = (kind, more, first = 1) => {
    const from = at;
    at += first;
    while (at < lines.length && more(lines[at], at)) at += 1;
    found.push({ kind, source: lines.slice(from, at).join("\n") });
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === "") at += 1;
    else if (fence) {
      const end = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      take("code", (next) => !end.test(next));
      if (at < lines.length) found[found.length - 1].source += `\n${lines[at++]}`;
    } else if (HEADING.test(line)) take("heading", () => false);
    else if (RULE.test(line)) take("rule", () => false);
    else if (QUOTE.test(line)) take("quote", (next) => QUOTE.test(next));
    else if (ITEM.test(line)) take("list", (next) => ITEM.test(next) || /^\s{2,}\S/.test(next));
    else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && TABLE_RULE.test(lines[at + 1])) {
      take("table", (next) => next.includes("|"), 2);
    } else take("paragraph", (next, i) => next.trim() !== "" && !starts(next, lines[i + 1]));
  }
  return found;
}

// -- inside a line

// How far the end is looked for is bounded: a model that loops opens thousands and closes none.
const INLINE = [
  [/^\\([\\`*_{}[\]()#+\-.!~|>])/, (m) => m[1]],
  [/^(`{1,20})(?!`)([^`]|[^`][\s\S]{0,2000}?[^`])\1(?!`)/, (m) => make("code", {}, m[2])],
  [/^\*\*(?=\S)([\s\S]{0,2000}?\S)\*\*/, (m) => make("strong", {}, ...inline(m[1]))],
  [/^__(?=\S)([\s\S]{0,2000}?\S)__(?!\w)/, (m) => make("strong", {}, ...inline(m[1]))],
  [/^~~(?=\S)([\s\S]{0,2000}?\S)~~/, (m) => make("del", {}, ...inline(m[1]))],
  [/^\*(?=[^\s*])([\s\S]{0,2000}?[^\s*])\*(?!\*)/, (m) => make("em", {}, ...inline(m[1]))],
  [/^_(?=[^\s_])([\s\S]{0,2000}?[^\s_])_(?!\w)/, (m) => make("em", {}, ...inline(m[1]))],
  // A picture is a link: the page loads nothing from elsewhere.
  [/^!\[([^\]\n]*)\]\(([^()\s]+)(?:\s+"[^"\n]*")?\)/, (m) => link(m[2], [m[1] || m[2]]) ?? m[0]],
  [/^\[([^\]\n]+)\]\(([^()\s]+)\)/, (m) => link(m[2], inline(m[1])) ?? m[0]],
  [/^https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]*_]/, (m) => link(m[0], [m[0]]) ?? m[0]],
  [/^\n/, () => make("br")],
];

// Only http and https lead anywhere; anything else (javascript:, data:, ...) is shown as it was written.
function link(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  return make("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...children);
}

export function inline(text) {
  const out = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const rest = text.slice(at);
    // Between letters an underscore is a letter, and an address begins at a word's beginning.
    const inWord = at > 0 && /\w/.test(text[at - 1]);
    let hit = null;
    if (/[\\`*_~[!h\n]/.test(rest[0]) && !(inWord && /[_h]/.test(rest[0]))) {
      for (const [pattern, build] of INLINE) {
        const match = pattern.exec(rest);
        if (match) {
          hit = [match[0].length, build(match)];
          break;
        }
      }
    }
    if (hit) {
      if (plain) out.push(plain);
      plain = "";
      out.push(hit[1]);
      at += hit[0];
    } else {
      plain += rest[0];
      at += 1;
    }
  }
  if (plain) out.push(plain);
  return out;
}

// -- blocks

function code(source) {
  const lines = source.split("\n");
  const fence = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`).test(lines.at(-1));
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const button = make("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", () => copy(button, text));
  const head = make("div", { class: "code-head" }, make("span", {}, fence[2] || "text"), button);
  return make("div", { class: "code" }, head, make("pre", { tabindex: "0" }, make("code", {}, text)));
}

function list(source) {
  const root = { items: [], indent: -1 };
  const stack = [root];
  for (const line of source.split("\n")) {
    const match = ITEM.exec(line);
    if (!match) {
      const last = stack.at(-1).items.at(-1);
      last.text += `\n${line.trim()}`;
      continue;
    }
    const indent = match[1].replaceAll("\t", "    ").length;
    while (stack.length > 1 && indent <= stack.at(-1).indent - 1) stack.pop();
    if (stack.length === 1 || indent > stack.at(-1).indent + 1) {
      const parent = stack.at(-1);
      const inner = { items: [], indent, ordered: /\d/.test(match[2]), start: parseInt(match[2], 10) };
      if (parent === root) root.items.push(inner);
      else parent.items.at(-1).inner = inner;
      stack.push(inner);
    }
    stack.at(-1).items.push({ text: match[3] });
  }
  const build = (level) => make(
    level.ordered ? "ol" : "ul",
    { start: level.ordered && level.start !== 1 ? level.start : null },
    ...level.items.map((item) => make("li", {}, ...inline(item.text), item.inner ? build(item.inner) : null)),
  );
  return root.items.length === 1 ? build(root.items[0]) : make("div", {}, ...root.items.map(build));
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(source) {
  const [head, , ...body] = source.split("\n");
  const width = cells(head).length;
  const row = (line, tag) => {
    const found = cells(line);
    return make("tr", {}, ...Array.from({ length: width }, (_, i) => make(tag, {}, ...inline(found[i] ?? ""))));
  };
  return make("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    make("table", {}, make("thead", {}, row(head, "th")), make("tbody", {}, ...body.map((line) => row(line, "td")))));
}

const DEEPEST = 16; // quotes in quotes: a small model may write a line of nothing but ">"

const RENDER = {
  code,
  list,
  table,
  rule: () => make("hr"),
  heading: (source) => {
    const [, marks, words] = HEADING.exec(source);
    let end = words.trimEnd().length;
    while (words[end - 1] === "#") end -= 1; // marks that close it; the one of "C#" does not
    const text = end === 0 || /\s/.test(words[end - 1]) ? words.slice(0, end) : words;
    return make(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text.trimEnd()));
  },
  quote: (source, depth) => {
    const inner = source.split("\n").map((line) => QUOTE.exec(line)[1]).join("\n");
    return make("blockquote", {}, ...(depth < DEEPEST ? blocks(inner).map((block) => render(block, depth + 1)) : [inner]));
  },
  paragraph: (source) => make("p", {}, ...inline(source.trim())),
};

export function render(block, depth = 0) {
  return RENDER[block.kind](block.source, depth);
}

// Keeps the blocks that are as they were: a selection in them survives, and a long answer stays cheap.
export function update(parent, text) {
  const wanted = blocks(text);
  const have = parent.rendered ?? [];
  let same = 0;
  while (same < wanted.length && same < have.length && wanted[same].source === have[same].source &&
         wanted[same].kind === have[same].kind) same += 1;
  while (parent.childNodes.length > same) parent.lastChild.remove();
  for (const block of wanted.slice(same)) parent.append(render(block));
  parent.rendered = wanted;
}
