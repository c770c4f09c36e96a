"""Find what is not healthy in one T1w head, in Python: a map on the head's own grid.

python examples/detect_volume.py HEAD.nii.gz --out anomaly_map.nii.gz
"""

import argparse
from pathlib import Path

import numpy as np

from thorad import Detector, detect_volume
from thorad.io.volumes import read_volume, write_nifti

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("head", type=Path, help="NIfTI, NRRD or MHA, in any orientation")
parser.add_argument("--out", type=Path, default=Path("anomaly_map.nii.gz"))
arguments = parser.parse_args()

volume = read_volume(arguments.head)
found = detect_volume(Detector(), volume)  # registered to MNI152, in the slices that the model knows
for warning in found.check.warnings:
    print("Warning:", warning)

voxel = np.unravel_index(np.nanargmax(found.anomaly_map), found.anomaly_map.shape)
x, y, z = (volume.affine @ [*voxel, 1])[:3]
print(f"score {found.score:.5f}, highest at ({x:.0f}, {y:.0f}, {z:.0f}) mm to the right, the front and the top")
write_nifti(arguments.out, found.anomaly_map, volume, f"NaN outside {found.where}")
