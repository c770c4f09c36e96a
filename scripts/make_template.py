"""Make the bundled template of registration from the ICBM 2009a template that nilearn's wheel carries.

    pip download --no-deps --dest wheels nilearn==0.14.1
    python scripts/make_template.py wheels/nilearn-0.14.1-py3-none-any.whl --output src/thorad/assets/templates

Needs nibabel. Writes mni152-2009a-t1-brain-2mm.nii.gz (8-bit, 99 x 117 x 95 voxels of 2 mm, RAS: every second voxel of
the 1 mm template after smoothing; 0 outside the brain, at least 1 inside) and provenance.json.
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
from scipy import ndimage

TEMPLATE = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SHAPE = (197, 233, 189)
ORIGIN_MM = (-98, -134, -72)
SPACING_MM = 2
SMOOTHING = 0.85  # standard deviation, voxels of 1 mm: a full width at half maximum of 2 mm


def main() -> None:
    """Read, smooth, take every second voxel, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nilearn", type=Path, help="the wheel with the template")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with zipfile.ZipFile(arguments.nilearn) as wheel:
        template_file = wheel.read(TEMPLATE)
    template = nibabel.Nifti1Image.from_bytes(gzip.decompress(template_file))
    affine = np.eye(4)
    affine[:3, 3] = ORIGIN_MM
    if template.shape != SHAPE or not np.array_equal(template.affine, affine):
        raise SystemExit(f"{TEMPLATE}: shape {template.shape}, affine {template.affine}; not the grid of 2009a at 1 mm")

    voxels = np.asarray(template.dataobj).astype(np.float32)
    brain = ndimage.binary_fill_holes(voxels > 0)
    if ndimage.label(brain)[1] != 1:
        raise SystemExit(f"{TEMPLATE}: the brain is in several pieces")
    every_second = (slice(None, None, SPACING_MM),) * 3
    smooth = ndimage.gaussian_filter(voxels, SMOOTHING)[every_second]
    inside = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTHING)[every_second] > 0.5
    small = np.where(inside, np.clip(np.rint(smooth), 1, 255), 0).astype(np.uint8)

    affine[:3, :3] *= SPACING_MM
    image = nibabel.Nifti1Image(small, affine)
    image.header.set_xyzt_units("mm")
    arguments.output.mkdir(parents=True, exist_ok=True)
    asset = arguments.output / "mni152-2009a-t1-brain-2mm.nii.gz"
    asset.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    provenance = {
        "asset": {
            "file": asset.name,
            "sha256": hashlib.sha256(asset.read_bytes()).hexdigest(),
            "voxels_in_brain": int(inside.sum()),
        },
        "made_by": "scripts/make_template.py",
        "sources": [
            {
                "package": "nilearn",
                "version": "0.14.1",
                "content": "MNI ICBM 152 non-linear symmetric 2009a, T1, skull-stripped",
                "licence": "ICBM notice of McGill University, see LICENSE-icbm.txt",
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
