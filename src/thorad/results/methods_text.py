"""A paragraph for a paper on what a run did, made from its run.json, and what it cites."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from thorad.io.tables import listing
from thorad.records import current_options, format_indices
from thorad.results.folder import ResultFolder

PERCEPTUAL = "Zhang, Isola, Efros, Shechtman, Wang, CVPR 2018, arXiv:1801.03924 (LPIPS)"
BRAIN = "Fisch, Zumdick, Barkhau et al., Computers in Biology and Medicine 179, 108845, 2024 (deepbet)"
TEMPLATE = "Fonov, Evans, Botteron et al., NeuroImage 54, 313-327, 2011 (MNI152NLin2009aSym)"
OWN = "this project"
"""What a method of thorad's own has for its paper: thorad is named anyway."""
COMPARISONS = {
    "residual": "the absolute difference between the image and its pseudo-healthy reconstruction",
    "perceptual": "the perceptual difference (LPIPS) between the image and its pseudo-healthy reconstruction",
    "anomaly_map": "the product of the absolute and the perceptual (LPIPS) difference between the image and its "
    "pseudo-healthy reconstruction",
    "published_map": "what the published code makes of the absolute and the perceptual (LPIPS) difference",
}


class MethodsText(NamedTuple):
    """What to paste."""

    paragraph: str
    references: Sequence[str]


class _Citations:
    """Numbers references in the order in which they are cited."""

    def __init__(self) -> None:
        self.references: list[str] = []

    def __call__(self, reference: str) -> str:
        if not reference:
            return ""
        if reference not in self.references:
            self.references.append(reference)
        return f" [{self.references.index(reference) + 1}]"


def detection_text(folder: ResultFolder) -> MethodsText:
    """Of a folder of `thorad detect`."""
    cite, options, calibration = _Citations(), folder.options, folder.options.get("calibration") or {}
    settings = _with_settings(options, folder.run.get("method") or {}, cite)
    sentences = [f"Anomalies were detected with {settings}."]
    if any(case.is_volume for case in folder.cases):
        slices = options.get("slices")
        which = f"Axial slices {format_indices(slices)}" if slices else "The model's axial slices"
        sentences.append(
            f"In volumes the brain was extracted{cite(BRAIN)} and registered affinely to MNI152NLin2009aSym"
            f"{cite(TEMPLATE)}. {which} of the template's 1 mm grid were analysed."
        )
    if folder.false_positives is not None:
        sentences.append(
            f"Pixels above {folder.threshold:.4g} were counted as anomalous, the threshold that "
            f"{100 * folder.false_positives:g} % of the pixels of {calibration['scans']} healthy scans exceed."
        )
    elif folder.threshold is not None:
        own = folder.threshold == (folder.run.get("method") or {}).get("own_threshold")
        origin = "the method's own threshold" if own else "a threshold given for this run"
        sentences.append(f"Pixels above {folder.threshold:.4g}, {origin}, were counted as anomalous.")
    if folder.calibrated:
        healthy = f"{calibration['scans']} healthy scans" if calibration else "healthy scans"
        sentences.append(f"p-values are ranks of the scores among those of {healthy}.")
    sentences += [f"The software warned: {warning}." for warning in folder.warnings]
    counts = [f"{len(cases)} {status}" for status, cases in folder.with_status.items() if cases]
    sentences.append(f"Of {len(folder.cases)} cases, by the software's checks: {listing(counts)}.")
    return MethodsText(" ".join(sentences), cite.references)


def evaluation_text(results: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> MethodsText:
    """Of a folder of `thorad evaluate`, whose run.json may be missing: `run` is empty then."""
    cite = _Citations()
    detectors = run.get("detectors") or results
    names = "; ".join(_with_settings(options, options.get("about") or {}, cite) for options in detectors)
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in results[0]["counts"].items())
    text = f"Compared were {names}. They were measured by the protocol {results[0]['protocol']} ({counts})."
    return MethodsText(text, cite.references)


def _with_settings(options: Mapping[str, Any], about: Mapping[str, Any], cite: _Citations) -> str:
    """A method, its settings, the version and the model; `about`: the facts of the method that a run keeps."""
    options = current_options(options)
    settings = [
        f"{options['noise']} noise" if options.get("noise") else "",
        f"noise level {options['noise_level']}" if options.get("noise_level") else "",
        f"steps {options['steps']}" if options.get("steps") is not None else "",
        f"mean of {options['draws']} draws of the noise" if options["draws"] > 1 else "",
        f"seed {options['seed']}" if options.get("seed") is not None and options.get("noise") else "",
    ]
    title = about.get("title") or options.get("method")
    paper = about.get("paper") or ""
    words = f"{title}{cite('' if paper == OWN else paper)}"
    if any(settings):
        words += f" ({', '.join(filter(None, settings))})"
    if "thorad" in options:
        words += f" in thorad {options['thorad']}"
    words += f" with the model {options.get('model')}"
    if options.get("model_sha256"):
        words += f" (SHA-256 {options['model_sha256'][:12]})"
    if options.get("critic_sha256"):
        made = f"; {about['critic']}" if about.get("critic") else ""
        words += f" and its critic (SHA-256 {options['critic_sha256'][:12]}{made})"
    if options.get("noise") and about.get("compare") in COMPARISONS:
        perceptual = "" if about["compare"] == "residual" else PERCEPTUAL
        words += f"; the map is {COMPARISONS[about['compare']]}{cite(perceptual)}"
    return words
