"""Figures for publications from a result folder: the panels of THOR's figures 2 and 3, on one colour scale.

Shapes: H, W an image's own grid.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.pictures import COLOURS
from thorad.results.folder import CaseRecord, Pictures, match_truth, read_folder, read_pictures, truth_of

KINDS: Final = {".pdf": {"CreationDate": None}, ".png": {}, ".svg": {"Date": None}}
"""{suffix: metadata}: without the date, the same results give the same file."""
RESOLUTION: Final = 300  # dots an inch, of a PNG and of what is drawn within PDF and SVG
PANEL: Final = 1.35  # width of a panel, inches: five of them and the scale make a page's width
TRUTH, MASK = "#00a7bd", "#ffffff"

Layout = Literal["cases", "restoration"]
Layer = tuple[str, NDArray[Any], dict[str, Any]]
"""Method of matplotlib's axes, values and options."""
Row = dict[str, list[Layer]]
"""{title of the column: what is drawn in its panel, from below}; without layers the panel is empty."""


def write_figure(
    results: Path,
    names: Sequence[str],
    out: Path,
    *,
    layout: Layout = "cases",
    truth: Path | None = None,
    slice_number: int | None = None,
) -> None:
    """Draw cases of a result folder as panels and write them as PDF, PNG or SVG.

    Args:
        results, names: a folder of `thorad detect`, and its cases to draw, one row each.
        out: the file; its suffix says which kind.
        layout: cases: input, pseudo-healthy, map, overlay and truth (the paper's figure 3); restoration: the clean
            estimate over the map at every harmonised step, and at its end (figure 2), for a run that kept its steps.
        truth: table with columns image and mask, as `thorad evaluate` takes it.
        slice_number: of volumes, the slice in the template's grid; None: the one with the map's peak.

    Raises:
        ThoradError: an unknown suffix or case, no steps kept, a slice that isn't there, matplotlib not installed.
    """
    suffix = out.suffix.lower()
    if suffix not in KINDS:
        raise ThoradError(f"{out}: a figure ends in {', '.join(KINDS)}. Choose one of these.")
    import_matplotlib()  # an error before the work, not after it
    folder = read_folder(results)
    rows = match_truth(folder, truth) if truth else {}
    drawn: list[tuple[str, Row]] = []
    for name in names:
        picture = _chosen(read_pictures(folder.case(name)), slice_number, name)
        if layout == "restoration" and not picture.steps:
            raise ThoradError(f"{name}: the run kept no steps of its restoration. Detect again and keep them.")
        lesion = truth_of(rows[name], folder.case(name), [picture])[0] if name in rows else None
        rows_of = _case_rows if layout == "cases" else _restoration_rows
        drawn += rows_of(_label(folder.case(name), picture), picture, lesion, folder.maximum)
    buffer = io.BytesIO()
    _draw(drawn, folder.maximum).savefig(buffer, format=suffix[1:], dpi=RESOLUTION, metadata=KINDS[suffix])
    write_atomic(out, buffer.getvalue())


def _label(case: CaseRecord, picture: Pictures) -> str:
    return "\n".join([f"{case.name} (forced)" if case.forced else case.name, picture.label]).strip()


def _chosen(pictures: Sequence[Pictures], number: int | None, name: str) -> Pictures:
    if pictures[0].scan is None:
        raise ThoradError(f"{name}: made by a version that kept no scan. Detect again for a figure.")
    if number is None or pictures[0].slice_index is None:
        return max(pictures, key=lambda picture: float(picture.anomaly_map.max()))
    for picture in pictures:
        if picture.slice_index == number:
            return picture
    raise ThoradError(f"{name}: no slice {number}. There are {', '.join(each.label for each in pictures)}.")


def _case_rows(
    label: str, picture: Pictures, lesion: NDArray[np.bool_] | None, maximum: float
) -> list[tuple[str, Row]]:
    scan, anomaly_map = _grey(picture.scan), picture.anomaly_map
    # Alpha is the map itself: what it does not mark stays as it was.
    over = _coloured(anomaly_map, maximum, alpha=np.clip(anomaly_map / maximum, 0, 1))
    row = {
        "input": scan,
        "pseudo-healthy": _grey(picture.pseudo_healthy),
        "anomaly map": _coloured(anomaly_map, maximum),
        "overlay": [*scan, *over, *_outline(picture.mask, MASK, "dashed")],
        "truth": [] if lesion is None else [*scan, *_outline(lesion, TRUTH, "solid")],
    }
    return [(label, row)]


def _restoration_rows(
    label: str, picture: Pictures, lesion: NDArray[np.bool_] | None, maximum: float
) -> list[tuple[str, Row]]:
    """The clean estimates, and the maps below them."""
    scan, shape = _grey(picture.scan), picture.shape
    estimates: Row = {"input": scan}
    maps: Row = {"input": [*scan, *_outline(lesion, TRUTH, "solid")]}
    for step in picture.steps:
        estimates[f"t = {step.timestep}"] = _grey(_cut(step.clean, *shape))
        if step.anomaly_map is not None:
            maps[f"t = {step.timestep}"] = _coloured(_cut(step.anomaly_map, *shape), maximum)
    estimates["result"], maps["result"] = _grey(picture.pseudo_healthy), _coloured(picture.anomaly_map, maximum)
    return [(label, estimates), ("" if lesion is None else "truth", maps)]


def _draw(rows: Sequence[tuple[str, Row]], maximum: float) -> Any:
    """A matplotlib figure of the rows, with one scale for all maps; above its end the colour stays."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    titles = [title for title in rows[0][1] if any(row.get(title) for _, row in rows)]
    shapes = [row["input"][0][1].shape for _, row in rows]
    heights = [PANEL * shape[0] / shape[1] for shape in shapes]
    figure = import_matplotlib()(figsize=(PANEL * len(titles) + 0.6, sum(heights) + 0.35), layout="compressed")
    axes = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    for panels, (label, row) in zip(axes, rows, strict=True):
        for panel, title in zip(panels, titles, strict=True):
            panel.set(xticks=[], yticks=[], facecolor="black")
            panel.spines[:].set_visible(False)
            panel.set_visible(bool(row.get(title)))
            for method, values, options in row.get(title, []):
                getattr(panel, method)(values, **options)
        panels[0].set_ylabel(label, fontsize=7)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    colours = ScalarMappable(Normalize(0, maximum), _colour_map())
    scale = figure.colorbar(colours, ax=axes, shrink=0.8, aspect=40, extend="max", pad=0.01)
    scale.ax.tick_params(labelsize=6)
    scale.set_label("anomaly map", fontsize=7)
    return figure


def _grey(picture: NDArray[np.uint8] | None) -> list[Layer]:
    return [] if picture is None else [("imshow", picture, {"cmap": "gray", "vmin": 0, "vmax": 255})]


def _coloured(values: NDArray[np.float32], maximum: float, **options: Any) -> list[Layer]:
    return [("imshow", values, {"cmap": _colour_map(), "vmin": 0, "vmax": maximum, **options})]


def _outline(mask: NDArray[np.bool_] | None, colour: str, style: str) -> list[Layer]:
    if mask is None or not mask.any() or mask.all():
        return []
    return [("contour", mask, {"levels": [0.5], "colors": colour, "linewidths": 0.8, "linestyles": style})]


def _cut(picture: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """What of a square picture lies on the (H, W) image that was padded to the square."""
    share = len(picture) / max(height, width)
    top, left = (max(height, width) - height) // 2 * share, (max(height, width) - width) // 2 * share
    return picture[round(top) : round(top + height * share), round(left) : round(left + width * share)]


def _colour_map() -> Any:
    """Black at 0, then the colours of overlay.png."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("thorad", [(0, 0, 0), *(COLOURS / 255)])


def import_matplotlib() -> Any:
    """The class `matplotlib.figure.Figure`; a ThoradError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ThoradError("A figure needs matplotlib, which is not installed. pip install 'thorad[plots]'.") from error
    return Figure


def png_and_svg(figure: Any) -> dict[str, bytes]:
    """A figure of 200 dots an inch as the content of a file of each kind, {"png": ..., "svg": ...}, the SVG undated."""
    content = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        content[kind] = buffer.getvalue()
    return content
