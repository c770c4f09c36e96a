"""Make the paper's split lists, as thorad carries them, from those of its published code (github ci-ber/THOR_DDPM).

    python scripts/make_splits.py WRIST_SPLITS BRAIN_TRAINING.csv BRAIN_VALIDATION.csv --output src/thorad/assets/splits

WRIST_SPLITS is the folder data/wrist/splits of that repository, BRAIN_TRAINING data/CAPS_IXI/splits/
ixi-t1_atlas_train_2D.csv, BRAIN_VALIDATION its ixi-t1_val_2D.csv. Only file names are taken from them.
"""

import argparse
import csv
import gzip
import hashlib
import io
import re
from collections import Counter
from pathlib import Path

PARTS = ("train", "validation", "test")
KINDS = ("boneanomaly", "foreignbody", "fracture", "metal", "periostealreaction", "softtissue")
ARTEFACTS = (100, 105, 112, 121, 186, 189, 210, 214, 345, 382, 424, 425, 435, 434, 441, 462, 464, 472, 478, 504)
"""Numbers of the ATLAS slices that projects/thor/DownstreamEvaluatorAtlas.py skips for "large black artifacts"."""


def names(path: Path) -> list[str]:
    """The file names that a list holds, in its order."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row[0] for row in csv.reader(file)][1:]


def main() -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wrist", type=Path)
    parser.add_argument("training", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    wrist = []
    for part, file in zip((*PARTS, *KINDS), ("train_normal", "val_normal", "test_normal", *KINDS), strict=True):
        listed = Counter(Path(name).stem for name in names(arguments.wrist / f"{file}.csv"))  # once an annotation
        wrist += [(stem, part, count if part in KINDS else 0) for stem, count in sorted(listed.items())]
    brain = []
    for part, file in (("train", arguments.training), ("validation", arguments.validation)):
        for name in names(file):
            ixi, atlas = re.search(r"sub-(IXI\d+)_", name), re.search(r"Atlas_train_(\d+)\.png$", name)
            brain.append(("ixi", ixi[1], part) if ixi else ("atlas", atlas[1], part))
    brain += [("atlas", str(number), "artefact") for number in sorted(ARTEFACTS)]
    for file, header, rows in (
        ("wrist.csv.gz", ("image", "part", "annotations"), wrist),
        ("brain.csv", ("source", "name", "part"), brain),
    ):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        content = text.getvalue().encode()
        content = gzip.compress(content, 9, mtime=0) if file.endswith(".gz") else content
        (arguments.output / file).write_bytes(content)
        print(file, len(rows), "rows,", len(content), "bytes, sha256", hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
