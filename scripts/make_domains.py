"""Makes domain.safetensors of the bundled models: what their pictures look like.

    python scripts/make_domains.py brain-t1-compact,brain-t1-patched IXI_TRAIN_FOLDER
    python scripts/make_domains.py hand-xray64 HAND_TRAIN_FOLDER

The folders hold the models' training images, as their cards name them; nothing else is used. The weights stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from thorad.io.atomic import write_atomic
from thorad.io.scans import find_scans
from thorad.model import DOMAIN, load_recipe_of, model_folder
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
        domain = learn_domain(FileImages(arguments.images, scans, recipe), recipe)
        if domain is None:
            raise SystemExit(f"{arguments.images}: too few images")
        content = domain.to_bytes()
        write_atomic(model_folder(model) / DOMAIN, content)
        print(model, len(content), "bytes", {test: domain.thresholds(test) for test in domain.healthy})


if __name__ == "__main__":
    main()
