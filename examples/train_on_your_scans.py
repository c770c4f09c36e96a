"""Train a model on your own healthy scans, all of one kind: the same organ, view and orientation.

Run it again after an interruption, and it resumes. `thorad train` does the same from the command line.

python examples/train_on_your_scans.py HEALTHY_SCANS --out training
thorad detect OTHER_SCANS --model training/model --out results
"""

import argparse
from pathlib import Path

from thorad import Recipe, fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("scans", type=Path, help="folder of healthy images")
parser.add_argument("--out", type=Path, default=Path("training"))
parser.add_argument("--size", type=int, default=64, help="side of the square that the model sees, px")
parser.add_argument("--width", type=int, default=64, help="of the network; a multiple of 32")
parser.add_argument("--steps", type=int, default=6000)
parser.add_argument("--accelerator", default="auto")
arguments = parser.parse_args()

# What isn't said here is as in the paper; `thorad models NAME` shows the whole recipe of a model.
recipe = Recipe.model_validate(
    {
        "name": "my-scans",
        "description": "Healthy scans of my own.",
        "image": {"size": arguments.size},
        "network": {
            "channels": (arguments.width, 2 * arguments.width),
            "attention": (False, True),
            "head_channels": arguments.width,
        },
        "noise": {"kinds": ("simplex",), "train_below": 500},  # restoration starts at 250
        "training": {"steps": arguments.steps, "learning_rate": 3e-4, "schedule": "cosine"},
    }
)
model = fit(recipe, arguments.scans, arguments.out, accelerator=arguments.accelerator)
print(f"The model is in {model}")
