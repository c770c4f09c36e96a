"""Data: `data check`, `data split`, `prepare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from thorad.cli import options as opt
from thorad.cli.render import (
    RESUMES,
    case_figures,
    end_with_failures,
    print_left_out,
    print_line,
    print_outcome,
    print_table,
    print_warnings,
    progress_bar,
    write_json,
)
from thorad.datasets import DATASETS
from thorad.io.shards import Shard
from thorad.table import Table

SHOWN_PROBLEMS = 10  # of each kind that a check finds
PANEL = "Data"

app = Typer(rich_help_panel=PANEL)
data_app = Typer(help="Check data sets, and split them by subject.", no_args_is_help=True, rich_help_panel=PANEL)
app.add_typer(data_app, name="data", rich_help_panel=PANEL)

DataFolder = Annotated[Path, Argument(help="Folder of the data set, as published or of your own.")]
KindOption = Annotated[
    str | None,
    Option(help=f"{', '.join(DATASETS)}. Default: as the files are named.", autocompletion=opt.completion(DATASETS)),
]


@opt.verb(app, example="thorad prepare scans/ -o slices --jobs 4", interrupted=RESUMES)
def prepare(
    inputs: Annotated[list[Path], Argument(help="Volumes (NIfTI, NRRD, MetaImage), DICOM series, or folders of them.")],
    out: Annotated[Path, opt.OutOption(help="Folder for the slices; an interrupted run resumes in it.")],
    model: Annotated[
        str, Option(help="What the slices are for: a bundled model or recipe, a model folder or a recipe file.")
    ] = opt.DEFAULT_MODEL,
    slices: opt.Slices = None,
    jobs: Annotated[
        int, Option(help="Parallel processes; each takes up to 2.3 GB of memory, fine voxels more.", min=1)
    ] = 1,
    keep_identity: opt.KeepIdentity = False,
    shard: opt.Shard = None,
    cluster: opt.Cluster = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
) -> None:
    """Register T1w volumes to the model's template and cut its slices, for detect, train and calibrate."""
    from thorad.apps.prepare import prepare_files, volume_section
    from thorad.io.scans import find_scans
    from thorad.records import parse_indices

    part = Shard.parse(shard) if shard is not None else Shard()
    section = volume_section(model)
    first, last = section.axial_slices
    indices = list(range(first, last + 1)) if slices is None else parse_indices(slices)
    scans = find_scans(inputs, leave_out=out, keep_identity=keep_identity)
    if pictures := sum(not (scan.is_volume or scan.problem) for scan in scans.values()):
        scans.left_out["picture where a volume is needed"] = pictures
    wanted: Any = {"skull": section.skull, "indices": indices}
    with opt.workers(cluster, out, jobs) as (_, executor), progress_bar("prepare", quiet) as show:
        summary = prepare_files(part.of(scans), out, **wanted, executor=executor, on_progress=show)
    print_warnings(summary.warned)
    if not quiet:
        print_outcome(summary)
        print_left_out(scans.left_out)
        if summary.done:
            print_line(f"Look at {out / '*' / 'overlay.png'} first; slices: {out / 'slices.csv'}")
    found = {name: {"similarity": each.similarity, "overlap": each.overlap} for name, each in summary.done.items()}
    write_json(json, {"slices": out / "slices.csv", "left_out": scans.left_out, **case_figures(summary, found)})
    end_with_failures(summary.failed, summary.refused, "No table names the slices of what was refused.")


@opt.verb(data_app, "check", example="thorad data check IXI/ --json found.json")
def check_data(folder: DataFolder, kind: KindOption = None, json: opt.Json = None) -> None:
    """Report what a data set contains, what is missing, damaged or duplicated, and what leaks between its splits.

    Reads file names and the headers of images. Exit code 1 if something is wrong; a doubt alone leaves it 0.
    """
    from thorad.datasets.check import check_data_set
    from thorad.io.images import files_below

    report = check_data_set(folder, kind)
    left_out = Counter[str]()
    files_below(folder, left_out=left_out)
    print_line(f"{folder} is laid out as {DATASETS[report.kind].description}.")
    print_table(Table(("found", ""), [(name, str(count)) for name, count in report.counts.items()]))
    for heading, entries in report.problems.items():
        _print_entries(heading, entries, "red", json)
    _print_entries("perhaps leaks between splits", report.doubts, "yellow", json)
    print_left_out(left_out)
    if not (report.problems or report.doubts):
        print_line("No problem found in file names and headers.")
    write_json(json, asdict(report))
    if report.problems:
        raise Exit(1)


@opt.verb(data_app, "split", example="thorad data split IXI/ -o split --fractions 0.8,0.1,0.1")
def split_data(
    folder: DataFolder,
    out: Annotated[Path, opt.OutOption(help="Folder for train.csv, val.csv and test.csv.")],
    fractions: Annotated[str, Option(help="Shares of train, val and test; 0: no such part.")] = "0.8,0.1,0.1",
    seed: Annotated[int, Option(help="Random seed for the assignment of subjects.")] = 0,
    kind: KindOption = None,
    json: opt.Json = None,
) -> None:
    """Split a data set by subject: nobody is in two parts, and the same seed gives the same parts."""
    from thorad.datasets.layouts import find_data_set
    from thorad.datasets.split import parse_fractions, write_split

    shares = parse_fractions(fractions)
    data_set = find_data_set(folder, kind)
    split = write_split(data_set, out, shares, seed)
    columns = ("part", "subjects", "images", "with findings")
    counts = [
        (part, len({case.subject for case in cases}), len(cases), sum(case.has_finding for case in cases))
        for part, cases in split.parts.items()
    ]
    print_table(Table(columns, [[str(count) for count in row] for row in counts]))
    _print_entries("missing", data_set.missing, "yellow", json)
    if split.left_out:
        print_line(f"Left out: {len(split.left_out)} images without a mask, which may or may not be healthy.")
    if any(case.has_finding for case in split.parts.get("train", ())):
        print_line("train.csv holds images with findings; thorad trains on healthy ones only.", style="yellow")
    for path in split.tables.values():
        print_line(f"{path}")
    parts = [dict(zip(columns, row, strict=True)) for row in counts]
    write_json(
        json, {"parts": parts, "tables": split.tables, "left_out": len(split.left_out), "missing": data_set.missing}
    )


def _print_entries(heading: str, entries: Sequence[str], style: str, json: Path | None) -> None:
    """Print how many entries there are, if any, and the first ones."""
    if entries:
        print_line(f"{heading}: {len(entries)}", style=style)
    for entry in entries[:SHOWN_PROBLEMS]:
        print_line(f"  {entry}")
    if len(entries) > SHOWN_PROBLEMS:
        print_line(f"  and {len(entries) - SHOWN_PROBLEMS} more" + ("" if json else "; --json FILE lists all"))
