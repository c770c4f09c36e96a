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
from thorad.results.reader import Pictures, match_truth, read_folder, read_pictures, truth_of

KINDS: Final = (".pdf", ".png", ".svg")
RESOLUTION: Final = 300
"""dots an inch, of a PNG and of what is drawn within PDF and SVG."""
PANEL: Final = 1.35
"""Width of a panel, inches: five of them and the scale make a page's width."""
TRUTH, MASK = "#00a7bd", "#ffffff"

Layout = Literal["cases", "restoration"]


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
        results: a folder of `thorad detect`.
        names: of the cases, one row each.
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
    import_matplotlib()  # its absence should be told before the work
    folder = read_folder(results)
    rows = match_truth(folder, truth) if truth else {}
    maximum = float(folder.run["overlay_maximum"])
    chosen: list[tuple[str, Pictures, NDArray[np.bool_] | None]] = []
    for name in names:
        picture = _chosen(read_pictures(folder.case(name)), slice_number, name)
        if picture.scan is None:
            raise ThoradError(f"{results}: made by a version that kept no scan. Detect again for a figure.")
        lesion = truth_of(rows[name], picture.shape) if name in rows and picture.slice_index is None else None
        chosen.append((name, picture, lesion))
    draw = _draw_cases if layout == "cases" else _draw_restoration
    figure = draw(chosen, maximum)
    buffer = io.BytesIO()
    # Without the date, the same results give the same file.
    when = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}[suffix]
    figure.savefig(buffer, format=suffix[1:], dpi=RESOLUTION, metadata=when)
    write_atomic(out, buffer.getvalue())


def _chosen(pictures: Sequence[Pictures], number: int | None, name: str) -> Pictures:
    if number is None or pictures[0].slice_index is None:
        return max(pictures, key=lambda one: float(one.anomaly_map.max()))
    for one in pictures:
        if one.slice_index == number:
            return one
    raise ThoradError(f"{name}: no slice {number}. There are {', '.join(one.label for one in pictures)}.")


def _draw_cases(cases: Sequence[tuple[str, Pictures, NDArray[np.bool_] | None]], maximum: float) -> Any:
    healthy = any(picture.pseudo_healthy is not None for _, picture, _ in cases)
    known = any(lesion is not None for _, _, lesion in cases)
    titles = [
        "input",
        *(["pseudo-healthy"] if healthy else []),
        "anomaly map",
        "overlay",
        *(["truth"] if known else []),
    ]
    figure, axes = _panels(len(cases), titles, [picture.anomaly_map.shape for _, picture, _ in cases])
    for row, (name, picture, lesion) in zip(axes, cases, strict=True):
        scan, anomaly_map = picture.scan, picture.anomaly_map
        for panel, title in zip(row, titles, strict=True):
            if title == "pseudo-healthy":
                _grey(panel, picture.pseudo_healthy)
            elif title == "anomaly map":
                panel.imshow(anomaly_map, cmap=_colour_map(), vmin=0, vmax=maximum)
            else:
                _grey(panel, scan)
            if title == "overlay":
                # Alpha is the map itself: what it does not mark stays as it was.
                strength = np.clip(anomaly_map / maximum, 0, 1)
                panel.imshow(anomaly_map, cmap=_colour_map(), vmin=0, vmax=maximum, alpha=strength)
                if picture.mask is not None:
                    _outline(panel, picture.mask, MASK, "dashed")
            if title == "truth" and lesion is not None:
                _outline(panel, lesion, TRUTH, "solid")
        row[0].set_ylabel(f"{name}\n{picture.label}".strip(), fontsize=7)
    _scale(figure, axes, maximum)
    return figure


def _draw_restoration(cases: Sequence[tuple[str, Pictures, NDArray[np.bool_] | None]], maximum: float) -> Any:
    without = [name for name, picture, _ in cases if not picture.steps]
    if without:
        raise ThoradError(f"{without[0]}: the run kept no steps of its restoration. Detect again and keep them.")
    times = [step.timestep for step in cases[0][1].steps]
    titles = ["input", *(f"t = {time}" for time in times), "result"]
    shapes = [picture.anomaly_map.shape for _, picture, _ in cases for _ in range(2)]
    figure, axes = _panels(2 * len(cases), titles, shapes)
    for number, (name, picture, lesion) in enumerate(cases):
        above, below = axes[2 * number], axes[2 * number + 1]
        _grey(above[0], picture.scan)
        _grey(below[0], picture.scan)
        if lesion is not None:
            _outline(below[0], lesion, TRUTH, "solid")
        for clean, map_panel, step in zip(above[1:-1], below[1:-1], picture.steps, strict=False):
            height, width = picture.anomaly_map.shape
            clean.imshow(_cut(step.clean, height, width), cmap="gray", vmin=0, vmax=255)
            if step.anomaly_map is None:
                map_panel.set_visible(False)
            else:
                map_panel.imshow(_cut(step.anomaly_map, height, width), cmap=_colour_map(), vmin=0, vmax=maximum)
        _grey(above[-1], picture.pseudo_healthy)
        below[-1].imshow(picture.anomaly_map, cmap=_colour_map(), vmin=0, vmax=maximum)
        above[0].set_ylabel(f"{name}\n{picture.label}".strip(), fontsize=7)
        below[0].set_ylabel("truth" if lesion is not None else "", fontsize=7)
    _scale(figure, axes, maximum)
    return figure


def _panels(rows: int, titles: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> tuple[Any, Any]:
    tall = [PANEL * shape[0] / shape[1] for shape in shapes]
    figure = import_matplotlib()(figsize=(PANEL * len(titles) + 0.6, sum(tall) + 0.35), layout="compressed")
    axes = figure.subplots(rows, len(titles), squeeze=False, height_ratios=tall)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[], facecolor="black")
        for side in panel.spines.values():
            side.set_visible(False)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    return figure, axes


def _scale(figure: Any, axes: Any, maximum: float) -> None:
    """One scale for all maps of the figure; above its end the colour stays."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = figure.colorbar(
        ScalarMappable(Normalize(0, maximum), _colour_map()), ax=axes, shrink=0.8, aspect=40, extend="max", pad=0.01
    )
    scale.ax.tick_params(labelsize=6)
    scale.set_label("anomaly map", fontsize=7)


def _grey(panel: Any, picture: NDArray[np.uint8] | None) -> None:
    if picture is None:
        panel.set_visible(False)
    else:
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255)


def _outline(panel: Any, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    if mask.any() and not mask.all():
        panel.contour(mask, levels=[0.5], colors=colour, linewidths=0.8, linestyles=style)


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
    """The class `matplotlib.figure.Figure`.

    Raises:
        ThoradError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ThoradError("A figure needs matplotlib, which is not installed. pip install 'thorad[plots]'.") from error
    return Figure
