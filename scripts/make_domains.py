"""Makes what the bundled models know of their training images beside the weights.

domain.safetensors, what their pictures look like; in calibration.json digests, so that nothing is measured on them.

    python scripts/make_domains.py brain-t1-compact,brain-t1-gaussian,brain-t1-patched IXI_TRAIN_FOLDER
    python scripts/make_domains.py hand-xray64 HAND_TRAIN_FOLDER

The folders hold the models' training images, as their cards name them; nothing else is used. The weights stay.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from thorad.io.atomic import write_atomic
from thorad.io.scans import find_scans
from thorad.model import CALIBRATION, DOMAIN, load_recipe_of, model_folder
from thorad.training.data import FileImages
from thorad.training.domain import learn_domain


def main() -> None:
    """Learn and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=lambda text: text.split(","))
    parser.add_argument("images", type=Path)
    arguments = parser.parse_args()
    scans = list(find_scans([arguments.images]).values())
    for model in arguments.models:
        recipe = load_recipe_of(model)
        images = FileImages(arguments.images, scans, recipe)
        domain = learn_domain(images, recipe)
        if domain is None:
            raise SystemExit(f"{arguments.images}: too few images")
        content = domain.to_bytes()
        folder = model_folder(model)
        write_atomic(folder / DOMAIN, content)
        calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
        calibration["trained_on"] = sorted(images.contents)
        write_atomic(folder / CALIBRATION, (json.dumps(calibration, indent=2) + "\n").encode())
        print(model, len(images.contents), "images", {test: domain.thresholds(test) for test in domain.healthy})


if __name__ == "__main__":
    main()
