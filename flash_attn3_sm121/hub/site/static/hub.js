"use strict";
// Puts the hub's address into the commands, adds a copy button to each, and shows the search. The pages are complete
// without it: they say what HUB stands for, and one click selects a command.
const hub = new URL(document.body.dataset.root || "./", location.href).href.replace(/\/$/, "");
for (const text of document.querySelectorAll(".code code")) {
  text.textContent = text.textContent.replaceAll("http://HUB", hub);
}
for (const note of document.querySelectorAll(".where")) {
  note.remove();
}
const search = document.querySelector(".search");
if (search) {
  const cards = [...document.querySelectorAll("[data-search]")];
  search.hidden = false;
  search.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const card of cards) {
      card.hidden = !words.every((word) => card.dataset.search.toLowerCase().includes(word));
    }
    document.querySelector("#no-match").hidden = cards.some((card) => !card.hidden);
  });
}
for (const box of document.querySelectorAll(".code")) {
  const text = box.querySelector("pre");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy: " + text.textContent.trim().split("\n")[0]);
  button.addEventListener("click", async () => {
    let done = false;
    if (navigator.clipboard) {
      done = await navigator.clipboard.writeText(text.textContent.trim()).then(() => true, () => false);
    }
    if (!done) { // an address other than localhost without TLS has no clipboard
      getSelection().selectAllChildren(text);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Selected";
    button.classList.add("done");
    setTimeout(() => { button.textContent = "Copy"; button.classList.remove("done"); }, 1600);
  });
  box.classList.add("copyable");
  box.append(button);
}
