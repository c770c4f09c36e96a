// The start page: drop, choose, detect; and the list of the scans and folders of this session.

let chosen = [];
let limits = { bytes: Infinity, files: Infinity };
let offers = [];
let sending = false;

// ---------------------------------------------------------------------------------------------- files

function choose(files) {
  // Hidden files that systems leave in folders are no scans.
  chosen = [...files].filter((file) => !file.name.startsWith("."));
  const total = chosen.reduce((sum, file) => sum + file.size, 0);
  element("chosen").hidden = chosen.length === 0;
  showSlices();
  element("chosen").querySelector("ul").replaceChildren(...chosen.slice(0, 200).map((file) => {
    const line = make("li");
    line.append(make("span", file.name), make("span", size(file.size)));
    return line;
  }));
  element("total").textContent = `${counted(chosen.length, "file")}, ${size(total)}.`;
  let problem = "";
  if (chosen.length > limits.files) problem = `${chosen.length} files at once; ${limits.files} at most. Drop one study at a time.`;
  else if (total > limits.bytes) problem = `${size(total)} at once; ${size(limits.bytes)} at most. Use thorad detect for large sets.`;
  complain(problem);
  ready(problem === "");
}

function ready(usable = element("problem").hidden) {
  element("detect").disabled = sending || !usable || chosen.length === 0 || offers.length === 0;
}

/** All files of what was dropped, including those in folders. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = entries.length ? [] : [...transfer.files];
  while (entries.length && files.length <= limits.files) {
    const entry = entries.shift();
    if (entry.isFile) files.push(await new Promise((done, failed) => entry.file(done, failed)));
    else {
      const reader = entry.createReader();
      for (;;) {
        const more = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (!more.length) break;
        entries.push(...more);
      }
    }
  }
  return files;
}

const zone = element("drop");
// A file that misses the zone would replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
window.addEventListener("dragover", () => zone.classList.add("over"));
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over"); });
window.addEventListener("drop", async (event) => {
  zone.classList.remove("over");
  if (sending) return;
  try {
    choose(await dropped(event.dataTransfer));
  } catch {
    complain("What was dropped can't be read.");
  }
});
element("choose-files").addEventListener("click", () => element("files").click());
element("choose-folder").addEventListener("click", () => element("folder").click());
for (const id of ["files", "folder"]) {
  element(id).addEventListener("change", (event) => {
    choose(event.target.files);
    event.target.value = "";
  });
}
element("clear").addEventListener("click", () => choose([]));

// ---------------------------------------------------------------------------------------------- model and method

const offer = () => offers[Number(element("model").value)];
const chosenMethod = () => offer().methods[element("method").selectedIndex];

function showModel() {
  element("about-model").textContent = offer().about;
  showSlices();
  const before = element("method").value;
  element("method").replaceChildren(...offer().methods.map((method) => new Option(methodName(method), `${method.method} ${method.noise ?? ""}`)));
  if ([...element("method").options].some((option) => option.value === before)) element("method").value = before;
  showMethod();
}

/** Which slices is a question for volumes alone: what isn't certainly a picture may be one. */
function showSlices() {
  element("slices-field").hidden = !offers.length || !offer().volumes || !chosen.some(({ name }) => !/\.(png|jpe?g|tiff?|npy)$/i.test(name));
}

function showMethod() {
  const { blurb } = chosenMethod();
  element("about-method").textContent = `${blurb[0].toUpperCase()}${blurb.slice(1)}.`;
}

element("model").addEventListener("input", showModel);
element("method").addEventListener("input", showMethod);

function showOffers(arrived) {
  if (offers.length || !arrived.length) return;
  offers = arrived;
  element("model").replaceChildren(...offers.map(({ name }, index) => new Option(name, index)));
  for (const id of ["model", "method"]) element(id).disabled = false;
  showModel();
  ready();
}

// ---------------------------------------------------------------------------------------------- send

element("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (element("detect").disabled) return;
  const files = chosen;
  const { method, noise } = chosenMethod();
  const total = files.reduce((sum, file) => sum + file.size, 0);
  sending = true;
  ready();
  complain("");
  element("sending").hidden = false;
  try {
    const job = await call("/api/jobs", "POST", JSON.stringify({
      files: files.map(({ name, size }) => ({ name, size })),
      model: offer().model,
      method,
      noise,
      slices: element("slices-field").hidden ? "" : element("slices").value.trim(),
    }));
    let sent = 0;
    for (const [index, file] of files.entries()) {
      await call(`/api/jobs/${job.number}/files/${index}`, "PUT", file);
      sent += file.size;
      element("sending").value = sent / total;
      element("sent").textContent = files.length > 1 ? `${index + 1} of ${files.length} files` : "";
    }
    element("sent").textContent = "sorting the files";
    await call(`/api/jobs/${job.number}/start`, "POST");
    location.href = `/jobs/${job.number}`;
  } catch (error) {
    complain(error.message);
  }
  element("sending").hidden = true;
  element("sending").value = 0;
  element("sent").textContent = "";
  sending = false;
  ready(true);
});

// ---------------------------------------------------------------------------------------------- scans and folders of this session

const STATES = { receiving: "sending", queued: "waiting", running: "running", done: "", failed: "failed", cancelled: "cancelled" };

function entry({ title, href, thumbnail, state, stateText, facts, message, remove }) {
  const node = element("entry").content.firstElementChild.cloneNode(true);
  const picture = node.querySelector(".thumbnail");
  if (thumbnail) {
    const image = make("img");
    image.src = thumbnail;
    image.alt = "";
    picture.append(image);
    picture.href = href;
  } else picture.classList.add("empty");
  const name = node.querySelector(".title");
  name.textContent = title;
  if (href) name.href = href;
  const line = node.querySelector(".facts");
  if (stateText) line.append(make("span", stateText, `state-${state}`), facts ? " · " : "");
  line.append(facts);
  node.querySelector(".message").textContent = message;
  const button = node.querySelector(".remove");
  if (remove) {
    button.textContent = remove.text;
    button.setAttribute("aria-label", `${remove.text}: ${title}`);
    button.addEventListener("click", remove.action);
  } else button.remove();
  return node;
}

function jobEntry(job) {
  const over = ["done", "failed", "cancelled"].includes(job.state);
  const progress = job.cases > 1 && job.state !== "queued" ? `${job.done} of ${counted(job.cases, "scan")}` : "";
  const facts = [methodName(job), job.model, progress, seconds(job.seconds)];
  const reasons = [
    ...job.refused.map(({ case: name, message }) => `${name} refused: ${message}.`),
    ...job.failures.map(({ case: name, message }) => `${name}: ${message}`),
    job.left_out,
  ];
  return entry({
    title: job.title,
    href: job.state === "done" ? `/results/job-${job.number}` : `/jobs/${job.number}`,
    thumbnail: job.state === "done" && job.done > 0 ? `/results/job-${job.number}/thumbnail` : null,
    state: job.state,
    stateText: job.position ? `waiting, number ${job.position} in the queue` : STATES[job.state],
    facts: facts.filter(Boolean).join(" · "),
    message: [job.message, ...reasons].filter(Boolean).join(" "),
    remove: {
      text: over ? "Remove" : "Cancel",
      action: async () => {
        try {
          await call(`/api/jobs/${job.number}`, "DELETE");
        } catch (error) {
          complain(error.message);
        }
        refresh();
      },
    },
  });
}

function folderEntry(folder) {
  const facts = [methodName(folder), folder.model, counted(folder.cases, "case"), folder.refused ? `${folder.refused} refused` : "", folder.failed ? `${folder.failed} failed` : ""];
  return entry({
    title: folder.title,
    href: folder.message ? null : `/results/${folder.id}`,
    thumbnail: folder.message || folder.failed + folder.refused === folder.cases ? null : `/results/${folder.id}/thumbnail`,
    facts: folder.message ? "" : facts.filter(Boolean).join(" · "),
    message: folder.message ?? "",
  });
}

/** Draw a list again only where it has changed: a button must not vanish under the pointer. */
function list(id, things, draw) {
  const now = JSON.stringify(things);
  if (element(id).dataset.now === now) return;
  element(id).dataset.now = now;
  element(id).replaceChildren(...things.map(draw));
}

let failing = false;
async function refresh() {
  let state;
  try {
    state = await call("/api/state");
  } catch (error) {
    failing = true;
    return complain(error.message);
  }
  if (failing) complain("");
  failing = false;
  limits = state.limits;
  showOffers(state.offers);
  if (state.trouble) complain(state.trouble);
  // Whole seconds while it runs, or the list would change with every poll.
  list("jobs", state.jobs.map((job) => (job.state === "running" ? { ...job, seconds: Math.floor(job.seconds) } : job)), jobEntry);
  element("no-jobs").hidden = state.jobs.length > 0;
  element("folders-section").hidden = state.folders.length === 0;
  list("folders", state.folders, folderEntry);
}

(async () => {
  for (;;) {
    await refresh();
    await pause(document.hidden ? 3000 : offers.length ? 1000 : 400);
  }
})();
