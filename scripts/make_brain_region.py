"""Make the brain region of the bundled brain model from the ICBM 2009a template that nilearn's wheel carries.

    pip download --no-deps --dest wheels nilearn==0.14.1
    python scripts/make_brain_region.py wheels/nilearn-0.14.1-py3-none-any.whl --output src/thorad/assets/regions

Needs nibabel. Writes mni-brain-k95.png (8-bit, 0 and 255, 197 x 233 px of 1 mm: where the skull-stripped template is
not empty in slice k = 95, z = +23 mm, holes filled; anterior up, x ascending to the right, that is the subject's left
on the left) and provenance.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from scipy import ndimage

TEMPLATE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
AXIAL_SLICE = 95
SHAPE = (197, 233, 189)
ORIGIN_MM = (-98, -134, -72)


def main() -> None:
    """Read, cut, fill, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nilearn", type=Path, help="the wheel with the template")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with zipfile.ZipFile(arguments.nilearn) as wheel:
        template_file = wheel.read(TEMPLATE)
    template = nibabel.Nifti1Image.from_bytes(gzip.decompress(template_file))
    expected = np.eye(4)
    expected[:3, 3] = ORIGIN_MM
    if template.shape != SHAPE or not np.array_equal(template.affine, expected):
        raise SystemExit(f"{TEMPLATE}: shape {template.shape}, affine {template.affine}; not the grid of 2009a at 1 mm")

    brain = np.asarray(template.dataobj)[:, :, AXIAL_SLICE] > 0  # (x, y)
    region = ndimage.binary_fill_holes(brain.T[::-1])  # (y descending, x): anterior up
    if ndimage.label(region)[1] != 1:
        raise SystemExit(f"{TEMPLATE}: the brain is in several pieces in slice {AXIAL_SLICE}")

    arguments.output.mkdir(parents=True, exist_ok=True)
    asset = arguments.output / "mni-brain-k95.png"
    Image.fromarray(np.where(region, 255, 0).astype(np.uint8)).save(asset, optimize=True)
    provenance = {
        "asset": {
            "file": asset.name,
            "sha256": hashlib.sha256(asset.read_bytes()).hexdigest(),
            "pixels_in_region": int(region.sum()),
        },
        "made_by": "scripts/make_brain_region.py",
        "sources": [
            {
                "package": "nilearn",
                "version": "0.14.1",
                "content": "MNI ICBM 152 non-linear symmetric 2009a, T1, skull-stripped",
                "licence": "ICBM notice of McGill University, see README.md",
                "wheel": arguments.nilearn.name,
                "wheel_sha256": hashlib.sha256(arguments.nilearn.read_bytes()).hexdigest(),
                "file": TEMPLATE,
                "file_sha256": hashlib.sha256(template_file).hexdigest(),
            }
        ],
    }
    (arguments.output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()
