"""Fit a model's critic to healthy images, and say with which numbers its logits are probabilities."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from thorad.critic.critic import WARNING, Critic
from thorad.critic.network import CriticNetwork
from thorad.errors import ThoradError
from thorad.methods.critic import THRESHOLD
from thorad.methods.zscore import ZScoreOptions, zscore
from thorad.model import Model, read_by_critics
from thorad.recipe import CriticSection
from thorad.training.critic import CriticTraining, make_examples
from thorad.training.data import Images, TrainingData, claim, generator_at
from thorad.training.history import History
from thorad.training.loop import Loop, run_training
from thorad.training.progress import newest_checkpoint

COPIES: Final = 2
"""Examples that are made of each validation image, to tell probabilities by."""

LEAST_FOUND: Final = 0.1
"""Share of made-up anomalies' pixels below which a critic is warned of: those that come with thorad find half."""

MEASURED_ON: Final = "anomalies made up in healthy validation images, varied as the training's, the same ones each time"


def fit_critic(model: Model, train: Images, validation: Images, out: Path, **where: Any) -> Critic:
    """Fit the networks of `recipe.critic` one after the other, or resume in `out`.

    Args:
        model: whose mean, standard deviation and region the critic reads; `model.recipe.critic` says how it is fitted.
        train: healthy images, those of the model's training or others.
        validation: of other subjects: on anomalies made up in them the logits become probabilities.
        out: folder for checkpoints and logs, a folder for each network.
        where: accelerator, devices and progress_bar, as for `thorad.training.fit.fit`.

    Returns:
        The critic, with the facts that made it.

    Raises:
        ThoradError: `out` holds another training; an unfit image side, no validation images or statistics; it diverged.
    """
    section = model.recipe.critic
    _refuse_unfit(model, validation)
    claim(out, f"{section.model_dump_json()} {read_by_critics(*model.statistics, model.region)}", train, validation)
    networks: list[CriticNetwork] = []
    for number in range(section.networks):
        network, processes = _fit_network(model, number, train, validation, out / f"network-{number}", where)
        networks.append(network)
    critic = Critic(networks).eval()
    made_up = _judge_made_up(critic, validation, section)
    critic.scale, critic.offset = _line_of_probabilities(made_up)
    steps = f"{' and '.join(map(str, section.steps_of_networks))} steps of {section.batch_size * processes}"
    critic.facts = {
        "trained on": f"{len(train)} healthy images, {steps}",
        "validated on": f"{len(validation)} healthy images of other subjects",
        **how_good(critic, made_up),
        **_healthy_found(critic, validation),
        "made on": f"torch {torch.__version__}, {platform.machine()}",
    }
    return critic


def _refuse_unfit(model: Model, validation: Images) -> None:
    section, size = model.recipe.critic, model.recipe.image.size
    if size % section.multiple:
        raise ThoradError(
            f"model {model.recipe.name!r}: a critic of {len(section.channels)} levels needs an image side that is a "
            f"multiple of {section.multiple}, found {size}. Give critic.channels fewer levels."
        )
    if not len(validation):
        raise ThoradError("a critic needs validation images of other subjects, found none: give --validation.")


def _fit_network(
    model: Model, number: int, train: Images, validation: Images, out: Path, where: Mapping[str, Any]
) -> tuple[CriticNetwork, int]:
    """The network, and in how many processes it was fitted."""
    section = model.recipe.critic
    section = section.model_copy(update={"steps": section.steps_of_networks[number]})
    torch.manual_seed(section.seed + number)  # the one place where fresh weights are drawn
    network = _fresh_network(model)
    loop = Loop(
        section.steps,
        section.checkpoint_minutes,
        validate_every=section.validate_every,
        gradient_norm=section.gradient_norm,
        averaging=section.ema,
        precision=section.precision,
        **where,
    )
    as_trained = model.recipe.model_copy(update={"training": section, "critic": section})
    facts = {
        "training": f"critic of {model.recipe.name}, network {number + 1} of {section.networks}, in {out}",
        "images": f"{len(train)} to train on, {len(validation)} to validate on",
        "a step": f"{section.batch_size} images of {model.recipe.image.size} px",
    }
    data = TrainingData(as_trained, train, validation)
    settings = tomli_w.dumps({"critic": section.model_dump(mode="json")})
    history = History(out, facts, settings, batch_size=section.batch_size, measured_on=MEASURED_ON)
    training = CriticTraining(as_trained, network, number)
    trainer = run_training(training, data, loop, history)
    if trainer.world_size > 1:  # batch normalisation has means of each process's own images: those that are saved count
        checkpoint = newest_checkpoint(out / "checkpoints")
        assert checkpoint is not None, "a training that ended saved its last step"
        training.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    if not all(bool(weights.isfinite().all()) for weights in network.state_dict().values()):
        raise ThoradError(f"{out}: the training diverged, weights are not finite. Lower critic.learning_rate.")
    return network.eval(), trainer.world_size


def _fresh_network(model: Model) -> CriticNetwork:
    """A critic's network with fresh weights (from torch's global generator: seed it before).

    Raises:
        ThoradError: the model has no statistics.
    """
    mean, deviation = model.statistics
    region = torch.from_numpy(model.region)
    channels = model.recipe.critic.channels
    return CriticNetwork((mean + 1) / 2, deviation / 2, region, channels=channels)


class MadeUp(NamedTuple):
    """Pixels of the region in validation images with anomalies made up in them, (N,) each."""

    logits: NDArray[np.float64]
    zscores: NDArray[np.float32]
    """What the z-score, two-sided, says of them."""
    masks: NDArray[np.bool_]


def _judge_made_up(critic: Critic, validation: Images, section: CriticSection) -> MadeUp:
    network = cast(CriticNetwork, critic.networks[0])
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in range(len(validation)):
        generator = generator_at(section.seed, -1 - index, 1)
        copies = validation[index][None].expand(COPIES, -1, -1, -1)
        examples = make_examples(copies, critic.region, section.augmentation, generator)
        logit, _ = critic.logits(examples.image)
        statistics = ZScoreOptions(2 * network.mean - 1, 2 * network.deviation, critic.region, two_sided=True)
        distance = zscore(None, 2 * examples.image - 1, None, None, None, options=statistics).anomaly_map
        parts.append((logit.double(), distance, examples.mask))
    layers = (torch.cat(of_all)[..., critic.region].flatten().numpy() for of_all in zip(*parts, strict=True))
    return MadeUp(*layers)


def _line_of_probabilities(made_up: MadeUp) -> tuple[float, float]:
    """Scale and offset with which sigmoid(scale * logit + offset) is the share of pixels that are not healthy.

    Platt's scaling (Platt 1999): the loss weighs small anomalies up, which moves the logits.
    """
    line = LogisticRegression(C=1e6).fit(made_up.logits[:, None], made_up.masks)
    return float(line.coef_[0, 0]), float(line.intercept_[0])


def how_good(critic: Critic, made_up: MadeUp) -> dict[str, str]:
    """What a critic finds of made-up anomalies, in words; and a `WARNING` where that is next to nothing."""
    found = critic.scale * made_up.logits[made_up.masks] + critic.offset > math.log(THRESHOLD / (1 - THRESHOLD))
    precision, floor = (float(average_precision_score(made_up.masks, x)) for x in (made_up.logits, made_up.zscores))
    compared = f"average precision {precision:.3f}, that of the z-score {floor:.3f}"
    facts = {"made-up anomalies": f"{100 * found.mean():.0f} % of their pixels found; {compared}"}
    if precision <= floor:
        facts[WARNING] = f"it finds made-up anomalies no better than the z-score ({compared}): train it longer"
    elif found.mean() < LEAST_FOUND:
        facts[WARNING] = f"it finds {100 * found.mean():.0f} % of the pixels of made-up anomalies: train it longer"
    return facts


def _healthy_found(critic: Critic, healthy: Images) -> dict[str, str]:
    """What the critic finds, wrongly, in healthy images, in words."""
    probabilities = [critic(healthy[index][None]).probability[0, 0, critic.region] for index in range(len(healthy))]
    found = torch.stack(probabilities) > THRESHOLD
    share = f"{100 * float(found.float().mean()):.2f} % of the region in the validation images as they are"
    return {"healthy pixels found": f"{share}, in {int(found.any(dim=1).sum())} of {len(found)}"}
