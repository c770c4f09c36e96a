"""Results as tables, one layout for each protocol: in full for table.md and reports, in brief for a terminal.

All of it works on what `evaluate` returns and, just as well, on what a metrics.json holds, of an earlier version too:
entries that it did not have yet leave their cells empty.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, Final, NamedTuple

from thorad.errors import ThoradError
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.statistics import ABOUT, references, title
from thorad.io.tables import listing
from thorad.table import Table

Result = Mapping[str, Any]

FEW_SUBJECTS: Final = 6
"""From so many on, intervals and tests over subjects are shown without a caution: of 5, the smallest p-value of a
two-sided test that swaps within subjects is 2 / 2^5, above 0.05."""
FEW_SUBJECTS_TELL: Final = (
    "Resampling so few shows too little of the chance: intervals are too narrow, and differences tell next to nothing."
)

TEXT_COLUMNS: Final = frozenset(("Method", "Noise", "Kind", "Model", "Settings", "kind"))  # columns that hold words


PLACES: Final = {
    "healthy": "healthy scans, against the scan",
    "outside": "lesion cases outside the lesions, against the scan",
    "inside": "lesion cases inside the lesions, against the image without them, where the table names one",
}
"""Where pseudo-healthy images are measured, and against what."""


class Figure(NamedTuple):
    """A column that shows one entry of every result."""

    heading: str  # in the full table; empty: the column isn't in it
    path: str  # where a result holds the entry, such as `best_dice/average`
    form: str = ""  # format of the number, such as `.3f`
    brief: str = ""  # heading in the brief table; empty: the column isn't in it
    interval: bool = False  # whether the full table shows the figure's 95 % interval

    def headings(self, reference: Result | None, brief: bool) -> list[str]:
        """One heading, or none where the table leaves the column out."""
        return [heading] if (heading := self.brief if brief else self.heading) else []

    def cells(self, row: Result, reference: Result | None, brief: bool) -> list[str]:
        """A dash for what is null, nothing for what the row doesn't have."""
        value = _entry(row, self.path)
        if value is _ABSENT:
            return [""]
        interval = _entry(row, f"intervals/{self.path}") if self.interval and not brief else None
        return [_number(value, self.form) + _bracketed(interval, self.form)]


class Difference(NamedTuple):
    """Two columns: by how much a figure differs from that of the reference method, and the p-value."""

    heading: str  # the figure's name in the full table; empty: the columns aren't in it
    metric: str  # as the results' `versus` names it
    form: str
    brief: str = ""  # the figure's name in the brief table; empty: the columns aren't in it

    def headings(self, reference: Result | None, brief: bool) -> list[str]:
        """Two headings, or none where the table leaves the columns out or there is no reference."""
        if reference is None or not (self.brief if brief else self.heading):
            return []
        return ["diff." if brief else f"{self.heading} - {title(reference)} [95 %]", "p"]

    def cells(self, row: Result, reference: Result | None, brief: bool) -> list[str]:
        """Nothing where the row isn't compared with the reference."""
        for entry in _compared(row, reference):
            if entry["metric"] == self.metric:
                form = f"+{self.form}"
                interval = "" if brief else _bracketed(entry["interval"], form)
                return [_number(entry["difference"], form) + interval, _number(entry["p_value"], ".4f")]
        return ["", ""]


Column = Figure | Difference


class Layout(NamedTuple):
    """What the tables of one protocol show."""

    columns: Sequence[Column]  # behind those that say which method it is
    floor_columns: Sequence[Difference]  # of the second table, which compares the methods with the z-score
    label: str  # heading of the brief table's first column, which names the methods
    brief_notes: Sequence[str]  # with the first result's entries in braces
    rows: Callable[[Result], Sequence[Result]] = lambda result: [result]  # of one result


def table_of(results: Sequence[Result], *, brief: bool = False) -> Table:
    """Turn the results of one evaluation into a table.

    Args:
        results: what `evaluate` returned, or the content of a metrics.json.
        brief: for a terminal: fewer columns, no intervals, short notes and no second table.

    Raises:
        ThoradError: the results are of a protocol that is not known here.
    """
    protocol = results[0]["protocol"]
    if protocol not in LAYOUTS:
        raise ThoradError(f"Results of an unknown protocol, {protocol!r}. Known: {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[protocol]
    rows = [row for result in results for row in layout.rows({**result, "calls": calls_cell(result)})]
    compared_with = [
        {key: results[index].get(key) for key in ABOUT} for index in (references(results) if len(results) > 1 else [])
    ]
    reference = compared_with[0] if compared_with else None
    if brief:
        return _brief_table(results, layout, rows, reference)
    template = resources.files("thorad").joinpath("assets", "notes", f"{protocol}.md").read_text("utf-8")
    notes = _filled(template, results[0], comparison=_comparison_note(results[0], reference)).strip().split("\n\n")
    notes += cautions(results)
    final = _final_notes(results)
    method = [Figure("Method", "method"), Figure("Noise", "noise")]
    if len({result["model"] for result in results}) > 1:
        method.append(Figure("Model", "model"))
    for heading, key in (("Draws", "draws"), ("Settings", "settings")):
        if any(key in result for result in results):
            method.append(Figure(heading, key))
    columns = [*method, Figure("Steps", "steps"), *layout.columns]
    more = _quality_tables(method, results)
    if len(compared_with) < 2:
        return replace(lay_out(columns, rows, [*notes, *final], reference), more=more)
    below = [result for result in results if _compared(result, compared_with[1])]
    second = lay_out([*method, *layout.floor_columns], below, final, compared_with[1])
    return replace(lay_out(columns, rows, notes, reference), more=[second, *more])


def _quality_tables(method: Sequence[Column], results: Sequence[Result]) -> list[Table]:
    """One on the pseudo-healthy images, where they were measured."""
    measured = [result for result in results if result.get("quality")]
    if not measured:
        return []
    places = [place for place in PLACES if any(place in result["quality"] for result in measured)]
    columns = [
        Figure(
            f"{name.upper()} {place}{' [95 %]' if name == 'mae' else ''}",
            f"quality/{place}/{name}",
            ".4f",
            interval=name == "mae",
        )
        for place in places
        for name in ("mae", "ssim", "lpips")
    ]
    meant = "; ".join(f"**{place}**: {PLACES[place]}" for place in places)
    note = (
        f"Pseudo-healthy images inside the model's region, means over images. {meant}. MAE and LPIPS: the lower, the "
        "nearer; SSIM: 1 is equal. A method that changes nothing is perfect outside and useless inside."
    )
    return [lay_out([*method, *columns], measured, [note])]


def lay_out(
    columns: Sequence[Column],
    rows: Sequence[Result],
    notes: Sequence[str],
    reference: Result | None = None,
    *,
    brief: bool = False,
) -> Table:
    """Make a table of results, or of parts of them.

    Args:
        columns: what to show of every row.
        rows: results, with whatever else the columns ask for.
        notes: paragraphs below the table.
        reference: the method, as `versus` names it, that the columns `Difference` compare with.
        brief: whether to show the columns as the brief table does.
    """
    shown = [column for column in columns if column.headings(reference, brief)]
    return Table(
        columns=[heading for column in shown for heading in column.headings(reference, brief)],
        rows=[[cell for column in shown for cell in column.cells(row, reference, brief)] for row in rows],
        notes=notes,
        text_columns=TEXT_COLUMNS,
    )


def _brief_table(results: Sequence[Result], layout: Layout, rows: Sequence[Result], reference: Result | None) -> Table:
    labelled = [{"label": _label(row), **row} for row in rows]
    notes = [_filled(note, results[0]) for note in layout.brief_notes]
    if reference is not None:
        figure = next(column.brief for column in layout.columns if isinstance(column, Difference) and column.brief)
        notes.append(f"diff. of {figure}: to {_label(reference)}; p: permutation test within subjects.")
    notes += cautions(results)
    return lay_out([Figure("", "label", brief=layout.label), *layout.columns], labelled, notes, reference, brief=True)


def calls_cell(result: Result) -> str:
    """A result's network calls, with an asterisk where others were asked for."""
    return f"{result.get('network_calls', '')}{' *' if _other_calls(result) else ''}"


def _other_calls(result: Result) -> bool:
    calls = result.get("network_calls", 0)
    return calls > 0 and calls not in result.get("asked_calls", [calls])


def cautions(results: Sequence[Result]) -> list[str]:
    """Notes on what a reader would take for more than it is: other costs than asked for, few subjects, sizes that no
    lesion has.
    """
    counts, notes = results[0].get("counts", {}), []
    if others := [f"{_label(result)} ({result['network_calls']})" for result in results if _other_calls(result)]:
        asked = " or ".join(map(str, results[0]["asked_calls"]))
        notes.append(
            f"**Not at equal calls** ({asked} were asked for), marked *: {listing(others)}, the nearest possible."
        )
    of_kinds = results[0].get("kinds") or {"findings": {"subjects": counts.get("subjects_with_findings")}}
    with_kind = {kind: figures.get("subjects") or FEW_SUBJECTS for kind, figures in of_kinds.items()}
    if few := [f"{subjects} with {kind}" for kind, subjects in with_kind.items() if subjects < FEW_SUBJECTS]:
        notes.append(f"**Few subjects: {listing(few)}.** {FEW_SUBJECTS_TELL}")
    present = [group for group in SIZE_GROUPS if counts.get(group)]
    absent = [group for group in SIZE_GROUPS if counts.get(group) == 0]
    if present and absent:
        notes.append(
            f"**The average is of {' and '.join(present)} lesions alone**: there are no {' or '.join(absent)} ones "
            "here, and so no figure of the paper's mix."
        )
    return notes


def _filled(template: str, first: Result, **values: str) -> str:
    """A note, with a dash for each count that an earlier version did not write."""
    return template.format(
        **values, counts=defaultdict(lambda: "-", first["counts"]), thresholds=first.get("thresholds")
    )


def _comparison_note(first: Result, reference: Result | None) -> str:
    text = _filled(
        "Intervals: 95 % percentile bootstrap over subjects, {counts[bootstrap_resamples]} resamples.", first
    )
    if reference is not None:
        text += (
            f" Differences from {title(reference)} (with several numbers of draws: at the nearest number of calls): "
            "the same resamples for both; p is two-sided, from a permutation test that swaps the two methods' results "
            "within subjects, and not corrected for the number of comparisons."
        )
    return text


def _final_notes(results: Sequence[Result]) -> list[str]:
    """What a user asked for that no column says, and the cases that could not be used."""
    asked = sorted({(name, result[name]) for result in results for name in ("preset", "noise_level") if name in result})
    notes = [f"{name.replace('_', ' ').capitalize()}: {value}." for name, value in asked]
    if failures := results[0]["failures"]:
        names = ", ".join(failure["name"] for failure in failures)
        notes.append(f"Left out, because they could not be used: {names}.")
    return notes


def _kind_rows(result: Result) -> list[Result]:
    """One row for each kind of box; what is of the whole method stands in the first, that of all kinds."""
    of_kind = {key: value for key, value in result.items() if key not in ("image_auroc", "cpu_seconds_per_case")}
    of_kind |= {"label": "", "versus": []}
    return [
        {**figures, **result, "kind": kind} if kind == "all" else {**of_kind, **figures, "kind": kind}
        for kind, figures in result["kinds"].items()
    ]


LAYOUTS: Final[Mapping[str, Layout]] = {
    "brain-lesions": Layout(
        columns=(
            Figure("Calls", "calls", brief="calls"),
            *(Figure(group.capitalize(), f"best_dice/{group}", ".1f", brief=group) for group in SIZE_GROUPS),
            Figure("Average [95 %]", "best_dice/average", ".1f", brief="avg.", interval=True),
            Difference("Average", "average", ".1f", brief="avg."),
            Figure("Paper mix", "best_dice/paper_mix", ".1f"),
            Difference("Mix", "paper_mix", ".1f"),
            Figure("Pooled", "best_dice/pooled", ".1f"),
            Figure("AP", "auprc", ".3f", brief="AP"),
            Figure("AUROC", "auroc", ".3f"),
            Figure("Dice @ 1 % FP", "dice_at_fpr/0.01", ".3f", brief="1% FP"),
            Figure("Dice @ 5 % FP", "dice_at_fpr/0.05", ".3f"),
            Figure("Image AUROC", "image_auroc", ".3f", brief="images"),
            Figure("CPU s/case", "cpu_seconds_per_case", ".2f", brief="CPU s"),
        ),
        floor_columns=(
            Difference("Mix", "paper_mix", ".1f"),
            Difference("Average", "average", ".1f"),
            Difference("AP", "auprc", ".3f"),
        ),
        label="best Dice, %",
        brief_notes=(
            "Best Dice takes its threshold from the test labels: an upper bound. 1% FP: Dice (0 to 1) at the threshold "
            "that 1 % of the pixels of healthy scans exceed. images: AUROC of diseased against healthy images. CPU s: "
            "of one case.",
        ),
    ),
    "brain-volumes": Layout(
        columns=(
            Figure("Calls", "calls", brief="calls"),
            Figure("Dice [95 %]", "mean_dice", ".3f", brief="Dice", interval=True),
            Figure("SD", "standard_deviation/mean_dice", ".3f"),
            Difference("Dice", "mean_dice", ".3f", brief="Dice"),
            Figure("AUPRC [95 %]", "mean_auprc", ".3f", brief="AUPRC", interval=True),
            Figure("SD", "standard_deviation/mean_auprc", ".3f"),
            Figure("Threshold", "thresholds/mean_dice", ".3g", brief="threshold"),
            Figure("CPU s/slice", "cpu_seconds_per_case", ".2f", brief="CPU s"),
        ),
        floor_columns=(Difference("Dice", "mean_dice", ".3f"), Difference("AUPRC", "mean_auprc", ".3f")),
        label="means over volumes",
        brief_notes=("Threshold: {thresholds[mean_dice_source]}.",),
    ),
    "boxes": Layout(
        columns=(
            Figure("Calls", "calls", brief="calls"),
            Figure("Kind", "kind", brief="kind"),
            Figure("Boxes", "boxes", brief="boxes"),
            Figure("Recall [95 %]", "recall", ".3f", brief="recall", interval=True),
            Figure("F1 [95 %]", "f1", ".3f", brief="F1", interval=True),
            Difference("F1", "f1", ".3f", brief="F1"),
            Figure("FROC", "froc/mean", ".3f", brief="FROC"),
            Figure("FROC (IoU)", "froc_iou/mean", ".3f"),
            Figure("Image AUROC", "image_auroc", ".3f", brief="images"),
            Figure("CPU s/case", "cpu_seconds_per_case", ".2f", brief="CPU s"),
        ),
        floor_columns=(Difference("Recall", "recall", ".3f"), Difference("F1", "f1", ".3f")),
        label="method",
        brief_notes=(
            "Threshold: {thresholds[boxes_source]} exceed it.",
            "FROC: mean sensitivity at 1/8 to 8 false positives an image. images: AUROC.",
        ),
        rows=_kind_rows,
    ),
}
"""Protocol -> what its tables show; the notes of the full one are in thorad/assets/notes."""


def _compared(row: Result, reference: Result | None) -> list[Result]:
    """A row's comparisons with a reference, which may also say what a user asked for."""
    entries = row.get("versus", [])
    return [entry for entry in entries if reference is not None and reference.items() <= entry["reference"].items()]


def _label(result: Result) -> str:
    draws = f"x{result['draws']}" if "draws" in result else None
    return " ".join(filter(None, (result["method"], result["noise"], draws, result.get("settings"))))


_ABSENT: Final = object()


def figure_of(row: Result, path: str) -> Any:
    """A result's entry at a path, such as `best_dice/average`, or that of all kinds; None where there is none."""
    value = _entry(row, path)
    if value is _ABSENT:
        value = _entry(row, f"kinds/all/{path}")
    return None if value is _ABSENT else value


def _entry(row: Any, path: str) -> Any:
    """The entry at that path, `_ABSENT` where there is none."""
    for key in path.split("/"):
        row = row.get(key, _ABSENT) if isinstance(row, Mapping) else _ABSENT
    return row


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _bracketed(interval: Any, form: str) -> str:
    return "" if interval in (None, _ABSENT) else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
