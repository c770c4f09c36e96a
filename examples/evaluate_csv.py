"""Compare THOR with the z-score that needs no network, on images whose lesions are known, in Python.

The table has the columns image, mask (empty: healthy) and, if you have it, subject.

python examples/evaluate_csv.py CASES.csv --out results
"""

import argparse
from pathlib import Path

from thorad import Detector
from thorad.datasets.cases import read_cases
from thorad.evaluation.evaluate import baseline_warning, evaluate
from thorad.evaluation.tables import table_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("cases", type=Path)
parser.add_argument("--out", type=Path, default=Path("results"))
parser.add_argument("--model", default="brain-t1-compact", help="a bundled model's name or a model folder")
arguments = parser.parse_args()

detectors = [Detector(arguments.model, method=method, draws=1) for method in ("thor", "zscore")]
results = evaluate(read_cases(arguments.cases), [], detectors, arguments.out)
print(table_of(results).markdown())
print(baseline_warning(results) or "THOR is above the z-score here.")
