"use strict";
// What every page of the viewer has beside page.js: calls of the server, and words.

// The token is a cookie now, and should not stay on the screen.
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname);

const ENDED = "The viewer has ended, or doesn't answer. Start `thorad view` again.";

/** The server's answer, parsed; its own words as an Error where it refuses. */
async function call(path, method = "GET", body = undefined) {
  let answer;
  try {
    answer = await fetch(path, { method, body });
  } catch {
    throw new Error(ENDED);
  }
  const text = await answer.text();
  if (answer.ok) return text ? JSON.parse(text) : {};
  let message = text;
  try {
    message = JSON.parse(text).message;
  } catch { /* a refusal in plain words */ }
  throw new Error(message || `The viewer answered ${answer.status}.`);
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** A new element with text. */
function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (className) node.className = className;
  return node;
}

/** A method as the page calls it: its title and its noise. */
const methodName = ({ method_title: title, method, noise }) => `${title ?? method}${noise ? ` (${noise} noise)` : ""}`;

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`);
const seconds = (value) => (value === null ? "" : value < 10 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`);
const counted = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

function complain(message) {
  element("problem").textContent = message;
  element("problem").hidden = !message;
}
