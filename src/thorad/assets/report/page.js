"use strict";
// What every report has: light and dark. A report with cases has gallery.js behind it.

const element = (id) => document.getElementById(id);

const root = document.documentElement;
const setTheme = (dark) => { root.dataset.theme = dark ? "dark" : "light"; };
setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches));
element("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));
element("print").addEventListener("click", () => (window.printCases ? window.printCases() : window.print()));
