"""The command `thorad`: parse, call, print. Everything heavy is imported inside the verbs.

Exit codes: 0 all went well, 1 some files failed, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from thorad import __version__
from thorad.errors import ThoradError

MODEL = "brain-t1-compact"
HIGHEST = 5  # scores shown at the end of a detection
GOES_ON = "The same command goes on where it stopped."
STARTS_ANEW = "Nothing was written; the same command starts anew."

app = typer.Typer(
    name="thorad",
    help="Find what is not healthy in medical images, with models that know healthy anatomy only. Research use; not a "
    "medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

Inputs = Annotated[list[Path], typer.Argument(help="Image files, folders of images, or CSV files with a column image.")]
ModelOption = Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
SeedOption = Annotated[int, typer.Option(help="Of all noise.")]
BatchOption = Annotated[int, typer.Option(help="Images at once on an accelerator; a CPU takes them one by one.", min=1)]
StepsOption = Annotated[
    str | None, typer.Option(help="Timesteps visited, or all. Default: the fewest that keep the quality.")
]
NoiseLevelOption = Annotated[
    int | None, typer.Option(help="Timestep that images are noised to. Default: the method's own.", min=1)
]
PresetOption = Annotated[
    Literal["published"] | None,
    typer.Option(help="Follow the published implementation's every step, accidents included: thor, anoddpm, ddpm."),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        help="I/N: only the I-th of N parts of the inputs, beside processes that do the others into the same --out."
    ),
]
PerceptualOption = Annotated[
    Path | None, typer.Option(help="A torchvision SqueezeNet 1.1 file for LPIPS instead of the model's weights.")
]
SlicesOption = Annotated[
    str | None,
    typer.Option(help="Of volumes: axial slices of the template's grid, as 95 or 90-100. Default: the model's own."),
]
IdentityOption = Annotated[
    bool, typer.Option("--keep-identity", help="Keep the paths of DICOM files, which often tell the patient's name.")
]
ReportOption = Annotated[bool, typer.Option("--report", help="Also write report.html, to look at all of it.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def main() -> None:
    """The console script."""
    app()


@contextmanager
def _one_line_each(interrupted: str) -> Iterator[None]:
    """What the user can mend, and Ctrl-C, as one line on stderr and an exit code instead of a traceback."""
    try:
        yield
    except ThoradError as error:
        error_console.print(f"Error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from error
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns the one into the other.
        if not isinstance(stop if isinstance(stop, KeyboardInterrupt) else stop.__context__, KeyboardInterrupt):
            raise
        error_console.print(f"Interrupted. {interrupted}", style="yellow", markup=False, highlight=False)
        raise typer.Exit(130) from stop


@contextmanager
def _progress(title: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar with the remaining time; nothing where nobody watches. Yields a function of (done, total, title)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    disable = quiet or not error_console.is_terminal
    with Progress(
        *columns, TextColumn("remaining"), TimeRemainingColumn(), console=error_console, disable=disable
    ) as bar:

        def report(done: int, total: int, now: str = title) -> None:
            if not bar.tasks:
                bar.add_task(now, total=total, completed=done)
            bar.update(bar.tasks[0].id, completed=done, description=now)

        yield report


def _print(text: str = "", style: str | None = None) -> None:
    out_console.print(text, style=style, markup=False, highlight=False)


def _table(*columns: str) -> Table:
    """The first column is text, the others are numbers."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _steps(text: str | None) -> int | Literal["all"] | None:
    if text is None or text == "all":
        return text  # type: ignore[return-value]  # mypy doesn't narrow str to the literal
    try:
        return int(text)
    except ValueError as error:
        raise ThoradError(f"--steps is {text!r}, expected a number or all.") from error


def _indices(text: str | None) -> list[int] | None:
    """`95` or `90-100`, the last one included."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    try:
        found = list(range(int(first), int(last or first) + 1))
    except ValueError:
        found = []
    if not found:
        raise ThoradError(f"--slices is {text!r}, expected an index or a range of them, as 95 or 90-100.")
    return found


def _version(asked: bool) -> None:
    if asked:
        _print(f"thorad {__version__}")
        raise typer.Exit


@app.callback()
def _thorad(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def detect(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder for the results; an interrupted run goes on in it.")],
    method: Annotated[
        str,
        typer.Option(
            help="thor, thor+ (five times the calls), anoddpm, ddpm, autoddpm, zscore, zscore-two-sided; "
            "pddpm with --model brain-t1-patched."
        ),
    ] = "thor",
    noise: Annotated[str | None, typer.Option(help="gaussian or simplex. Default: the method's own.")] = None,
    model: ModelOption = MODEL,
    steps: StepsOption = None,
    noise_level: NoiseLevelOption = None,
    preset: PresetOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    finish: Annotated[
        bool, typer.Option("--finish", help="Spend more calls on a finer pseudo-healthy image; the map stays.")
    ] = False,
    perceptual_weights: PerceptualOption = None,
    false_positives: Annotated[
        float | None,
        typer.Option(
            help="Share of healthy pixels that the mask may hold: 0.01, 0.02 or 0.05 of a calibrated model. "
            "Default: 0.01, or no mask without a calibration."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The mask is what is above this value of the map, without a calibration, too.")
    ] = None,
    slices: SlicesOption = None,
    keep_steps: Annotated[
        bool, typer.Option("--keep-steps", help="Keep the pictures of every harmonised step, for the report.")
    ] = False,
    keep_identity: IdentityOption = False,
    shard: ShardOption = None,
    make_report: ReportOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find what is not healthy in images: an anomaly map, an overlay, a pseudo-healthy image and a score each.

    Pictures (PNG, TIFF, JPEG, NPY), volumes (NIfTI, NRRD, MHA) and DICOM; maps lie on the input's own grid. With a
    model that `thorad calibrate` has calibrated for the method also a p-value, a mask and a list of findings.
    """
    with _one_line_each(GOES_ON):
        from thorad.io.scans import find_scans
        from thorad.io.shards import Shard

        part = Shard.parse(shard) if shard is not None else None
        scans = find_scans(inputs, leave_out=out, keep_identity=keep_identity)

        from thorad.apps.calibrate import calibrate_command
        from thorad.apps.run import detect_files, open_results
        from thorad.calibration import told_options
        from thorad.detector import Detector
        from thorad.volume_detection import checked_indices

        detector = Detector(
            model,
            method=method,
            noise=noise,
            steps=_steps(steps),
            noise_level=noise_level,
            preset=preset,
            device=device,
            seed=seed,
            batch_size=batch_size,
            finish=finish,
            perceptual_weights=perceptual_weights,
            false_positives=false_positives,
            threshold=threshold,
        )
        indices = _indices(slices)
        if all(scan.is_volume for scan in scans.values()):
            checked_indices(detector.model.recipe.volume, indices, detector.model_name)
        results = open_results(detector, out, part, indices=indices)
        with _progress("detect", quiet) as report:
            summary = detect_files(detector, scans, results, indices=indices, keep_steps=keep_steps, on_progress=report)
        for name, reason in summary.failed.items():
            error_console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
        for name, warning in summary.warned.items():
            error_console.print(f"{name}: {warning}", style="yellow", markup=False, highlight=False)
        if not quiet:
            earlier = f" ({summary.already_done} of them before)" if summary.already_done else ""
            of_shard = f"Shard {part}: " if part else ""
            counts = f"{len(summary.done)} done{earlier}, {len(summary.failed)} failed"
            _print(f"{of_shard}{counts}, in {summary.seconds:.1f} s.")
            columns = [
                *(("p",) if detector.calibration else ()),
                *(("findings",) if detector.threshold is not None else ()),
            ]
            table = _table("highest scores", "", *columns)
            for name, score in list(summary.done.items())[:HIGHEST]:
                p_value, findings = summary.judged.get(name, (None, None))
                told = {"p": "-" if p_value is None else f"{p_value:.3g}", "findings": str(findings)}
                table.add_row(name, f"{score:.5g}", *(told[column] for column in columns))
            if table.row_count:
                out_console.print(table)
            if detector.calibration is None and detector.calibrations:
                made = "; ".join(told_options(one.options) for one in detector.calibrations)
                _print(f"The model's calibrations are for other options ({made}): not used.", style="yellow")
            if detector.calibration is None:
                lacking = "p-values and masks" if detector.threshold is None else "p-values"
                _print(f"No {lacking} without a calibration: `{calibrate_command(detector, model)}` makes it.")
            else:
                _print(f"p: rank among {detector.calibration.scans} healthy scans.")
            if detector.false_positives is not None:
                _print(
                    "Masks and findings: above the threshold that "
                    f"{100 * detector.false_positives:g} % of the healthy scans' pixels exceed."
                )
            elif detector.threshold is not None:
                _print(f"Masks and findings: above {detector.threshold:g}.")
            if any(scan.series or scan.problem for scan in scans.values()) and not keep_identity:
                _print("DICOM files are named by hashes; --keep-identity names them by their paths.")
            _print(f"Results: {out}")
        if make_report and summary.done:
            _write_report(out, None, None, 0, quiet)
        if summary.failed:
            raise typer.Exit(1)


@app.command()
def calibrate(
    healthy: Inputs,
    method: Annotated[str, typer.Option(help="As `thorad detect` takes it, and so the other options.")] = "thor",
    noise: Annotated[str | None, typer.Option(help="gaussian or simplex. Default: the method's own.")] = None,
    model: ModelOption = MODEL,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a copy of the model; needed for a bundled one. Default: in place.")
    ] = None,
    level: Annotated[float, typer.Option(help="The smallest p-value that is to be possible.")] = 0.05,
    steps: StepsOption = None,
    noise_level: NoiseLevelOption = None,
    preset: PresetOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    perceptual_weights: PerceptualOption = None,
    quiet: QuietOption = False,
) -> None:
    """Take thresholds and p-values for `thorad detect` from healthy scans that the model was not trained on."""
    with _one_line_each(STARTS_ANEW):
        from thorad.io.images import named_images

        named = named_images(healthy, leave_out=out)

        from thorad.apps.calibrate import calibrate_files, calibration_folder, save_calibration
        from thorad.calibration import told_options
        from thorad.detector import Detector

        calibration_folder(model, out)  # a refusal should come before the work
        detector = Detector(
            model,
            method=method,
            noise=noise,
            steps=_steps(steps),
            noise_level=noise_level,
            preset=preset,
            device=device,
            seed=seed,
            batch_size=batch_size,
            perceptual_weights=perceptual_weights,
        )
        with _progress("calibrate", quiet) as report:
            summary = calibrate_files(detector, named, level=level, on_progress=report)
        folder = save_calibration(summary.calibration, model, out)
        for name, reason in summary.failed.items():
            error_console.print(f"{name} left out: {reason}", style="red", markup=False, highlight=False)
        if summary.warning:
            error_console.print(f"Warning: {summary.warning}", style="yellow", markup=False, highlight=False)
        if not quiet:
            found = summary.calibration
            _print(f"Calibrated with {told_options(found.options)} on {found.scans} scans, in {summary.seconds:.1f} s.")
            table = _table("healthy pixels above", "the threshold")
            for rate, threshold in found.thresholds.items():
                table.add_row(f"{100 * rate:g} %", f"{threshold:.5g}")
            out_console.print(table)
            _print(f"The smallest p-value is 1 / {found.scans + 1} = {1 / (found.scans + 1):.3g}.")
            _print(f"Calibrated model: {folder}")
        if summary.failed:
            raise typer.Exit(1)


@app.command()
def evaluate(
    cases: Annotated[
        Path, typer.Argument(help="CSV with columns image and mask or boxes (empty: healthy), subject optional.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for metrics.json, cases.csv, table.md, maps; an interrupted run goes on in it.")
    ],
    protocol: Annotated[
        Literal["brain-lesions", "brain-volumes", "boxes"],
        typer.Option(help="What is measured: lesions by size, means over volumes, or boxes in X-rays."),
    ] = "brain-lesions",
    model: Annotated[
        str, typer.Option(help="Models, separated by commas; each method takes the first that can do it.")
    ] = MODEL,
    method: Annotated[
        str | None,
        typer.Option(help="Methods, separated by commas. Default: all that the models can do, and the z-score."),
    ] = None,
    noise: Annotated[
        str, typer.Option(help="gaussian, simplex, or all: each method with every kind that it and the model know.")
    ] = "all",
    steps: StepsOption = None,
    noise_level: NoiseLevelOption = None,
    preset: PresetOption = None,
    healthy: Annotated[Path | None, typer.Option(help="Folder or CSV of more healthy images.")] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="CSV as CASES, of other subjects, on which brain-volumes chooses its threshold."),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    perceptual_weights: PerceptualOption = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples over subjects for the intervals; 0: none.", min=0)] = 1000,
    permutations: Annotated[
        int, typer.Option(help="Of the test of each method against THOR and the z-score; 0: no p-values.", min=0)
    ] = 2000,
    make_report: ReportOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure methods on images whose lesions are known, by a protocol of the field."""
    with _one_line_each(GOES_ON):
        from thorad.datasets.cases import read_cases
        from thorad.evaluation.protocols import PROTOCOLS
        from thorad.io.images import find_images

        read = PROTOCOLS[protocol].read(cases)
        more_healthy = find_images([healthy]) if healthy else []
        validating = read_cases(validation) if validation else []

        from thorad.apps.run import write_evaluation_run
        from thorad.detector import DEFAULT_STEPS, Detector, comparison, uses_perceptual
        from thorad.evaluation.evaluate import evaluate as measure
        from thorad.evaluation.evaluate import honest_floor_warning

        asked = None if noise == "all" else _words(noise)
        detectors = [
            Detector(
                of_model,
                method=name,
                noise=kind,
                steps=_steps(steps) if name in DEFAULT_STEPS else None,
                noise_level=noise_level if kind else None,
                preset=preset,
                device=device,
                seed=seed,
                batch_size=batch_size,
                perceptual_weights=perceptual_weights if uses_perceptual(name) else None,
            )
            for of_model, name, kind in comparison(
                _words(model), _words(method) if method else None, asked, preset=preset
            )
        ]
        began = monotonic()
        with _progress("evaluate", quiet) as report:
            found = measure(
                read,
                more_healthy,
                detectors,
                out,
                protocol=protocol,
                validation=validating,
                bootstrap=bootstrap,
                permutations=permutations,
                seed=seed,
                on_progress=report,
                keep_maps=True,
            )
        write_evaluation_run(detectors, out, monotonic() - began)
        warning = honest_floor_warning(found)
        if not quiet:
            _METRICS[protocol](found)
            if warning:
                _print(warning, style="yellow")
            _print(f"Results: {out} (table.md says what the columns mean)")
        if make_report:
            _write_report(out, None, None, 0, quiet)
        for failure in found[0]["failures"]:
            error_console.print(
                f"{failure['name']} failed: {failure['reason']}", style="red", markup=False, highlight=False
            )
        if found[0]["failures"]:
            raise typer.Exit(1)


def _cell(value: float | None, decimals: int = 1) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _title(result: dict[str, Any]) -> str:
    return " ".join(filter(None, (result["method"], result["noise"])))


def _against(found: list[dict[str, Any]], metric: str, decimals: int) -> tuple[list[str], list[list[str]], str]:
    """What a table says of each method against the first reference: two columns, each method's cells, a note."""
    from thorad.evaluation.statistics import ABOUT, references

    if len(found) < 2:
        return [], [[] for _ in found], ""
    first = found[references(found)[0]]
    reference = {key: first[key] for key in ABOUT}
    cells = []
    for result in found:
        own = [entry for entry in result["versus"] if (entry["metric"], entry["reference"]) == (metric, reference)]
        difference = own[0]["difference"] if own else None
        known = difference is not None
        cells.append([f"{difference:+.{decimals}f}", _cell(own[0]["p_value"], 4)] if known else ["", ""])
    return ["diff.", "p"], cells, f"diff.: to {_title(reference)}; p: permutation test within subjects."


def _print_rows(table: Table, *notes: str) -> None:
    """A table of figures whole, though a narrow terminal breaks its lines: a cut number is worse."""
    Console(width=max(100, out_console.width)).print(table)
    for note in filter(None, notes):
        _print(note)


def _print_lesions(found: list[dict[str, Any]]) -> None:
    columns, against, note = _against(found, "average", 1)
    table = _table(
        *("best Dice, %", "calls", "small", "medium", "large", "avg.", *columns),
        *("AP", "1% FP", "images", "CPU s"),
    )
    for result, cells in zip(found, against, strict=True):
        dice = result["best_dice"]
        table.add_row(
            _title(result),
            str(result["network_calls"]),
            *(_cell(dice[group]) for group in ("small", "medium", "large", "average")),
            *cells,
            _cell(result["auprc"], 3),
            _cell(result["dice_at_fpr"]["0.01"], 3),
            _cell(result["image_auroc"], 3),
            _cell(result["cpu_seconds_per_case"], 2),
        )
    _print_rows(
        table,
        "Best Dice takes its threshold from the test labels: an upper bound. 1% FP: Dice",
        "(0 to 1) at the threshold that 1 % of the pixels of healthy scans exceed.",
        "images: AUROC of diseased against healthy images. CPU s: of one case.",
        note.replace("diff.", "diff. of avg."),
    )


def _print_volumes(found: list[dict[str, Any]]) -> None:
    columns, against, note = _against(found, "mean_dice", 3)
    table = _table("means over volumes", "calls", "Dice", *columns, "AUPRC", "threshold", "CPU s")
    for result, cells in zip(found, against, strict=True):
        table.add_row(
            _title(result),
            str(result["network_calls"]),
            _cell(result["mean_dice"], 3),
            *cells,
            _cell(result["mean_auprc"], 3),
            f"{result['thresholds']['mean_dice']:.3g}",
            _cell(result["cpu_seconds_per_case"], 2),
        )
    _print_rows(
        table, f"Threshold: {found[0]['thresholds']['mean_dice_source']}.", note.replace("diff.", "diff. of Dice")
    )


def _print_boxes(found: list[dict[str, Any]]) -> None:
    columns, against, note = _against(found, "f1", 3)
    table = _table("method", "kind", "boxes", "recall", "F1", *columns, "FROC", "images", "CPU s")
    for result, cells in zip(found, against, strict=True):
        for kind, figures in result["kinds"].items():
            all_kinds = kind == "all"
            table.add_row(
                _title(result) if all_kinds else "",
                kind,
                str(figures["boxes"]),
                _cell(figures["recall"], 3),
                _cell(figures["f1"], 3),
                *(cells if all_kinds else [""] * len(columns)),
                _cell(figures["froc"]["mean"], 3),
                _cell(result["image_auroc"], 3) if all_kinds else "",
                _cell(result["cpu_seconds_per_case"], 2) if all_kinds else "",
            )
    _print_rows(
        table,
        f"Threshold: {found[0]['thresholds']['boxes_source']} exceed it.",
        "FROC: mean sensitivity at 1/8 to 8 false positives an image. images: AUROC.",
        note.replace("diff.", "diff. of F1"),
    )


_METRICS = {"brain-lesions": _print_lesions, "brain-volumes": _print_volumes, "boxes": _print_boxes}
"""Protocol -> what prints its results."""


@app.command()
def implant(
    healthy: Inputs,
    out: Annotated[Path, typer.Option(help="Folder for the bench; must be new or empty.")],
    findings: Annotated[
        str,
        typer.Option(help="Kinds, separated by commas: these of X-rays, or dark and bright lesions of anything else."),
    ] = "pins,plate,fracture,foreign-body,swelling",
    seed: Annotated[int, typer.Option(help="Decides on everything.", min=0)] = 0,
    healthy_share: Annotated[float, typer.Option(help="Share of the subjects that stays without a finding.")] = 0.25,
    body_share: Annotated[
        float, typer.Option(help="Of an X-ray, the most that a body can fill: 0.4 for a hand, 0.8 for a wrist.")
    ] = 0.4,
    quiet: QuietOption = False,
) -> None:
    """Make a bench of healthy images where there are no labels: simulated findings with boxes or masks."""
    with _one_line_each(STARTS_ANEW):
        from thorad.implant.bench import LESION_KINDS, make_box_bench, make_lesion_bench
        from thorad.io.images import find_images

        images, kinds = find_images(healthy), _words(findings)
        lesions = set(kinds) <= set(LESION_KINDS)
        if lesions:
            bench = make_lesion_bench(images, out, seed=seed, kinds=kinds, healthy_share=healthy_share)
        else:
            bench = make_box_bench(
                images, out, seed=seed, kinds=kinds, healthy_share=healthy_share, body_share=body_share
            )
        for path, reason in bench.left_out.items():
            error_console.print(f"{path.name} left out: {reason}", style="red", markup=False, highlight=False)
        if not quiet:
            told = ", ".join(f"{count} {kind}" for kind, count in bench.counts.items())
            _print(f"{sum(bench.counts.values())} cases: {told}; {len(bench.left_out)} images left out.")
            protocol = "brain-lesions" if lesions else "boxes"
            _print("Findings are simulated: figures on them compare methods and say nothing about patients.")
            _print(f"Measure: thorad evaluate {bench.table} --protocol {protocol} --model MODEL --out DIR")
        if bench.left_out:
            raise typer.Exit(1)


@app.command()
def prepare(
    inputs: Annotated[
        list[Path], typer.Argument(help="Volumes (NIfTI, NRRD, MetaImage), DICOM series, or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the slices; an interrupted run goes on in it.")],
    model: Annotated[
        str, typer.Option(help="Whom the slices are for: a model's or recipe's name, a model folder, a recipe file.")
    ] = MODEL,
    slices: SlicesOption = None,
    jobs: Annotated[int, typer.Option(help="Processes, each of half a GB for 1 mm voxels.", min=1)] = 1,
    keep_identity: IdentityOption = False,
    shard: ShardOption = None,
    quiet: QuietOption = False,
) -> None:
    """Register T1w volumes to the model's template and cut its slices, for detect, train and calibrate."""
    with _one_line_each(GOES_ON):
        from thorad.apps.prepare import prepare_files, volume_section
        from thorad.io.scans import find_scans
        from thorad.io.shards import Shard

        part = Shard.parse(shard) if shard is not None else Shard()
        section = volume_section(model)
        first, last = section.axial_slices
        indices = _indices(slices) or list(range(first, last + 1))
        scans = part.of(find_scans(inputs, leave_out=out, keep_identity=keep_identity))
        with _progress("prepare", quiet) as report:
            summary = prepare_files(scans, out, skull=section.skull, indices=indices, jobs=jobs, on_progress=report)
        for name, reason in summary.failed.items():
            error_console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
        for name, warning in summary.warned.items():
            error_console.print(f"{name}: {warning}", style="yellow", markup=False, highlight=False)
        if not quiet:
            earlier = f" ({summary.already_done} of them before)" if summary.already_done else ""
            counts = f"{len(summary.done)} done{earlier}, {len(summary.failed)} failed"
            _print(f"{counts}, in {summary.seconds:.1f} s.")
            if summary.done:
                _print(f"Look at {out / '*' / 'overlay.png'} first; slices: {out / 'slices.csv'}")
        if summary.failed:
            raise typer.Exit(1)


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A bundled recipe's name, or a TOML file. `thorad models` lists them.")],
    train: Annotated[Path, typer.Option(help="Folder or CSV of healthy images.")],
    out: Annotated[Path, typer.Option(help="Folder for logs, checkpoints and the model; training goes on in it.")],
    validation: Annotated[Path | None, typer.Option(help="Folder or CSV of healthy images of other subjects.")] = None,
    devices: Annotated[str, typer.Option(help="How many devices of a node, or auto.")] = "auto",
    nodes: Annotated[int, typer.Option(help="How many machines.", min=1)] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu or mps.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the recipe's.", min=1)] = None,
    start_from: Annotated[str | None, typer.Option(help="A model whose weights to begin with.")] = None,
) -> None:
    """Train a model on healthy images."""
    with _one_line_each("The same command goes on from the last checkpoint."):
        from thorad.recipe import load_recipe

        chosen = load_recipe(recipe)
        if steps is not None:
            chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"steps": steps})})

        from lightning.pytorch.utilities import rank_zero_only

        from thorad.training.fit import fit

        folder = fit(
            chosen,
            train,
            out,
            validation=validation,
            accelerator=accelerator,
            devices=devices,
            nodes=nodes,
            start_from=start_from,
            progress_bar=out_console.is_terminal,
        )
        # Every process of a training comes by here.
        rank_zero_only(_print)(f"Model: {folder}\nUse it: thorad detect INPUT --model {folder} --out DIR")


class _ModelsGroup(TyperGroup):
    """`thorad models NAME`: a first word that is no command of the group names a model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if args and args[0] in known else ["show", *args])


models_app = typer.Typer(cls=_ModelsGroup, help="List models and recipes, describe a model, or import one.")
app.add_typer(models_app, name="models")


@models_app.command("import")
def import_model(
    checkpoint: Annotated[Path, typer.Argument(help="latest_model.pt or best_model.pt of the published code.")],
    out: Annotated[Path, typer.Argument(help="The model folder; must not exist.")],
    noise: Annotated[Literal["gaussian", "simplex"], typer.Option(help="What it was trained with.")] = "gaussian",
    name: Annotated[str | None, typer.Option(help="Of the model. Default: the folder's.")] = None,
    input_range: Annotated[
        Literal["-1..1", "0..1"], typer.Option(help="The scale of the images that it was trained on.")
    ] = "-1..1",
    size: Annotated[int, typer.Option(help="Side of those images, px.", min=1)] = 128,
    head_channels: Annotated[
        int | None, typer.Option(help="Channels of an attention head. Default: 256 or, where that can't be, 32.", min=1)
    ] = None,
    region: Annotated[str, typer.Option(help="Where anomalies are looked for. Default: everywhere.")] = "",
) -> None:
    """Make a model folder of a checkpoint of the published implementation (github ci-ber/THOR_DDPM)."""
    with _one_line_each(STARTS_ANEW):
        from thorad.apps.published_checkpoint import import_checkpoint

        report = import_checkpoint(
            checkpoint,
            out,
            name=name or out.resolve().name,
            noise=noise,
            input_range=input_range,
            size=size,
            head_channels=head_channels,
            region=region,
        )
        network = report.recipe.network
        _print(f"{report.parameters / 1e6:.2f} million parameters, channels {network.channels}, {noise} noise.")
        _print(f"Its own LPIPS weights: {'kept' if report.perceptual else 'none, the bundled ones will be used'}.")
        for tensor in report.dropped:
            _print(f"dropped, as nothing uses it: {tensor}")
        if report.head_channels_assumed:
            _print(
                f"Attention heads of {network.head_channels} channels were assumed, since checkpoints don't say: "
                "other --head-channels would give other results.",
                style="yellow",
            )
        _print(f"Model: {report.folder}")


@models_app.command("show")
def models(
    model: Annotated[str | None, typer.Argument(help="A bundled model's name or a model folder; none: list.")] = None,
) -> None:
    """List the bundled models and recipes, or describe one model. `thorad models NAME` does the same."""
    with _one_line_each(STARTS_ANEW):
        from thorad.model import bundled_models, load_model, model_card, model_folder, weight_megabytes
        from thorad.recipe import bundled_recipes, load_recipe

        if model is not None:
            loaded = load_model(model)
            _print(f"{loaded.recipe.name}: {loaded.recipe.description}")
            _print(f"folder      {model_folder(model)}")
            _print(f"noise       {', '.join(loaded.recipe.noise.trained_kinds)}")
            _print(f"parameters  {loaded.parameters / 1e6:.2f} million, {weight_megabytes(model):.1f} MB")
            _print(f"sha256      {loaded.sha256} (checked: the weights are as they were saved)")
            measured = {key: value for key, value in loaded.calibration.items() if key != "weights_sha256"}
            if "calibrations" in measured:
                measured["calibrations"] = [
                    {key: value for key, value in made.items() if key != "scores"} for made in measured["calibrations"]
                ]
            for title, text in {
                "recipe": loaded.recipe.to_toml(),
                "calibration": dumps(measured, indent=2),
                "model card": model_card(model),
            }.items():
                _print(f"\n--- {title} ---\n{text.strip()}")
            return
        table = Table("model", "noise", "MB", "parameters", "description", box=SIMPLE_HEAD, show_edge=False)
        for name in bundled_models():
            loaded = load_model(name)
            size = (f"{weight_megabytes(name):.1f}", f"{loaded.parameters / 1e6:.1f} M")
            table.add_row(name, ", ".join(loaded.recipe.noise.trained_kinds), *size, loaded.recipe.description)
        out_console.print(table)
        table = Table("recipe", "noise", "description", box=SIMPLE_HEAD, show_edge=False)
        for name in bundled_recipes():
            recipe = load_recipe(name)
            table.add_row(name, ", ".join(recipe.noise.trained_kinds), recipe.description)
        out_console.print(table)
        _print("`thorad models NAME` tells more; `thorad train --recipe NAME` makes a model.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and results.")],
    model: ModelOption = MODEL,
    device: DeviceOption = "auto",
) -> None:
    """Anomaly maps of a real head, as it is and with implanted lesions."""
    with _one_line_each("The same command starts anew."):
        from thorad.apps.demo import run_demo

        with _progress("demo") as report:
            found = run_demo(out, model, device=device, on_progress=report)
        table = _table("case", "method", "score", "the map's peak", "seconds")
        places = {None: "no lesion here", True: "in the lesion", False: "elsewhere"}
        for case in found:
            place = places[case.peak_in_lesion]
            table.add_row(case.name, case.method, f"{case.score:.4g}", place, f"{case.seconds:.1f}")
        out_console.print(table)
        _print(f"Look at {out / 'montage.png'} first. The overlays, one by one:")
        for case in found:
            _print(f"  {case.overlay}")


@app.command()
def bench(
    model: ModelOption = MODEL,
    device: DeviceOption = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file, too.")] = None,
) -> None:
    """Measure the speed of detection and training on this machine."""
    with _one_line_each(STARTS_ANEW):
        from thorad.apps.speed import measure_speed

        with _progress("bench") as report:
            speed = measure_speed(model, device=device, on_progress=report)
        for measured in speed.tables():
            _print(measured.title, style="bold")
            table = _table(*measured.columns)
            for row in measured.rows:
                table.add_row(*row)
            out_console.print(table)
            for note in measured.notes:
                _print(note)
            _print()
        if json is not None:
            speed.write(json)
            _print(f"Figures: {json}")


@app.command()
def reproduce(
    target: Annotated[Literal["table1", "table2", "fig4"], typer.Argument(help="Which of the THOR paper.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of ATLAS v2.0 (table1, fig4) or GRAZPEDWRI-DX (table2) as published, or of a bench with "
            "cases.csv and healthy/."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.md, metrics.json and the rest; --check needs none.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Models, separated by commas; each method and noise takes the first that can do it. Default: the "
            "bundled ones: hand-xray64 for table2, else brain-t1-compact,brain-t1-patched."
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the folder and print what it holds.")] = False,
    every: Annotated[int, typer.Option(help="Take every N-th case, for slow machines.", min=1)] = 1,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    bootstrap: Annotated[int, typer.Option(help="Resamples over subjects for the intervals; 0: none.", min=0)] = 1000,
    quiet: QuietOption = False,
) -> None:
    """Measure a table or the figure of the THOR paper again, the published figures beside it."""
    with _one_line_each(GOES_ON):
        if out is None and not check:
            raise ThoradError("--out is missing: name a folder for the results, or --check the data only.")

        from thorad.apps.reproduce import Settings, check_layout
        from thorad.apps.reproduce import reproduce as measure

        with _progress(target, quiet) as report:
            if out is None or check:
                layout = check_layout(target, data, on_progress=report)
            else:
                settings = Settings(_steps(steps), device, seed, batch_size, bootstrap, every)
                chosen = models or ("hand-xray64" if target == "table2" else f"{MODEL},brain-t1-patched")
                found = measure(target, data, _words(chosen), out, settings, on_progress=report)
        if out is None or check:
            for line in layout.told:
                _print(line)
            for problem in layout.problems:
                error_console.print(f"Of no use: {problem}", style="red", markup=False, highlight=False)
            if layout.problems:
                raise typer.Exit(1)
            return
        if not quiet:
            table = _table(*found.table.columns)
            for row in found.table.rows:
                table.add_row(*row)
            out_console.print(table)
            for note in found.table.notes:
                _print(note)
            _print(f"Results: {out} (report.md first)")
        for name, reason in found.failures.items():
            error_console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
        if found.failures:
            raise typer.Exit(1)


# ---- data sets

SHOWN_PROBLEMS = 10  # of each kind that a check found

data_app = typer.Typer(help="Check data sets, and split them by subject.", no_args_is_help=True)
app.add_typer(data_app, name="data")

DataFolder = Annotated[Path, typer.Argument(help="Folder of the data set, as it was published or any other.")]
KindOption = Annotated[
    str | None,
    typer.Option(help="grazpedwri, ixi, atlas, bids, brats, tables or folder. Default: what the files' names tell."),
]


@data_app.command("check")
def check_data(
    folder: DataFolder,
    kind: KindOption = None,
    json: Annotated[Path | None, typer.Option(help="Write all that was found to this file, too.")] = None,
) -> None:
    """Say what a data set holds, what is missing, damaged or there twice, and what leaks between its splits.

    Reads names and the heads of images. Exit code 1 where something is wrong.
    """
    with _one_line_each(STARTS_ANEW):
        from thorad.datasets import DATASETS
        from thorad.datasets.check import check_data_set

        report = check_data_set(folder, kind)
        _print(f"{folder} is laid out as {DATASETS[report.kind].description}.")
        table = _table("found", "")
        for name, count in report.counts.items():
            table.add_row(name, str(count))
        out_console.print(table)
        for heading, entries in report.problems.items():
            _print(f"{heading}: {len(entries)}", style="red")
            for entry in entries[:SHOWN_PROBLEMS]:
                _print(f"  {entry}")
            if len(entries) > SHOWN_PROBLEMS:
                _print(f"  and {len(entries) - SHOWN_PROBLEMS} more" + ("" if json else "; --json FILE lists all"))
        if not report.problems:
            _print("Nothing is wrong with it, as far as names and heads tell.")
        if json is not None:
            report.write(json)
            _print(f"All of it: {json}")
        if report.problems:
            raise typer.Exit(1)


@data_app.command("split")
def split_data(
    folder: DataFolder,
    out: Annotated[Path, typer.Option(help="Folder for train.csv, val.csv and test.csv.")],
    fractions: Annotated[
        str, typer.Option(help="Shares of the subjects for train, val and test; 0: no such part.")
    ] = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(help="Decides who goes where.")] = 0,
    kind: KindOption = None,
) -> None:
    """Split a data set by subject: nobody is in two parts, and the same seed gives the same parts."""
    with _one_line_each(STARTS_ANEW):
        from thorad.datasets.layouts import find_data_set
        from thorad.datasets.split import parse_fractions, write_split

        shares = parse_fractions(fractions)
        split = write_split(find_data_set(folder, kind), out, shares, seed)
        table = _table("part", "subjects", "images", "with findings")
        for part, cases in split.parts.items():
            ill = sum(case.has_finding for case in cases)
            table.add_row(part, str(len({case.subject for case in cases})), str(len(cases)), str(ill))
        out_console.print(table)
        if split.left_out:
            _print(f"Left out, as nobody says whether they are healthy: {len(split.left_out)} images without a mask.")
        if any(case.has_finding for case in split.parts.get("train", ())):
            _print("train.csv holds images with findings; thorad trains on healthy ones only.", style="yellow")
        for path in split.tables.values():
            _print(f"{path}")


Results = Annotated[Path, typer.Argument(help="A folder of `thorad detect`.")]
TruthOption = Annotated[
    Path | None, typer.Option(help="CSV with columns image and mask of these images, as for `thorad evaluate`.")
]


def _write_report(results: Path, out: Path | None, truth: Path | None, bootstrap: int, quiet: bool) -> None:
    from thorad.results.report import write_report

    with _progress("report", quiet) as show:
        summary = write_report(results, out, truth=truth, bootstrap=bootstrap, on_progress=show)
    if not quiet:
        if summary.side is not None:
            _print(f"Pictures are reduced to {summary.side} px at their longest side, to keep the file small.")
        if summary.without_pictures:
            _print(f"{summary.without_pictures} cases with the lowest scores are listed without pictures.")
        _print(f"{summary.path} ({summary.bytes / 1e6:.1f} MB): open it in any browser; it needs no network.")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="A folder of `thorad detect` or `thorad evaluate`.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file. Default: report.html in the folder.")] = None,
    truth: TruthOption = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples over subjects for the intervals; 0: none.", min=0)] = 1000,
    quiet: QuietOption = False,
) -> None:
    """Make one HTML file of a result folder: what was run, figures, and every case to look at. Works offline."""
    with _one_line_each(STARTS_ANEW):
        _write_report(results, out, truth, bootstrap, quiet)


@app.command()
def volume(
    results: Annotated[Path, typer.Argument(help="A folder of `thorad detect` on volumes.")],
    case: Annotated[str | None, typer.Option(help="Name of the volume. Default: the only one.")] = None,
    scan: Annotated[
        Path | None, typer.Option(help="The scan itself, NIfTI, NRRD or MHA. Default: where the case came from.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file. Default: CASE.html in the results' folder.")] = None,
) -> None:
    """Make one HTML page of a volume: its map over the scan in three linked planes. Works offline; holds the scan."""
    with _one_line_each(STARTS_ANEW):
        from thorad.results.volume_page import volume_cases, write_volume_page

        if case is None:
            names = volume_cases(results)
            if len(names) != 1:
                raise ThoradError(f"{results}: {len(names)} volumes ({', '.join(names[:5])}). Name one with --case.")
            case = names[0]
        path = write_volume_page(results, case, out or results / f"{case}.html", scan=scan)
        _print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in any browser; it needs no network.")


@app.command()
def figure(
    results: Results,
    case: Annotated[str, typer.Option(help="Names of the cases, separated by commas: one row each.")],
    out: Annotated[Path, typer.Option(help="The file: .pdf, .png or .svg.")],
    panels: Annotated[
        Literal["cases", "restoration"],
        typer.Option(help="cases: input, pseudo-healthy, map, overlay, truth; restoration: the steps, one by one."),
    ] = "cases",
    truth: TruthOption = None,
    slice_number: Annotated[
        int | None, typer.Option("--slice", help="Of volumes. Default: the one with the map's highest value.")
    ] = None,
) -> None:
    """Draw cases as panels for a publication, on one colour scale. Needs the extra plots."""
    with _one_line_each(STARTS_ANEW):
        from thorad.results.figure import write_figure

        write_figure(results, _words(case), out, layout=panels, truth=truth, slice_number=slice_number)
        _print(f"Figure: {out}")


# ---- the viewer


@app.command()
def view(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Folders of `thorad detect`, or folders of such, to look at.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model folder to offer beside the bundled ones; may be given again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the results of what is dropped in. Default: nothing is kept.")
    ] = None,
    port: Annotated[int, typer.Option(help="Of 127.0.0.1. Default: any that is free.", min=0, max=65535)] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Open a page of this machine: look at results, drop scans in, watch their restoration. Ctrl-C ends it."""
    with _one_line_each("Nothing of what was dropped in is left."):
        try:
            from thorad.viewer.server import serve
        except ModuleNotFoundError as error:
            raise ThoradError(
                f"the viewer needs {error.name}, which is not installed. pip install 'thorad[view]'"
            ) from error

        def say(address: str) -> None:
            _print(f"thorad view: {address}")
            _print("Only this machine reaches it, and only with this address. Ctrl-C ends it.")

        looked_at = serve(results or [], models=model or [], keep=out, port=port, on_ready=say, browser=not no_browser)
        _print(f"Scans looked at: {looked_at}.")
