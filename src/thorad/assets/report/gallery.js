// The gallery of a report. Pictures lie in the page as PNG text, one block a case, which is read when the case comes
// into view and let go when it is far away. Map values are kept with 8 bits: value = maximum * (level / 255)^2.

// ---------------------------------------------------------------------------------------------- pictures

/** The levels of a grey picture, or the red, green, blue and alpha of a coloured one. */
async function decode(text, width, height, coloured = false) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height).data;
  if (coloured) return pixels;
  const levels = new Uint8Array(width * height);
  for (let i = 0; i < levels.length; i++) levels[i] = pixels[4 * i];
  return levels;
}

/** A picture of the model's square grid, on the grid of the image that was padded to that square. */
async function decodeStep(text, width, height) {
  if (!text) return null;
  const square = Math.max(width, height);
  const whole = await decode(text, square, square);
  const top = Math.floor((square - height) / 2), left = Math.floor((square - width) / 2);
  const levels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) levels.set(whole.subarray((top + y) * square + left, (top + y) * square + left + width), y * width);
  return levels;
}

async function decodePicture(coded) {
  const { width, height } = coded;
  const of = (text) => (text ? decode(text, width, height) : null);
  const [map, scan, healthy, mask, judged, truth, overlay, ...steps] = await Promise.all([
    of(coded.map), of(coded.scan), of(coded.healthy), of(coded.mask), of(coded.judged), of(coded.truth),
    coded.overlay ? decode(coded.overlay, width, height, true) : null,
    ...coded.steps.map(async (step) => ({
      ...step,
      clean: await decodeStep(step.clean, width, height),
      map: await decodeStep(step.map, width, height),
    })),
  ]);
  return { ...coded, map, scan, healthy, mask: binary(mask), judged: binary(judged), truth: binary(truth), overlay, steps };
}

/** The edges between pixels that are 1 and those that are 0, as lines of a picture enlarged `zoom` times. */
function outlinePath(mask, width, height, zoom) {
  const path = new Path2D();
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const left = x * zoom, right = left + zoom, top = y * zoom, bottom = top + zoom;
      if (x === 0 || !mask[i - 1]) { path.moveTo(left, top); path.lineTo(left, bottom); }
      if (x === width - 1 || !mask[i + 1]) { path.moveTo(right, top); path.lineTo(right, bottom); }
      if (y === 0 || !mask[i - width]) { path.moveTo(left, top); path.lineTo(right, top); }
      if (y === height - 1 || !mask[i + width]) { path.moveTo(left, bottom); path.lineTo(right, bottom); }
    }
  }
  return path;
}

/** Dice of two masks; null where both are empty. */
function overlap(one, other) {
  let both = 0, total = 0;
  for (let i = 0; i < one.length; i++) {
    both += one[i] & other[i];
    total += one[i] + other[i];
  }
  return total ? (2 * both) / total : null;
}

const binary = (levels) => levels?.map((level) => (level > 127 ? 1 : 0)) ?? null;

/** The map at a step of the restoration; the result's where there is no step, or it has none. */
const mapAt = (picture, step) => (step?.map ? step : picture);

const valueOf = (level, maximum) => maximum * (level / 255) ** 2;

// ---------------------------------------------------------------------------------------------- one case

/** Of cases, in the order of their groups. */
const STATUSES = ["ok", "warned", "refused", "failed"], RESULTLESS = ["refused", "failed"];
const GROUPS = { warned: "Warned: in no ranking", refused: "Refused: the model can't judge these", failed: "Failed" };
const SCAN = "scan", HEALTHY = "pseudo-healthy", MAP = "map";

class Card {
  /** What may help where pictures can't be shown. */
  static remedy = "Make the report again.";

  constructor(position, about) {
    this.position = position;
    this.about = about;
    this.slice = null; // null: not yet looked at
    this.step = null; // null: the result
    this.view = { zoom: 1, x: 0.5, y: 0.5 }; // the place in the middle of the panels, as shares of the picture as it is shown
    this.mark = null; // row and column of the shown picture that a finding is at
    this.pointed = null; // the panel and the event of the pointer that rests on it
    this.pictures = null;
    this.node = element("card").content.firstElementChild.cloneNode(true);
    this.node.id = `card-${position}`;
    this.node.querySelector("h3").textContent = about.name;
    this.node.setAttribute("aria-label", `${about.name}, score ${number(about.score)}`);
    this.reading = this.node.querySelector(".reading");
    this.panels = [];
    this.describe(null);
    if (about.status === "warned" && about.message) {
      const warning = document.createElement("p");
      warning.className = "warning";
      warning.textContent = about.message;
      this.node.querySelector(".facts").after(warning);
    }
    if (about.registration) this.showRegistration(about.registration, about.status === "refused");
    if (about.page) this.node.querySelector(".scrubbers").before(this.volumeLink());
    if (!about.pictures) return;
    if (index.scans) this.addPanel(SCAN);
    if (about.healthy) this.addPanel(HEALTHY);
    // An evaluation's case has a picture for each method, side by side; any other shows one of its slices.
    if (about.methods) about.methods.forEach((method, at) => this.addPanel(MAP, method, at));
    else this.addPanel(MAP);
    this.node.querySelector(".panels").dataset.count = this.panels.length;
    if (about.slices.length > 1 && !about.methods) {
      this.sliceInput = this.scrubber("Slice", about.slices.length - 1, 0, (at) => this.showSlice(at));
    }
    if (about.steps > 0) {
      this.stepInput = this.scrubber("Restoration", about.steps, about.steps, (at) => { this.step = at === about.steps ? null : at; this.draw(); });
    }
    this.node.addEventListener("pointerdown", () => select(this, false));
    this.node.querySelector(".panels").addEventListener("dblclick", () => this.enlarge());
  }

  volumeLink() {
    const line = document.createElement("p"), link = document.createElement("a");
    Object.assign(link, { href: this.about.page, textContent: "Three linked planes", download: index.downloads ? "" : undefined });
    if (!index.downloads) link.removeAttribute("download");
    line.className = "links";
    line.append(link);
    return line;
  }

  /** The volume in the template's planes, to be looked at: in the case of a refused one at once. */
  showRegistration(source, open) {
    if (this.node.querySelector(".registration")) return;
    const details = document.createElement("details"), summary = document.createElement("summary"), picture = document.createElement("img");
    details.className = "registration";
    details.open = open;
    summary.textContent = "Registration";
    Object.assign(picture, { src: source, loading: "lazy", alt: `${this.about.name} in the planes of the template, with the outline of the template's brain` });
    details.append(summary, picture);
    this.node.append(details);
  }

  /** A panel; `title` and `at`: of a map that is always of one picture of the case. */
  addPanel(name, title = name, at = null) {
    const add = (parent, tag, className, text = "") => {
      const node = document.createElement(tag);
      Object.assign(node, { className, textContent: text });
      parent.append(node);
      return node;
    };
    const node = add(this.node.querySelector(".panels"), "div", `panel ${name === MAP ? "map" : ""}`);
    node.style.aspectRatio = `${this.about.width} / ${this.about.height}`;
    const canvas = add(node, "canvas", "");
    canvas.width = canvas.height = 1;
    const label = add(node, "span", "name", title);
    const cross = add(node, "span", "cross");
    const ruler = this.about.mm ? add(node, "span", "ruler") : null;
    const bar = name === MAP ? add(node, "span", "bar") : null;
    const ends = bar && [add(bar, "span", "high"), add(bar, "span", "low")];
    // Slices of volumes lie in the template's axes; of other pictures nobody knows the sides.
    this.sided = Boolean(this.about.slices[0]) && !this.about.methods;
    for (const side of this.sided ? ["left", "right"] : []) add(node, "span", `side ${side}`);
    this.panels.push({ name, title, at, node, canvas, label, cross, ruler, ends });
    listenToPointer(node, {
      zoom: (factor, event) => this.pictures && this.zoom(factor, event && this.placeIn(node, event)),
      pan: (across, down, box) => {
        this.pointed = null;
        if (this.pictures) this.pan(across, down, box);
      },
      point: (event) => this.point(node, event),
    });
  }

  scrubber(title, last, at, changed) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: 0, max: last, step: 1, value: at });
    const output = document.createElement("output");
    label.append(title, input, output);
    input.addEventListener("input", () => changed(Number(input.value)));
    this.node.querySelector(".scrubbers").append(label);
    return { input, output };
  }

  /** The line under the name; `dice` is that of the shown picture at the page's threshold. */
  describe(dice) {
    const about = this.about;
    const facts = [];
    const add = (text, value) => facts.push([text, value]);
    if (RESULTLESS.includes(about.status)) add(`${about.status}:`, about.message);
    if (about.status === "warned") add(about.forced ? "forced" : "warned", "");
    if (about.score !== null) add("score", number(about.score, 4));
    if (about.p_value !== null) add("p", number(about.p_value, 3));
    if (about.findings !== null) add("findings", String(about.findings));
    if (about.draw_agreement !== null) add("draws agree: Dice", number(about.draw_agreement, 2));
    if (about.truth !== null) add("truth", about.truth ? `${about.truth} px${about.size ? `, ${about.size}` : ""}` : "healthy");
    if (about.dice !== null) add(`Dice at ${index.diceAt}`, number(about.dice, 2));
    if (dice !== null && state.threshold !== index.threshold) add(`Dice at ${number(state.threshold)}, as set`, number(dice, 2));
    if (!RESULTLESS.includes(about.status) && !about.pictures) add("no pictures in this file", "");
    const line = this.node.querySelector(".facts");
    line.replaceChildren(...facts.map(([text, value]) => {
      const span = document.createElement("span");
      const bold = document.createElement("b");
      bold.textContent = value;
      span.append(`${text} `, bold);
      return span;
    }));
  }

  async load() {
    if (!this.about.pictures) return;
    this.wanted = true;
    if (this.pictures || this.loading) return this.loading;
    this.loading = (async () => {
      try {
        // Blocks of later cases may still be on their way from the disk, or there in part; and the viewer's way to read
        // them is a script that comes after this one.
        if (document.readyState === "loading" && !element(`case-${this.about.id}`)?.nextSibling) {
          await new Promise((ready) => document.addEventListener("DOMContentLoaded", ready, { once: true }));
        }
        const coded = await this.read();
        const pictures = await Promise.all(coded.map(decodePicture));
        // The methods of an evaluation saw one scan.
        if (this.about.methods) for (const one of pictures) for (const name of ["scan", "truth"]) one[name] ??= pictures[0][name];
        this.showError("");
        if (!this.wanted) return;
        this.pictures = pictures;
        this.slice ??= pictures.reduce((best, one, at) => (one.maximum > pictures[best].maximum ? at : best), 0);
        if (pictures[0].registration) this.showRegistration(`data:image/png;base64,${pictures[0].registration}`, false);
        this.draw();
      } catch (error) {
        this.showError(`The pictures of this case can't be shown (${error.message}). ${Card.remedy}`);
      } finally {
        this.loading = null; // after an error, the next look at the case tries again
      }
    })();
    return this.loading;
  }

  /** The case's pictures as PNG text. */
  async read() {
    return JSON.parse(element(`case-${this.about.id}`).textContent);
  }

  showError(text) {
    this.node.querySelector(".error")?.remove();
    if (!text) return;
    const line = document.createElement("p");
    line.className = "warning error";
    line.setAttribute("role", "alert");
    const again = document.createElement("button");
    Object.assign(again, { type: "button", textContent: "Try again" });
    again.addEventListener("click", () => this.load());
    line.append(`${text} `, again);
    this.node.querySelector(".panels").before(line);
  }

  release() {
    this.wanted = false;
    this.pictures = null;
    for (const { canvas } of this.panels) canvas.width = canvas.height = 1;
    delete this.node.dataset.drawn;
  }

  /** Draw all panels, or only those of maps. */
  draw(onlyMap = false) {
    if (!this.pictures) return;
    this.node.classList.toggle("mirrored", this.mirrored);
    for (const letter of this.node.querySelectorAll(".side")) {
      letter.textContent = letter.classList.contains("right") === this.mirrored ? "L" : "R";
    }
    const grey = greyTable();
    let dice = null;
    for (const panel of this.panels) {
      if (onlyMap && panel.name !== MAP) continue;
      const found = this.drawPanel(panel, grey);
      if (panel.name === MAP && panel.at === null) dice = found;
    }
    this.place();
    this.describe(dice);
    const picture = this.pictures[this.slice], step = this.shownStep(picture);
    if (this.sliceInput) {
      this.sliceInput.input.value = this.slice;
      this.sliceInput.output.textContent = `${picture.label} (${this.slice + 1} of ${this.pictures.length})`;
      this.sliceInput.input.setAttribute("aria-valuetext", picture.label);
    }
    if (this.stepInput) {
      const text = step ? `step ${this.step + 1} of ${this.about.steps}, t = ${step.t}` : "result";
      this.stepInput.input.value = step ? this.step : this.about.steps;
      this.stepInput.output.textContent = text;
      this.stepInput.input.setAttribute("aria-valuetext", text);
    }
    this.node.dataset.drawn = "";
  }

  shownStep(picture) {
    return this.step === null ? null : picture.steps[this.step] ?? null;
  }

  /** Draw one panel; the Dice of what is above the threshold, where the truth is known and this is a map. */
  drawPanel({ name, title, at: of, node, canvas, label, ends }, grey) {
    const picture = this.pictures[of ?? this.slice], step = this.shownStep(picture);
    const { map, maximum: largest } = mapAt(picture, step);
    const { width, height, truth } = picture;
    const image = new ImageData(width, height);
    const base = name === HEALTHY ? (step ? step.clean : picture.healthy) : picture.scan;
    if (!base) image.data.set(picture.overlay);
    else if (name === MAP) this.blend(image.data, base, map, largest, grey);
    else {
      const pixels = new Uint32Array(image.data.buffer);
      for (let i = 0; i < pixels.length; i++) pixels[i] = 0xff000000 | (0x010101 * grey[base[i]]);
    }
    const scratch = document.createElement("canvas");
    scratch.width = width;
    scratch.height = height;
    scratch.getContext("2d").putImageData(image, 0, 0);
    const shownWidth = node.clientWidth || 240;
    const enlarged = shownWidth * Math.min(2, window.devicePixelRatio || 1) * this.view.zoom;
    const zoom = Math.max(1, Math.min(8, Math.ceil(enlarged / width)));
    canvas.width = width * zoom;
    canvas.height = height * zoom;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = state.smooth;
    context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
    const thin = (1.4 * canvas.width) / (shownWidth * this.view.zoom);
    let mask = null;
    if (name === MAP) {
      const above = Uint8Array.from({ length: 256 }, (_, level) => (valueOf(level, largest) > state.threshold ? 1 : 0));
      // The run's own mask where its threshold is set: exact, while the map here has 8 bits.
      const exact = !step?.map && picture.mask && state.threshold === index.threshold;
      mask = exact ? picture.mask : map.map((level) => above[level]);
      if (picture.judged && state.judged) stroke(context, outlinePath(picture.judged, width, height, zoom), thin, JUDGED, []);
      if (state.outline && state.threshold > 0) {
        stroke(context, outlinePath(mask, width, height, zoom), thin, "#ffffff", [0.55 * zoom, 0.45 * zoom]);
      }
      ends[0].textContent = number(state.maximum, 2);
      ends[1].textContent = number(state.threshold, 2);
    }
    if (truth && state.truth && name !== HEALTHY) {
      if (picture.truthZoom !== zoom) Object.assign(picture, { truthZoom: zoom, truthPath: outlinePath(truth, width, height, zoom) });
      stroke(context, picture.truthPath, thin, "#00e5ff", []);
    }
    const at = step && (name === HEALTHY || step.map) ? ` at step t = ${step.t}` : "";
    const dice = mask && truth && state.threshold > 0 ? overlap(mask, truth) : null;
    label.textContent = {
      [SCAN]: picture.label && of === null && this.sided ? `scan, ${picture.label}` : SCAN,
      [HEALTHY]: step ? `clean estimate, t = ${step.t}` : HEALTHY,
      [MAP]: of !== null ? `${title}${dice === null ? "" : `, Dice ${number(dice, 2)}`}` : base ? `map${at} over the scan` : "map, as the run drew it",
    }[name];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", this.altText(name, title, picture, at, mask, map, largest));
    return dice;
  }

  /** Whether the patient's right is on the left: pictures are stored with x to the right, which is the patient's right. */
  get mirrored() {
    return this.sided && state.radiological;
  }

  /** The map over the scan. */
  blend(data, base, map, largest, grey) {
    const colours = tables[state.colours];
    const tint = new Float32Array(256 * 3), shows = new Float32Array(256);
    for (let level = 0; level < 256; level++) {
      const value = valueOf(level, largest), hides = cover(value), colour = Math.round(255 * colourShare(value));
      shows[level] = 1 - hides;
      for (let channel = 0; channel < 3; channel++) tint[3 * level + channel] = hides * colours[3 * colour + channel];
    }
    for (let i = 0, at = 0; i < map.length; i++, at += 4) {
      const level = map[i], shade = shows[level] * grey[base[i]];
      data[at] = tint[3 * level] + shade;
      data[at + 1] = tint[3 * level + 1] + shade;
      data[at + 2] = tint[3 * level + 2] + shade;
      data[at + 3] = 255;
    }
  }

  altText(name, title, picture, at, mask, map, largest) {
    const where = `${this.about.name}${picture.label ? `, ${picture.label}` : ""}`;
    if (name === SCAN) return `Scan of ${where}`;
    if (name === HEALTHY) return `Pseudo-healthy image of ${where}${at}`;
    let peak = 0, pixels = 0;
    for (let i = 0; i < map.length; i++) {
      if (map[i] > map[peak]) peak = i;
      pixels += mask[i];
    }
    // In the image's own pixels, as under the pointer: of a reduced picture the mask's are larger.
    const { width, shrink } = picture, [row, column] = [Math.floor(peak / width), peak % width].map((place) => Math.round(place * shrink));
    const count = shrink === 1 ? pixels : `about ${Math.round(pixels * shrink ** 2)}`;
    const found = state.threshold > 0 ? `${count} pixels above the threshold ${number(state.threshold)}` : "no threshold set";
    return `Anomaly map of ${where}${at}: ${found}, highest value ${number(valueOf(map[peak], largest))} at row ${row}, column ${column}`;
  }

  /** Row and column under a pointer. */
  placeIn(node, { clientX, clientY }) {
    const picture = this.pictures[this.slice], box = node.getBoundingClientRect(), { zoom, x, y } = this.view;
    const across = ((clientX - box.left) / box.width - 0.5) / zoom + x, down = ((clientY - box.top) / box.height - 0.5) / zoom + y;
    const within = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    return { row: within(down, picture.height), column: within(this.mirrored ? 1 - across : across, picture.width) };
  }

  /** The place of a pixel's middle, as shares of the picture as it is shown. */
  shares({ row, column }) {
    const { width, height } = this.pictures[this.slice];
    const across = (column + 0.5) / width;
    return { x: this.mirrored ? 1 - across : across, y: (row + 0.5) / height };
  }

  /** Bring the pictures where the view has them, with the mark and the rulers. */
  place() {
    if (!this.pictures) return;
    const { zoom, x, y } = this.view, picture = this.pictures[this.slice];
    const moved = `translate(${100 * (0.5 - x * zoom)}%, ${100 * (0.5 - y * zoom)}%) scale(${zoom})`;
    const mirror = this.mirrored ? " translateX(100%) scaleX(-1)" : "";
    for (const { canvas, ruler, node } of this.panels) {
      canvas.style.transform = moved + mirror;
      node.classList.toggle("zoomed", zoom > 1);
      if (!ruler) continue;
      const width = picture.width * picture.shrink * this.about.mm; // of the picture, mm
      const length = rulerLength(width / zoom);
      ruler.style.width = `${(100 * length * zoom) / width}%`;
      ruler.textContent = `${length} mm`;
    }
    this.showPlace();
  }

  /** The same place in every panel; nowhere where there is none. */
  showCross(place) {
    const at = place && this.shares(place), { zoom, x, y } = this.view;
    for (const { cross } of this.panels) {
      cross.style.display = at ? "block" : "none";
      if (!at) continue;
      cross.style.left = `${100 * ((at.x - x) * zoom + 0.5)}%`;
      cross.style.top = `${100 * ((at.y - y) * zoom + 0.5)}%`;
    }
    this.reading.textContent = place ? this.values(place) : "";
  }

  point(node, event) {
    this.pointed = event && [node, event];
    this.showPlace();
  }

  /** Under the pointer, also where what is below it was drawn anew; else of the finding. */
  showPlace() {
    if (this.pictures) this.showCross(this.pointed ? this.placeIn(...this.pointed) : this.mark);
  }

  /** What is at a place of the shown picture; the methods of an evaluation may have grids of their own. */
  values({ row, column }) {
    const picture = this.pictures[this.slice], step = this.shownStep(picture), at = row * picture.width + column;
    const along = (place, from, to) => Math.floor(((place + 0.5) * to) / from);
    const within = ({ width, height }) => along(row, picture.height, height) * width + along(column, picture.width, width);
    const read = [`row ${Math.round(row * picture.shrink)}, column ${Math.round(column * picture.shrink)}`];
    if (picture.scan) read.push(`scan ${(picture.scan[at] / 255).toFixed(2)}`);
    const healthy = step ? step.clean : picture.healthy;
    if (healthy) read.push(`${step ? "estimate" : "pseudo-healthy"} ${(healthy[at] / 255).toFixed(2)}`);
    for (const { name, title, at: of } of this.panels) {
      if (name !== MAP) continue;
      const shown = of === null ? mapAt(picture, step) : this.pictures[of];
      const level = shown.map[of === null ? at : within(shown)];
      read.push(`${title} ${number(valueOf(level, shown.maximum))}${picture.judged && !picture.judged[at] ? ", not judged here" : ""}`);
    }
    return read.join(" · ");
  }

  /** Enlarge by a factor; `place` stays where it is. */
  zoom(factor, place = null) {
    const view = this.view, zoom = Math.min(16, Math.max(1, view.zoom * factor));
    if (place) {
      const at = this.shares(place);
      view.x = at.x + ((view.x - at.x) * view.zoom) / zoom;
      view.y = at.y + ((view.y - at.y) * view.zoom) / zoom;
    }
    view.zoom = zoom;
    this.pan(0, 0);
    clearTimeout(this.sharpen);
    delete this.node.dataset.drawn;
    this.sharpen = setTimeout(() => this.draw(), 150);
  }

  /** Move the picture by px; never so far that its edge comes inside. */
  pan(across, down, { width, height } = { width: 1, height: 1 }) {
    const view = this.view, edge = 0.5 / view.zoom, within = (value) => Math.min(1 - edge, Math.max(edge, value));
    view.x = within(view.x - across / (width * view.zoom));
    view.y = within(view.y - down / (height * view.zoom));
    this.place();
  }

  showSlice(at, mark = null) {
    Object.assign(this, { slice: at, step: null, mark });
    this.draw();
  }

  /** Show a finding: its slice, its place marked. */
  async jump({ slice, row, column }) {
    this.slice = slice ?? this.slice;
    this.step = this.pointed = null;
    select(this);
    await this.load();
    if (!this.pictures) return;
    const { shrink } = this.pictures[this.slice];
    this.showSlice(this.slice, row === null ? null : { row: Math.floor(row / shrink), column: Math.floor(column / shrink) });
    if (this.view.zoom > 1 && this.mark) Object.assign(this.view, this.shares(this.mark));
    this.pan(0, 0);
  }

  move(what, by) {
    const picture = this.pictures?.[this.slice];
    if (!picture) return;
    if (what === "slice") {
      if (this.sliceInput) this.showSlice(Math.min(this.pictures.length - 1, Math.max(0, this.slice + by)));
      return;
    }
    const steps = picture.steps.length;
    const at = Math.min(steps, Math.max(0, (this.step ?? steps) + by));
    this.step = at === steps ? null : at;
    this.draw();
  }

  enlarge() {
    this.node.classList.toggle("large");
    // As large as fits below the controls, with the scrubbers.
    this.node.style.setProperty("--wide", (Math.min(3, this.panels.length) * this.about.width) / this.about.height);
    this.draw();
    this.node.scrollIntoView({ block: "nearest" });
  }
}

// ---------------------------------------------------------------------------------------------- the gallery

const cards = index.cases.map((about, position) => new Card(position, about));
let shown = [];
let current = null;

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const card = cards[Number(entry.target.id.slice(5))];
      if (entry.isIntersecting) card.load();
      else card.release();
    }
  },
  { rootMargin: "600px 0px" },
);

const FILTERS = {
  all: ["all cases", () => true],
  significant: ["p at most 0.05", (case_) => case_.p_value !== null && case_.p_value <= 0.05],
  findings: ["with findings", (case_) => case_.findings > 0],
  diseased: ["with a lesion (truth)", (case_) => case_.truth > 0],
  healthy: ["healthy (truth)", (case_) => case_.truth === 0],
  ok: ["ok", (case_) => case_.status === "ok"],
  warned: ["warned", (case_) => case_.status === "warned"],
  refused: ["refused", (case_) => case_.status === "refused"],
  failed: ["failed", (case_) => case_.status === "failed"],
};
const last = (value) => (value === null ? -Infinity : value);
const SORTS = {
  score: ["score, highest first", (one, other) => last(other.score) - last(one.score)],
  "score-up": ["score, lowest first", (one, other) => last(one.score) - last(other.score)],
  name: ["name", (one, other) => one.name.localeCompare(other.name, "en", { numeric: true })],
  dice: ["Dice, worst first", (one, other) => (one.dice ?? Infinity) - (other.dice ?? Infinity)],
  "dice-down": ["Dice, best first", (one, other) => last(other.dice) - last(one.dice)],
  truth: ["lesion, largest first", (one, other) => last(other.truth) - last(one.truth)],
};

function fill(select, options, useful) {
  for (const [key, [title]] of Object.entries(options)) if (useful(key)) select.add(new Option(title, key));
}
const any = (test) => index.cases.some(test);
fill(element("filter"), FILTERS, (key) => key === "all" || any(FILTERS[key][1]));
const SORTABLE = { score: (c) => c.score !== null, dice: (c) => c.dice !== null, truth: (c) => c.truth > 0, name: () => true };
fill(element("sort"), SORTS, (key) => any(SORTABLE[key.split("-")[0]]) || key === "name");
if (!any(SORTABLE.score) && any(SORTABLE.truth)) element("sort").value = "truth";

const MOST_FINDINGS = 200;
const rank = (card) => STATUSES.indexOf(card.about.status);
function arrange() {
  const words = element("find").value.trim().toLowerCase();
  const fits = FILTERS[element("filter").value][1];
  const order = SORTS[element("sort").value][1];
  shown = cards
    .filter((card) => fits(card.about) && card.about.name.toLowerCase().includes(words))
    // Each status by itself. A difference of two missing values is not a number: they are equal.
    .sort((one, other) => rank(one) - rank(other) || order(one.about, other.about) || one.position - other.position);
  observer.disconnect();
  const kept = new Set(shown);
  for (const card of cards) if (!kept.has(card)) card.release();
  const groups = STATUSES.map((status) => shown.filter((card) => card.about.status === status));
  element("cards").replaceChildren(...groups.flatMap((group) => {
    const title = group.length && GROUPS[group[0].about.status];
    if (!title) return group.map((card) => card.node);
    const heading = document.createElement("h3");
    heading.className = "group";
    heading.textContent = title;
    return [heading, ...group.map((card) => card.node)];
  }));
  for (const card of shown) observer.observe(card.node);
  element("count").textContent = shown.length === cards.length ? `${cards.length} ${cards.length === 1 ? "case" : "cases"}` : `${shown.length} of ${cards.length} cases`;
  element("nothing").hidden = shown.length > 0;
  listFindings();
  if (!kept.has(current)) select(shown[0] ?? null, false);
}

function select(card, focus = true) {
  if (current) {
    current.node.classList.remove("current");
    current.node.tabIndex = -1;
  }
  current = card;
  if (!card) return;
  card.node.classList.add("current");
  card.node.tabIndex = 0;
  if (focus) {
    card.node.focus({ preventScroll: true });
    card.node.scrollIntoView({ block: "nearest" });
  }
}

// ---------------------------------------------------------------------------------------------- controls

let waiting = null;
/** Draw what is in view at the next frame, and what is near it one by one after it. */
function redraw(onlyMap = false) {
  if (waiting) {
    waiting.onlyMap &&= onlyMap;
    return;
  }
  waiting = { onlyMap };
  requestAnimationFrame(() => {
    const wanted = waiting.onlyMap;
    waiting = null;
    const near = shown.filter((card) => card.pictures);
    const inView = near.filter((card) => {
      const box = card.node.getBoundingClientRect();
      return box.bottom > 0 && box.top < window.innerHeight;
    });
    for (const card of inView) card.draw(wanted);
    later = near.filter((card) => !inView.includes(card));
    setTimeout(drawLater);
  });
}
let later = [];
function drawLater() {
  // Whole: several changes may have passed them by.
  later.shift()?.draw();
  if (later.length) setTimeout(drawLater);
}

for (const id of ["find", "filter", "sort"]) element(id).addEventListener("input", arrange);
element("side-label").hidden = !any((case_) => case_.slices[0]);
element("order").hidden = cards.length === 1;

/** The findings of the cases that are shown, the highest first, as a list that leads to them. */
function listFindings() {
  const all = shown.flatMap((card) => card.about.places.map((place, order) => ({ card, place, order })));
  const inAll = cards.reduce((sum, card) => sum + card.about.places.length, 0);
  all.sort((one, other) => rank(one.card) - rank(other.card) || other.place.peak - one.place.peak);
  element("findings").hidden = inAll === 0;
  element("findings-count").textContent = `${all.length}${all.length < inAll ? ` of ${inAll}` : ""}${all.length > MOST_FINDINGS ? `, the first ${MOST_FINDINGS} are listed` : ""}`;
  element("findings-list").replaceChildren(...all.slice(0, MOST_FINDINGS).map(({ card, place, order }) => {
    const line = document.createElement("li"), button = document.createElement("button");
    const [name, facts] = [document.createElement("b"), document.createElement("span")];
    const { name: title, slices, status, forced } = card.about;
    name.textContent = cards.length > 1 ? title : `Finding ${order + 1}`;
    facts.textContent = [
      slices[place.slice]?.replace(/^.*, /, "") ?? "", `peak ${number(place.peak, 2)}`, place.size,
      status === "ok" || cards.length === 1 ? "" : forced ? "forced" : status,
    ].filter(Boolean).join(" · ");
    button.type = "button";
    button.append(name, facts);
    button.addEventListener("click", () => card.jump(place));
    line.append(button);
    return line;
  }));
}

// The counts of the statuses show those cases.
for (const button of document.querySelectorAll("[data-status]")) {
  button.addEventListener("click", () => {
    element("filter").value = button.dataset.status;
    arrange();
    element("gallery").scrollIntoView();
  });
}

function step(by) {
  const at = shown.indexOf(current);
  const next = shown[Math.min(shown.length - 1, Math.max(0, at + by))];
  if (next) select(next);
}
const KEYS = {
  ArrowRight: () => step(1),
  j: () => step(1),
  ArrowLeft: () => step(-1),
  k: () => step(-1),
  Enter: () => current?.enlarge(),
  ...CONTROL_KEYS,
  ".": () => current?.move("step", 1),
  ",": () => current?.move("step", -1),
  d: () => current?.move("slice", 1),
  u: () => current?.move("slice", -1),
  z: () => current?.zoom(1.5, current.mark),
  x: () => current?.zoom(1 / 1.5),
  0: () => current?.zoom(0),
  f: () => element("find").focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return void (document.activeElement?.matches("input, select") && select(current));
  if (event.target.closest("input, select, button, summary, a")) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
window.addEventListener("resize", () => redraw());

/** Print every case that is shown, not only those that are in view. */
window.printCases = async () => {
  observer.disconnect(); // what is drawn stays drawn
  for (const card of shown) {
    await card.load();
    card.pictures = null;
  }
  window.print();
  arrange();
};

arrange();
show();
if (cards.length === 1) cards[0].enlarge();
