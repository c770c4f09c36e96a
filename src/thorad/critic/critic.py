"""Critics: networks that look at an image and its mirror image; and how a model's folder keeps them.

Shapes: B images on a grid of side S, in [0, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from thorad import __version__
from thorad.critic.network import CriticNetwork, Verdict
from thorad.errors import ThoradError

WARNING: Final = "warning"
"""The fact that `Critic.warning` is."""


class Judgement(NamedTuple):
    """What a critic says of images, (B, 1, S, S) each."""

    probability: Tensor
    """That a pixel is not healthy, in [0, 1]; 0 outside the region."""
    healthy: Tensor
    """In [0, 1]: the image without what is not healthy."""


class Critic(nn.Module):
    """Networks of one make, and the line that makes their logits probabilities.

    Args:
        networks: one or more; their mean logit counts.
        scale: probability = sigmoid(scale * logit + offset).
        offset: see scale.

    Attributes:
        sha256: of the file that it was read from; empty where it comes from none.
        facts: what made it, in words, as the file has it.
    """

    def __init__(self, networks: Sequence[CriticNetwork], scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.scale, self.offset, self.sha256 = scale, offset, ""
        self.facts: Mapping[str, str] = {}

    @property
    def warning(self) -> str:
        """Why nobody should rely on it; empty for most."""
        return self.facts.get(WARNING, "")

    @property
    def region(self) -> Tensor:
        """(S, S) bool: where it judges."""
        return self._first.region

    @property
    def _first(self) -> CriticNetwork:
        return cast(CriticNetwork, self.networks[0])

    @torch.no_grad()
    def logits(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean logit over networks and both sides of the image, and the mean healthy image, (B, 1, S, S) each."""
        verdicts = [network(image) for network in self.networks]
        verdicts += [Verdict(*(answer.flip(3) for answer in network(image.flip(3)))) for network in self.networks]
        logit, healthy = (torch.stack(answers).mean(dim=0) for answers in zip(*verdicts, strict=True))
        return logit, healthy.clamp(0, 1)

    def forward(self, image: Tensor) -> Judgement:
        """Judge images, (B, 1, S, S)."""
        logit, healthy = self.logits(image)
        healthy = torch.where(self.region, healthy, image)  # nothing taught it what lies outside
        return Judgement(torch.sigmoid(self.scale * logit + self.offset) * self.region, healthy)

    def to_bytes(self, facts: Mapping[str, str], made_for: str) -> bytes:
        """As a safetensors file, in bfloat16: the mean, deviation and region are the model's and not in it.

        Args:
            facts: what made it, in words, kept beside the numbers.
            made_for: sha256 of what it reads of the model, which must be the same where it is used.
        """
        state = {name: tensor.detach().cpu() for name, tensor in self.networks.state_dict().items()}
        kept = {
            name: tensor.to(torch.bfloat16 if tensor.is_floating_point() else tensor.dtype).contiguous()
            for name, tensor in state.items()
        }
        channels = [cast(nn.Sequential, block)[0].out_channels for block in self._first.down]
        numbers = {
            **{"networks": len(self.networks), "channels": channels},
            **{"scale": self.scale, "offset": self.offset, "made_for": made_for, "thorad": __version__},
            "facts": dict(facts),
        }
        return save(kept, metadata={"critic": json.dumps(numbers)})  # one entry: of several the order varies


def critic_from_bytes(
    content: bytes, source: str, mean: Tensor, standard_deviation: Tensor, region: Tensor, made_for: str
) -> Critic:
    """Read what `Critic.to_bytes` gave.

    Args:
        content: the file's.
        source: its name, for errors.
        mean: (1, S, S) of the model's training images.
        standard_deviation: (1, S, S) of them.
        region: (S, S) bool, the model's.
        made_for: as the model has it.

    Raises:
        ThoradError: damaged, or made for another model.
    """
    try:
        facts = _metadata(content)
        made = json.loads(facts.pop("critic"))
        facts = made.get("facts", facts)  # earlier versions had them beside the numbers
        networks = [
            CriticNetwork(mean, standard_deviation, region, channels=tuple(made["channels"]))
            for _ in range(int(made["networks"]))
        ]
        critic = Critic(networks, float(made["scale"]), float(made["offset"]))
        critic.networks.load_state_dict({name: _widened(tensor) for name, tensor in load(content).items()})
        if not all(bool(tensor.isfinite().all()) for tensor in critic.networks.state_dict().values()):
            raise ValueError("values that are not finite")
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ThoradError(
            f"{source}: damaged ({reason}). Take it from its source, or make it anew: thorad train-critic."
        ) from error
    if made["made_for"] != made_for:
        raise ThoradError(f"{source}: was made for another model. Make this model's own by thorad train-critic.")
    critic.sha256, critic.facts = hashlib.sha256(content).hexdigest(), facts
    return critic.eval().requires_grad_(False)


def _metadata(content: bytes) -> dict[str, str]:
    """Of a safetensors file: 8 bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
