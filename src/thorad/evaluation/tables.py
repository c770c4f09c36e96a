"""Results as tables, one layout for each protocol: in full for table.md and reports, in brief for a terminal.

All of it works on what `evaluate` returns and, just as well, on what a metrics.json holds, of an earlier version too:
entries that it did not have yet leave their cells empty.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from thorad.errors import ThoradError
from thorad.evaluation.sizes import SIZE_GROUPS
from thorad.evaluation.statistics import ABOUT, ASKED, references, title
from thorad.table import Table

Result = Mapping[str, Any]

TEXT_COLUMNS: Final = frozenset(("Method", "Noise", "Kind", "Model", "kind"))
"""Columns that hold words."""


@dataclass(frozen=True)
class Figure:
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
        """The headings of the column: one, or none where the table leaves it out."""
        heading = self.brief if brief else self.heading
        return [heading] if heading else []

    def cells(self, row: Result, reference: Result | None, brief: bool) -> list[str]:
        """What the column shows of a row: a dash for what is null, nothing for what the row doesn't have."""
        if not self.headings(reference, brief):
            return []
        found, value = _entry(row, self.path)
        if not found:
            return [""]
        interval = _entry(row, f"intervals/{self.path}")[1] if self.interval and not brief else None
        return [_number(value, self.form) + _bracketed(interval, self.form)]


@dataclass(frozen=True)
class Difference:
    """Two columns: by how much a figure differs from that of the reference method, and the p-value."""

    heading: str
    """The figure's name in the full table; empty: the columns aren't in it."""
    metric: str
    """As the results' `versus` names it."""
    form: str
    """Format of the number, such as `.3f`."""
    brief: str = ""
    """The figure's name in the brief table; empty: the columns aren't in it."""

    def headings(self, reference: Result | None, brief: bool) -> list[str]:
        """The headings of the two columns; none without a reference."""
        if reference is None or not (self.brief if brief else self.heading):
            return []
        return ["diff." if brief else f"{self.heading} - {title(reference)} [95 %]", "p"]

    def cells(self, row: Result, reference: Result | None, brief: bool) -> list[str]:
        """What the two columns show of a row: nothing where it isn't compared with the reference."""
        if not self.headings(reference, brief):
            return []
        for entry in _compared(row, reference):
            if entry["metric"] == self.metric:
                form = f"+{self.form}"
                interval = "" if brief else _bracketed(entry["interval"], form)
                return [_number(entry["difference"], form) + interval, _number(entry["p_value"], ".4f")]
        return ["", ""]


Column = Figure | Difference

METHOD: Final = (Figure("Method", "method"), Figure("Noise", "noise"))
MODEL: Final = Figure("Model", "model")
STEPS: Final = Figure("Steps", "steps")


@dataclass(frozen=True)
class Layout:
    """What the tables of one protocol show."""

    columns: Sequence[Column]
    """Behind method and noise."""
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
    protocol = results[0]["protocol"]
    if protocol not in LAYOUTS:
        raise ThoradError(
            f"The results are of the protocol {protocol!r}, which is not known: {', '.join(LAYOUTS)} are."
        )
    layout = LAYOUTS[protocol]
    compared_with = _references(results)
    reference = compared_with[0] if compared_with else None
    models = [MODEL] if len({result["model"] for result in results}) > 1 else []
    rows = [row for result in results for row in layout.rows(result)]
    if brief:
        label = Figure("", "label", brief=layout.label)
        labelled = [{"label": _label(row), **row} for row in rows]
        notes = [*layout.brief_notes(results[0]), *_brief_comparison(layout, reference)]
        return lay_out([label, *layout.columns], labelled, notes, reference=reference, brief=True)
    notes = [*layout.notes(results[0], _on_comparison(results[0], reference))]
    final = _final_notes(results)
    columns = [*METHOD, *models, STEPS, *layout.columns]
    if len(compared_with) < 2:
        return lay_out(columns, rows, [*notes, *final], reference=reference)
    floor = compared_with[1]
    below = [result for result in results if _compared(result, floor)]
    second = lay_out([*METHOD, *models, *layout.floor_columns], below, final, reference=floor)
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
    return Table(
        columns=[heading for column in columns for heading in column.headings(reference, brief)],
        rows=[[cell for column in columns for cell in column.cells(row, reference, brief)] for row in rows],
        notes=notes,
        text_columns=TEXT_COLUMNS,
        more=more,
    )


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
        f"Dice @ 1 % and 5 % FP (0 to 1, pooled over the lesion cases): the threshold is the smallest that at most 1 % "
        f"or 5 % of the pixels exceed in the {counts['healthy_cases']} healthy scans of this evaluation; no lesion "
        "label is used. AP and AUROC (0 to 1) need no threshold; they pool the pixels inside the model's region. Dice "
        f"also counts the {counts['lesion_pixels_outside_region']} of {counts['lesion_pixels']} lesion pixels outside "
        f"it, as missed. {comparison} CPU seconds are summed over all threads; a dash is a value that can't be "
        "computed here.",
    ]


def _brief_lesion_notes(first: Result) -> list[str]:
    return [
        "Best Dice takes its threshold from the test labels: an upper bound. 1% FP: Dice (0 to 1) at the threshold "
        "that 1 % of the pixels of healthy scans exceed. images: AUROC of diseased against healthy images. CPU s: of "
        "one case.",
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


def _brief_volume_notes(first: Result) -> list[str]:
    return [f"Threshold: {first['thresholds']['mean_dice_source']}."]


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


def _brief_box_notes(first: Result) -> list[str]:
    return [
        f"Threshold: {first['thresholds']['boxes_source']} exceed it.",
        "FROC: mean sensitivity at 1/8 to 8 false positives an image. images: AUROC.",
    ]


def _kind_rows(result: Result) -> list[Result]:
    """One row for each kind of box; what is of the whole method stands in the first, that of all kinds."""
    of_kind = {key: value for key, value in result.items() if key not in ("image_auroc", "cpu_seconds_per_case")}
    of_kind |= {"label": "", "intervals": {}, "versus": []}
    return [
        {**(result if kind == "all" else of_kind), **figures, "kind": kind} for kind, figures in result["kinds"].items()
    ]


LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "brain-lesions": Layout(
            label="best Dice, %",
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
            notes=_lesion_notes,
            brief_notes=_brief_lesion_notes,
        ),
        "brain-volumes": Layout(
            label="means over volumes",
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
            notes=_volume_notes,
            brief_notes=_brief_volume_notes,
        ),
        "boxes": Layout(
            label="method",
            rows=_kind_rows,
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
            notes=_box_notes,
            brief_notes=_brief_box_notes,
        ),
    }
)
"""Protocol -> what its tables show."""


def _references(results: Sequence[Result]) -> list[Result]:
    """The methods that others are compared with, as `versus` names them; none where there is only one method."""
    if len(results) < 2:
        return []
    return [{key: results[index].get(key) for key in ABOUT} for index in references(results)]


def _on_comparison(first: Result, reference: Result | None) -> str:
    """What is to be said of the intervals and, where methods are compared, of the p-values."""
    resamples = _counts(first)["bootstrap_resamples"]
    intervals = f"Intervals: 95 % percentile bootstrap over subjects, {resamples} resamples."
    if reference is None:
        return intervals
    return (
        f"{intervals} Differences from {title(reference)}: the same resamples for both; p is two-sided, from a "
        "permutation test that swaps the two methods' results within subjects, and not corrected for the number of "
        "comparisons."
    )


def _brief_comparison(layout: Layout, reference: Result | None) -> list[str]:
    figures = [column.brief for column in layout.columns if isinstance(column, Difference) and column.brief]
    if reference is None:
        return []
    return [f"diff. of {figures[0]}: to {_label(reference)}; p: permutation test within subjects."]


def _final_notes(results: Sequence[Result]) -> list[str]:
    """What a user asked for that no column says, and the cases that could not be used."""
    asked = sorted({(name, result[name]) for result in results for name in ASKED if name in result})
    notes = [f"{name.replace('_', ' ').capitalize()}: {value}." for name, value in asked]
    names = ", ".join(failure["name"] for failure in results[0]["failures"])
    return [*notes, f"Left out, because they could not be used: {names}."] if names else notes


def _compared(row: Result, reference: Result | None) -> list[Result]:
    """A row's comparisons with a reference, which may also say what a user asked for."""
    entries = row.get("versus", [])
    return [entry for entry in entries if reference is not None and reference.items() <= entry["reference"].items()]


def _label(result: Result) -> str:
    return " ".join(filter(None, (result["method"], result["noise"])))


def _entry(row: Result, path: str) -> tuple[bool, Any]:
    """Whether a row has an entry, and the entry."""
    value: Any = row
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value


def _counts(first: Result) -> Mapping[str, Any]:
    """The counts of a result; a dash for each that an earlier version did not write."""
    return defaultdict(lambda: "-", first["counts"])


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _bracketed(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
