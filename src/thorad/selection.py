"""Which methods and kinds of noise a model can do, told without loading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from thorad.diffusion import NOISES
from thorad.errors import ThoradError
from thorad.methods import METHODS
from thorad.methods.contract import Method, Request
from thorad.model import has_critic, has_statistics, load_model, load_recipe_of
from thorad.recipe import Recipe


def possible_noises(method: str, recipe: Recipe, asked: Sequence[str] | None = None) -> list[str] | list[None]:
    """The kinds of noise that a method can use with a model, the method's default first; [None] if it uses none.

    Args:
        method: one of `thorad.methods.METHODS`.
        recipe: the model's.
        asked: only these; None for all. Ignored by a method without noise.

    Raises:
        ThoradError: unknown method or noise, or none of the kinds is possible.
    """
    allowed, patched = METHODS[method].noises, METHODS[method].patched
    for kind in asked or ():
        if kind not in NOISES:
            raise ThoradError(f"unknown noise {kind!r}. Known: {', '.join(NOISES)}.")
    if not allowed:
        return [None]
    if (recipe.noise.patch_noise > 0, recipe.noise.prediction) != (patched, "clean" if patched else "noise"):
        needed = "prediction = 'clean' and a patch_noise" if patched else "prediction = 'noise' and no patch_noise"
        raise ThoradError(
            f"model {recipe.name!r} was trained with prediction = {recipe.noise.prediction!r}, patch_noise = "
            f"{recipe.noise.patch_noise}; method {method!r} needs a model with {needed}"
            f"{' (bundled: brain-t1-patched)' if patched else ''}."
        )
    trained = recipe.noise.trained_kinds
    possible = [kind for kind in allowed if kind in trained and (asked is None or kind in asked)]
    if not possible:
        raise ThoradError(
            f"method {method!r} with noise {' or '.join(asked or allowed)} is not possible: the method works with "
            f"{' or '.join(allowed)}, the model {recipe.name!r} was trained with {' and '.join(trained)}. "
            f"Methods for it: {', '.join(_methods_with(trained)) or 'none'}."
        )
    return possible


def _methods_with(noises: Sequence[str]) -> list[str]:
    """Methods that work with one of these kinds of noise."""
    return [name for name in METHODS if set(METHODS[name].noises) & set(noises) and not METHODS[name].published]


def methods_for(model: str | Path) -> list[tuple[str, str | None]]:
    """All that a model can do: (method, noise), in the order of `METHODS`; noise is None for a method without.

    Args:
        model: bundled name or folder.

    Raises:
        ThoradError: unknown model.
    """
    recipe = load_recipe_of(model)
    found: list[tuple[str, str | None]] = []
    for method in METHODS:
        try:
            found += [(method, noise) for noise in _noises_with(model, recipe, method)]
        except ThoradError:
            continue
    return found


def comparison(
    models: Sequence[str | Path], methods: Sequence[str] | None = None, asked: Sequence[str] | None = None
) -> list[tuple[str | Path, str, str | None]]:
    """What an evaluation compares: each method with each kind of noise on the first model that can do just that.

    Args:
        models: bundled names or folders, the first ones preferred.
        methods: of `thorad.methods.METHODS`; None: those that are `compared` and that one of the models can do.
        asked: only these kinds of noise; None for all.

    Returns:
        (model, method, noise) of each detector, the noises in their method's order; noise is None for a method without.

    Raises:
        ThoradError: unknown model, method or noise, or no model that can do a method that was named.
    """
    recipes = [load_recipe_of(model) for model in models]
    found: list[tuple[str | Path, str, str | None]] = []
    for method in [name for name in METHODS if METHODS[name].compared] if methods is None else methods:
        refusals = []
        of_noise: dict[str | None, str | Path] = {}
        for model, recipe in zip(models, recipes, strict=True):
            try:
                for noise in _noises_with(model, recipe, method, asked):
                    of_noise.setdefault(noise, model)
            except ThoradError as error:
                refusals.append(str(error))
        if methods is not None and not of_noise:
            raise ThoradError(" ".join(refusals))
        in_order = METHODS[method].noises or (None,)
        found += [(of_noise[noise], method, noise) for noise in in_order if noise in of_noise]
    return found


def default_method(model: str | Path) -> str:
    """The method of a model where nobody asks for one: its critic, THOR where it has none, or else the first that is
    possible.

    Raises:
        ThoradError: unknown model.
    """
    possible = [method for method, _ in methods_for(model)]
    return next((method for method in ("critic-only", "thor", *possible) if method in possible), "thor")


def default_network_calls(model: str | Path, method: Method, noise: str | None) -> int:
    """Network calls for one image of a method with its default options, of all draws.

    Raises:
        ThoradError: as the method's options.
    """
    recipe = load_recipe_of(model)
    loaded = load_model(model) if method.statistics or method.critic else None  # the others need no weights
    request = Request(
        method=method.name,
        noise=noise,
        noise_level=None,
        steps=method.default_steps.get(noise) if noise else None,
        finish=False,
        size=recipe.image.size,
        patch_noise=recipe.noise.patch_noise,
        statistics=loaded.statistics if loaded and method.statistics else None,
        region=torch.from_numpy(loaded.region) if loaded and method.statistics else None,
        judge=loaded.own_critic if loaded and method.critic else None,
    )
    return method.default_draws * method.options(request).network_calls()


def _noises_with(
    model: str | Path, recipe: Recipe, method: str, asked: Sequence[str] | None = None
) -> list[str] | list[None]:
    noises = possible_noises(method, recipe, asked)
    if METHODS[method].statistics and not has_statistics(model):
        raise ThoradError(f"model {recipe.name!r} has no statistics, which method {method!r} needs.")
    if METHODS[method].critic and not has_critic(model):
        raise ThoradError(f"model {recipe.name!r} has no critic, which method {method!r} needs (thorad train-critic).")
    return noises
