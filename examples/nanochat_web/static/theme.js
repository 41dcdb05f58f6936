// Before anything is drawn: the theme that was chosen in this browser, or the system's. No module, for it must not wait.
{
  const THEMES = { "": "as the system", light: "light", dark: "dark" };
  const KEY = "nanochat-web/theme";
  const use = (name) => {
    document.documentElement.dataset.theme = name;
    const button = document.querySelector("#theme");
    if (button) button.textContent = `Theme: ${THEMES[name]}`;
  };
  const chosen = () => {
    const name = localStorage.getItem(KEY) ?? "";
    return name in THEMES ? name : "";
  };
  use(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    use(chosen());
    document.querySelector("#theme").addEventListener("click", () => {
      const names = Object.keys(THEMES);
      localStorage.setItem(KEY, names[(names.indexOf(chosen()) + 1) % names.length]);
      use(chosen());
    });
  });
  addEventListener("storage", (event) => { if (event.key === KEY) use(chosen()); });
}
