"""How a detection shows itself in a notebook: scan, pseudo-healthy twin and map over the scan, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from thorad.pictures import overlay, png_text, reduced, reduced_colours, reduced_shape

if TYPE_CHECKING:
    from thorad.check import Check
    from thorad.records import Detection

SIDE = 320
"""px, longest side of a picture."""


def result_html(result: Detection, overlay_maximum: float | None, title: str = "") -> str:
    """One picture's detection as HTML without scripts or links.

    Args:
        result: what was found.
        overlay_maximum: value of the map with the strongest colour; None: the map's own maximum.
        title: before the score; the case's name where not given.
    """
    maximum = overlay_maximum or max(float(result.anomaly_map.max()), 1e-9)
    height, width = reduced_shape(result.image.shape, SIDE)
    over = reduced_colours(overlay(result.image, result.anomaly_map, maximum), (width, height))
    pictures = {
        "scan": _grey(result.image),
        "pseudo-healthy": _grey(result.pseudo_healthy),
        f"map over the scan, colours to {maximum:.3g}": over,
    }
    cells = "".join(
        f'<figure style="display:inline-block;margin:0 8px 8px 0"><img alt="{escape(words)}" '
        f'src="data:image/png;base64,{png_text(pixels)}"><figcaption>{escape(words)}</figcaption></figure>'
        for words, pixels in pictures.items()
    )
    facts = [f"score {result.score:.4g}"]
    facts += [f"p = {result.p_value:.3g}"] if result.p_value is not None else []
    facts += [f"{len(result.findings)} findings"] if result.findings is not None else []
    facts += [f"draws agree: Dice {result.draw_agreement:.2f}"] if result.draw_agreement is not None else []
    return f"<div><p><b>{escape(title or result.name)}</b>: {', '.join(facts)}. Research use only.</p>{cells}</div>"


def check_html(check: Check) -> str:
    """What speaks against a result, a paragraph each; empty where nothing does."""
    reasons = [*(f"Forced: {reason}" for reason in check.refusals), *(f"Warning: {one}" for one in check.warnings)]
    return "".join(f"<p>{escape(reason)}</p>" for reason in reasons)


def volume_html(
    name: str,
    indices: Sequence[int],
    slices: Sequence[Detection],
    check: Check,
    overlay_maximum: float | None,
) -> str:
    """A volume's slices, one below the other."""
    return "".join(
        [
            check_html(check),
            *(
                result_html(detection, overlay_maximum, f"{name}, slice {index} (patient's right on the right)")
                for index, detection in zip(indices, slices, strict=True)
            ),
        ]
    )


def _grey(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(reduced(picture, SIDE), 0, 1)).astype(np.uint8)
