"""The cases of an evaluation for the gallery's script: of each the maps of all methods, side by side, and the truth.

Methods differ in their units, so a page's map values are multiples of each method's own operating point: at 1 lies the
threshold that its figures are measured at.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.evaluation.kept import INDEX
from thorad.results.folder import Pictures, method_title
from thorad.results.gallery import COLOUR_MAPS, NO_PICTURES, encode_picture
from thorad.results.page import json_text

COLOURS_END: Final = 3.0
SLIDERS_END: Final = 10.0
"""Multiples of the operating point."""


def evaluation_gallery(
    folder: Path, results: Sequence[Mapping[str, Any]], largest: int
) -> tuple[dict[str, Any], list[str]] | None:
    """The index and the blocks of pictures, of at most `largest` bytes; None where the evaluation kept none.

    Args:
        folder: of `thorad evaluate`.
        results: of its metrics.json, in the order of its detectors.

    Raises:
        ThoradError: what it kept is damaged.
    """
    path = folder / INDEX
    if not path.is_file():  # of an earlier version, or of `thorad reproduce`
        return None
    try:
        kept = json.loads(path.read_bytes())
        entries = [_entry(number, case, results) for number, case in enumerate(kept)]
        blocks: list[str] = []
        for entry, case in zip(entries, kept, strict=True):
            blocks.append(_block(path.parent, case, entry["methods"], results))
            if sum(map(len, blocks)) > largest:
                blocks.pop()
                break
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ThoradError(f"{path}: damaged, or a file beside it is ({error!r}). Evaluate again.") from error
    for entry in entries[len(blocks) :]:
        entry |= NO_PICTURES
    return {
        "cases": entries,
        "threshold": 1.0,
        "start": 1.0,
        "maximum": COLOURS_END,
        "largest": SLIDERS_END,
        "unit": "times each method's threshold",
        "colours": COLOUR_MAPS,
        "scans": True,
        "judged": False,
        "truth": True,
        "diceAt": "",
        "side": "neurological",
    }, blocks


def operating_point(result: Mapping[str, Any]) -> tuple[float | None, str]:
    """The threshold that a result's Dice is honest at, and where it comes from; else that of its best Dice."""
    found = result.get("thresholds") or {}
    at_rate = found.get("dice_at_fpr") or {}
    candidates = (
        (found.get("mean_dice"), found.get("mean_dice_source")),
        (found.get("boxes"), found.get("boxes_source")),
        (at_rate.get("0.01"), f"which 1 % of healthy pixels exceed, from {found.get('dice_at_fpr_source')}"),
        ((found.get("best_dice") or {}).get("pooled"), "of the best Dice, chosen on the test labels: an upper bound"),
    )
    return next(((float(value), str(words)) for value, words in candidates if value), (None, "none: its highest value"))


def _entry(number: int, case: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    titles = [method_title(result) for result in results]
    several = Counter(titles)
    names = [
        f"{title}, {result['model']}" if several[title] > 1 else title
        for title, result in zip(titles, results, strict=True)
    ]
    side = int(case["maps"][0]["side"])
    return {
        **{"id": number, "name": str(case["name"]), "status": "ok", "forced": False, "message": "", "score": None},
        **{"p_value": None, "findings": None, "draw_agreement": None, "registration": None, "page": None},
        **{"truth": int(case["pixels"]), "size": case["size"], "dice": None, "places": []},
        **NO_PICTURES,
        **{"pictures": True, "width": side, "height": side, "methods": names},
    }


def _block(folder: Path, case: Mapping[str, Any], names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    encoded: list[dict[str, Any]] = []
    for kept, name, result in zip(case["maps"], names, results, strict=True):
        with np.load(folder / kept["map"], allow_pickle=False) as content:
            anomaly_map = content["map"]
        point, _ = operating_point(result)
        scan = _grey(folder / kept["scan"])
        truth = _grey(folder / kept["truth"]) > 0 if kept["truth"] else None
        unused = np.zeros((1, 1, 3), np.uint8)  # of an overlay, where there is no scan
        multiple = anomaly_map / (point or max(float(anomaly_map.max()), 1e-9))
        picture = Pictures(None, multiple.astype(np.float32), scan, unused, None, None, (), label=name)
        encoded.append(encode_picture(picture, int(kept["side"]), truth))
        if len(encoded) > 1 and encoded[-1]["width"] == encoded[0]["width"]:
            encoded[-1] |= {"scan": None, "truth": None}  # those of the first
    return json_text(encoded)


def _grey(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture, np.uint8)
