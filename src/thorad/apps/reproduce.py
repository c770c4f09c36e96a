"""The tables and the figure of the THOR paper, measured again: on its data where they are at hand, or on a bench.

Bercea, Wiestler, Rueckert, Schnabel: Diffusion Models with Implicit Guidance for Medical Anomaly Detection, MICCAI
2024, arXiv:2403.08464. Table 1: best Dice on stroke MRI (ATLAS v2.0). Table 2: recall and F1 on wrist X-rays
(GRAZPEDWRI-DX). Figure 4: best Dice against the noise level.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from thorad.apps.reproduce_data import PaperData, Progress, Target, load_data
from thorad.apps.run import write_evaluation_run
from thorad.datasets.cases import Case
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.evaluation.evaluate import baseline_warning, evaluate
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.statistics import FLOOR, title
from thorad.evaluation.tables import Figure, cautions, lay_out
from thorad.io.atomic import write_atomic
from thorad.io.tables import listing
from thorad.methods import METHODS
from thorad.model import load_recipe_of
from thorad.results.figure import import_matplotlib
from thorad.results.sweep import plot_sweep, write_sweep_table
from thorad.selection import comparison
from thorad.table import Table

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

TABLE_1: Final = (
    Figure("Avg.", "best_dice/average", ".1f"),
    Figure("Mix", "best_dice/paper_mix", ".1f"),
    *(Figure(group.capitalize(), f"best_dice/{group}", ".1f") for group in SIZE_GROUPS),
    Figure("Published avg/S/M/L", "published"),
)
TABLE_2: Final = (
    Figure("Kind", "kind"),
    Figure("Boxes", "boxes"),
    Figure("Recall [95 %]", "recall", ".3f", interval=True),
    Figure("F1 [95 %]", "f1", ".3f", interval=True),
)
ABLATIONS: Final[tuple[Mapping[str, Any], ...]] = (
    {},
    {"harmonise": "renoised"},
    {"harmonise": "none"},
    {"harmonise_at": (200, 100, 50)},
    {"harmonise_at": (150, 100, 50)},
    {"harmonise_at": (100, 50)},
    {"harmonise_at": (200, 100)},
    {"window": 1},
    {"window": 5},
    {"window": 25},
    {"perceptual": False},
    {"mean": "last"},
    {"mean": "arithmetic"},
)
"""Settings of THOR with simplex noise (`methods.thor.ThorOptions`), the paper's first: without harmonisation at as many
calls, and at fewer; other harmonised timesteps; other windows of the guidance, px; without LPIPS; the map of the last
harmonised timestep alone; the arithmetic mean."""

ABLATION: Final = (
    Figure("Calls", "network_calls"),
    Figure("Avg. [95 %]", "best_dice/average", ".1f", interval=True),
    Figure("Avg. - THOR [95 %]", "difference/average"),
    Figure("p", "difference/p"),
    Figure("Mix", "best_dice/paper_mix", ".1f"),
    *(Figure(group.capitalize(), f"best_dice/{group}", ".1f") for group in SIZE_GROUPS),
    Figure("AP", "auprc", ".3f"),
    Figure("MAE healthy", "quality/healthy/mae", ".4f"),
)
FIGURE_4: Final = (
    Figure("Level", "noise_level"),
    Figure("Calls", "network_calls"),
    Figure("Average [95 %]", "best_dice/average", ".1f", interval=True),
    Figure("Paper mix [95 %]", "best_dice/paper_mix", ".1f", interval=True),
)


@dataclass(frozen=True)
class Settings:
    """What decides the figures beside the models and the data."""

    steps: int | Literal["all"] | None = None  # as `Detector` takes it
    device: str = "auto"
    seed: int = 0
    batch_size: int = 16
    engine: str = "torch"
    bootstrap: int = 1000
    every: int = 1  # takes every N-th case, in the order of their subjects
    skip_artefacts: bool = False  # leaves out the slices of ATLAS that the published evaluation leaves out

    def __post_init__(self) -> None:
        """Refuse what takes no case."""
        if self.every < 1:
            raise ThoradError(f"every is {self.every}, expected 1 (all cases) or more.")


@dataclass(frozen=True)
class Reproduced:
    """What was measured, and how to show it."""

    results: list[dict[str, Any]]  # as in metrics.json
    table: Table  # the figures and what a reader has to know of them
    failures: Mapping[str, str]  # {case: why it was left out}


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

    table1, table2 and ablation also write cases.csv, table.md and run.json as `thorad evaluate` does; fig4 writes
    sweep.csv, figure4.png and figure4.svg, and an evaluation of every point into out/levels. Of published data, what is
    cut or chosen lies in out/slices or out/cases.

    Args:
        target: table1, table2, fig4 or ablation (what each part of THOR gives).
        data: a prepared bench or the published data set, laid out as `reproduce_data.check_layout` says.
        models: names or folders; each method with each noise takes the first that supports it.
        out: the folder. Maps that an earlier run has made with the same options are taken from it.
        settings: the rest.
        on_progress: see `Progress`.

    Raises:
        ThoradError: neither layout, no usable case, an unknown model, a package that is missing, or `out` can't be
            written.
    """
    task = _Task(target, data, models, out, settings or Settings(), on_progress)
    return {"table1": _table_1, "table2": _table_2, "fig4": _figure_4, "ablation": _ablation}[target](task)


def every_nth(cases: Sequence[Case], every: int) -> list[Case]:
    """Every N-th case in the order of the subjects, so that they spread over as many of them as there are."""
    return sorted(cases, key=lambda case: case.subject)[::every]


class _Task(NamedTuple):
    """The arguments of `reproduce`."""

    target: Target
    data: Path
    models: Sequence[str | Path]
    out: Path
    settings: Settings
    on_progress: Progress | None

    def load(self) -> PaperData:
        skip = self.settings.skip_artefacts
        return load_data(self.target, self.data, self.out, self.on_progress, skip_artefacts=skip)

    def detector(
        self,
        model: str | Path,
        method: str,
        noise: str | None,
        noise_level: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Detector:
        steps = self.settings.steps if METHODS[method].default_steps else None
        if isinstance(steps, int) and noise_level is not None:
            steps = min(steps, noise_level)  # a low level has no more timesteps than that
        return Detector(
            model,
            method=method,
            noise=noise,
            noise_level=noise_level,
            steps=steps,
            draws=1,  # as the paper's figures
            device=self.settings.device,
            seed=self.settings.seed,
            batch_size=self.settings.batch_size,
            engine=self.settings.engine,
            settings=settings,
        )

    def evaluate(self, protocol: str, detectors: Sequence[Detector] = ()) -> tuple[PaperData, list[dict[str, Any]]]:
        """Evaluate on every N-th of the diseased cases, and of the healthy ones of the table and beside it; by default
        all that the models can do.
        """
        detectors = detectors or [self.detector(*asked) for asked in comparison(self.models)]
        data = self.load()
        began = time.perf_counter()
        diseased, healthy = (
            every_nth([case for case in data.cases if case.has_finding == finding], self.settings.every)
            for finding in (True, False)
        )
        known = {case.image.resolve() for case in healthy}
        results = evaluate(
            [*diseased, *healthy],
            [path for path in data.healthy if path.resolve() not in known][:: self.settings.every],
            detectors,
            self.out,
            protocol=protocol,
            bootstrap=self.settings.bootstrap,
            seed=self.settings.seed,
            on_progress=self.on_progress,
            keep_maps=True,
        )
        write_evaluation_run(detectors, results, self.out, time.perf_counter() - began)
        return data, results

    def report(
        self,
        heading: str,
        data: PaperData,
        results: list[dict[str, Any]],
        columns: Sequence[Figure],
        rows: Sequence[Mapping[str, Any]],
        notes: Sequence[str],
        picture: str = "",
    ) -> Reproduced:
        """Write report.md: the columns behind the one that names the method, a picture in Markdown, the notes."""
        every = f"Every {self.settings.every}-th case only." if self.settings.every > 1 else ""
        titled = [{"title": title(row), **row} for row in rows]
        shown = [note for note in (*data.found, every, *notes, *cautions(results)) if note]
        table = lay_out([Figure("Method", "title"), *columns], titled, shown)
        failures = {**data.failures, **{one["name"]: one["reason"] for result in results for one in result["failures"]}}
        left_out = [f"Left out: {name}: {reason}" for name, reason in failures.items()]
        written = replace(table, notes=[*([picture] if picture else []), *shown, *left_out])
        write_atomic(self.out / "report.md", f"# {heading}\n\n{written.markdown()}".encode())
        return Reproduced(results, table, failures)


def _table_1(task: _Task) -> Reproduced:
    data, results = task.evaluate("brain-lesions")
    measured = {(result["method"], result["noise"]) for result in results}
    missing = [
        {"method": method, "noise": noise, "best_dice": dict.fromkeys(results[0]["best_dice"])}
        for method, noise in PUBLISHED_TABLE_1
        if (method, noise) not in measured
    ]
    rows = [{**row, "published": _published(row["method"], row["noise"])} for row in (*results, *missing)]
    counts = results[0]["counts"]
    notes = [
        "The data are the paper's, ATLAS v2.0: every slice k = 95 with a lesion counts, as in the published evaluation "
        f"{'with' if task.settings.skip_artefacts else 'but for'} its leaving out of 20 slices with artefacts."
        if data.published
        else "These are not the paper's data: the published figures are of ATLAS v2.0 and stand beside the measured "
        "ones for orientation only.",
        f"Best Dice in percent; its threshold comes from the test labels, an upper bound. Avg. weights the groups "
        f"by the counts here ({counts['small']} small, {counts['medium']} medium, {counts['large']} large); mix "
        "by the paper's, and compares with the published average.",
        _models_note(results),
        baseline_warning(results) or "",
    ]
    return task.report("Table 1: best Dice by lesion size", data, results, TABLE_1, rows, notes)


def _table_2(task: _Task) -> Reproduced:
    data, results = task.evaluate("boxes")
    rows = [
        {"method": result["method"], "noise": result["noise"], "kind": kind, **figures}
        for result in results
        for kind, figures in result["kinds"].items()
    ]
    notes = [
        "The data are the paper's, GRAZPEDWRI-DX, and so is the split: the lists of file names of its published code."
        if data.published
        else "These are not the paper's data (GRAZPEDWRI-DX).",
        "The figures of the paper's table 2 are not at hand, so none stand beside the measured ones.",
        f"Threshold: {results[0]['thresholds']['boxes_source']} exceed it; no box is used. Recall and F1 (0 to 1) by "
        "the rules of the paper's wrist experiment, means over the boxes; table.md has intervals and FROC.",
        _models_note(results),
        baseline_warning(results) or "",
    ]
    return task.report("Table 2: recall and F1 by kind", data, results, TABLE_2, rows, notes)


def _ablation(task: _Task) -> Reproduced:
    ((model, method, noise),) = comparison(task.models, ["thor"], ["simplex"])
    detectors = [task.detector(model, method, noise, settings=settings) for settings in ABLATIONS]
    data, results = task.evaluate("brain-lesions", detectors)
    rows = [{**result, "title": result.get("settings", "as published"), **_difference(result)} for result in results]
    counts = results[0]["counts"]
    notes = [
        "The data are the paper's, ATLAS v2.0." if data.published else "These are not the paper's data (ATLAS v2.0).",
        f"THOR with simplex noise and one part changed, the same noise for all; best Dice in percent on "
        f"{counts['lesion_cases']} slices with lesions of {counts['subjects']} subjects, its threshold from the test "
        "labels, an upper bound. Differences: 95 % percentile bootstrap over subjects, the same resamples for both; p: "
        "permutation test within subjects, not corrected for the number of comparisons.",
        "**harmonise renoised**: the clean estimate itself is noised anew, with as many calls as THOR and nothing of "
        "the scan: what harmonisation gives at equal calls is THOR's lead over this row. **harmonise none**: the chain "
        "goes on, with fewer calls. **window**: px of the guidance's morphology (13). **perceptual False**: maps "
        "without LPIPS. **mean**: what is made of the maps (harmonic).",
        _models_note(results[:1]),
    ]
    return task.report("Ablations of THOR", data, results, ABLATION, rows, notes)


def _difference(result: Mapping[str, Any]) -> dict[str, Any]:
    """The difference of the average best Dice from the published THOR's, as the table shows it."""
    for entry in result["versus"]:
        if entry["metric"] == "average":
            low, high = entry["interval"] or (None, None)
            interval = "" if low is None else f" [{low:+.1f}, {high:+.1f}]"
            p_value = "-" if entry["p_value"] is None else f"{entry['p_value']:.4f}"
            return {"difference": {"average": f"{entry['difference']:+.1f}{interval}", "p": p_value}}
    return {"difference": {"average": "", "p": ""}}


def _figure_4(task: _Task) -> Reproduced:
    import_matplotlib()  # its absence should be told before the work
    model_of = {(method, noise): model for model, method, noise in comparison(task.models)}
    trained_below = {curve: load_recipe_of(model_of[curve]).noise.train_below for curve in CURVES if curve in model_of}
    if not trained_below:
        raise ThoradError(
            f"None of the models {', '.join(map(str, task.models))} supports ddpm, anoddpm or thor, which figure 4 "
            "compares. Name one that was trained on whole noised images."
        )
    data = task.load()
    results = _sweep(task, data, model_of, trained_below)
    for kind, content in plot_sweep(results).items():
        write_atomic(task.out / f"figure4.{kind}", content)
    write_sweep_table(task.out / "sweep.csv", results)
    write_atomic(task.out / "metrics.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    counts = results[0]["counts"]
    missing = [f"{method} ({noise})" for method, noise in CURVES if (method, noise) not in model_of]
    untrained = [
        f"{method} ({noise}) at {listing([str(level) for level in NOISE_LEVELS if level >= limit])}: its model was "
        f"trained below timestep {limit}"
        for (method, noise), limit in trained_below.items()
        if limit <= max(NOISE_LEVELS)
    ]
    notes = [
        "The data are the paper's, ATLAS v2.0." if data.published else "These are not the paper's data (ATLAS v2.0).",
        f"Best Dice in percent on {counts['lesion_cases']} slices with lesions of {counts['subjects']} subjects; its "
        "threshold comes from the test labels, an upper bound. Brackets and bands: 95 % percentile bootstrap over "
        f"subjects, {counts['bootstrap_resamples']} resamples. The timesteps at which THOR harmonises are its own, but "
        "for those above the noise level.",
        _models_note(results),
        f"Left out, no model for it: {', '.join(missing)}." if missing else "",
        f"Left out: {'; '.join(untrained)}." if untrained else "",
        f"Each at its best noise level: {warning}" if (warning := baseline_warning(_best_levels(results))) else "",
    ]
    picture = "![best Dice against the noise level](figure4.png)"
    return task.report("Figure 4: noise levels", data, results, FIGURE_4, results, notes, picture)


def _best_levels(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each curve at the noise level of its best average."""
    rising = sorted(results, key=lambda result: result["best_dice"]["average"] or 0.0)
    best = {(result["method"], result["noise"]): result for result in rising}
    return list(best.values())


def _sweep(
    task: _Task,
    data: PaperData,
    model_of: Mapping[tuple[str, str | None], str | Path],
    trained_below: Mapping[tuple[str, str], int],
) -> list[dict[str, Any]]:
    """Measure each curve at the noise levels that its model was trained for, each point in a folder of its own."""
    points: list[tuple[str, str | None, int | None]] = [
        (*curve, level) for curve, limit in trained_below.items() for level in NOISE_LEVELS if level < limit
    ]
    points += [(FLOOR, None, None)] if (FLOOR, None) in model_of else []
    # Best Dice, all that the figure shows, uses no healthy scan.
    cases = every_nth([case for case in data.cases if case.has_finding], task.settings.every)
    results = []
    for index, (method, noise, level) in enumerate(points):
        name = "-".join(str(part) for part in (method, noise, level) if part is not None)

        def report(done: int, total: int, _: str, index: int = index, name: str = name) -> None:
            if task.on_progress is not None:
                task.on_progress(index * total + done, len(points) * total, name)

        detector = task.detector(model_of[method, noise], method, noise, level)
        (result,) = evaluate(
            cases,
            [],
            [detector],
            task.out / "levels" / name,
            bootstrap=task.settings.bootstrap,
            permutations=0,
            seed=task.settings.seed,
            on_progress=report,
            keep_maps=True,
        )
        results.append({**result, "noise_level": detector.noise_level})
    return results


def _models_note(results: Sequence[Mapping[str, Any]]) -> str:
    of_model: dict[str, dict[str, None]] = {}
    for result in results:
        of_model.setdefault(result["model"], {})[title(result)] = None
    return "Models: " + "; ".join(f"{model} for {', '.join(methods)}" for model, methods in of_model.items()) + "."


def _published(method: str, noise: str | None) -> str:
    figures = PUBLISHED_TABLE_1.get((method, noise or ""))
    return "-" if figures is None else "/".join(f"{figure:.2f}" for figure in figures)
