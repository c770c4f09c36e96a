"""Find what is not healthy in one image, in Python.

python examples/detect_one.py SCAN.png --out anomaly_map.npy
"""

import argparse
from pathlib import Path

import numpy as np

from thorad import Detector

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("scan", type=Path)
parser.add_argument("--out", type=Path, default=Path("anomaly_map.npy"))
parser.add_argument("--model", default="brain-t1-compact", help="a bundled model's name or a model folder")
arguments = parser.parse_args()

detector = Detector(arguments.model)  # by the model's own method: its critic, or THOR where it has none
detection = detector.detect(arguments.scan)  # or an array, a tensor, a PIL image

row, column = np.unravel_index(detection.anomaly_map.argmax(), detection.anomaly_map.shape)
print(f"score {detection.score:.5f}, highest at row {row}, column {column}, {detection.network_calls} network calls")
np.save(arguments.out, detection.anomaly_map)  # (H, W) float32, on the scan's own grid
