"""Detect and look: `detect`, `methods`, `report`, `volume`, `figure`, `view`, `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option, Typer

from thorad.cli import options as opt
from thorad.cli.render import (
    RESUMES,
    by_reason,
    case_figures,
    end_with_failures,
    in_short,
    print_left_out,
    print_line,
    print_outcome,
    print_table,
    print_warning,
    print_warnings,
    progress_bar,
    write_json,
)
from thorad.errors import ThoradError
from thorad.io.shards import Shard
from thorad.table import Table

if TYPE_CHECKING:
    from thorad.apps.run import RunSummary
    from thorad.detector import Detector

HIGHEST = 5  # scores shown at the end of a detection

app = Typer(rich_help_panel="Detect and look")

Results = Annotated[Path, Argument(help="A result folder of `thorad detect`.")]
KeepSteps = Annotated[bool, Option("--keep-steps", help="Keep pictures of every harmonisation step, for the report.")]
Truth = Annotated[Path | None, Option(help="CSV with columns image and mask, as for `thorad evaluate`.")]


@dataclass(frozen=True)
class DetectOptions(opt.DetectorOptions):
    """A detector that also makes masks and, if asked for, a finer pseudo-healthy image."""

    finish: Annotated[
        bool, Option("--finish", help="A finer pseudo-healthy image for more network calls; the map is the same.")
    ] = False
    false_positives: Annotated[
        float | None,
        Option(
            help="Fraction of healthy pixels above the mask's threshold: 0.01, 0.02 or 0.05 of a calibration. Default: "
            "0.01; a critic's masks never begin below its 0.5 by default."
        ),
    ] = None
    threshold: Annotated[float | None, Option(help="Mask what is above this map value; needs no calibration.")] = None
    force: Annotated[
        bool, Option("--force", help="Detect also in what the model can't judge; every result of it says so.")
    ] = False


@opt.verb(app, example="thorad detect scan.nii.gz -o results --report", interrupted=RESUMES)
def detect(
    inputs: opt.Inputs,
    out: Annotated[Path, opt.OutOption(help="Folder for the results; an interrupted run resumes in it.")],
    options: DetectOptions,
    slices: opt.Slices = None,
    keep_steps: KeepSteps = False,
    side: opt.Side = None,
    keep_identity: opt.KeepIdentity = False,
    shard: opt.Shard = None,
    cluster: opt.Cluster = None,
    make_report: opt.Report = False,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
) -> None:
    """Find anomalies in images: an anomaly map, an overlay, a pseudo-healthy image and a score for each.

    Takes pictures (PNG, TIFF, JPEG, NPY), volumes (NIfTI, NRRD, MHA) and DICOM; maps are on the input's own grid. A
    critic, a calibration or --threshold adds a mask and a list of findings, a calibration also a p-value.
    """
    from thorad.io.scans import find_scans

    part = Shard.parse(shard) if shard is not None else None
    scans = find_scans(inputs, leave_out=out, keep_identity=keep_identity)

    from thorad.apps.run import detect_files, open_results
    from thorad.records import parse_indices, same_pixels
    from thorad.results.folder import REPORT
    from thorad.volume_detection import checked_indices

    indices = None if slices is None else parse_indices(slices)
    command = opt.command_line(inputs=not keep_identity and any(scan.series for scan in scans.values()))
    about: Any = {"left_out": scans.left_out, "side": side or "neurological", "command": command}
    with opt.workers(cluster, out) as (make, executor):
        detector = options.detector(make)
        if all(scan.is_volume for scan in scans.values()):  # an impossible wish should be refused at once
            checked_indices(detector.model.recipe.volume, indices, detector.model_name)
        if keep_steps and not detector.network_calls:
            print_warning(f"--keep-steps keeps nothing of {detector.method}, which has no steps: --method thor has.")
        results = open_results(detector, out, part, indices=indices, **about)
        wanted: Any = {"indices": indices, "keep_steps": keep_steps}
        with progress_bar("detect", quiet) as report:
            summary = detect_files(detector, scans, results, **wanted, on_progress=report, executor=executor)
    print_warnings(by_reason(in_short(summary.warned)))
    same = same_pixels(summary.pixels)
    if same:
        print_warning(same)
    if not quiet:
        print_outcome(summary, f"Shard {part}: " if part else "")
        print_left_out(scans.left_out)
        _print_scores(summary, detector, options.model)
        if any(scan.series or scan.problem for scan in scans.values()) and not keep_identity:
            print_line("DICOM files are named by hashes; --keep-identity names them by their paths.")
        print_line(f"Results: {out}")
    if make_report and summary.tried:
        print_report(out, side=side, quiet=quiet)
    elif summary.tried > summary.already_done and not quiet and (out / REPORT).is_file():
        print_line(f"{out / REPORT} is of an earlier run: `thorad report {out}` makes it anew.")
    found = {name: {"score": score, **summary.verdicts[name]._asdict()} for name, score in summary.done.items()}
    about_run = {"results": out, "left_out": scans.left_out, "warnings": [*detector.warnings, *filter(None, [same])]}
    write_json(json, {**about_run, **case_figures(summary, found)})
    end_with_failures(
        by_reason(summary.failed),
        by_reason(in_short(summary.refused)),
        "What was refused has no result; cases.csv has the reasons in full. --force detects in it all the same; every "
        "result of it then says so.",
    )


def _print_scores(summary: RunSummary, detector: Detector, model: str) -> None:
    """The highest scores; what p-values and masks mean, or why there are none."""
    from thorad.apps.calibrate import calibrate_command
    from thorad.calibration import format_options

    masked = detector.threshold is not None
    drawn = any(each.draw_agreement is not None for each in summary.verdicts.values())
    figures = [*(["p"] if detector.calibration else []), *(["findings"] * masked), *(["draws agree"] * drawn)]

    def table(title: str, names: list[str]) -> None:
        rows = []
        for name in names[:HIGHEST]:
            p_value, findings, agreement = summary.verdicts[name]
            cells = {"p": "-" if p_value is None else f"{p_value:.3g}", "findings": str(findings)}
            cells["draws agree"] = "-" if agreement is None else f"{agreement:.2f}"
            rows.append([name, f"{summary.done[name]:.5g}", *(cells[figure] for figure in figures)])
        if rows:
            print_table(Table([title, "", *figures], rows))

    table("highest scores", [name for name in summary.done if name not in summary.warned])
    table("warned, so not among them", [name for name in summary.done if name in summary.warned])
    if detector.calibration is not None:
        print_line(f"p: rank among {detector.calibration.scans} healthy scans.")
    else:
        if detector.calibrations:
            others = "; ".join(format_options(calibration.options) for calibration in detector.calibrations)
            print_line(f"The model's calibrations are for other options ({others}) and were not used.", style="yellow")
        missing = "p-values and masks" if detector.threshold is None else "p-values"
        print_line(f"No {missing} without a calibration: `{calibrate_command(detector, model)}` makes it.")
    if detector.false_positives is not None:
        share = f"{100 * detector.false_positives:g} %"
        print_line(f"Masks and findings: above the threshold that {share} of the healthy scans' pixels exceed.")
    elif detector.threshold is not None:
        print_line(f"Masks and findings: above {detector.threshold:g}.")
    begins = detector.threshold or 0.0
    if any(each.finding_count and summary.done[name] <= begins for name, each in summary.verdicts.items()):
        print_line("A score is a mean over pixels: of a case whose findings are small it may be below that.")
    if drawn:
        print_line("draws agree: Dice between the masks of draws with other noise. 1: the same, 0: nothing in common.")


@opt.verb(app, example="thorad methods")
def methods(json: opt.Json = None) -> None:
    """List the detection methods: the noise they use, the network calls an image costs by default, what they do."""
    from thorad.methods import METHODS
    from thorad.model import bundled_models
    from thorad.selection import comparison, default_network_calls

    rows = []
    for name in METHODS:
        try:
            method = METHODS[name]
            model, _, noise = comparison(bundled_models(), [name])[0]
            calls = str(default_network_calls(model, method, noise))
        except ThoradError as error:  # another package's method
            print_warning(str(error))
            continue
        text = f"{method.title}: {method.blurb}." + (f" Reference: {method.paper}." if method.paper else "")
        rows.append((name, ", ".join(method.noises) or "-", calls, text))
    columns = ("method", "noise", "calls", "what it is")
    print_table(Table(columns, rows, text_columns=frozenset({"noise", "what it is"})))
    print_line("calls: of the network for one image, with the default options and a bundled model.")
    write_json(json, {"methods": [dict(zip(columns, row, strict=True)) for row in rows]})


def print_report(
    results: Path,
    out: Path | None = None,
    truth: Path | None = None,
    bootstrap: int = 0,
    side: Literal["neurological", "radiological"] | None = None,
    quiet: bool = False,
) -> None:
    """Write report.html of a result folder and say where it is; see `thorad.results.report.write_report`."""
    from thorad.results.report import write_report

    with progress_bar("report", quiet) as show:
        summary = write_report(results, out, truth=truth, bootstrap=bootstrap, side=side, on_progress=show)
    if not quiet:
        if summary.side is not None:
            print_line(f"Pictures are scaled to {summary.side} px on their longest side, to keep the file small.")
        if summary.without_pictures:
            print_line(f"The last {summary.without_pictures} cases with a result are listed without pictures.")
        print_line(f"{summary.path} ({summary.bytes / 1e6:.1f} MB): open it in any browser; it needs no network.")


@opt.verb(app, example="thorad report results")
def report(
    results: Annotated[Path, Argument(help="A result folder of `thorad detect` or `thorad evaluate`.")],
    out: Annotated[Path | None, opt.OutOption(help="The HTML file. Default: report.html in the folder.")] = None,
    truth: Truth = None,
    bootstrap: opt.Bootstrap = 1000,
    side: opt.Side = None,
    quiet: opt.Quiet = False,
) -> None:
    """Turn a result folder into one HTML file: what was run, figures, and every case to look at. Works offline."""
    print_report(results, out, truth, bootstrap, side, quiet)


@opt.verb(app, example="thorad volume results --case scan")
def volume(
    results: Annotated[Path, Argument(help="A result folder of `thorad detect` on volumes.")],
    case: Annotated[str | None, Option(help="Name of the volume. Default: the only one.")] = None,
    scan: Annotated[
        Path | None, Option(help="The scan itself: a file, or a DICOM folder. Default: the file that it was read from.")
    ] = None,
    truth: Truth = None,
    side: opt.Side = None,
    out: Annotated[Path | None, opt.OutOption(help="The HTML file. Default: CASE.html in the result folder.")] = None,
) -> None:
    """Turn a volume into one HTML page: its map over the scan in three linked planes. Works offline; holds the scan."""
    from thorad.results.volume_page import volume_cases, write_volume_page

    if case is None:
        names = volume_cases(results)
        if not names:
            raise ThoradError(f"{results}: no volume in this result folder. `thorad report` shows pictures.")
        if len(names) > 1:
            raise ThoradError(f"{results}: {len(names)} volumes ({', '.join(names[:5])}). Name one with --case.")
        case = names[0]
    path = write_volume_page(results, case, out or results / f"{case}.html", scan=scan, truth=truth, side=side)
    print_line(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in any browser; it needs no network.")


@opt.verb(app, example="thorad figure results --case scan1,scan2 -o figure.pdf")
def figure(
    results: Results,
    case: Annotated[str, Option(help="Names of the cases, separated by commas: one row each.")],
    out: Annotated[Path, opt.OutOption(help="The file: .pdf, .png or .svg.")],
    panels: Annotated[
        Literal["cases", "restoration"],
        Option(help="cases: input, pseudo-healthy, map, overlay, truth; restoration: step by step."),
    ] = "cases",
    truth: Truth = None,
    slice_number: Annotated[int | None, Option("--slice", help="Slice of a volume. Default: that of the peak.")] = None,
) -> None:
    """Draw cases as panels for a publication, on one colour scale. Needs the extra `plots`."""
    from thorad.results.figure import write_figure

    write_figure(results, opt.parse_words(case), out, layout=panels, truth=truth, slice_number=slice_number)
    print_line(f"Figure: {out}")


@opt.verb(app, example="thorad view results", interrupted="Nothing of what was dropped in is left.")
def view(
    results: Annotated[list[Path] | None, Argument(help="Result folders of detections, or folders of them.")] = None,
    truth: Truth = None,
    model: Annotated[list[str] | None, Option(help="A further model folder to offer; can be repeated.")] = None,
    out: Annotated[Path | None, opt.OutOption(help="Folder that keeps dropped scans' results. Default: none.")] = None,
    port: Annotated[int, Option(help="Port on 127.0.0.1. 0: any free one.", min=0, max=65535)] = 0,
    no_browser: Annotated[bool, Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Open the viewer in a browser: look at results, drop scans in, watch their restoration. Ctrl-C ends it.

    Needs the extra `view`. Runs on this machine only; nothing leaves it.
    """
    try:
        from thorad.viewer.server import serve
    except ModuleNotFoundError as error:
        raise ThoradError(
            f"the viewer needs {error.name}, which is not installed. pip install 'thorad[view]'"
        ) from error

    def announce(address: str) -> None:
        print_line(f"thorad view: {address}")
        print_line("Only this machine reaches it, and only with this address. Ctrl-C ends it.")

    offered: Any = {"truth": truth, "models": model or [], "keep": out}
    processed = serve(results or [], **offered, port=port, on_ready=announce, browser=not no_browser)
    print_line(f"Scans processed: {processed}.")


@opt.verb(app, example="thorad demo -o demo", interrupted="Run the same command again to start over.")
def demo(
    out: Annotated[Path, opt.OutOption(help="Folder for the pictures and results.")] = Path("demo-results"),
    model: opt.Model = opt.DEFAULT_MODEL,
    device: opt.Device = "auto",
    json: opt.Json = None,
) -> None:
    """Make anomaly maps of a real head, as it is and with implanted lesions."""
    from thorad.apps.demo import run_demo

    with progress_bar("demo") as show:
        cases = run_demo(out, model, device=device, on_progress=show)
    places = {None: "no lesion here", True: "in the lesion", False: "elsewhere"}
    columns = ("case", "method", "score", "map's peak", "seconds")
    rows = [
        (case.name, case.method, f"{case.score:.4g}", places[case.peak_in_lesion], f"{case.seconds:.1f}")
        for case in cases
    ]
    print_table(Table(columns, rows, text_columns=frozenset({"method", "map's peak"})))
    print_line(f"Look at {out / 'montage.png'} first. The overlays:")
    for case in cases:
        print_line(f"  {case.overlay}")
    write_json(json, {"cases": cases})
