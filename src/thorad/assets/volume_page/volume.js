// The viewer of one volume. NiiVue draws the planes; this file reads what is embedded, moves the cross-hair, and draws
// the outline of the mask over NiiVue's canvas. Indices i, j, k run to the right, to anterior and to superior.

const about = JSON.parse(element("about").textContent);
const [SIDE_I, SIDE_J, SIDE_K] = about.shape;
const STEPS = 1000;
const number = (value, digits = 3) => (Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : "–");

// ---------------------------------------------------------------------------------------------- what is set

// Sliders of map values go by square roots, so that small values have room.
const highest = Math.max(about.highest, about.threshold ?? 0) || 1;
const toSlider = (value) => Math.round(STEPS * Math.sqrt(Math.min(1, Math.max(0, value / highest))));
const fromSlider = (step) => highest * (step / STEPS) ** 2;
const state = {
  // Without a threshold of the run, what is dark in the scale of colours is left out.
  threshold: about.threshold ?? Math.min(about.maximum / 4, highest / 2),
  opacity: 0.7,
  white: 1,
  map: true,
  outline: true,
  healthy: false,
  cross: true,
  smooth: false,
  radiological: about.side === "radiological",
  position: about.places[0].index,
  finding: 0,
};

// ---------------------------------------------------------------------------------------------- reading

const textOf = (name) => {
  const holder = element(`volume-${name}`);
  const text = holder ? holder.textContent : null;
  holder?.remove();
  return text;
};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The voxels of an embedded 8-bit volume, which follow its header. */
const HEADER_BYTES = 352;
const levels8 = async (name) => {
  const text = textOf(name);
  return text ? (await unpack(text)).subarray(HEADER_BYTES) : null;
};

/** Bits in NumPy's order to a byte for each voxel. */
function bits(packed) {
  const voxels = new Uint8Array(SIDE_I * SIDE_J * SIDE_K);
  for (let at = 0; at < voxels.length; at++) voxels[at] = (packed[at >> 3] >> (7 - (at & 7))) & 1;
  return voxels;
}

const load = (name, colormap, cal_min, cal_max) =>
  niivue.NVImage.loadFromBase64({ base64: textOf(name), name: `${name}.nii.gz`, colormap, cal_min, cal_max });

// ---------------------------------------------------------------------------------------------- drawing

const canvas = element("drawing"), lines = element("lines");
const viewer = new niivue.Niivue({
  logLevel: "error",
  loadingText: "",
  dragAndDropEnabled: false,
  showAllOrientationMarkers: true,
  fontColor: [1, 0.9, 0.4, 1],
  fontMinPx: 18,
  crosshairWidth: 0,
  multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
  isNearestInterpolation: true,
  isForceMouseClickToVoxelCenters: true,
  dragMode: niivue.DRAG_MODE.crosshair,
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  viewModeHotKey: "",
});
// What lies under the map, and the map, as NiiVue has them; the voxels of the others, null where the case has none.
let under = null, map = null;
let scan = null, healthy = null, mask = null;

const at = ([i, j, k]) => i + SIDE_I * (j + SIDE_J * k);
const fractions = (position) => position.map((index, axis) => (index + 0.5) / about.shape[axis]);

/** Where a fraction of the volume's sides lies on the canvas, in a tile: canvas px. */
function placer(tile) {
  const [left, top, width, height] = tile.leftTopWidthHeight;
  const [across, up] = [[0, 1], [0, 2], [1, 2]][tile.axCorSag];
  return (fraction) => {
    const mm = viewer.frac2mm(fraction);
    return [
      left + (width * (mm[across] - tile.leftTopMM[0])) / tile.fovMM[0],
      top + height * (1 - (mm[up] - tile.leftTopMM[1]) / tile.fovMM[1]),
    ];
  };
}

/** Over the planes: the mask's border, along the edges of its voxels, and the cross-hair, which leaves its middle free. */
function drawLines() {
  lines.width = canvas.width;
  lines.height = canvas.height;
  const context = lines.getContext("2d");
  const pixel = window.devicePixelRatio || 1;
  const border = new Path2D(), cross = new Path2D();
  const here = fractions(state.position);
  for (const tile of viewer.screenSlices) {
    if (tile.axCorSag > 2) continue;
    const [across, up, through] = [[0, 1, 2], [0, 2, 1], [1, 2, 0]][tile.axCorSag];
    const corner = (fraction) => here.map((at, axis) => (axis === through ? at : fraction));
    const place = placer(tile);
    const [x0, y0] = place(corner(0)), [x1, y1] = place(corner(1)), [x, y] = place(here);
    if (state.cross) {
      const gap = 9 * pixel;
      for (const [u, v] of [[x0, y], [x1, y]]) { cross.moveTo(u, v); cross.lineTo(x + Math.sign(u - x) * gap, v); }
      for (const [u, v] of [[x, y0], [x, y1]]) { cross.moveTo(u, v); cross.lineTo(u, y + Math.sign(v - y) * gap); }
    }
    if (mask && state.outline) {
      trace(border, across, up, through, (u) => x0 + ((x1 - x0) * u) / about.shape[across], (v) => y0 + ((y1 - y0) * v) / about.shape[up]);
    }
  }
  const stroke = (path, width, colour) => {
    context.lineWidth = width * pixel;
    context.strokeStyle = colour;
    context.stroke(path);
  };
  context.lineCap = "square";
  stroke(border, 3, "#000");
  stroke(border, 1.4, "#fff");
  stroke(cross, 1.2, "#56c8ff");
}

/** Add the mask's border in one plane to a path; x and y give the canvas' places of the voxels' edges. */
function trace(path, across, up, through, x, y) {
  const [width, height] = [about.shape[across], about.shape[up]];
  const index = [...state.position];
  const inside = (u, v) => {
    if (u < 0 || v < 0 || u >= width || v >= height) return 0;
    index[across] = u;
    index[up] = v;
    return mask[at(index)];
  };
  for (let v = 0; v <= height; v++) {
    for (let u = 0; u <= width; u++) {
      const here = inside(u, v);
      if (here !== inside(u - 1, v)) { path.moveTo(x(u), y(v)); path.lineTo(x(u), y(v + 1)); }
      if (here !== inside(u, v - 1)) { path.moveTo(x(u), y(v)); path.lineTo(x(u + 1), y(v)); }
    }
  }
}

let without = null;
/** The scan with the pseudo-healthy voxels in it where slices were looked at. */
function replaced() {
  without ??= scan.map((level, at) => (healthy[at] > 0 ? ((healthy[at] - 1) * 255) / 254 : level));
  return without;
}

let due = null;
// What has to be coloured anew: nothing, as when the cross-hair moves; the map; or what is under it, too.
const NOTHING = 0, MAP = 1, ALL = 2;
/** Draw again before the next frame. */
function draw(textures = NOTHING) {
  if (due) {
    due.textures = Math.max(due.textures, textures);
    return;
  }
  due = { textures };
  requestAnimationFrame(() => {
    const changed = due.textures;
    due = null;
    viewer.opts.isRadiologicalConvention = state.radiological;
    viewer.scene.crosshairPos = fractions(state.position);
    map.cal_min = Math.max(state.threshold, highest * 1e-6);
    map.opacity = state.map ? state.opacity : 0;
    under.cal_max = 255 * state.white;
    if (scan) under.img = state.healthy ? replaced() : scan;
    if (changed === MAP) viewer.refreshLayers(map, 1);
    if (changed === ALL) viewer.updateGLVolume();
    viewer.drawScene();
    drawLines();
    read();
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
  });
}

// ---------------------------------------------------------------------------------------------- the cross-hair

const through = (matrix, [i, j, k]) => matrix.slice(0, 3).map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);

/** The text under the planes: where the cross-hair is, and what is there. */
function read() {
  const position = state.position;
  const level = map.img[at(position)];
  const voxel = through(about.toSource, position).map((axis) => number(axis, 4)).join(", ");
  const mm = through(about.affine, position).map((axis) => axis.toFixed(1));
  const parts = [
    ["Voxel", voxel],
    ["Right, anterior, superior", `${mm.join(", ")} mm`],
    ["Map", level === about.notLookedAt ? "not looked at" : number(level)],
  ];
  if (scan) {
    const grey = scan[at(position)];
    parts.push(["Scan", `${grey === 255 ? "≥ " : ""}${number((grey / 255) * about.white)}`]);
  }
  if (healthy && healthy[at(position)] > 0) parts.push(["Pseudo-healthy", number((healthy[at(position)] - 1) / 254)]);
  if (mask) parts.push(["Mask", mask[at(position)] ? "inside" : "outside"]);
  element("reading").replaceChildren(...parts.flatMap(([name, value]) => {
    const shown = document.createElement("b");
    shown.textContent = value;
    return [`${name} `, shown, " "];
  }));
}

function go(position) {
  state.position = position.map((index, axis) => Math.min(about.shape[axis] - 1, Math.max(0, index)));
  draw();
}

const move = (axis, by) => go(state.position.map((index, other) => index + (other === axis ? by : 0)));

// ---------------------------------------------------------------------------------------------- controls

function showSettings() {
  element("threshold").value = toSlider(state.threshold);
  element("threshold-value").value = number(state.threshold);
  element("opacity").value = Math.round(100 * state.opacity);
  element("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  element("brightness").value = Math.round(100 * state.white);
  element("brightness-value").textContent = scan ? number(state.white * about.white) : number(state.white);
  element("show-map").checked = state.map;
  element("outline").checked = state.outline;
  element("healthy").checked = state.healthy;
  element("cross").checked = state.cross;
  element("smooth").checked = state.smooth;
  document.querySelector(`[name="side"][value="${state.radiological ? "radiological" : "neurological"}"]`).checked = true;
}

function set(changed, textures) {
  Object.assign(state, changed);
  showSettings();
  draw(textures);
}

function connect() {
  const on = (id, kind, act) => element(id).addEventListener(kind, act);
  on("threshold", "input", (event) => set({ threshold: fromSlider(Number(event.target.value)) }, MAP));
  on("threshold-value", "change", (event) => set({ threshold: Math.max(0, Number(event.target.value) || 0) }, MAP));
  on("opacity", "input", (event) => set({ opacity: Number(event.target.value) / 100 }, MAP));
  on("brightness", "input", (event) => set({ white: Number(event.target.value) / 100 }, ALL));
  on("show-map", "change", (event) => set({ map: event.target.checked }, MAP));
  on("outline", "change", (event) => set({ outline: event.target.checked }));
  on("healthy", "change", (event) => set({ healthy: event.target.checked }, ALL));
  on("cross", "change", (event) => set({ cross: event.target.checked }));
  on("smooth", "change", (event) => {
    viewer.setInterpolation(!event.target.checked);
    set({ smooth: event.target.checked });
  });
  for (const side of document.querySelectorAll('[name="side"]')) {
    side.addEventListener("change", () => set({ radiological: side.value === "radiological" }));
  }
  for (const [order, place] of about.places.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    const [label, value] = [document.createElement("span"), document.createElement("span")];
    label.textContent = place.label;
    value.textContent = [place.size, number(place.value), `(${place.voxel.join(", ")})`].filter(Boolean).join(" · ");
    button.append(label, value);
    button.title = "Map value and voxel of its highest point";
    button.addEventListener("click", () => { state.finding = order; go(place.index); });
    element("places").append(button);
  }
  viewer.onLocationChange = (location) => {
    // NiiVue's own answer to a click, a drag or the wheel.
    const position = Array.from(viewer.scene.crosshairPos, (fraction, axis) =>
      Math.min(about.shape[axis] - 1, Math.max(0, Math.floor(fraction * about.shape[axis]))));
    if (position.some((index, axis) => index !== state.position[axis])) go(position);
  };
  new ResizeObserver(() => draw()).observe(element("planes"));
}

const KEYS = {
  ArrowLeft: (step) => move(0, state.radiological ? step : -step),
  ArrowRight: (step) => move(0, state.radiological ? -step : step),
  ArrowUp: (step) => move(1, step),
  ArrowDown: (step) => move(1, -step),
  PageUp: (step) => move(2, step),
  PageDown: (step) => move(2, -step),
  p: () => go(about.places[0].index),
  n: () => {
    state.finding = state.finding + 1 < about.places.length ? state.finding + 1 : Math.min(1, about.places.length - 1);
    go(about.places[state.finding].index);
  },
  m: () => set({ map: !state.map }, MAP),
  o: () => { if (mask) set({ outline: !state.outline }); },
  h: () => { if (scan && healthy) set({ healthy: !state.healthy }, ALL); },
  c: () => set({ cross: !state.cross }),
  r: () => set({ radiological: !state.radiological }),
};
// Before NiiVue, which has keys of its own.
window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox])")) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const scrolls = event.key.length > 1 && event.target !== canvas && event.target !== document.body;
  if (event.target === canvas && event.key !== "Tab") event.stopImmediatePropagation();
  if (!act || !map || scrolls) return;
  event.preventDefault();
  act(event.shiftKey ? 10 : 1);
}, true);

function drawColours() {
  const context = element("colours").getContext("2d");
  const gradient = context.createLinearGradient(0, 0, 256, 0);
  about.colours.forEach((colour, step) => gradient.addColorStop(step / (about.colours.length - 1), `rgb(${colour.join(",")})`));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  element("maximum").textContent = number(about.maximum);
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("This browser has no WebGL 2, which the planes need. Switch on its hardware acceleration, or open the page in another one.");
  }
  const levels = about.colours.map((_, step) => Math.round((255 * step) / (about.colours.length - 1)));
  const channel = (which) => [0, ...about.colours.map((colour) => colour[which])];
  // 0 is clear, everything above it is there: what is drawn is decided by the threshold alone.
  viewer.addColormap("thorad", { R: channel(0), G: channel(1), B: channel(2), A: [0, ...levels.map(() => 255)], I: [0, 1, ...levels.slice(1)] });
  await viewer.attachToCanvas(canvas, false);
  // With each change NiiVue also works out the gradients of its 3D view, which this page never shows; without a
  // graphics card that takes longer than all the rest. A shader that only copies stands in for those two.
  viewer.blurShader = viewer.sobelFirstOrderShader = viewer.passThroughShader;
  viewer.setCustomLayout([
    { sliceType: niivue.SLICE_TYPE.AXIAL, position: [0, 0, 0.56, 1] },
    { sliceType: niivue.SLICE_TYPE.CORONAL, position: [0.56, 0, 0.44, 0.5] },
    { sliceType: niivue.SLICE_TYPE.SAGITTAL, position: [0.56, 0.5, 0.44, 0.5] },
  ]);
  const hasScan = element("volume-scan") !== null;
  under = await load(hasScan ? "scan" : "healthy", "gray", 0, 255);
  scan = hasScan ? under.img : null;
  healthy = hasScan ? await levels8("healthy") : under.img;
  map = await load("map", "thorad", state.threshold || highest * 1e-6, about.maximum);
  // Colours from 0 to the maximum whatever the threshold is; nothing below it.
  map.colormapType = 2;
  const packed = textOf("mask");
  mask = packed ? bits(await unpack(packed)) : null;
  // All at once: addVolume would colour all of them anew for each.
  viewer.volumes = [under, map];
  viewer.back = under;
  viewer.overlays = [map];
  element("outline-label").hidden = !mask;
  element("healthy-label").hidden = !(scan && healthy);
  drawColours();
  showSettings();
  connect();
  element("state").hidden = true;
  draw(ALL);
}

start().catch((error) => { element("state").textContent = error.message; });
