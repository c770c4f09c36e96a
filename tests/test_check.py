from pathlib import Path

import numpy as np
import pytest

from thorad import Check, Detector, RefusedError
from thorad.check import NOTHING_FOUND, check_marked
from thorad.io.images import Image


def test_the_worst_reason_is_the_status() -> None:
    assert Check().status == "ok"
    assert Check(warnings=("thick",)).status == "warned"
    both = Check(("a hand",), ("thick",)) + Check(("a hand", "upside down"))
    assert (both.status, both.message) == ("refused", "a hand; upside down; thick")


def test_what_is_refused_is_detected_in_only_by_force(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: Detector, image: Image) -> Check:
        return Check(("a hand",)) if image.name == "hand" else Check()

    monkeypatch.setattr(Detector, "check", check)
    pixels = np.random.default_rng(0).random((24, 24), dtype=np.float32)
    hand = Image(pixels, "hand.png", "hand")
    with pytest.raises(RefusedError, match=r"hand\.png: refused: a hand") as refused:
        Detector(tiny_model, method="zscore", device="cpu").detect(hand)
    assert refused.value.check.refusals == ("a hand",)
    forced = Detector(tiny_model, method="zscore", device="cpu", force=True).detect(hand)
    assert forced.check.status == "refused"
    assert "refused" in repr(forced)


def test_marks_on_more_than_any_sick_scan_at_hand_are_warned_of() -> None:
    judged, pixel = np.ones((10, 10), bool), np.arange(100).reshape(10, 10)
    assert check_marked(pixel < 40, judged) == check_marked(~judged, ~judged) == NOTHING_FOUND
    assert check_marked(None, judged) == NOTHING_FOUND
    (warning,) = check_marked(pixel < 69, judged).warnings
    assert warning.startswith("69 % of what was judged is marked: a very large lesion, or not the model's kind of scan")
