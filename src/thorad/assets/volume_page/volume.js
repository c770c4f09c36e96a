// The page of one volume. NiiVue draws the planes; this file reads what is embedded, moves the cross-hair, and draws
// lines over NiiVue's canvas, which takes the mouse; looking.js has the controls. Indices i, j, k run to the right, to
// anterior and to superior.

const [SIDE_I, SIDE_J, SIDE_K] = index.shape;
// What the report has no control for.
const own = { healthy: false, cross: true, position: index.places[0].index, place: 0 };

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

/** The voxels of an embedded mask; null where there is none. */
const levels1 = async (name) => {
  const text = textOf(name);
  return text ? bits(await unpack(text)) : null;
};

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
  isNearestInterpolation: !state.smooth,
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  viewModeHotKey: "",
});
// What lies under the map, and the map, as NiiVue has them; the voxels of the others, null where the case has none.
let under = null, map = null;
let scan = null, healthy = null, mask = null, judged = null, truth = null;

const at = ([i, j, k]) => i + SIDE_I * (j + SIDE_J * k);
const fractions = (position) => position.map((along, axis) => (along + 0.5) / index.shape[axis]);
/** The axes to the right, up and into the screen, of an axial, coronal and sagittal plane. */
const AXES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]];

/** Where a fraction of the volume's sides lies on the canvas, in a tile: canvas px. */
function placer(tile) {
  const [left, top, width, height] = tile.leftTopWidthHeight;
  const [across, up] = AXES[tile.axCorSag];
  return (fraction) => {
    const mm = viewer.frac2mm(fraction);
    return [
      left + (width * (mm[across] - tile.leftTopMM[0])) / tile.fovMM[0],
      top + height * (1 - (mm[up] - tile.leftTopMM[1]) / tile.fovMM[1]),
    ];
  };
}

/** The planes as they are drawn: each one's axes, the box that it is drawn in, and where the volume's sides are in it. */
const planes = () => viewer.screenSlices.filter((tile) => tile.axCorSag <= 2).map((tile) => {
  const [across, up, through] = AXES[tile.axCorSag], here = fractions(own.position);
  const corner = (fraction) => here.map((at, axis) => (axis === through ? at : fraction));
  const place = placer(tile);
  return { tile, across, up, through, box: tile.leftTopWidthHeight, first: place(corner(0)), last: place(corner(1)), here: place(here) };
});

/** Over the planes: outlines along the edges of voxels, the cross-hair, which leaves its middle free, rulers, the colours. */
function drawLines() {
  lines.width = canvas.width;
  lines.height = canvas.height;
  const context = lines.getContext("2d"), pixel = window.devicePixelRatio || 1;
  // The run's own mask where its threshold is set: a page may be reduced, and the mask is exact.
  const exact = mask && state.threshold === index.threshold;
  const found = exact ? (at) => mask[at] : (at) => (map.img[at] > state.threshold ? 1 : 0);
  for (const plane of planes()) {
    const [left, top, width, height] = plane.box, { first: [x0, y0], last: [x1, y1], here: [x, y] } = plane;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    if (state.judged) drawUnjudged(context, plane, pixel);
    if (state.outline && state.threshold > 0) stroke(context, trace(found, plane), 1.4 * pixel, "#ffffff", [4 * pixel, 3 * pixel]);
    if (truth && state.truth) stroke(context, trace((at) => truth[at], plane), 1.4 * pixel, "#00e5ff", []);
    if (own.cross) {
      const cross = new Path2D(), gap = 9 * pixel;
      for (const [u, v] of [[x0, y], [x1, y]]) { cross.moveTo(u, v); cross.lineTo(x + Math.sign(u - x) * gap, v); }
      for (const [u, v] of [[x, y0], [x, y1]]) { cross.moveTo(u, v); cross.lineTo(u, y + Math.sign(v - y) * gap); }
      Object.assign(context, { lineWidth: 1.2 * pixel, strokeStyle: "#56c8ff" });
      context.setLineDash([]);
      context.stroke(cross);
    }
    drawRuler(context, plane, pixel);
    context.restore();
  }
  drawBar(context, pixel);
}

/** Lines aslant, bright and dark, that show on any grey. */
function hatching(context, pixel) {
  const tile = document.createElement("canvas"), side = Math.round(8 * pixel), pen = tile.getContext("2d");
  tile.width = tile.height = side;
  for (const [shift, colour] of [[0, "rgba(255, 255, 255, 0.4)"], [1, "rgba(0, 0, 0, 0.5)"]]) {
    Object.assign(pen, { strokeStyle: colour, lineWidth: pixel });
    pen.beginPath();
    for (const start of [-side, 0, side]) { pen.moveTo(start + shift * pixel - 1, side + 1); pen.lineTo(start + side + shift * pixel + 1, -1); }
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

/** Hatch what was not judged, in a plane that nothing is drawn in yet, and outline what was. */
function drawUnjudged(context, plane, pixel) {
  const { across, up, box, first: [x0, y0], last: [x1, y1] } = plane, [width, height] = [index.shape[across], index.shape[up]];
  const stencil = document.createElement("canvas");
  Object.assign(stencil, { width, height });
  const image = new ImageData(width, height), voxel = [...own.position];
  for (let v = 0, i = 3; v < height; v++) {
    for (let u = 0; u < width; u++, i += 4) {
      voxel[across] = u;
      voxel[up] = v;
      image.data[i] = judged[at(voxel)] ? 0 : 255;
    }
  }
  stencil.getContext("2d").putImageData(image, 0, 0);
  context.fillStyle = hatching(context, pixel);
  context.fillRect(...box);
  context.save();
  context.globalCompositeOperation = "destination-in"; // what is drawn stays inside the stencil alone
  context.imageSmoothingEnabled = false;
  context.transform((x1 - x0) / width, 0, 0, (y1 - y0) / height, x0, y0);
  context.drawImage(stencil, 0, 0);
  context.restore();
  stroke(context, trace((at) => judged[at], plane), pixel, JUDGED, []);
}

const write = (context, text, x, y) => {
  Object.assign(context, { fillStyle: "#f2f2f2", strokeStyle: "rgba(0, 0, 0, 0.8)", lineWidth: 3 * (window.devicePixelRatio || 1), lineJoin: "round" });
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
};

function drawRuler(context, { tile, box: [left, top, width, height] }, pixel) {
  const mm = Math.abs(tile.fovMM[0]), length = rulerLength(mm), long = (length * width) / mm;
  const x = left + 10 * pixel, y = top + height - 12 * pixel;
  const bar = new Path2D();
  bar.moveTo(x, y);
  bar.lineTo(x + long, y);
  stroke(context, bar, 2 * pixel, "#f2f2f2", []);
  context.font = `${11 * pixel}px system-ui, sans-serif`;
  context.textAlign = "left";
  write(context, `${length} mm`, x, y - 5 * pixel);
}

/** The colours with their ends, in the upper right corner of the first plane. */
function drawBar(context, pixel) {
  const [left, top, width, height] = planes()[0].box;
  const x = left + width - 16 * pixel, y = top + 12 * pixel, tall = 0.3 * height, colours = tables[state.colours];
  const gradient = context.createLinearGradient(0, y + tall, 0, y);
  for (let stop = 0; stop <= 16; stop++) {
    const at = 3 * Math.round((255 * stop) / 16);
    gradient.addColorStop(stop / 16, `rgb(${colours[at]}, ${colours[at + 1]}, ${colours[at + 2]})`);
  }
  Object.assign(context, { fillStyle: gradient, strokeStyle: "#f2f2f2", lineWidth: pixel });
  context.setLineDash([]);
  context.fillRect(x, y, 8 * pixel, tall);
  context.strokeRect(x, y, 8 * pixel, tall);
  context.font = `${11 * pixel}px system-ui, sans-serif`;
  context.textAlign = "right";
  write(context, number(state.maximum, 2), x - 4 * pixel, y + 8 * pixel);
  write(context, number(state.threshold, 2), x - 4 * pixel, y + tall);
}

/** The border in one plane of the voxels that are 1, along their edges. */
function trace(of, { across, up, first: [x0, y0], last: [x1, y1] }) {
  const path = new Path2D(), [width, height] = [index.shape[across], index.shape[up]], voxel = [...own.position];
  const x = (u) => x0 + ((x1 - x0) * u) / width, y = (v) => y0 + ((y1 - y0) * v) / height;
  const inside = (u, v) => {
    if (u < 0 || v < 0 || u >= width || v >= height) return 0;
    voxel[across] = u;
    voxel[up] = v;
    return of(at(voxel));
  };
  for (let v = 0; v <= height; v++) {
    for (let u = 0; u <= width; u++) {
      const here = inside(u, v);
      if (here !== inside(u - 1, v)) { path.moveTo(x(u), y(v)); path.lineTo(x(u), y(v + 1)); }
      if (here !== inside(u, v - 1)) { path.moveTo(x(u), y(v)); path.lineTo(x(u + 1), y(v)); }
    }
  }
  return path;
}

let without = null;
/** The scan with the pseudo-healthy voxels in it where slices were looked at. */
function replaced() {
  without ??= scan.map((level, at) => (healthy[at] > 0 ? ((healthy[at] - 1) * 255) / 254 : level));
  return without;
}

/** The colours as NiiVue takes them, from 0 to the highest: clear at 0; what lies below the threshold it leaves out. */
function colourMap() {
  const colours = tables[state.colours], steps = [...Array(256).keys()];
  const shares = steps.map((step) => colourShare(Math.max(state.maximum, state.threshold) * (step / 255)));
  const channel = (which) => shares.map((share) => colours[3 * Math.round(255 * share) + which]);
  return { R: channel(0), G: channel(1), B: channel(2), A: steps.map((step) => (step ? 255 : 0)), I: steps };
}

let due = null;
// What has to be coloured anew: nothing, as when the cross-hair moves; the map; or what is under it, too.
const NOTHING = 0, MAP = 1, ALL = 2;
/** Draw again before the next frame. */
function draw(textures = NOTHING) {
  if (!map) return;
  if (due) {
    due.textures = Math.max(due.textures, textures);
    return;
  }
  due = { textures };
  requestAnimationFrame(() => {
    const changed = due.textures;
    due = null;
    viewer.opts.isRadiologicalConvention = state.radiological;
    viewer.scene.crosshairPos = fractions(own.position);
    if (changed) {
      viewer.addColormap("thorad", colourMap());
      Object.assign(map, { cal_min: Math.max(state.threshold, highest * 1e-6), cal_max: Math.max(state.maximum, state.threshold), opacity: state.opacity });
    }
    if (changed === ALL) {
      Object.assign(under, { cal_min: 255 * (state.level - state.window / 2), cal_max: 255 * (state.level + state.window / 2) });
      if (scan) under.img = own.healthy ? replaced() : scan;
      viewer.updateGLVolume();
    } else if (changed === MAP) viewer.refreshLayers(map, 1);
    viewer.drawScene();
    drawLines();
    read();
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
  });
}
const highest = index.largest;
const redraw = (onlyMap) => {
  viewer.setInterpolation(!state.smooth);
  draw(onlyMap ? MAP : ALL);
};

// ---------------------------------------------------------------------------------------------- the cross-hair

const through = (matrix, [i, j, k]) => matrix.slice(0, 3).map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);

/** The text under the planes: where the cross-hair is, and what is there. */
function read() {
  const position = own.position;
  const level = map.img[at(position)];
  const voxel = through(index.toSource, position).map((axis) => number(axis, 4)).join(", ");
  const mm = through(index.affine, position).map((axis) => axis.toFixed(1));
  const parts = [
    ["Voxel", voxel],
    ["Right, anterior, superior", `${mm.join(", ")} mm`],
    ["Map", level === index.notLookedAt ? "not looked at" : `${number(level)}${judged[at(position)] ? "" : ", not judged here"}`],
  ];
  if (scan) {
    const grey = scan[at(position)];
    parts.push(["Scan (its own units)", `${grey === 255 ? "≥ " : ""}${number((grey / 255) * index.white)}`]);
  }
  if (healthy && healthy[at(position)] > 0) parts.push(["Pseudo-healthy (model's scale, 0 to 1)", number((healthy[at(position)] - 1) / 254)]);
  if (mask) parts.push(["Mask", mask[at(position)] ? "inside" : "outside"]);
  if (truth) parts.push(["Truth", truth[at(position)] ? "inside" : "outside"]);
  element("reading").replaceChildren(...parts.flatMap(([name, value]) => {
    const shown = document.createElement("b");
    shown.textContent = value;
    return [`${name} `, shown, " "];
  }));
}

function go(position) {
  own.position = position.map((along, axis) => Math.min(index.shape[axis] - 1, Math.max(0, along)));
  draw();
}

const move = (axis, by) => go(own.position.map((along, other) => along + (other === axis ? by : 0)));

/** The plane under a pointer, and the voxel there; null beside the planes. */
function placeOf({ clientX, clientY }) {
  const frame = lines.getBoundingClientRect(), scale = lines.width / frame.width;
  const x = (clientX - frame.left) * scale, y = (clientY - frame.top) * scale;
  const plane = planes().find(({ box: [left, top, width, height] }) => x >= left && x < left + width && y >= top && y < top + height);
  if (!plane) return null;
  const { across, up, first: [x0, y0], last: [x1, y1] } = plane, voxel = [...own.position];
  voxel[across] = Math.floor(((x - x0) / (x1 - x0)) * index.shape[across]);
  voxel[up] = Math.floor(((y - y0) / (y1 - y0)) * index.shape[up]);
  return { plane, voxel };
}

// NiiVue shows mm from (low - pan) / zoom to (high - pan) / zoom along each axis.
/** Enlarge all planes by a factor; what is at the place, a voxel, stays where it is. */
function zoom(factor, place = own.position) {
  const pan = viewer.scene.pan2Dxyzmm, zoomed = Math.min(16, Math.max(1, pan[3] * factor));
  const mm = viewer.frac2mm(fractions(place));
  for (const axis of [0, 1, 2]) pan[axis] += mm[axis] * (pan[3] - zoomed);
  pan[3] = zoomed;
  keepInside();
}

/** Never so far that the volume's edge comes inside. */
function keepInside() {
  const pan = viewer.scene.pan2Dxyzmm, [first, last] = [viewer.frac2mm([0, 0, 0]), viewer.frac2mm([1, 1, 1])];
  for (const axis of [0, 1, 2]) {
    const middle = (first[axis] + last[axis]) / 2, free = (Math.abs(last[axis] - first[axis]) / 2) * (1 - 1 / pan[3]);
    const shown = (middle - pan[axis]) / pan[3];
    pan[axis] = middle - pan[3] * Math.min(middle + free, Math.max(middle - free, shown));
  }
  draw();
}

/** Move the picture of the plane under the pointer by px of the page. */
function pan(across, down, frame, event) {
  const plane = placeOf(event)?.plane;
  if (!plane) return;
  const scale = lines.width / frame.width, [, , width, height] = plane.box, pan = viewer.scene.pan2Dxyzmm;
  pan[plane.across] += (across * scale * plane.tile.fovMM[0] * pan[3]) / width;
  pan[plane.up] -= (down * scale * plane.tile.fovMM[1] * pan[3]) / height;
  keepInside();
}

// ---------------------------------------------------------------------------------------------- controls

function set(changed, textures) {
  Object.assign(own, changed);
  element("healthy").checked = own.healthy;
  element("cross").checked = own.cross;
  draw(textures);
}

function connect() {
  element("healthy").addEventListener("change", (event) => set({ healthy: event.target.checked }, ALL));
  element("cross").addEventListener("change", (event) => set({ cross: event.target.checked }));
  for (const [order, place] of index.places.entries()) {
    const line = document.createElement("li"), button = document.createElement("button");
    const [label, value] = [document.createElement("b"), document.createElement("span")];
    label.textContent = place.label;
    value.textContent = [`peak ${number(place.value, 2)}`, place.size, `voxel ${place.voxel.join(", ")}`].filter(Boolean).join(" · ");
    button.type = "button";
    button.append(label, value);
    button.addEventListener("click", () => { own.place = order; go(place.index); });
    line.append(button);
    element("findings-list").append(line);
  }
  listenToPointer(lines, {
    zoom: (factor, event) => zoom(factor, (event && placeOf(event)?.voxel) ?? undefined),
    pan,
    point: () => {},
    click: (event) => {
      const there = placeOf(event);
      if (there) go(there.voxel);
    },
    wheel: (event) => {
      const there = placeOf(event);
      if (!there) return;
      event.preventDefault();
      move(there.plane.through, event.deltaY < 0 ? 1 : -1);
    },
  });
  lines.addEventListener("dblclick", () => zoom(0));
  new ResizeObserver(() => { layOut(); draw(); }).observe(element("planes"));
}

const KEYS = {
  ...CONTROL_KEYS,
  ArrowLeft: (step) => move(0, state.radiological ? step : -step),
  ArrowRight: (step) => move(0, state.radiological ? -step : step),
  ArrowUp: (step) => move(1, step),
  ArrowDown: (step) => move(1, -step),
  PageUp: (step) => move(2, step),
  PageDown: (step) => move(2, -step),
  p: () => go(index.places[0].index),
  n: () => {
    own.place = own.place + 1 < index.places.length ? own.place + 1 : Math.min(1, index.places.length - 1);
    go(index.places[own.place].index);
  },
  h: () => { if (scan && healthy) set({ healthy: !own.healthy }, ALL); },
  c: () => set({ cross: !own.cross }),
  z: () => zoom(1.5),
  x: () => zoom(1 / 1.5),
  0: () => zoom(0),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select")) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const scrolls = event.key.length > 1 && event.target !== lines && event.target !== document.body;
  if (!act || !map || scrolls) return;
  event.preventDefault();
  act(event.shiftKey ? 10 : 1);
});

/** The axial plane beside the two others, or above them on a narrow screen. */
function layOut() {
  const { AXIAL, CORONAL, SAGITTAL } = niivue.SLICE_TYPE, box = element("planes").getBoundingClientRect();
  const places = box.width < box.height
    ? [[0, 0, 1, 0.6], [0, 0.6, 0.5, 0.4], [0.5, 0.6, 0.5, 0.4]]
    : [[0, 0, 0.56, 1], [0.56, 0, 0.44, 0.5], [0.56, 0.5, 0.44, 0.5]];
  viewer.setCustomLayout([AXIAL, CORONAL, SAGITTAL].map((sliceType, at) => ({ sliceType, position: places[at] })));
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("This browser has no WebGL 2, which the planes need. Switch on its hardware acceleration, or open the page in another one.");
  }
  viewer.addColormap("thorad", colourMap());
  await viewer.attachToCanvas(canvas, false);
  canvas.tabIndex = -1; // NiiVue makes it one more stop of the keyboard
  // With each change NiiVue also works out the gradients of its 3D view, which this page never shows; without a
  // graphics card that takes longer than all the rest. A shader that only copies stands in for those two.
  viewer.blurShader = viewer.sobelFirstOrderShader = viewer.passThroughShader;
  layOut();
  const hasScan = element("volume-scan") !== null;
  under = await load(hasScan ? "scan" : "healthy", "gray", 0, 255);
  scan = hasScan ? under.img : null;
  healthy = hasScan ? await levels8("healthy") : under.img;
  const loaded = await load("map", "thorad", state.threshold || highest * 1e-6, state.maximum);
  // Nothing is drawn below the least value, and the colours of all others go from 0 to the highest.
  loaded.colormapType = 2;
  [mask, judged, truth] = await Promise.all(["mask", "judged", "truth"].map(levels1));
  map = loaded;
  // All at once: addVolume would colour all of them anew for each.
  viewer.volumes = [under, map];
  viewer.back = under;
  viewer.overlays = [map];
  element("healthy-label").hidden = !(scan && healthy);
  connect();
  element("state").hidden = true;
  show();
}

start().catch((error) => { element("state").textContent = error.message; });
