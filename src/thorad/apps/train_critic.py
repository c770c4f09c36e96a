"""A critic for a model: healthy scans in, ``critic.safetensors`` in the model's folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only

from thorad.calibration import Calibration, read_calibrations
from thorad.errors import ThoradError
from thorad.io.atomic import write_atomic
from thorad.model import (
    CRITIC,
    Model,
    copy_model,
    has_critic,
    load_model,
    model_folder,
    own_folder,
    read_by_critics,
)
from thorad.recipe import CriticSection
from thorad.training.data import Images, Source, evenly_spread, open_images
from thorad.training.fit_critic import fit_critic

if TYPE_CHECKING:
    from thorad.critic.critic import Critic

TRAINING = "critic-training"
"""Folder in a model's for the checkpoints and logs of its critic."""

MOST_JUDGED = 64
"""Images of each part, evenly spread, that are compared with the model's kind of image."""

MOST_REFUSED = 0.1
"""Share of them that may be of another kind: some healthy scans lie badly."""


def train_critic_of(
    model: str | Path,
    section: CriticSection,
    train: Source,
    validation: Source,
    out: Path | None = None,
    **where: Any,
) -> tuple[Path, Critic]:
    """Fit a model's critic, or resume where an earlier fit stopped.

    Args:
        model: name of a bundled model, or a model folder.
        section: how to fit it.
        train: healthy images, as `thorad.training.fit.fit` takes them.
        validation: the same of other subjects.
        out: folder for a copy of the model; None is the model's own.
        where: accelerator, devices and progress_bar, as for `fit`.

    Returns:
        The model's folder, and the critic.

    Raises:
        ThoradError: images of another kind than the model's; it warns of itself and the folder has one that doesn't,
            which stays; as `own_folder`, `open_images` and `fit_critic`.
    """
    folder = own_folder(model, out)
    loaded = load_model(model)
    loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"critic": section}))
    made_for = read_by_critics(*loaded.statistics, loaded.region)
    images, held_out = open_images(train, validation, loaded.recipe, leave_out=folder)
    for what, given in (("training", images), ("validation", held_out)):
        _refuse_another_kind(loaded, given, what)
    copy_model(model_folder(model), folder, without=CRITIC)  # first: what was begun there can be resumed
    critic = fit_critic(loaded, images, held_out, folder / TRAINING, **where)
    _keep(critic, folder, critic.to_bytes({**critic.facts, "recipe": section.model_dump_json()}, made_for))
    return folder, critic


@rank_zero_only
def _keep(critic: Critic, folder: Path, content: bytes) -> None:
    """Put a critic, given also as its file's content, into a model's folder, unless a better one is there."""
    if critic.warning and has_critic(folder) and not load_model(folder).own_critic.warning:
        write_atomic(folder / TRAINING / CRITIC, content)
        raise ThoradError(
            f"{folder}: the new critic is not to be relied on ({critic.warning}), so the one that was there stays. The "
            f"new one is {folder / TRAINING / CRITIC}."
        )
    write_atomic(folder / CRITIC, content)


def _refuse_another_kind(model: Model, images: Images, what: str) -> None:
    """Raise where the model would refuse the images: from brains a critic of hands would learn that hands are ill."""
    domain, section, name = model.picture_domain, model.recipe.domain, model.recipe.name
    if domain is None:
        return
    used = evenly_spread(images, MOST_JUDGED)
    refused = [check for image in used if (check := domain.check(image[0].numpy(), section, name)).refusals]
    if len(refused) > MOST_REFUSED * len(used):
        raise ThoradError(
            f"{len(refused)} of {len(used)} {what} images are not what model {name!r} judges, of the first one: "
            f"{refused[0].message}. A critic learns from healthy images of its model's kind: give such, or train a "
            "model on these with `thorad train`."
        )


def outdated_calibrations(folder: Path) -> list[Calibration]:
    """Those that were made with another critic than the folder's, so that no detector takes them."""
    model = load_model(folder)
    known = read_calibrations(model.calibration, str(folder))
    return [each for each in known if each.options.get("critic_sha256") not in (None, model.own_critic.sha256)]
