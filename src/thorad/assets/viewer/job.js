// One job: its place in the queue, then its restorations as they happen; at the end the page turns to its results.

const number = location.pathname.split("/").pop();
const png = (text) => `data:image/png;base64,${text}`;
let seen = 0;
let current = "";
let followed = null;
const going = new Map(); // the events of each restoration that has begun and not ended, by key

const STATES = {
  receiving: () => "Receiving its files.",
  queued: (job) => (job.position === 1 ? "Waiting: it is next." : `Waiting: number ${job.position} in the queue.`),
  running: (job) => {
    const time = `${Math.floor(job.seconds)} s`;
    const which = job.cases > 1 ? `${job.done} of ${job.cases} scans done. ` : "";
    if (current) return `${which}Restoring ${current}: ${time}.`;
    return job.volumes ? `${which}Reading and registering to the template: ${time}.` : `${which}Reading: ${time}.`;
  },
  done: () => "Done.",
  failed: () => "Failed.",
  cancelled: () => "Cancelled.",
};

/** Several restorations may go on at the same time: one is followed to its end, the others are kept for later. */
function show(event) {
  if (event.restored) {
    going.delete(event.key);
    if (event.key === followed) followed = null;
    if (followed === null && going.size) follow(going.keys().next().value);
    return;
  }
  if (!going.has(event.key)) going.set(event.key, []);
  going.get(event.key).push(event);
  if (followed === null) follow(event.key);
  else if (event.key === followed) draw(event);
}

function follow(key) {
  followed = key;
  current = going.get(key)[0].case;
  going.get(key).forEach(draw);
}

function draw(event) {
  if (event.scan) {
    element("live").hidden = false;
    element("live-scan").src = png(event.scan);
    for (const id of ["live-clean", "live-overlay"]) element(id).removeAttribute("src");
    element("live-clean-name").textContent = element("live-overlay-name").textContent = "";
    element("strip").replaceChildren();
    element("strip-title").hidden = true;
    return;
  }
  element("live-clean").src = png(event.clean);
  element("live-clean").alt = `Estimate of the healthy image at t = ${event.t}`;
  element("live-clean-name").textContent = `healthy estimate, t = ${event.t}`;
  if (event.overlay) {
    element("live-overlay").src = png(event.overlay);
    element("live-overlay").alt = `Map over the scan at t = ${event.t}`;
    element("live-overlay-name").textContent = `map over the scan, t = ${event.t}`;
  }
  const node = make("li");
  const picture = make("img");
  picture.src = png(event.overlay ?? event.clean);
  picture.alt = "";
  node.append(picture, make("span", `t = ${event.t}`));
  element("strip").append(node);
  element("strip-title").hidden = false;
}

async function look() {
  const job = await call(`/api/jobs/${number}?after=${seen}`);
  element("title").textContent = document.title = job.title;
  element("subtitle").textContent = [methodName(job), `model ${job.model}`].join(" · ");
  for (const event of job.events) {
    show(event);
    await pause(Math.min(150, 900 / job.events.length)); // they come in bursts
  }
  seen = job.seen;
  element("state").textContent = STATES[job.state](job);
  const over = ["done", "failed", "cancelled"].includes(job.state);
  const bar = element("progress");
  bar.hidden = over;
  if (job.cases > 1 && job.state === "running") {
    bar.max = job.cases;
    bar.value = job.done;
  } else bar.removeAttribute("value");
  element("cancel").hidden = over;
  if (job.state === "failed" || job.state === "cancelled") {
    complain([job.message, job.left_out, ...job.failures.map(({ case: name, message }) => `${name}: ${message}`)].filter(Boolean).join("\n"));
    element("live").hidden = element("strip-title").hidden = true;
    element("strip").replaceChildren();
  }
  if (job.state === "done" && !job.events.length) location.replace(`/results/job-${number}`);
  return over && !job.events.length;
}

element("cancel").addEventListener("click", async () => {
  element("cancel").disabled = true;
  try {
    await call(`/api/jobs/${number}`, "DELETE");
  } catch (error) {
    complain(error.message);
  }
});

(async () => {
  try {
    while (!(await look())) await pause(250);
  } catch (error) {
    complain(error.message);
  }
})();
