// How results are looked at, in the report, the viewer and the page of a volume: one state of the controls, the colours
// that follow from it, and what the mouse does. The page's own script comes after this one, has a function
// redraw(onlyMap), and calls show() when it is ready.

const index = JSON.parse(document.getElementById("index").textContent);
const number = (value, digits = 3) =>
  value === null || value === undefined || !Number.isFinite(value) ? "–" : String(Number(value.toPrecision(digits)));

// ---------------------------------------------------------------------------------------------- what is set

// Sliders of map values go by square roots, so that small values have room.
const STEPS = 1000;
const toSlider = (value) => Math.round(STEPS * Math.sqrt(Math.min(1, Math.max(0, value / index.largest))));
const fromSlider = (step) => index.largest * (step / STEPS) ** 2;
const beginning = () => ({
  threshold: index.start,
  opacity: 0.85,
  maximum: index.maximum,
  level: 0.5,
  window: 1,
  colours: Object.keys(index.colours)[0],
  outline: true,
  judged: element("judged").defaultChecked,
  truth: true,
  smooth: index.smooth ?? true,
  radiological: index.side === "radiological",
});
let state = beginning();

/** 256 colours of a map of which a few are given. */
function colourTable(anchors) {
  const table = new Uint8Array(256 * 3);
  for (let step = 0; step < 256; step++) {
    const at = (step / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(at), anchors.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      table[3 * step + channel] = Math.round(anchors[low][channel] + (at - low) * (anchors[low + 1][channel] - anchors[low][channel]));
    }
  }
  return table;
}
const tables = Object.fromEntries(Object.entries(index.colours).map(([name, anchors]) => [name, colourTable(anchors)]));

/** How far up the colours a map value stands, in [0, 1]: they begin at the threshold. */
const colourShare = (value) => Math.min(1, Math.max(0, (value - state.threshold) / Math.max(1e-9, state.maximum - state.threshold)));

/** How much of the scan a map value hides, in [0, 1]: what is above a threshold shows at once, and more with its value. */
function cover(value) {
  if (state.threshold > 0 && value <= state.threshold) return 0;
  const share = colourShare(value);
  return state.opacity * (state.threshold > 0 ? 0.5 + 0.5 * share : share);
}

function greyTable() {
  const low = state.level - state.window / 2;
  return Uint8ClampedArray.from({ length: 256 }, (_, grey) => 255 * ((grey / 255 - low) / state.window));
}

/** A line that shows on dark and bright. */
function stroke(context, path, thin, colour, dash) {
  context.lineWidth = thin + 1.2;
  context.strokeStyle = "rgba(0, 0, 0, 0.6)";
  context.setLineDash([]);
  context.stroke(path);
  context.lineWidth = thin;
  context.strokeStyle = colour;
  context.setLineDash(dash);
  context.stroke(path);
}

/** Of the line around what was judged: like no colour of a map, and unlike those of truth and cross-hair. */
const JUDGED = "#8fd694";

/** The length of a ruler, mm: round, and at most three tenths of a picture that is so many mm wide. */
const rulerLength = (width) => [100, 50, 20, 10, 5, 2, 1].find((mm) => mm <= 0.3 * width) ?? 1;

/** As 3D Slicer has it: left button window and level, middle button or Shift pan, right button zoom; two fingers both.
 *
 * `on` has zoom(factor, event), where event is null if no place is to stay where it is; pan(across, down, box), px;
 * point(event), null when the pointer has left; and, where they mean something, click(event) and wheel(event).
 */
function listenToPointer(node, on) {
  const pointers = new Map(); // those that are down, by their id
  const drag = (event) => {
    const pointer = pointers.get(event.pointerId), box = node.getBoundingClientRect();
    const across = event.clientX - pointer.x, down = event.clientY - pointer.y;
    if (!pointer.moved && Math.hypot(across, down) < 3) return;
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    if (!pointer.moved) node.setPointerCapture(event.pointerId);
    if (others.length) {
      const apart = (x, y) => Math.max(10, Math.hypot(x - others[0].x, y - others[0].y));
      on.zoom(apart(event.clientX, event.clientY) / apart(pointer.x, pointer.y), null);
      on.pan(across / 2, down / 2, box, event);
    } else if (event.pointerType === "touch" || pointer.button === 1 || event.shiftKey) on.pan(across, down, box, event);
    else if (pointer.button === 2) on.zoom(Math.exp(-down / 150), null);
    else if (pointer.button === 0) {
      const within = (value, low, high) => Math.min(high, Math.max(low, value));
      change({ window: within(state.window + across / box.width, 0.02, 2), level: within(state.level + down / box.height, 0, 1) });
    }
    Object.assign(pointer, { x: event.clientX, y: event.clientY, moved: true });
  };
  node.addEventListener("pointermove", (event) => (pointers.has(event.pointerId) ? drag(event) : on.point(event)));
  node.addEventListener("pointerleave", () => on.point(null));
  node.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, button: event.button, moved: false });
    if (event.button === 1) event.preventDefault(); // no scrolling by the middle button
  });
  node.addEventListener("pointerup", (event) => {
    const pointer = pointers.get(event.pointerId);
    if (pointer && !pointer.moved && pointer.button === 0) on.click?.(event);
    pointers.delete(event.pointerId);
  });
  node.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  node.addEventListener("contextmenu", (event) => event.preventDefault());
  node.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return void on.wheel?.(event); // else the page scrolls
    event.preventDefault();
    on.zoom(Math.exp(-event.deltaY / 300), event);
  }, { passive: false });
}

// ---------------------------------------------------------------------------------------------- controls

for (const name of Object.keys(index.colours)) element("colours").add(new Option(name, name));

function show(onlyMap = false) {
  element("threshold").value = toSlider(state.threshold);
  element("threshold").setAttribute("aria-valuetext", number(state.threshold));
  element("threshold-value").value = number(state.threshold, 4);
  element("opacity").value = Math.round(100 * state.opacity);
  element("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  element("maximum").value = Math.max(1, toSlider(state.maximum));
  element("maximum").setAttribute("aria-valuetext", number(state.maximum));
  element("maximum-value").textContent = number(state.maximum);
  element("level").value = Math.round(100 * state.level);
  element("level-value").textContent = state.level.toFixed(2);
  element("window").value = Math.round(100 * state.window);
  element("window-value").textContent = state.window.toFixed(2);
  element("colours").value = state.colours;
  element("outline").checked = state.outline;
  element("judged").checked = state.judged;
  element("truth").checked = state.truth;
  element("smooth").checked = state.smooth;
  element("radiological").checked = state.radiological;
  element("legend-start").textContent = number(state.threshold, 2);
  element("legend-end").textContent = `${number(state.maximum, 2)} +`;
  const colours = tables[state.colours], stops = Array.from({ length: 17 }, (_, stop) => Math.round((255 * stop) / 16));
  element("gallery").style.setProperty("--colours", stops.map((at) => `rgb(${colours.slice(3 * at, 3 * at + 3).join(" ")})`).join(", "));
  element("legend").setAttribute("aria-label", `Colour scale of the maps, ${state.colours}: from the threshold ${number(state.threshold)}, below which nothing is coloured, to ${number(state.maximum)} and above`);
  for (const marker of document.querySelectorAll(".marker")) {
    const { left, right, maximum } = marker.dataset;
    const at = Number(left) + (Number(right) - Number(left)) * Math.sqrt(Math.min(1, state.threshold / Number(maximum)));
    marker.setAttribute("x1", at);
    marker.setAttribute("x2", at);
  }
  redraw(onlyMap);
}
const OF_THE_MAP = ["threshold", "opacity", "maximum", "colours", "outline", "judged"];
function change(changes) {
  state = { ...state, ...changes };
  show(Object.keys(changes).every((name) => OF_THE_MAP.includes(name)));
}
const onInput = (id, read) => element(id).addEventListener("input", (event) => change(read(event.target)));
onInput("threshold", (input) => ({ threshold: fromSlider(Number(input.value)) }));
element("threshold-value").addEventListener("change", (event) => {
  const value = Number(event.target.value);
  change({ threshold: Number.isFinite(value) ? Math.min(index.largest, Math.max(0, value)) : 0 });
});
onInput("opacity", (input) => ({ opacity: Number(input.value) / 100 }));
onInput("maximum", (input) => ({ maximum: fromSlider(Number(input.value)) }));
onInput("level", (input) => ({ level: Number(input.value) / 100 }));
onInput("window", (input) => ({ window: Number(input.value) / 100 }));
onInput("colours", (input) => ({ colours: input.value }));
onInput("outline", (input) => ({ outline: input.checked }));
onInput("judged", (input) => ({ judged: input.checked }));
onInput("truth", (input) => ({ truth: input.checked }));
onInput("smooth", (input) => ({ smooth: input.checked }));
onInput("radiological", (input) => ({ radiological: input.checked }));
element("reset").addEventListener("click", () => change(beginning()));
element("truth-label").hidden = !index.truth;
element("judged-label")?.toggleAttribute("hidden", !index.judged);
element("unit").textContent = index.unit;

const nudged = (by) => fromSlider(Math.min(STEPS, Math.max(0, toSlider(state.threshold) + by)));
const CONTROL_KEYS = {
  "]": () => change({ threshold: nudged(10) }),
  "[": () => change({ threshold: nudged(-10) }),
  "+": () => change({ opacity: Math.min(1, state.opacity + 0.1) }),
  "-": () => change({ opacity: Math.max(0, state.opacity - 0.1) }),
  m: () => change({ outline: !state.outline }),
  t: () => change({ truth: !state.truth }),
  g: () => change({ judged: !state.judged }),
  r: () => change({ radiological: !state.radiological }),
};
