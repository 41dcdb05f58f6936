// What was done can be undone for a while: one line at the bottom of the page.

import { $, make, say } from "./dom.js";

const STAYS = 12000;
let timer = null;

export function offer(text, back) {
  const box = $("#undo");
  clearTimeout(timer);
  const hide = () => { box.hidden = true; };
  box.replaceChildren(make("span", {}, text), make("button", {
    type: "button", class: "button small-button", onclick: () => {
      clearTimeout(timer);
      hide();
      back();
      say("Undone.");
    },
  }, "Undo"));
  box.hidden = false;
  timer = setTimeout(hide, STAYS);
  say(text);
}
