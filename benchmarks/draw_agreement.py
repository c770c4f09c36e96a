"""How far the masks of two runs of `thorad detect` with other seeds agree, case by case.

thorad detect images/ --model calibrated --draws 2 --seed 0 -o one
thorad detect images/ --model calibrated --draws 2 --seed 1 -o other
python benchmarks/draw_agreement.py one other
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thorad.results.folder import CaseRecord, read_folder, read_pictures


def mask_of(case: CaseRecord) -> NDArray[np.bool_]:
    """The mask of a picture's case; the run needs a threshold."""
    (picture,) = read_pictures(case)
    assert picture.mask is not None, "no masks: give detect a calibrated model, or --threshold"
    return picture.mask


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    arguments = parser.parse_args()
    one, other = read_folder(arguments.one), read_folder(arguments.other)
    dice = []
    for case in one.cases:
        first, second = mask_of(case), mask_of(other.case(case.name))
        total = np.count_nonzero(first) + np.count_nonzero(second)
        dice.append(2 * np.count_nonzero(first & second) / total if total else 1.0)
    print(f"{len(dice)} cases, {one.options['draws']} draws")
    print(
        f"Dice between the runs' masks: mean {np.mean(dice):.2f}, median {np.median(dice):.2f}, lowest {min(dice):.2f}"
    )
    told = [case.draw_agreement for case in (*one.cases, *other.cases) if case.draw_agreement is not None]
    if told:
        print(f"Dice between the draws of a run: mean {np.mean(told):.2f}")


if __name__ == "__main__":
    main()
