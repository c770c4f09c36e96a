// The results of one job or folder: gallery.js, the report's, does the drawing; here a case's pictures are fetched when
// the case comes into view.

Card.remedy = "Is the viewer still running?";
Card.prototype.read = function () {
  return call(`${location.pathname}/cases/${encodeURIComponent(this.about.key)}`);
};

element("force")?.addEventListener("click", async ({ target }) => {
  target.disabled = true;
  try {
    location.href = `/jobs/${(await call(`/api/jobs/${target.dataset.job}/force`, "POST")).number}`;
  } catch (error) {
    complain(error.message);
  }
});
