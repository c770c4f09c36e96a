"""The tables and the figure of the THOR paper, measured again: on its data where they are at hand, or on a bench.

Bercea, Wiestler, Rueckert, Schnabel: Diffusion Models with Implicit Guidance for Medical Anomaly Detection, MICCAI
2024, arXiv:2403.08464. Table 1: best Dice on stroke MRI (ATLAS v2.0). Table 2: recall and F1 on wrist X-rays
(GRAZPEDWRI-DX). Figure 4: best Dice against the noise level.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from thorad.apps.run import write_evaluation_run
from thorad.datasets import atlas, wrist
from thorad.datasets.cases import Case, read_cases
from thorad.datasets.grazpedwri import dataset_table
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.evaluation.evaluate import evaluate, honest_floor_warning
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.statistics import title
from thorad.evaluation.tables import Figure, lay_out
from thorad.io.atomic import write_atomic
from thorad.io.scans import find_scans, picture_files
from thorad.io.tables import listing
from thorad.methods import METHODS
from thorad.model import load_recipe_of
from thorad.selection import comparison
from thorad.table import Table

Target = Literal["table1", "table2", "fig4"]
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what of)."""

PUBLISHED_TABLE_1: Final[Mapping[tuple[str, str], tuple[float, float, float, float]]] = {
    ("ddpm", "gaussian"): (8.05, 1.37, 9.53, 25.65),
    ("autoddpm", "gaussian"): (16.95, 4.55, 22.07, 43.47),
    ("thor", "gaussian"): (20.41, 9.14, 26.34, 41.26),
    ("anoddpm", "simplex"): (18.07, 4.82, 23.45, 46.65),
    ("pddpm", "simplex"): (22.28, 8.02, 30.16, 47.66),
    ("thor", "simplex"): (29.74, 11.54, 39.20, 63.64),
}
"""(method, noise) -> best Dice in percent on ATLAS v2.0: average, small, medium, large; the paper's table 1."""

NOISE_LEVELS: Final = tuple(range(50, 451, 50))
"""Timesteps of figure 4."""

CURVES: Final = (("ddpm", "gaussian"), ("anoddpm", "simplex"), ("thor", "gaussian"), ("thor", "simplex"))
"""(method, noise) of figure 4; AnoDDPM is DDPM with simplex noise."""

FLOOR: Final = "zscore"

TABLE_1: Final = (
    Figure("Method", "title"),
    Figure("Avg.", "best_dice/average", ".1f"),
    Figure("Mix", "best_dice/paper_mix", ".1f"),
    *(Figure(group.capitalize(), f"best_dice/{group}", ".1f") for group in SIZE_GROUPS),
    Figure("Published avg/S/M/L", "published"),
)
TABLE_2: Final = (
    Figure("Method", "title"),
    Figure("Kind", "kind"),
    Figure("Boxes", "boxes"),
    Figure("Recall", "recall", ".3f"),
    Figure("F1", "f1", ".3f"),
)
FIGURE_4: Final = (
    Figure("Method", "title"),
    Figure("Level", "noise_level"),
    Figure("Calls", "network_calls"),
    Figure("Average [95 %]", "best_dice/average", ".1f", interval=True),
    Figure("Paper mix [95 %]", "best_dice/paper_mix", ".1f", interval=True),
)

PREPARED_BRAIN: Final = "cases.csv with the columns image, mask and subject, and where there are some healthy/*.png"
PREPARED_WRIST: Final = "cases.csv with the columns image, boxes, elsewhere and subject, and healthy/*.png"


@dataclass(frozen=True)
class Settings:
    """What decides the figures beside the models and the data."""

    steps: int | Literal["all"] | None = None
    """As `Detector` takes it."""
    device: str = "auto"
    seed: int = 0
    batch_size: int = 16
    bootstrap: int = 1000
    every: int = 1
    """Takes every N-th case, in the order of their subjects."""

    def __post_init__(self) -> None:
        """Refuse what takes no case."""
        if self.every < 1:
            raise ThoradError(f"every is {self.every}, expected 1 (all cases) or more.")


@dataclass(frozen=True)
class Reproduced:
    """What was measured, and how to show it."""

    results: list[dict[str, Any]]
    """As in metrics.json."""
    table: Table
    """The figures and what a reader has to know of them."""
    failures: Mapping[str, str]
    """{case: why it was left out}."""


@dataclass(frozen=True)
class LayoutCheck:
    """What a folder holds."""

    told: list[str]
    """What was found, and what of it will be used."""
    problems: list[str]
    """What is wrong with single files; they would be left out."""


@dataclass(frozen=True)
class _Material:
    """The data, ready to be measured on."""

    cases: list[Case]
    healthy: list[Path]
    told: list[str]
    failures: Mapping[str, str]
    published: bool
    """Whether these are the paper's data."""


def check_layout(target: Target, data: Path, on_progress: Progress | None = None) -> LayoutCheck:
    """Say what a folder of data holds, without a model and without writing anything.

    Args:
        target: what is to be reproduced.
        data: a prepared bench or the published data set.
        on_progress: see `Progress`.

    Raises:
        ThoradError: neither layout.
    """
    _check_folder(data)
    if target == "table2":
        if (data / "cases.csv").is_file():
            return LayoutCheck(_told_bench(data, read_cases(data / "cases.csv", truth="boxes"), _healthy(data)), [])
        files = _wrist_files(data)
        cases = wrist.sort_wrist_images(files, _part(on_progress, "annotations"))
        return LayoutCheck([*_told_files(files), *_told_images(cases)], list(cases.left_out.values()))
    if (data / "cases.csv").is_file():
        return LayoutCheck(_told_bench(data, read_cases(data / "cases.csv"), _healthy(data)), [])
    found = _atlas_files(data)
    problems: list[str] = []
    for done, case in enumerate(found.cases, start=1):
        try:
            atlas.check_headers(case)
        except ThoradError as error:
            problems.append(str(error))
        if on_progress is not None:
            on_progress(done, len(found.cases), "headers")
    good = f"{len(found.cases) - len(problems)} of {len(found.cases)} scans lie on the grid of MNI152NLin2009aSym."
    return LayoutCheck([*_told_scans(data, found), good], problems)


def reproduce(
    target: Target,
    data: Path,
    models: Sequence[str | Path],
    out: Path,
    settings: Settings | None = None,
    *,
    on_progress: Progress | None = None,
) -> Reproduced:
    """Measure a table or the figure and write metrics.json, report.md and what belongs to each into `out`.

    table1 and table2 also write cases.csv, table.md and run.json as `thorad evaluate` does; fig4 writes sweep.csv,
    figure4.png and figure4.svg. Of published data, what is cut or chosen lies in out/slices or out/cases.

    Args:
        target: table1, table2 or fig4.
        data: a prepared bench or the published data set, of the layouts that `check_layout` tells.
        models: names or folders; each method with each noise takes the first that can do it.
        out: the folder. Levels of fig4 that an earlier run has finished with the same options are taken from it.
        settings: the rest.
        on_progress: see `Progress`.

    Raises:
        ThoradError: neither layout, no usable case, an unknown model, a package that is missing, results of other
            options in `out`, or `out` can't be written.
    """
    settings = settings or Settings()
    _check_folder(data)
    return {"table1": _table_1, "table2": _table_2, "fig4": _figure_4}[target](data, models, out, settings, on_progress)


def _table_1(
    data: Path, models: Sequence[str | Path], out: Path, settings: Settings, on_progress: Progress | None
) -> Reproduced:
    detectors = [_detector(*asked, settings) for asked in comparison(models)]
    brain = _brain(data, out, on_progress)
    results = _evaluate(
        "brain-lesions", _thinned(brain.cases, settings), brain.healthy, detectors, out, settings, on_progress
    )
    measured = {(result["method"], result["noise"]) for result in results}
    missing = [
        {"method": method, "noise": noise, "best_dice": dict.fromkeys(results[0]["best_dice"])}
        for method, noise in PUBLISHED_TABLE_1
        if (method, noise) not in measured
    ]
    rows = [
        {**row, "title": title(row), "published": _published(row["method"], row["noise"])}
        for row in (*results, *missing)
    ]
    counts = results[0]["counts"]
    notes = [
        *brain.told,
        _told_every(settings),
        "The data are the paper's, ATLAS v2.0. Its choice of subjects is not published: here every slice k = 95 with a "
        "lesion counts."
        if brain.published
        else "These are not the paper's data: the published figures are of ATLAS v2.0 and stand beside the measured "
        "ones for orientation only.",
        f"Best Dice in percent; its threshold comes from the test labels, an upper bound. Avg. weights the groups "
        f"by the counts here ({counts['small']} small, {counts['medium']} medium, {counts['large']} large); mix "
        "by the paper's, and compares with the published average.",
        _told_models(results),
        honest_floor_warning(results) or "",
    ]
    table = lay_out(TABLE_1, rows, _said(notes))
    return _reported("Table 1: best Dice by lesion size", out, results, table, brain.failures)


def _table_2(
    data: Path, models: Sequence[str | Path], out: Path, settings: Settings, on_progress: Progress | None
) -> Reproduced:
    detectors = [_detector(*asked, settings) for asked in comparison(models)]
    bench = _wrist(data, out, on_progress)
    results = _evaluate("boxes", _thinned(bench.cases, settings), bench.healthy, detectors, out, settings, on_progress)
    rows = [
        {"title": title(result), "kind": kind, **figures}
        for result in results
        for kind, figures in result["kinds"].items()
    ]
    notes = [
        *bench.told,
        _told_every(settings),
        "The data are the paper's, GRAZPEDWRI-DX. Its split is not published; here: posteroanterior images, diseased "
        "all that have boxes beside the letters, healthy those of a tenth of the patients without a box in any "
        "posteroanterior image."
        if bench.published
        else "These are not the paper's data (GRAZPEDWRI-DX).",
        "The figures of the paper's table 2 are not at hand, so none stand beside the measured ones.",
        f"Threshold: {results[0]['thresholds']['boxes_source']} exceed it; no box is used. Recall and F1 (0 to 1) by "
        "the rules of the paper's wrist experiment, means over the boxes; table.md has intervals and FROC.",
        _told_models(results),
        honest_floor_warning(results) or "",
    ]
    table = lay_out(TABLE_2, rows, _said(notes))
    return _reported("Table 2: recall and F1 by kind", out, results, table, bench.failures)


def _figure_4(
    data: Path, models: Sequence[str | Path], out: Path, settings: Settings, on_progress: Progress | None
) -> Reproduced:
    _import_matplotlib()  # its absence should be told before the work
    asked = {(method, noise): model for model, method, noise in comparison(models)}
    curves = [curve for curve in CURVES if curve in asked]
    if not curves:
        raise ThoradError(
            f"None of the models {', '.join(map(str, models))} can do ddpm, anoddpm or thor, which figure 4 compares. "
            "Name one that was trained on whole noised images."
        )
    trained = {curve: load_recipe_of(asked[curve]).noise.train_below for curve in curves}
    points: list[tuple[str, str | None, int | None]] = [
        (*curve, level) for curve in curves for level in NOISE_LEVELS if level < trained[curve]
    ]
    points += [(FLOOR, None, None)] if (FLOOR, None) in asked else []
    brain = _brain(data, out, on_progress)
    # Best Dice, all that the figure shows, uses no healthy scan.
    cases = every_nth([case for case in brain.cases if case.mask is not None], settings.every)
    digest = _digest(cases)
    results = []
    for index, (method, noise, level) in enumerate(points):
        detector = _detector(asked[method, noise], method, noise, settings, noise_level=level)
        name = "-".join(str(part) for part in (method, noise, level) if part is not None)
        before = index * len(cases)

        def report(done: int, total: int, method: str, name: str = name, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + done, len(points) * total, name)

        results.append(_level(detector, cases, digest, out / "levels", name, settings, report))
    figure = plot_sweep(results)
    write_atomic(out / "figure4.png", figure["png"])
    write_atomic(out / "figure4.svg", figure["svg"])
    write_atomic(out / "sweep.csv", _sweep_csv(results))
    counts = results[0]["counts"]
    missing = [f"{method} ({noise})" for method, noise in CURVES if (method, noise) not in asked]
    untrained = [
        f"{method} ({noise}) at {listing([str(level) for level in NOISE_LEVELS if level >= limit])}: its model was "
        f"trained below timestep {limit}"
        for (method, noise), limit in trained.items()
        if limit <= max(NOISE_LEVELS)
    ]
    notes = [
        *brain.told,
        _told_every(settings),
        "The data are the paper's, ATLAS v2.0." if brain.published else "These are not the paper's data (ATLAS v2.0).",
        f"Best Dice in percent on {counts['lesion_cases']} slices with lesions of {counts['subjects']} subjects; its "
        "threshold comes from the test labels, an upper bound. Brackets and bands: 95 % percentile bootstrap over "
        f"subjects, {counts['bootstrap_resamples']} resamples. The timesteps at which THOR harmonises are its own, but "
        "for those above the noise level.",
        _told_models(results),
        f"Left out, no model for it: {', '.join(missing)}." if missing else "",
        f"Left out: {'; '.join(untrained)}." if untrained else "",
    ]
    write_atomic(out / "metrics.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    picture = "![best Dice against the noise level](figure4.png)"
    table = lay_out(FIGURE_4, [{"title": title(result), **result} for result in results], _said(notes))
    return _reported("Figure 4: noise levels", out, results, table, brain.failures, picture)


def every_nth(cases: Sequence[Case], every: int) -> list[Case]:
    """Every N-th case in the order of the subjects, so that they spread over as many of them as there are."""
    return sorted(cases, key=lambda case: case.subject)[::every]


def plot_sweep(results: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Figure 4: best Dice against the noise level, with 95 % intervals as bands; the z-score as a level line.

    Args:
        results: of `brain-lesions`, each with its `noise_level`, None for the z-score.

    Returns:
        The content of a PNG file of 2000 px width and of an SVG file.
    """
    figure_class = _import_matplotlib()
    shown = {"average": "Average over the lesions", "paper_mix": "The paper's mix of sizes"}
    panels = [key for key in shown if any(result["best_dice"][key] is not None for result in results)]
    # Okabe and Ito's colours, told apart by colour-blind people too; lines and marks differ as well.
    styles = {
        ("ddpm", "gaussian"): ("DDPM, Gaussian noise", "#E69F00", "--", "s"),
        ("anoddpm", "simplex"): ("AnoDDPM, simplex noise", "#D55E00", "-", "s"),
        ("thor", "gaussian"): ("THOR, Gaussian noise", "#56B4E9", "--", "o"),
        ("thor", "simplex"): ("THOR, simplex noise", "#0072B2", "-", "o"),
    }
    figure = figure_class(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=False):
        for curve, (label, colour, line, mark) in styles.items():
            of_curve = [result for result in results if (result["method"], result["noise"]) == curve]
            points = sorted(
                (result["noise_level"], result["best_dice"][panel], result["intervals"]["best_dice"][panel])
                for result in of_curve
                if result["best_dice"][panel] is not None
            )
            if not points:
                continue
            levels, values, intervals = zip(*points, strict=True)
            axis.plot(levels, values, line, color=colour, marker=mark, markersize=5, linewidth=2, label=label)
            banded = [(level, *ends) for level, ends in zip(levels, intervals, strict=True) if ends is not None]
            if banded:
                axis.fill_between(*zip(*banded, strict=True), color=colour, alpha=0.15, linewidth=0)
        for floor in results:
            if floor["noise_level"] is None and floor["best_dice"][panel] is not None:
                axis.axhline(floor["best_dice"][panel], color="#404040", linestyle=":", linewidth=2, label="z-score")
        axis.set_title(shown[panel], fontsize=13)
        axis.set_xlabel("noise level (timestep)", fontsize=12)
        axis.set_xticks(NOISE_LEVELS)
        axis.tick_params(labelsize=11)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)  # of both panels, when both hold their curves
    axes[0].set_ylabel("best Dice (%)", fontsize=12)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    content = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        content[kind] = buffer.getvalue()
    return content


def _import_matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ThoradError("Figure 4 needs matplotlib, which is not installed. pip install 'thorad[plots]'.") from error
    return Figure


def _detector(
    model: str | Path, method: str, noise: str | None, settings: Settings, noise_level: int | None = None
) -> Detector:
    steps = settings.steps if METHODS[method].default_steps else None
    if isinstance(steps, int) and noise_level is not None:
        steps = min(steps, noise_level)  # a low level has no more timesteps than that
    return Detector(
        model,
        method=method,
        noise=noise,
        noise_level=noise_level,
        steps=steps,
        device=settings.device,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )


def _evaluate(
    protocol: str,
    cases: Sequence[Case],
    healthy: Sequence[Path],
    detectors: Sequence[Detector],
    out: Path,
    settings: Settings,
    on_progress: Progress | None,
) -> list[dict[str, Any]]:
    began = time.perf_counter()
    well = {case.image.resolve() for case in cases if not case.has_finding}
    results = evaluate(
        cases,
        [path for path in healthy if path.resolve() not in well][:: settings.every],
        detectors,
        out,
        protocol=protocol,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
        on_progress=on_progress,
        keep_maps=True,
    )
    write_evaluation_run(detectors, out, time.perf_counter() - began)
    return results


def _thinned(cases: Sequence[Case], settings: Settings) -> list[Case]:
    """Every N-th of the diseased cases, and of the healthy ones."""
    diseased = every_nth([case for case in cases if case.has_finding], settings.every)
    return diseased + every_nth([case for case in cases if not case.has_finding], settings.every)


def _level(
    detector: Detector,
    cases: Sequence[Case],
    digest: str,
    folder: Path,
    name: str,
    settings: Settings,
    report: Progress,
) -> dict[str, Any]:
    """One point of the sweep: that of an earlier run with the same options, or measured and kept."""
    options = {**detector.provenance(), "cases_sha256": digest, "bootstrap": settings.bootstrap}
    kept = folder / f"{name}.json"
    if kept.is_file():
        try:
            earlier = json.loads(kept.read_text(encoding="utf-8"))
            known, result = dict(earlier["options"]), dict(earlier["result"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ThoradError(f"{kept}: not a level's result. Remove the file; the sweep measures it again.") from error
        if known != options:
            differing = [
                f"{key} (there {known.get(key)}, now {value})"
                for key, value in options.items()
                if known.get(key) != value
            ]
            raise ThoradError(
                f"{kept}: made with other options: {listing(differing)}. Choose another --out, or remove the folder."
            )
        report(len(cases), len(cases), name)
        return result
    (result,) = evaluate(
        cases,
        [],
        [detector],
        folder / name,
        bootstrap=settings.bootstrap,
        permutations=0,
        seed=settings.seed,
        on_progress=report,
    )
    result = {**result, "noise_level": detector.noise_level}
    content = json.dumps({"options": options, "result": result}, indent=2, allow_nan=False)
    write_atomic(kept, (content + "\n").encode())
    return result


def _digest(cases: Sequence[Case]) -> str:
    """Of the names, subjects and contents of all cases."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"{case.name}\n{case.subject}\n".encode())
        for path in (case.image, case.mask):
            digest.update(hashlib.sha256(path.read_bytes() if path is not None else b"").digest())
    return digest.hexdigest()


def _brain(data: Path, out: Path, on_progress: Progress | None) -> _Material:
    if (data / "cases.csv").is_file():
        cases, healthy = read_cases(data / "cases.csv"), _healthy(data)
        return _Material(cases, healthy, _told_bench(data, cases, healthy), {}, published=False)
    found = _atlas_files(data)
    slices = atlas.cut_slices(found.cases, out / "slices", on_progress=_part(on_progress, "slices"))
    told = [
        *_told_scans(data, found),
        f"{slices.cut} slices k = 95 with a lesion, {len(slices.without_lesion)} without (left out), "
        f"{len(slices.left_out)} scans of no use.",
    ]
    return _Material(read_cases(slices.table), _healthy(data), told, slices.left_out, published=True)


def _wrist(data: Path, out: Path, on_progress: Progress | None) -> _Material:
    if (data / "cases.csv").is_file():
        cases, healthy = read_cases(data / "cases.csv", truth="boxes"), _healthy(data)
        return _Material(cases, healthy, _told_bench(data, cases, healthy), {}, published=False)
    files = _wrist_files(data)
    chosen = wrist.sort_wrist_images(files, _part(on_progress, "annotations"))
    cases = read_cases(wrist.write_wrist_cases(chosen, out / "cases"), truth="boxes")
    told = [
        *_told_files(files),
        *_told_images(chosen),
        f"Healthy images for training are listed in {out / 'cases' / 'train.csv'}: a model trained on others may have "
        "seen the test's.",
    ]
    return _Material(cases, [], told, chosen.left_out, published=True)


def _atlas_files(data: Path) -> atlas.AtlasFiles:
    found = atlas.find_atlas(data)
    if not found.cases:
        raise ThoradError(
            f"{data}: found {len(found.without_mask)} T1w volumes without a mask, {len(found.without_image)} masks "
            f"without a volume, and no cases.csv; at the top {_contents(data)}. Expected a prepared bench "
            f"({PREPARED_BRAIN}), or ATLAS v2.0 as published, unpacked ({atlas.EXPECTED})."
        )
    return found


def _wrist_files(data: Path) -> wrist.WristFiles:
    if dataset_table(data) is None:
        raise ThoradError(
            f"{data}: no cases.csv and no dataset.csv; at the top {_contents(data)}. Expected a prepared bench "
            f"({PREPARED_WRIST}), or GRAZPEDWRI-DX as published, unpacked ({wrist.EXPECTED})."
        )
    return wrist.find_wrist_files(data)


def _check_folder(data: Path) -> None:
    if not data.is_dir():
        raise ThoradError(f"{data}: no such folder. Name the folder of the data set or of a prepared bench.")


def _contents(data: Path) -> str:
    return listing(sorted(path.name for path in data.iterdir())) or "nothing"


def _healthy(data: Path) -> list[Path]:
    return picture_files(find_scans([data / "healthy"])) if (data / "healthy").is_dir() else []


def _told_bench(data: Path, cases: Sequence[Case], healthy: Sequence[Path]) -> list[str]:
    ill = sum(case.has_finding for case in cases)
    subjects = len({case.subject for case in cases})
    return [
        f"Data: the prepared bench {data}: {ill} images with a finding and {len(cases) - ill} without of {subjects} "
        f"subjects, and {len(healthy)} images in healthy/."
    ]


def _told_scans(data: Path, found: atlas.AtlasFiles) -> list[str]:
    several = sum(len(case.masks) > 1 for case in found.cases)
    return [
        f"Data: ATLAS v2.0 in {data}: {len(found.cases)} T1w volumes with a mask ({several} with several, of which the "
        f"union counts) of {len({case.subject for case in found.cases})} subjects, {len(found.without_mask)} without a "
        f"mask (left out), {len(found.without_image)} masks without a volume."
    ]


def _told_files(files: wrist.WristFiles) -> list[str]:
    first = f", {listing(sorted(path.name for path in files.images_without_row))}" if files.images_without_row else ""
    return [
        f"Data: GRAZPEDWRI-DX: {len(files.rows)} rows; {len(files.with_both)} with an image and an annotation, "
        f"{len(files.without_annotation)} with an image only (left out), {len(files.rows_without_image)} without an "
        f"image; {len(files.images_without_row)} images without a row{first}."
    ]


def _told_images(cases: wrist.WristCases) -> list[str]:
    return [
        f"Posteroanterior images: {len(cases.diseased)} with boxes of "
        f"{len({case.subject for case in cases.diseased})} patients; healthy {len(cases.healthy_test)} for the test, "
        f"{len(cases.healthy_training)} for training, by patient; {len(cases.unclear)} without boxes of patients with "
        f"findings (left out); {len(cases.left_out)} of no use."
    ]


def _told_models(results: Sequence[Mapping[str, Any]]) -> str:
    of_model: dict[str, dict[str, None]] = {}
    for result in results:
        of_model.setdefault(result["model"], {})[title(result)] = None
    return "Models: " + "; ".join(f"{model} for {', '.join(methods)}" for model, methods in of_model.items()) + "."


def _told_every(settings: Settings) -> str:
    return f"Every {settings.every}-th case only." if settings.every > 1 else ""


def _said(notes: Sequence[str]) -> list[str]:
    return [note for note in notes if note]


def _reported(
    heading: str,
    out: Path,
    results: list[dict[str, Any]],
    table: Table,
    failures: Mapping[str, str],
    picture: str | None = None,
) -> Reproduced:
    """Write report.md, in which the picture stands between the table and its notes."""
    all_failures = {
        **failures,
        **{failure["name"]: failure["reason"] for result in results for failure in result["failures"]},
    }
    left_out = [f"Left out: {name}: {reason}" for name, reason in all_failures.items()]
    pictures = [] if picture is None else [picture]
    report = replace(table, notes=[*pictures, *table.notes, *left_out])
    write_atomic(out / "report.md", f"# {heading}\n\n{report.markdown()}".encode())
    return Reproduced(results, table, all_failures)


def _sweep_csv(results: Sequence[Mapping[str, Any]]) -> bytes:
    columns = ["method", "noise", "noise_level", "model", "steps", "network_calls", "lesion_cases"]
    figures = ("average", "small", "medium", "large", "paper_mix")
    columns += [f"best_dice_{figure}{end}" for figure in figures for end in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "cpu_seconds_per_case"])
    for result in results:
        cells = [result[column] for column in columns[:6]] + [result["counts"]["lesion_cases"]]
        for figure in figures:
            cells += [result["best_dice"][figure], *(result["intervals"]["best_dice"][figure] or ("", ""))]
        writer.writerow([*cells, result["cpu_seconds_per_case"]])
    return text.getvalue().encode()


def _published(method: str, noise: str | None) -> str:
    figures = PUBLISHED_TABLE_1.get((method, noise or ""))
    return "-" if figures is None else "/".join(f"{figure:.2f}" for figure in figures)


def _part(on_progress: Progress | None, title: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(done, total, title)
