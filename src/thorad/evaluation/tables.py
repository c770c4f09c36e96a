"""Results as tables, one layout for each protocol: in full for table.md and reports, in brief for a terminal.

All of it works on what `evaluate` returns and, just as well, on what a metrics.json holds, of an earlier version too:
entries that it did not have yet leave their cells empty.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from thorad.errors import ThoradError
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.statistics import ABOUT, references, title
from thorad.table import Table

Result = Mapping[str, Any]

TEXT_COLUMNS: Final = frozenset(("Method", "Noise", "Kind", "Model", "kind"))
"""Columns that hold words."""


class Figure(NamedTuple):
    """A column that shows one entry of every result."""

    heading: str
    """In the full table; empty: the column isn't in it."""
    path: str
    """Where a result holds the entry, such as `best_dice/average`."""
    form: str = ""
    """Format of the number, such as `.3f`."""
    brief: str = ""
    """Heading in the brief table; empty: the column isn't in it."""
    interval: bool = False
    """Whether the full table shows the figure's 95 % interval."""

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

    heading: str
    """The figure's name in the full table; empty: the columns aren't in it."""
    metric: str
    """As the results' `versus` names it."""
    form: str
    brief: str = ""
    """The figure's name in the brief table; empty: the columns aren't in it."""

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

    columns: Sequence[Column]
    """Behind those that say which method it is."""
    floor_columns: Sequence[Difference]
    """Of the second table, which compares the methods with the z-score."""
    label: str
    """Heading of the brief table's first column, which names the methods."""
    notes: Callable[[Result, str], Sequence[str]]
    """Paragraphs below the full table, given the first result and what is to be said of intervals and p-values."""
    brief_notes: Callable[[Result], Sequence[str]]
    rows: Callable[[Result], Sequence[Result]] = lambda result: [result]
    """The rows of one result."""


def table_of(results: Sequence[Result], *, brief: bool = False) -> Table:
    """Turn the results of one evaluation into a table.

    Args:
        results: what `evaluate` returned, or the content of a metrics.json.
        brief: for a terminal: fewer columns, no intervals, short notes and no second table.

    Raises:
        ThoradError: the results are of a protocol that is not known here.
    """
    first = results[0]
    if first["protocol"] not in LAYOUTS:
        raise ThoradError(f"Results of an unknown protocol, {first['protocol']!r}. Known: {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[first["protocol"]]
    compared_with = [
        {key: results[index].get(key) for key in ABOUT} for index in (references(results) if len(results) > 1 else [])
    ]
    reference = compared_with[0] if compared_with else None
    rows = [row for result in results for row in layout.rows(result)]
    if brief:
        labelled = [{"label": _label(row), **row} for row in rows]
        notes = [*layout.brief_notes(first)]
        if reference is not None:
            figure = next(column.brief for column in layout.columns if isinstance(column, Difference) and column.brief)
            notes.append(f"diff. of {figure}: to {_label(reference)}; p: permutation test within subjects.")
        columns = [Figure("", "label", brief=layout.label), *layout.columns]
        return lay_out(columns, labelled, notes, reference=reference, brief=True)
    notes = [*layout.notes(first, _on_comparison(first, reference))]
    # What a user asked for that no column says, and the cases that could not be used.
    asked = sorted({(name, result[name]) for result in results for name in ("preset", "noise_level") if name in result})
    final = [f"{name.replace('_', ' ').capitalize()}: {value}." for name, value in asked]
    if first["failures"]:
        names = ", ".join(failure["name"] for failure in first["failures"])
        final.append(f"Left out, because they could not be used: {names}.")
    method = [Figure("Method", "method"), Figure("Noise", "noise")]
    if len({result["model"] for result in results}) > 1:
        method.append(Figure("Model", "model"))
    columns = [*method, Figure("Steps", "steps"), *layout.columns]
    if len(compared_with) < 2:
        return lay_out(columns, rows, [*notes, *final], reference=reference)
    below = [result for result in results if _compared(result, compared_with[1])]
    second = lay_out([*method, *layout.floor_columns], below, final, reference=compared_with[1])
    return lay_out(columns, rows, notes, reference=reference, more=[second])


def lay_out(
    columns: Sequence[Column],
    rows: Sequence[Result],
    notes: Sequence[str],
    *,
    reference: Result | None = None,
    brief: bool = False,
    more: Sequence[Table] = (),
) -> Table:
    """Make a table of results, or of parts of them.

    Args:
        columns: what to show of every row.
        rows: results, with whatever else the columns ask for.
        notes: paragraphs below the table.
        reference: the method, as `versus` names it, that the columns `Difference` compare with.
        brief: whether to show the columns as the brief table does.
        more: tables to follow.
    """
    shown = [column for column in columns if column.headings(reference, brief)]
    return Table(
        columns=[heading for column in shown for heading in column.headings(reference, brief)],
        rows=[[cell for column in shown for cell in column.cells(row, reference, brief)] for row in rows],
        notes=notes,
        text_columns=TEXT_COLUMNS,
        more=more,
    )


def _on_comparison(first: Result, reference: Result | None) -> str:
    resamples = _counts(first)["bootstrap_resamples"]
    text = f"Intervals: 95 % percentile bootstrap over subjects, {resamples} resamples."
    if reference is not None:
        text += (
            f" Differences from {title(reference)}: the same resamples for both; p is two-sided, from a permutation "
            "test that swaps the two methods' results within subjects, and not corrected for the number of comparisons."
        )
    return text


def _lesion_notes(first: Result, comparison: str) -> list[str]:
    counts = _counts(first)
    return [
        f"{counts['lesion_cases']} lesion cases ({counts['small']} small, {counts['medium']} medium, {counts['large']} "
        f"large, {counts['no_size_group']} too small for a group) and {counts['healthy_cases']} healthy scans of "
        f"{counts['subjects']} subjects.",
        "Small to Pooled: best Dice in percent over 101 thresholds. **Each picks its threshold on the test labels, so "
        "it is an upper bound**, comparable with the field's tables and with nothing a user can reach. Average weights "
        "the groups by this bench's lesion counts, paper mix by the paper's. Pooled counts every lesion pixel, those "
        "of lesions too small for a group too.",
        "Dice @ 1 % and 5 % FP (0 to 1, pooled over the lesion cases): the threshold is the smallest that at most 1 % "
        f"or 5 % of the pixels exceed in the {counts['healthy_cases']} healthy scans of this evaluation; no lesion "
        "label is used. AP and AUROC (0 to 1) need no threshold; they pool the pixels inside the model's region. Dice "
        f"also counts the {counts['lesion_pixels_outside_region']} of {counts['lesion_pixels']} lesion pixels outside "
        f"it, as missed. {comparison} CPU seconds are summed over all threads; a dash is a value that can't be "
        "computed here.",
    ]


def _volume_notes(first: Result, comparison: str) -> list[str]:
    counts = _counts(first)
    return [
        f"{counts['lesion_volumes']} volumes with lesions and {counts['healthy_volumes']} healthy ones, "
        f"{counts['slices']} slices of {counts['subjects']} subjects.",
        "Dice and AUPRC (0 to 1): means and standard deviations (SD) over the volumes with lesions. Maps are "
        "median-filtered and cut to the eroded brain mask; components under 7 voxels are dropped before the Dice. "
        f"Threshold: {first['thresholds']['mean_dice_source']}; no test label is used.",
        f"{comparison} CPU seconds are summed over all threads.",
    ]


def _box_notes(first: Result, comparison: str) -> list[str]:
    counts = _counts(first)
    return [
        f"{counts['boxes']} boxes in {counts['images_with_boxes']} images, and {counts['healthy_images']} healthy "
        f"images, of {counts['subjects']} subjects.",
        f"Threshold: {first['thresholds']['boxes_source']} exceed it; no box is used. Recall and F1 (0 to 1) by "
        "the rules of THOR's wrist experiment, means over the boxes: found is a box of which more than 10 % of the "
        "pixels exceed the threshold. FROC: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image; "
        "a candidate hits a box with its peak, or (IoU) by an overlap of 0.1 or more.",
        f"{comparison} CPU seconds are summed over all threads.",
    ]


def _kind_rows(result: Result) -> list[Result]:
    """One row for each kind of box; what is of the whole method stands in the first, that of all kinds."""
    of_kind = {key: value for key, value in result.items() if key not in ("image_auroc", "cpu_seconds_per_case")}
    of_kind |= {"label": "", "intervals": {}, "versus": []}
    return [
        {**(result if kind == "all" else of_kind), **figures, "kind": kind} for kind, figures in result["kinds"].items()
    ]


LAYOUTS: Final[Mapping[str, Layout]] = {
    "brain-lesions": Layout(
        columns=(
            Figure("Calls", "network_calls", brief="calls"),
            *(Figure(group.capitalize(), f"best_dice/{group}", ".1f", brief=group) for group in SIZE_GROUPS),
            Figure("Average [95 %]", "best_dice/average", ".1f", brief="avg.", interval=True),
            Difference("", "average", ".1f", brief="avg."),
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
        notes=_lesion_notes,
        brief_notes=lambda first: [
            "Best Dice takes its threshold from the test labels: an upper bound. 1% FP: Dice (0 to 1) at the threshold "
            "that 1 % of the pixels of healthy scans exceed. images: AUROC of diseased against healthy images. CPU s: "
            "of one case."
        ],
    ),
    "brain-volumes": Layout(
        columns=(
            Figure("Calls", "network_calls", brief="calls"),
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
        notes=_volume_notes,
        brief_notes=lambda first: [f"Threshold: {first['thresholds']['mean_dice_source']}."],
    ),
    "boxes": Layout(
        columns=(
            Figure("Calls", "network_calls"),
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
        notes=_box_notes,
        brief_notes=lambda first: [
            f"Threshold: {first['thresholds']['boxes_source']} exceed it.",
            "FROC: mean sensitivity at 1/8 to 8 false positives an image. images: AUROC.",
        ],
        rows=_kind_rows,
    ),
}
"""Protocol -> what its tables show."""


def _compared(row: Result, reference: Result | None) -> list[Result]:
    """A row's comparisons with a reference, which may also say what a user asked for."""
    entries = row.get("versus", [])
    return [entry for entry in entries if reference is not None and reference.items() <= entry["reference"].items()]


def _label(result: Result) -> str:
    return " ".join(filter(None, (result["method"], result["noise"])))


def _counts(first: Result) -> Mapping[str, Any]:
    """The counts of a result; a dash for each that an earlier version did not write."""
    return defaultdict(lambda: "-", first["counts"])


_ABSENT: Final = object()


def _entry(row: Any, path: str) -> Any:
    """The entry at that path, `_ABSENT` where there is none."""
    for key in path.split("/"):
        row = row.get(key, _ABSENT) if isinstance(row, Mapping) else _ABSENT
    return row


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _bracketed(interval: Any, form: str) -> str:
    return "" if interval in (None, _ABSENT) else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
