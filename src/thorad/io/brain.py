"""Where the brain is in a T1w head, by deepbet (Fisch et al. 2024): a small network whose weights come with it.

It is trained on adults' raw T1w heads, and sees 256 voxels along each axis, whatever the scan has; so the head comes
resampled to 1 mm, and a long series costs no more than a short one.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thorad.errors import ThoradError
from thorad.io.volumes import import_nibabel


def find_brain(head: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The brain in a head, one piece without holes. Deterministic.

    Args:
        head: (I, J, K), T1w, voxels of about 1 mm, axes along right, anterior and superior.

    Returns:
        (I, J, K); all False where there is nothing like a brain.

    Raises:
        ThoradError: deepbet is not installed.
    """
    deepbet = _import_deepbet()
    image = import_nibabel().Nifti1Image(head, np.eye(4))
    with _one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.load, which reads the weights
        try:
            _, mask, _ = deepbet.BrainExtraction(no_gpu=True).run(image)
        except (AssertionError, ValueError):  # how it says that nothing looks like a brain
            return np.zeros(head.shape, dtype=np.bool_)
    return np.asarray(mask.dataobj) > 0


def _import_deepbet() -> Any:
    try:
        return importlib.import_module("deepbet.bet")
    except ImportError as error:
        raise ThoradError(
            "registration needs deepbet, which is not installed. pip install 'thorad[volumes]'"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """On several threads the network's last digits differ."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
