"""From any image to what is not healthy in it, on the image's own grid."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thorad import __version__
from thorad.calibration import Calibration, matching_calibration, read_calibrations
from thorad.diffusion.network import fast_precision
from thorad.diffusion.noise import NOISES, case_generator
from thorad.errors import ThoradError
from thorad.findings import findings_in
from thorad.io.images import Image, image_from_array
from thorad.io.intensity import scale
from thorad.io.preprocess import to_input_grid, to_model_input
from thorad.maps.anomaly_map import AnomalyMap, residual
from thorad.maps.perceptual import BUNDLED_WEIGHTS, load_perceptual_distance
from thorad.methods import METHODS, PUBLISHED, Method, Restoration, ZScoreOptions
from thorad.methods.contract import Compare, OnStep, Step
from thorad.methods.published import PublishedMap, published_scores
from thorad.model import Model, has_statistics, load_model, load_recipe_of
from thorad.recipe import Recipe
from thorad.records import Detection, StepPictures

Preset = Literal["published"]

Group = TypeVar("Group")
Made = TypeVar("Made")

DEFAULT_STEPS = {
    "thor": {"simplex": 1, "gaussian": 1},
    "thor+": {"simplex": 1},
    "anoddpm": {"simplex": 2},
    "ddpm": {"gaussian": 2},
    "autoddpm": {"gaussian": 4},
}
"""Timesteps visited by default: the fewest that cost at most 1 Dice point (docs/results.md)."""

COMPARED = ("thor", "thor+", "anoddpm", "pddpm", "autoddpm", "ddpm", "zscore")
"""The methods that an evaluation compares where none are named."""

SMALLEST_PERCEPTUAL = 17
"""px; SqueezeNet's pooling leaves nothing of a smaller image."""

HIGHEST_SHARE = 0.01
"""The share of a map's values, the highest ones, that makes an image's score."""


class Detector:
    """A model and a method, ready for images.

    Args:
        model: name of a bundled model, or a model folder.
        method: one of `thorad.methods.METHODS`.
        noise: "gaussian" or "simplex"; None is the method's default.
        steps: timesteps visited between noise and image, "all", or None for the measured default.
        noise_level: timestep T that the image is noised to, instead of the method's own; THOR then harmonises at those
            of its timesteps that are not above it.
        preset: "published" follows the published implementation's every step (`thorad.methods.published`), in float32,
            at all timesteps; None the papers.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        seed: of all noise. An image's noise depends on this seed and the image's name only.
        batch_size: images at once on an accelerator, in bfloat16 where it has that: there a result may depend on its
            batch in the last digits of bfloat16 (not measured). On a CPU every image goes by itself, on a thread of its
            own: a result is the same to the last bit whatever its batch and the number of threads.
        finish: go on below the last harmonised timestep for a finer pseudo-healthy image; the map doesn't change.
        perceptual_weights: a torchvision SqueezeNet 1.1 file for LPIPS instead of the model's own weights (an imported
            model's), or of the bundled ones.
        false_positives: share of healthy pixels that a detection's mask may hold, one of the model's calibration for
            these options; None is the smallest of them, or no mask where there is no such calibration.
        threshold: the mask is what is above this value of the map, whatever the calibration says.

    Raises:
        ThoradError: unknown model, method, preset, noise or device, a method that the preset doesn't have, a damaged
            model, one for images in [0, 1], steps out of range, weights that the method doesn't use, a calibration of
            another model, or none for the asked false positives, a threshold below 0 or beside false positives.
    """

    def __init__(
        self,
        model: str | Path = "brain-t1-compact",
        *,
        method: str = "thor",
        noise: str | None = None,
        steps: int | Literal["all"] | None = None,
        noise_level: int | None = None,
        preset: Preset | None = None,
        device: str = "auto",
        seed: int = 0,
        batch_size: int = 16,
        finish: bool = False,
        perceptual_weights: Path | None = None,
        false_positives: float | None = None,
        threshold: float | None = None,
    ) -> None:
        self._method = _method_of(method, preset)
        if batch_size < 1:
            raise ThoradError(f"the batch size is {batch_size}, expected 1 or more.")
        if threshold is not None and false_positives is not None:
            raise ThoradError("a threshold and a share of false positives were given: choose one of them.")
        self.method = method
        self.preset = preset
        self.perceptual_weights = perceptual_weights
        self.seed = seed
        self.finish = finish
        self.device = _device(device)
        self._together = batch_size if self.device.type != "cpu" else 1
        self.batch_size = batch_size if self.device.type != "cpu" else torch.get_num_threads()
        if perceptual_weights is not None and not self._method.perceptual:
            raise ThoradError(f"method {method!r} uses no LPIPS, but weights for it were given: {perceptual_weights}.")
        self.model: Model = load_model(model)
        _refuse_input_range(self.model.recipe)
        self.noise = self._noise_kind(noise)
        self.noise_level = noise_level
        self.steps = self._checked_steps(steps)
        self.options = self._options()
        if finish and not hasattr(self.options, "finish"):
            raise ThoradError(f"method {self.method!r} has no chain to finish; leave finish out.")
        self.network_calls = self.options.network_calls()
        self._network = self.model.network.to(self.device).requires_grad_(False)
        self._precision = torch.float32 if preset else fast_precision(self.device)
        self._compare: Compare = residual
        self._lpips_weights: Path | None = None
        if self._method.perceptual:
            if self.model_size < SMALLEST_PERCEPTUAL:
                raise ThoradError(
                    f"model {self.model.recipe.name!r} works on {self.model_size} px, but {method!r} needs LPIPS, "
                    f"which needs {SMALLEST_PERCEPTUAL} px or more. Use another method, or a larger image.size."
                )
            bundled = BUNDLED_WEIGHTS if preset else None
            self._lpips_weights = perceptual_weights or self.model.perceptual_weights or bundled
            perceptual = load_perceptual_distance(self._lpips_weights).to(self.device)
            maps: dict[str, Compare] = {
                "anomaly_map": AnomalyMap(perceptual),
                "published_map": PublishedMap(perceptual),
            }
            self._compare = maps.get(self._method.compare, perceptual)
        self._region = torch.from_numpy(self.model.region).to(self.device)
        self.calibrations = read_calibrations(self.model.calibration, f"model {self.model_name!r}")
        self.calibration: Calibration | None = matching_calibration(
            self.calibrations, self.provenance(), false_positives
        )
        self.false_positives = self.calibration.checked_rate(false_positives) if self.calibration else None
        self.threshold = self._checked_threshold(threshold)

    @property
    def model_name(self) -> str:
        """Name of the model, as its recipe has it."""
        return self.model.recipe.name

    @property
    def model_size(self) -> int:
        """Side S of the model's grid, px."""
        return self.model.recipe.image.size

    @property
    def precision(self) -> str:
        """What the network computes in: "bfloat16" or "float32"."""
        return str(self._precision).removeprefix("torch.")

    @property
    def region(self) -> NDArray[np.bool_]:
        """(S, S): where the model looks for anomalies; maps are 0 elsewhere."""
        return self.model.region

    @property
    def overlay_maximum(self) -> float:
        """Map value at which an overlay's colours end."""
        return self._method.overlay_maximum

    def provenance(self) -> dict[str, Any]:
        """What decides this detector's results, as run.json keeps it."""
        weights = self._lpips_weights
        return {
            "method": self.method,
            "preset": self.preset,
            "noise": self.noise,
            "steps": self.steps,
            "noise_level": self.noise_level,
            "finish": self.finish,
            "seed": self.seed,
            "model": self.model.recipe.name,
            "model_sha256": self.model.sha256,
            "perceptual_weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
            "settings_sha256": self._settings_sha256(),
            "device": self.device.type,
            "precision": self.precision,
            "batch_size": self._together,
            "thorad": __version__,
        }

    def detect(self, image: Image | NDArray[Any], on_step: OnStep | None = None) -> Detection:
        """Find what is not healthy in one image.

        Args:
            image: an `Image`, or pixels (H, W) of any scale; their 98th percentile becomes 1.
            on_step: called with the pictures of every step, on the model's grid (`thorad.methods.Step`).

        Raises:
            ThoradError: pixels that are not a finite, varying (H, W) picture.
        """
        image = image if isinstance(image, Image) else image_from_array(image)
        return next(iter(self.detect_batch([image], on_step)))

    def detect_batch(
        self, images: Sequence[Image], on_step: OnStep | None = None, *, keep_steps: bool = False
    ) -> Iterator[Detection]:
        """Find what is not healthy in several images; yields each as soon as it is done, in their order.

        Args:
            images: any number of them, of any sizes.
            on_step: as for `detect`; on a CPU several threads call it.
            keep_steps: keep the pictures of every step in the detections.
        """
        groups = [images[i : i + self._together] for i in range(0, len(images), self._together)]

        def found(group: Sequence[Image]) -> Iterable[Detection]:
            detections = self._detect_together(group, on_step, keep_steps)
            return list(detections) if self.device.type == "cpu" else detections  # a list is made on its own thread

        for detections in self._each(found, groups):
            yield from detections

    def _each(self, function: Callable[[Group], Made], groups: Sequence[Group]) -> Iterator[Made]:
        """The function of each group, in order: on a CPU several at once, each on one thread of its own.

        A small network keeps one core busy and two cores half; and on one thread a result doesn't depend on how many
        the machine has.
        """
        if self.device.type != "cpu":
            yield from map(function, groups)
            return
        workers = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(function, groups)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(workers)  # threads that are yet to come take the last number set

    def _detect_together(
        self, images: Sequence[Image], on_step: OnStep | None, keep_steps: bool
    ) -> Iterator[Detection]:
        steps: list[Step] = []

        def keep(step: Step) -> None:
            steps.append(step)
            if on_step is not None:
                on_step(step)

        began = time.perf_counter()
        inputs = [to_model_input(image.pixels, self.model_size) for image in images]
        x = torch.stack([pixels for pixels, _ in inputs])  # (B, 1, S, S)
        restoration = self._restore(x, [image.name for image in images], keep if keep_steps else on_step)
        maps = restoration.anomaly_map.cpu()
        scores = self.scores(maps)
        healthy = _to_unit(restoration.pseudo_healthy).cpu()
        seconds = (time.perf_counter() - began) / len(images)
        # One by one: the pictures of a batch of large images would fill the memory.
        for i, (image, (_, placement)) in enumerate(zip(images, inputs, strict=True)):
            anomaly_map = to_input_grid(maps[i, 0], placement)
            yield Detection(
                name=image.name,
                source=image.source,
                image=scale(image.pixels),
                anomaly_map=anomaly_map,
                pseudo_healthy=to_input_grid(healthy[i, 0], placement),
                score=float(scores[i]),
                network_calls=self.network_calls,
                seconds=seconds,
                steps=tuple(_pictures(step, i) for step in steps),
                overlay_maximum=self.overlay_maximum,
                **self._judged(anomaly_map, float(scores[i]), image.spacing),
            )

    def _judged(
        self, anomaly_map: NDArray[np.float32], score: float, spacing: tuple[float, float] | None
    ) -> dict[str, Any]:
        """What the threshold and the calibration say about a map on the input's grid and its score."""
        judged: dict[str, Any] = {}
        if self.calibration is not None:
            judged["p_value"] = self.calibration.p_value(score)
        if self.threshold is not None:
            judged["mask"] = anomaly_map > self.threshold
            judged["findings"] = findings_in(anomaly_map, judged["mask"], spacing)
        return judged

    def model_maps(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Anomaly maps on the model's grid, for evaluation.

        Args:
            x: (B, 1, S, S) in [0, 1].
            names: the cases' names, which seed their noise.

        Returns:
            (B, 1, S, S) >= 0, 0 outside the model's region.
        """

        def maps_from(start: int) -> Tensor:
            group = slice(start, start + self._together)
            return self._restore(x[group], names[group]).anomaly_map.cpu()

        return torch.cat(list(self._each(maps_from, range(0, len(x), self._together))))

    def scores(self, maps: Tensor) -> Tensor:
        """One number an image, (B,): the mean of the highest 1 % of the map's values in the model's region.

        The higher, the less healthy. On the development bench it tells sick from healthy better than the mean, which
        drowns a small lesion, and the maximum, which is one pixel's word (docs/results.md). The preset `published` has
        the mean of the whole map, as its source does.
        """
        if self.preset:
            return published_scores(maps)
        inside = maps[:, 0, self._region.to(maps.device)]  # (B, pixels in the region)
        return inside.topk(max(1, round(HIGHEST_SHARE * inside.shape[1])), dim=1).values.mean(1)

    @torch.inference_mode()
    def _restore(self, x: Tensor, names: Sequence[str], on_step: OnStep | None = None) -> Restoration:
        x = x.to(self.device) * 2 - 1  # the one place where [0, 1] becomes [-1, 1]
        generators = [case_generator(self.seed, name) for name in names]
        kinds = self.model.recipe.noise.kinds
        kind = torch.full((len(x),), kinds.index(self.noise) if self.noise in kinds else 0, device=self.device)

        def noise() -> Tensor:
            return NOISES[self.noise or kinds[0]](generators, self.model_size, self.model_size, self.device)

        def denoise(x_t: Tensor, t: int) -> Tensor:
            fast = self._precision != torch.float32
            with torch.autocast(self.device.type, dtype=self._precision, enabled=fast):
                eps: Tensor = self._network(x_t, torch.full((len(x_t),), t, device=self.device), kind)
            return eps

        restoration = self._method.restore(
            denoise, x, self.model.schedule, noise, self._compare, options=self.options, on_step=on_step
        )
        return replace(restoration, anomaly_map=restoration.anomaly_map * self._region)

    def _noise_kind(self, noise: str | None) -> Any:
        if noise is not None and not self._method.options:
            raise ThoradError(f"method {self.method!r} uses no noise, but {noise!r} was asked for.")
        return possible_noises(self.method, self.model.recipe, None if noise is None else [noise])[0]

    def _settings_sha256(self) -> str:
        """Of what else decides the map: the recipe that the weights belong to, and the method's own values."""
        recipe = self.model.recipe
        values = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        decided = [section.model_dump_json() for section in (recipe.image, recipe.network, recipe.noise)]
        decided += [
            f"{name}={value}"
            for name, value in values.items()
            if name != "finish" and not isinstance(value, Tensor)  # tensors are the model's; finish changes no map
        ]
        return hashlib.sha256("\n".join(decided).encode()).hexdigest()

    def _checked_threshold(self, threshold: float | None) -> float | None:
        """Where masks begin: the given value, or the calibration's; None where there is neither."""
        if threshold is None:
            if self.calibration is None or self.false_positives is None:
                return None
            return self.calibration.thresholds[self.false_positives]
        if not (threshold >= 0 and np.isfinite(threshold)):
            raise ThoradError(f"the threshold is {threshold:g}, expected a value of the map, 0 or above.")
        self.false_positives = None
        return threshold

    def _checked_steps(self, steps: int | str | None) -> Any:
        if self.preset:
            if steps not in (None, "all"):
                raise ThoradError(
                    f"steps is {steps!r}, but the preset {self.preset!r} visits all timesteps. Leave it out."
                )
            return "all"
        if self.method not in DEFAULT_STEPS:
            if steps is not None:
                raise ThoradError(f"method {self.method!r} has no steps to choose, but steps {steps} was asked for.")
            return None
        level = self.noise_level or self._method.options[self.noise].noise_level
        if steps is None:
            return min(DEFAULT_STEPS[self.method][self.noise], level)
        if steps != "all" and not (isinstance(steps, int) and 1 <= steps <= level):
            raise ThoradError(
                f"steps is {steps!r}, expected 'all' or a number from 1 to {level} (the noise level of {self.method})."
            )
        return steps

    def _options(self) -> Any:
        if not self._method.options:
            if self.noise_level is not None:
                raise ThoradError(
                    f"method {self.method!r} uses no noise, but the noise level {self.noise_level} was given."
                )
            return ZScoreOptions(*self.model.statistics, two_sided=self._method.two_sided)
        recipe, options = self.model.recipe, self._with_level(self._method.options[self.noise])
        trained = recipe.noise.train_below
        if options.noise_level >= trained:
            raise ThoradError(
                f"model {recipe.name!r} was trained below timestep {trained}; "
                f"{self.method} starts at {options.noise_level}."
            )
        steps = None if self.steps == "all" else self.steps
        decided: dict[str, Any] = {
            "steps": steps,
            "resample_steps": steps,
            "finish": self.finish,
            "size": self.model_size,
            "patch": recipe.noise.patch_noise,
        }
        known = {field.name for field in fields(options)}
        if "standard_deviation" in known:
            decided["standard_deviation"] = self.model.statistics[1]
        return replace(options, **{name: decided[name] for name in known & decided.keys()})

    def _with_level(self, options: Any) -> Any:
        if self.noise_level is None:
            return options
        at = tuple(t for t in getattr(options, "harmonise_at", ()) if t <= self.noise_level)
        lowest = min(getattr(options, "harmonise_at", (1,)))
        if self.noise_level < lowest:
            raise ThoradError(f"the noise level is {self.noise_level}, but {self.method} needs {lowest} or more.")
        return replace(options, noise_level=self.noise_level, **({"harmonise_at": at} if at else {}))


def _method_of(name: str, preset: str | None) -> Method:
    """A method of `METHODS`, or as a preset has it."""
    if name not in METHODS:
        raise ThoradError(f"unknown method {name!r}. Known: {', '.join(METHODS)}.")
    if preset is None:
        return METHODS[name]
    if preset != "published":
        raise ThoradError(f"unknown preset {preset!r}. Known: published.")
    if name not in PUBLISHED:
        raise ThoradError(f"the preset 'published' has no method {name!r}. It has {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def _refuse_input_range(recipe: Recipe) -> None:
    if recipe.image.input_range != "-1..1":
        raise ThoradError(
            f"model {recipe.name!r} is for images in {recipe.image.input_range}, but all methods work in -1..1, where "
            "the noise would be half as strong beside the image: its maps would be wrong. If the model was trained on "
            "-1..1 after all, import it anew with --input-range -1..1."
        )


def possible_noises(method: str, recipe: Recipe, asked: Sequence[str] | None = None) -> Sequence[str] | Sequence[None]:
    """The kinds of noise that a method can use with a model, the method's default first; [None] if it uses none.

    Args:
        method: one of `thorad.methods.METHODS`.
        recipe: the model's.
        asked: only these; None for all. Says nothing to a method without noise.

    Raises:
        ThoradError: unknown method or noise, or none of the kinds is possible.
    """
    if method not in METHODS:
        raise ThoradError(f"unknown method {method!r}. Known: {', '.join(METHODS)}.")
    unknown = [kind for kind in asked or () if kind not in NOISES]
    if unknown:
        raise ThoradError(f"unknown noise {unknown[0]!r}. Known: {', '.join(NOISES)}.")
    allowed = list(METHODS[method].options)
    if not allowed:
        return [None]
    patched = METHODS[method].patched
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
            f"{' or '.join(allowed)}, the model {recipe.name!r} was trained with {' and '.join(trained)}."
        )
    return possible


def uses_perceptual(method: str) -> bool:
    """Whether a method's map has LPIPS in it; False for an unknown method."""
    return method in METHODS and METHODS[method].perceptual


def comparison(
    models: Sequence[str | Path],
    methods: Sequence[str] | None = None,
    asked: Sequence[str] | None = None,
    *,
    preset: Preset | None = None,
) -> list[tuple[str | Path, str, Any]]:
    """What an evaluation compares: each method with each kind of noise on the first model that can do just that.

    Args:
        models: bundled names or folders, the first ones preferred.
        methods: of `thorad.methods.METHODS`; None: those of `COMPARED` that one of the models can do and the
            preset has.
        asked: only these kinds of noise; None for all.
        preset: as `Detector` takes it.

    Returns:
        (model, method, noise) of each detector; noise is None for a method without.

    Raises:
        ThoradError: unknown model, method or noise, or no model that can do a method that was named.
    """
    recipes = [load_recipe_of(model) for model in models]
    found: list[tuple[str | Path, str, Any]] = []
    if methods is None:
        wanted = [method for method in COMPARED if preset is None or method in PUBLISHED]
    else:
        wanted = list(methods)
    for method in wanted:
        refusals = []
        of_noise: dict[Any, str | Path] = {}
        for model, recipe in zip(models, recipes, strict=True):
            try:
                noises = possible_noises(method, recipe, asked)
                if METHODS[method].statistics and not has_statistics(model):
                    raise ThoradError(f"model {recipe.name!r} has no statistics, which method {method!r} needs.")
            except ThoradError as error:
                refusals.append(str(error))
            else:
                for noise in noises:
                    of_noise.setdefault(noise, model)
        if methods is not None and not of_noise:
            raise ThoradError(" ".join(refusals))
        found += [(model, method, noise) for noise, model in of_noise.items()]
    return found


def _pictures(step: Step, i: int) -> StepPictures:
    """Those of the batch's image i."""
    maps = step.anomaly_map
    return StepPictures(
        timestep=step.t,
        clean=_to_unit(step.clean[i, 0]).float().cpu().numpy(),
        anomaly_map=None if maps is None else maps[i, 0].float().cpu().numpy(),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ThoradError(f"device {name!r} can't be used here ({reason}). Try --device auto or cpu.") from error
    return device


def _to_unit(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)
