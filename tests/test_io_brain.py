"""The brain in a head: what of deepbet is ours."""

import sys
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from thorad.errors import ThoradError
from thorad.io import brain
from thorad.io.brain import find_brain


class Extraction:
    """Instead of deepbet's: everything above 0 is brain."""

    threads: int

    def __init__(self, no_gpu: bool) -> None:
        assert no_gpu

    def run(self, image: Any) -> tuple[Any, Any, float]:
        Extraction.threads = torch.get_num_threads()
        voxels = image.get_fdata()
        assert (voxels > 0).any(), "Not enough foreground"
        return image, nibabel.Nifti1Image((voxels > 0).astype(np.uint8), image.affine), 1.0


def test_the_network_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On several its last digits differ."""
    monkeypatch.setattr(brain, "_import_deepbet", lambda: SimpleNamespace(BrainExtraction=Extraction))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        head = np.zeros((4, 5, 6), dtype=np.float32)
        head[1:3, 2, 3] = 7
        np.testing.assert_array_equal(find_brain(head), head > 0)
        assert Extraction.threads == 1
        assert torch.get_num_threads() == 3
        assert not find_brain(-head).any()  # nothing like a brain
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_without_deepbet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepbet.bet", None)
    with pytest.raises(ThoradError, match=r"deepbet, which is not installed\. pip install 'thorad\[volumes\]'"):
        find_brain(np.ones((4, 4, 4), dtype=np.float32))
