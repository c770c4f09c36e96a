"use strict";
// What every page has: light and dark, remembered where pages may keep something, printing, and texts to copy.

const element = (id) => document.getElementById(id);

const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const setTheme = (theme) => { root.dataset.theme = theme ?? sessionStorage.theme ?? (dark.matches ? "dark" : "light"); };
setTheme();
dark.addEventListener("change", () => setTheme());
element("theme").addEventListener("click", () => {
  sessionStorage.theme = root.dataset.theme === "dark" ? "light" : "dark";
  setTheme();
});
element("print")?.addEventListener("click", () => (window.printCases ? window.printCases() : window.print()));

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = element(button.dataset.copies), said = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(text.innerText);
      said.textContent = "Copied.";
    } catch { // not allowed here: selected, it is one key away
      getSelection().selectAllChildren(text);
      said.textContent = "Selected: press Ctrl C.";
    }
  });
}
