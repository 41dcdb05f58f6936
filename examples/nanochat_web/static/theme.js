// Before anything is drawn: the theme that was chosen in this browser, or the system's. No module, for it must not wait.
{
  // A browser may refuse its storage to a page. What this one keeps then lives as long as the page does.
  class Forgetful {
    getItem(key) { return Object.hasOwn(this, key) ? this[key] : null; }
    setItem(key, value) { this[key] = String(value); }
    removeItem(key) { delete this[key]; }
  }
  for (const name of ["localStorage", "sessionStorage"]) {
    try {
      void window[name].length;
    } catch {
      Object.defineProperty(window, name, { value: new Forgetful() });
    }
  }
  const THEMES = { "": "as the system", light: "light", dark: "dark" };
  const KEY = "nanochat-web/theme";
  const use = (name) => {
    document.documentElement.dataset.theme = name;
    const button = document.querySelector("#theme");
    if (button) button.textContent = `Theme: ${THEMES[name]}`;
  };
  const chosen = () => {
    const name = localStorage.getItem(KEY) ?? "";
    return Object.hasOwn(THEMES, name) ? name : "";
  };
  use(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    use(chosen());
    document.querySelector("#theme").addEventListener("click", () => {
      const names = Object.keys(THEMES);
      const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // no room: it is used, and not kept
      }
      use(next);
    });
  });
  addEventListener("storage", (event) => { if (event.key === KEY) use(chosen()); });
}
