from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thorad.critic.critic import Critic, critic_from_bytes
from thorad.critic.network import CriticNetwork
from thorad.errors import ThoradError

SIDE = 32
CHANNELS = (4, 8)


def statistics(*, symmetric: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and region."""
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.rand(1, SIDE, SIDE, generator=generator), torch.full((1, SIDE, SIDE), 0.1)
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    region[4:-4, 4:-4] = True
    return (mean + mean.flip(2)) / 2 if symmetric else mean, deviation, region


def critic(*, networks: int = 2, symmetric: bool = False) -> Critic:
    torch.manual_seed(0)
    made = [CriticNetwork(*statistics(symmetric=symmetric), channels=CHANNELS) for _ in range(networks)]
    for network in made:
        network.out.weight.data.mul_(20)  # so that answers differ from pixel to pixel
    return Critic(made, scale=1.5, offset=0.25).eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_probabilities_in_the_region_and_a_healthy_image() -> None:
    judgement = critic()(images())
    region = statistics()[2]
    assert judgement.probability.shape == judgement.healthy.shape == (3, 1, SIDE, SIDE)
    assert not judgement.probability[..., ~region].any()
    inside = judgement.probability[..., region]
    assert 0 < inside.min() < inside.max() < 1
    assert judgement.healthy.min() >= 0
    assert judgement.healthy.max() <= 1


def test_the_line_makes_logits_probabilities() -> None:
    judge = critic()
    logit, _ = judge.logits(images())
    region = statistics()[2]
    expected = torch.sigmoid(1.5 * logit + 0.25)[..., region]
    torch.testing.assert_close(judge(images()).probability[..., region], expected)


def test_an_image_is_judged_by_itself() -> None:
    judge = critic()
    together = judge(images()).probability
    alone = torch.cat([judge(image[None]).probability for image in images()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_mirrored_images_get_mirrored_answers_where_anatomy_is_symmetric() -> None:
    judge = critic(symmetric=True)
    straight, mirrored = judge(images()), judge(images().flip(3))
    torch.testing.assert_close(straight.probability, mirrored.probability.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(straight.healthy, mirrored.healthy.flip(3), atol=1e-5, rtol=0)


def test_a_file_gives_the_same_critic_back() -> None:
    content = critic().to_bytes({"trained on": "nothing"}, "abc")
    once = critic_from_bytes(content, "critic.safetensors", *statistics(), "abc")
    again = critic_from_bytes(once.to_bytes({}, "abc"), "critic.safetensors", *statistics(), "abc")
    assert len(once.sha256) == 64
    assert once.facts == {"trained on": "nothing"}
    assert torch.equal(once(images()).probability, again(images()).probability)
    torch.testing.assert_close(once(images()).probability, critic()(images()).probability, atol=0.05, rtol=0)


def test_what_is_damaged_or_of_another_model_is_refused() -> None:
    content = critic().to_bytes({}, "abc")
    many = dict.fromkeys("abcdefgh", "a fact")
    assert len({critic().to_bytes(many, "abc") for _ in range(4)}) == 1, "the same file, the same sha256"
    assert critic_from_bytes(critic().to_bytes(many, "abc"), "x", *statistics(), "abc").facts == many
    with pytest.raises(ThoradError, match=r"x: was made for another model.*train-critic"):
        critic_from_bytes(content, "x", *statistics(), "abd")
    for damaged in (b"", b"nothing", content[: len(content) // 2], content.replace(b"channels", b"channelz")):
        with pytest.raises(ThoradError, match=r"x: damaged"):
            critic_from_bytes(damaged, "x", *statistics(), "abc")
    nan = critic()
    nan.networks[0].out.bias.data.fill_(torch.nan)
    with pytest.raises(ThoradError, match=r"x: damaged \(values that are not finite"):
        critic_from_bytes(nan.to_bytes({}, "abc"), "x", *statistics(), "abc")
