"use strict";
// What every saved page has: light and dark, and printing. gallery.js or volume.js come behind it.

const element = (id) => document.getElementById(id);

const root = document.documentElement;
const setTheme = (dark) => { root.dataset.theme = dark ? "dark" : "light"; };
setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches));
element("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));
element("print")?.addEventListener("click", () => (window.printCases ? window.printCases() : window.print()));
