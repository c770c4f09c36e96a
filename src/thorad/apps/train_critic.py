"""A critic for a model: healthy scans in, ``critic.safetensors`` in the model's folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thorad.io.atomic import write_atomic
from thorad.model import CRITIC, copy_model, load_model, model_folder, own_folder, read_by_critics
from thorad.recipe import CriticSection
from thorad.training.data import Source, open_images
from thorad.training.fit_critic import fit_critic

if TYPE_CHECKING:
    from thorad.critic.critic import Critic

TRAINING = "critic-training"
"""Folder in a model's for the checkpoints and logs of its critic."""


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
        ThoradError: as `own_folder`, `open_images` and `fit_critic`.
    """
    folder = own_folder(model, out)
    loaded = load_model(model)
    loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"critic": section}))
    made_for = read_by_critics(*loaded.statistics, loaded.region)
    images, held_out = open_images(train, validation, loaded.recipe, leave_out=folder)
    copy_model(model_folder(model), folder, without=CRITIC)  # first: what was begun there can be resumed
    critic = fit_critic(loaded, images, held_out, folder / TRAINING, **where)
    write_atomic(folder / CRITIC, critic.to_bytes({**critic.facts, "recipe": section.model_dump_json()}, made_for))
    return folder, critic
