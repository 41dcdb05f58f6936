"use strict";
// Adds a copy button to each command. The page is complete without it: one click selects a command.
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
