// The results of one job or folder. gallery.js, the report's, does the drawing; here a case's pictures are fetched when
// the case comes into view.

const base = location.pathname;

/** gallery.js reads its index from the page, and gets its pictures from Card.read. */
function startGallery(index) {
  const block = make("script");
  block.type = "application/json";
  block.id = "index";
  block.textContent = JSON.stringify(index);
  document.body.append(block);
  const script = make("script");
  script.src = "/static/gallery.js";
  // Runs right after the script, before anything comes into view.
  script.addEventListener("load", () => {
    Card.prototype.read = fetchPictures;
    Card.remedy = "Load the page again.";
    if (cards.length === 1) {
      const [{ node, panels, about }] = cards;
      node.classList.add("large");
      node.style.setProperty("--wide", (panels.length * about.width) / about.height);
      // As large as fits with the controls above and the scrubbers below.
      const above = node.querySelector(".panels").getBoundingClientRect().top + window.scrollY;
      node.style.setProperty("--above", `${Math.ceil(above) + 76}px`);
    }
  });
  document.body.append(script);
}

/** The case's pictures; a volume opens at the slice with the highest value, which the index doesn't know. */
async function fetchPictures() {
  const coded = await call(`${base}/cases/${encodeURIComponent(this.about.key)}`);
  if (!this.seen) this.slice = coded.reduce((best, one, at) => (one.maximum > coded[best].maximum ? at : best), 0);
  this.seen = true;
  return coded;
}

function warn(text) {
  element("said").append(make("p", text, "warning"));
}

function showFindings(cases) {
  const found = cases.flatMap((about) => about.places.map((place) => [about.name, place])).slice(0, 500);
  const digits = (value, count) => (Number.isFinite(value) ? String(Number(value.toPrecision(count))) : "–");
  const lines = found.map(([name, place]) => {
    const line = make("tr");
    const extent = place.volume_mm3 ? `${digits(place.volume_mm3 / 1000, 3)} ml` : place.area_mm2 ? `${digits(place.area_mm2, 3)} mm²` : `${place.pixels} px`;
    for (const text of [name, digits(place.peak, 4), digits(place.mean, 4), extent, (place.peak_position ?? []).join(", ")]) line.append(make("td", text));
    return line;
  });
  element("findings").hidden = lines.length === 0;
  element("findings").querySelector("tbody").replaceChildren(...lines);
}

/** How many are refused, failed or warned; of this session's scans, refused ones may be run all the same. */
function tellStatuses(index) {
  const count = (status) => index.cases.filter((about) => about.status === status).length;
  if (count("refused")) {
    warn(`${counted(count("refused"), "scan")} refused: the model can't judge ${count("refused") === 1 ? "it" : "them"}, so there is no result. The reason is below.`);
    if (index.can_be_forced) element("said").append(forceButton(index.job));
  }
  if (count("failed")) warn(`${counted(count("failed"), "scan")} failed.`);
  if (count("warned")) warn(`${counted(count("warned"), "scan")} came with a warning: listed apart, and in no ranking.`);
  if (index.left_out) element("said").append(make("p", index.left_out, "note"));
}

function forceButton(job) {
  const line = make("p", "", "force"), button = make("button", "Run all the same");
  button.type = "button";
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      location.href = `/jobs/${(await call(`/api/jobs/${job}/force`, "POST")).number}`;
    } catch (error) {
      warn(error.message);
    }
  });
  line.append(button, make("span", " Every result of it then says that it was forced, and why. Until then the files stay here; All scans, Remove takes them away.", "note"));
  return line;
}

(async () => {
  try {
    const index = await call(`${base}/index`);
    const { run } = index;
    document.title = index.title;
    element("title").textContent = index.title;
    element("subtitle").textContent = [
      methodName(run), `model ${run.model}`, counted(index.cases.length, "scan"), seconds(index.seconds),
      `seed ${run.seed}`,
    ].filter(Boolean).join(" · ");
    element("save").hidden = index.job === null;
    element("save").href = `${base}/save`;
    element("report").href = `${base}/report`;
    for (const name of index.volumes.slice(0, 20)) {
      const several = index.volumes.length > 1 ? `: ${name}` : "";
      const link = make("a", `Save three planes (HTML)${several}`, "button");
      link.href = `${base}/planes/${encodeURIComponent(name)}`;
      link.download = "";
      element("report").after(link);
    }
    document.body.classList.toggle("single", index.cases.length === 1);
    if (index.said) warn(index.said);
    tellStatuses(index);
    for (const about of index.cases) about.registration &&= `${base}/registration/${encodeURIComponent(about.key)}`;
    if (run.status === "running") warn("The run isn't finished: only the cases that are done are here. Load the page again for more.");
    if (!run.calibration && index.threshold === null) {
      warn("Not calibrated: no p-values, findings or masks, and a score means nothing by itself. thorad calibrate on your own healthy scans of the same scanner makes them.");
    }
    if (index.cases.some((about) => about.slices[0])) {
      element("said").append(make("p", "Slices lie in the template's axes, anterior up. L and R are the patient's; the sides can be exchanged, for radiology has them the other way round.", "note"));
    }
    showFindings(index.cases);
    startGallery(index);
  } catch (error) {
    warn(error.message);
  }
})();
