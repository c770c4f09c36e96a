"""From any image to what is not healthy in it, on the image's own grid."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thorad import __version__
from thorad.calibration import matching_calibration, read_calibrations
from thorad.check import Check, RefusedError, check_marked
from thorad.diffusion import ENGINES, FIRST_WAVELENGTH
from thorad.diffusion.engine import Engine
from thorad.diffusion.noise import case_generator
from thorad.domain.pictures import check_size
from thorad.domain.tags import check_tags
from thorad.errors import ThoradError
from thorad.findings import findings_in
from thorad.io.images import Image, looks_like_mask
from thorad.io.inputs import ImageLike, as_image
from thorad.io.preprocess import Placement, mask_to_model_grid, to_input_grid, to_model_grid
from thorad.maps.anomaly_map import AnomalyMap, residual
from thorad.maps.perceptual import BUNDLED_WEIGHTS, load_perceptual_distance
from thorad.maps.zscore import ALIGNED, detail_share
from thorad.methods import METHODS, Method, Request, Restoration, Step
from thorad.methods.contract import Compare, Options
from thorad.methods.contract import OnStep as OnBatchStep
from thorad.methods.published import PublishedMap
from thorad.methods.settings import settable, with_settings
from thorad.model import Model, load_model
from thorad.recipe import Recipe
from thorad.records import Detection, StepPictures, model_title
from thorad.selection import default_method, possible_noises

log = logging.getLogger("thorad.detector")

Group = TypeVar("Group")
Made = TypeVar("Made")

OnStep = Callable[[str, StepPictures], None]
"""Called with an image's name and the pictures of one step of its restoration."""

SMALLEST_PERCEPTUAL = 17
"""px; SqueezeNet's pooling leaves nothing of a smaller image."""

OWN_FALSE_POSITIVES = 0.05
"""The share of healthy pixels that a method's own threshold lets pass (AutoDDPM's, as in its paper)."""

HIGHEST_SHARE = 0.01
"""The share of a map's values, the highest ones, that makes an image's score."""


class Detector:
    """A model and a method, ready for images.

    Args:
        model: name of a bundled model, or a model folder.
        method: one of `thorad.methods.METHODS`; None is the model's own: its critic, or THOR where it has none
            or where an option is given that only a diffusion method has.
        noise: one of `thorad.diffusion.NOISES`; None is the method's default.
        steps: timesteps visited between noise and image, "all", or None for the method's default.
        noise_level: timestep T that the image is noised to, instead of the method's own; THOR then harmonises at those
            of its timesteps that are not above it.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        engine: what runs the network: one of `thorad.diffusion.ENGINES`, or an engine (`thorad.diffusion.engine`).
        seed: random seed for the noise. An image's noise depends on this seed and on what the image shows, not
            on its name or file; and the first of several draws is the one that one draw would be.
        batch_size: images at once on an accelerator, in bfloat16 where it has that: there a result may depend on its
            batch in the last digits of bfloat16 (not measured). On a CPU every image goes by itself, on a thread of its
            own: a result is the same to the last bit whatever its batch and the number of threads.
        draws: how often the method runs, each time with other noise; the map and the pseudo-healthy image are means.
            None is the method's default: 2 for a method with noise; 1 for one without, for the published ones, and for
            those that draw several times themselves.
        finish: go on below the last harmonised timestep for a finer pseudo-healthy image; the map doesn't change.
        perceptual_weights: a torchvision SqueezeNet 1.1 file for LPIPS instead of the model's own weights (an imported
            model's), or of the bundled ones.
        false_positives: share of healthy pixels that a detection's mask may hold, one of the model's calibration for
            these options; None is the smallest of them, where its threshold isn't below the method's own.
        threshold: the mask is what is above this value of the map, whatever the calibration says. Without either, a
            method whose map is a probability has a threshold of its own (`Method.own_threshold`).
        force: detect also in what the model can't judge (`check`); the detection says so.
        settings: values of the method's own options (the dataclass in its file), such as `{"threshold": 0.13}` for
            AutoDDPM or `{"window": 7}` for THOR.

    Attributes:
        warnings: what all its results may mean less for, such as a poor critic; also logged, by ``thorad.detector``.

    Raises:
        ThoradError: unknown model, method, noise, engine or device, a damaged model, one for images in [0, 1], steps
            or draws out of range, weights that the method doesn't use, a calibration of another model, or none for the
            asked false positives, a threshold below 0 or beside false positives.
    """

    def __init__(
        self,
        model: str | Path = "brain-t1-compact",
        *,
        method: str | None = None,
        noise: str | None = None,
        steps: int | Literal["all"] | None = None,
        noise_level: int | None = None,
        device: str = "auto",
        engine: str | Engine = "torch",
        seed: int = 0,
        batch_size: int = 16,
        draws: int | None = None,
        finish: bool = False,
        perceptual_weights: Path | None = None,
        false_positives: float | None = None,
        threshold: float | None = None,
        force: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ThoradError(f"the batch size is {batch_size}, expected 1 or more.")
        if noise_level is not None and noise_level < 1:
            raise ThoradError(f"the noise level is {noise_level}, expected a timestep of 1 or more.")
        if threshold is not None and false_positives is not None:
            raise ThoradError("a threshold and a share of false positives were given: choose one of them.")
        if method is None:
            for_diffusion = noise, steps, noise_level, draws, perceptual_weights, finish or None, settings or None
            method = default_method(model) if for_diffusion == (None,) * len(for_diffusion) else "thor"
        self._method: Method = METHODS[method]
        self.method, self.seed, self.finish, self.noise_level = method, seed, finish, noise_level
        self.perceptual_weights, self.force = perceptual_weights, force
        self.device = _device(device)
        on_cpu = self.device.type == "cpu"
        self._together, self.batch_size = (1, torch.get_num_threads()) if on_cpu else (batch_size, batch_size)
        self.model: Model = load_model(model)
        _refuse_input_range(self.model.recipe)
        self.noise = self._checked_noise(noise)
        self.steps = self._checked_steps(steps)
        self.draws = self._checked_draws(draws)
        self._defaults: Options = self._method_options()
        self.options: Options = with_settings(method, self._defaults, settings or {})
        self.network_calls = self.draws * self.options.network_calls()
        self.engine, self._engine = self._made_engine(engine)
        self._lpips_weights, self._compare = self._comparison(perceptual_weights)
        self._region = torch.from_numpy(self.model.region).to(self.device)
        self.warnings = self._model_warnings()
        for warning in self.warnings:
            log.warning(warning)
        self.calibrations = read_calibrations(self.model.calibration, f"model {self.model_name!r}")
        self._take_calibrated_threshold()
        self.calibration = matching_calibration(self.calibrations, self.provenance(), false_positives)
        self.false_positives = self.calibration.checked_rate(false_positives) if self.calibration else None
        self.threshold = self._checked_threshold(threshold, false_positives)

    def __repr__(self) -> str:
        """One line: model, method, noise, calls, engine and device."""
        noise = f", noise={self.noise!r}" if self.noise else ""
        return (
            f"Detector({model_title(self.provenance())!r}, method={self.method!r}{noise}, "
            f"network_calls={self.network_calls}, engine={self.engine!r}, device={str(self.device)!r})"
        )

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
        return self._engine.precision

    @property
    def region(self) -> NDArray[np.bool_]:
        """(S, S): where the model looks for anomalies; maps are 0 elsewhere."""
        return self.model.region

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own options that are not its defaults: given, or taken from the model's calibration."""
        values = settable(self.options)
        changed = {name: value for name, value in values.items() if value != getattr(self._defaults, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @property
    def overlay_maximum(self) -> float:
        """Map value at which an overlay's colours end."""
        return self._method.overlay_maximum

    def provenance(self) -> dict[str, Any]:
        """What decides this detector's results, as run.json keeps it."""
        weights = self._lpips_weights
        return {
            "method": self.method,
            "noise": self.noise,
            "steps": self.steps,
            "noise_level": self.noise_level,
            "draws": self.draws,
            "finish": self.finish,
            "seed": self.seed,
            "model": self.model.recipe.name,
            "model_sha256": self.model.sha256,
            "settings": self.settings or None,
            "critic_sha256": self.model.own_critic.sha256 if self._method.critic else None,
            "perceptual_weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
            "settings_sha256": self._settings_sha256(),
            "device": self.device.type,
            "engine": self.engine,
            "precision": self.precision,
            "batch_size": self._together,
            "thorad": __version__,
        }

    def check(self, image: ImageLike) -> Check:
        """Whether an image is what the model can judge: by its DICOM tags, and by the picture itself.

        It takes milliseconds. Where the model's folder doesn't say what its pictures look like (models of earlier
        versions, imported ones: `Model.picture_domain` is None), the tags and the size alone are judged.

        Args:
            image: as for `detect`.

        Raises:
            ThoradError: it can't be read, or scaled.
        """
        image = as_image(image)
        return check_tags(image.tags, self.model.recipe.domain, self.model_name) + self.check_picture(image)

    def check_picture(self, image: Image) -> Check:
        """`check` by the picture alone."""
        if looks_like_mask(image.pixels):
            values = np.unique(image.pixels).size
            return Check(refusals=(f"it has {values} values only, as a mask or segmentation has: expected a scan",))
        too_small = check_size(image.scaled.shape, self.model_size, self.model_name)
        if too_small.refusals or self.model.picture_domain is None:
            return too_small
        picture = to_model_grid(image.scaled, self.model_size)[0][0].numpy()
        return self.model.picture_domain.check(picture, self.model.recipe.domain, self.model_name)

    def _model_warnings(self) -> tuple[str, ...]:
        """A poor critic's own; and a method that goes by the spread at a place needs training images that lie alike."""
        found: list[str] = []
        if self._method.critic and (reason := self.model.own_critic.warning):
            critic = f"critic {self.model.own_critic.sha256[:12]} of model {self.model_name!r}"
            found.append(f"the {critic}, {self.model.critic_source}, is not to be relied on: {reason}")
        others = ("the critic", "thor") if self.model.critic else ("thor",)
        if self._method.statistics and (share := detail_share(*self.model.statistics)) < ALIGNED:
            found.append(
                f"the training images of model {self.model_name!r} don't lie on one another ({100 * share:.0f} % of "
                f"what differs in detail is common to them, expected {100 * ALIGNED:.0f} % or more), so what is usual "
                f"at a place means little, and method {self.method!r} goes by it: take {' or '.join(others)}"
            )
        return tuple(found)

    def detect(self, image: ImageLike, on_step: OnStep | None = None) -> Detection:
        """Find what is not healthy in one image.

        Args:
            image: a file's path, pixels (H, W) or (1, H, W) of any scale as NumPy array, torch Tensor or MONAI
                MetaTensor, a PIL image, or a `thorad.io.images.Image`; the pixels' 98th percentile becomes 1.
            on_step: called with the pictures of every step of the first draw, on the model's grid.

        Raises:
            RefusedError: it is not the model's kind of image, and the detector isn't forced.
            ThoradError: another type, a file that can't be read, pixels that are not a finite, varying picture.
        """
        return next(iter(self.detect_batch([image], on_step)))

    def detect_batch(
        self, images: Sequence[ImageLike], on_step: OnStep | None = None, *, keep_steps: bool = False
    ) -> Iterator[Detection]:
        """Find what is not healthy in several images; yields each as soon as it is done, in their order.

        Args:
            images: any number of them, of any sizes, each as `detect` takes it.
            on_step: as for `detect`; on a CPU several threads call it.
            keep_steps: keep the pictures of every step in the detections.

        Raises:
            RefusedError, ThoradError: as `detect`, at the first image that is to blame.
        """
        if isinstance(images, str | PathLike):
            raise ThoradError(f"detect_batch takes several images, found {images!r}. Put it in a list, or use detect.")
        groups = [images[i : i + self._together] for i in range(0, len(images), self._together)]

        def detected(group: Sequence[ImageLike]) -> Iterable[Detection]:
            detections = self._detect_together([as_image(image) for image in group], on_step, keep_steps)
            return list(detections) if self.device.type == "cpu" else detections  # a list is made on its own thread

        for detections in self._each(detected, groups):
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
        began = time.perf_counter()
        checks = [self.check(image) for image in images]
        for image, check in zip(images, checks, strict=True):
            if check.refusals and not self.force:
                raise RefusedError(image.source, check)
        inputs = [to_model_grid(image.scaled, self.model_size) for image in images]
        x = torch.stack([pixels for pixels, _ in inputs])  # (B, 1, S, S)
        kept: list[list[StepPictures]] = [[] for _ in images]

        def keep(step: Step) -> None:
            for image, its_steps, pictures in zip(images, kept, self._pictures(x, step), strict=True):
                if keep_steps:
                    its_steps.append(pictures)
                if on_step is not None:
                    on_step(image.name, pictures)

        restoration = self._restore(x, [image.name for image in images], keep if keep_steps or on_step else None)
        inside = torch.stack([self.inside(image) for image in images])
        maps = restoration.anomaly_map.cpu() * inside
        drawn = [each.cpu() * inside for each in restoration.draw_maps]
        draw_maps = torch.stack(drawn) if drawn else None
        spreads = None if draw_maps is None else draw_maps.std(dim=0)
        scores = self.scores(maps, inside)
        healthy = _to_unit(restoration.pseudo_healthy).cpu()
        seconds = (time.perf_counter() - began) / len(images)
        # One by one: the pictures of a batch of large images would fill the memory.
        for i, (image, (_, placement)) in enumerate(zip(images, inputs, strict=True)):
            if not (maps[i].isfinite().all() and healthy[i].isfinite().all()):  # of such a map nothing is marked
                raise ThoradError(f"{image.source}: the map is not finite. Is the model damaged?")
            anomaly_map, score = to_input_grid(maps[i, 0], placement), float(scores[i])
            mask = None if self.threshold is None else anomaly_map > self.threshold
            judged = to_input_grid(inside[i, 0], placement) >= 0.5
            marked = check_marked(mask, judged)
            yield Detection(
                name=image.name,
                source=image.source,
                image=image.scaled,
                anomaly_map=anomaly_map,
                pseudo_healthy=to_input_grid(healthy[i, 0], placement),
                score=score,
                network_calls=self.network_calls,
                seconds=seconds,
                p_value=None if self.calibration is None else self.calibration.p_value(score),
                mask=mask,
                findings=None if mask is None else findings_in(anomaly_map, mask, image.pixel_mm2),
                spread=None if spreads is None else to_input_grid(spreads[i, 0], placement),
                draw_masks=self._masks([] if draw_maps is None else draw_maps[:, i, 0], placement),
                steps=tuple(kept[i]),
                overlay_maximum=self.overlay_maximum,
                spacing=image.spacing,
                check=checks[i] + marked,
                judged=judged,
            )

    def _masks(self, maps: Iterable[Tensor], placement: Placement) -> tuple[NDArray[np.bool_], ...]:
        """Of maps on the model's grid, on the image's own: what is above the threshold; none without one."""
        if self.threshold is None:
            return ()
        return tuple(to_input_grid(each, placement) > self.threshold for each in maps)

    def learned(self, images: Mapping[str, Tensor]) -> list[str]:
        """The names of those (1, S, S) images in [0, 1] that its model is known to have been trained on."""
        return self.model.learned(images.items())

    def model_maps(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Anomaly maps on the model's grid, for calibration; as `model_restorations`."""
        return self.model_restorations(x, names)[0]

    def model_restorations(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Anomaly maps and pseudo-healthy images on the model's grid, for evaluation.

        Args:
            x: (B, 1, S, S) in [0, 1].
            names: of the cases, for messages.

        Returns:
            (B, 1, S, S) >= 0, 0 outside the model's region; (B, 1, S, S) in [0, 1].
        """

        def restored_from(start: int) -> Restoration:
            group = slice(start, start + self._together)
            return self._restore(x[group], names[group])

        groups = list(self._each(restored_from, range(0, len(x), self._together)))
        maps = torch.cat([group.anomaly_map.cpu() for group in groups])
        return maps, torch.cat([_to_unit(group.pseudo_healthy).cpu() for group in groups])

    def inside(self, image: Image) -> Tensor:
        """(1, S, S) bools: where an anomaly counts, which is the model's region, and of a slice the subject's brain."""
        region = torch.from_numpy(self.model.region)[None]
        if image.brain is None:
            return region
        return region & torch.from_numpy(mask_to_model_grid(image.brain, self.model_size))

    def scores(self, maps: Tensor, inside: Tensor | None = None) -> Tensor:
        """One number an image, (B,): the mean of the highest 1 % of the map's values where an anomaly counts.

        The higher, the less healthy. On the development bench it tells sick from healthy better than the mean, which
        drowns a small lesion, and the maximum, which is one pixel's word (docs/results.md). The published methods have
        the mean of the whole map, as their source does.

        Args:
            maps: (B, 1, S, S).
            inside: (B, 1, S, S) bools, of `inside`; None: the model's region. Where nothing counts the score is 0.
        """
        if self._method.published:
            return maps.mean(dim=(1, 2, 3))
        region = self._region.to(maps.device).expand(maps.shape) if inside is None else inside
        return torch.stack([_score(values[where]) for values, where in zip(maps, region, strict=True)])

    def _restore(self, x: Tensor, names: Sequence[str], on_step: OnBatchStep | None = None) -> Restoration:
        """The mean of the draws; their maps beside it, where there are several."""
        draws = [self._draw(x, names, draw, None if draw else on_step) for draw in range(self.draws)]
        if len(draws) == 1:
            return draws[0]
        maps = tuple(each.anomaly_map for each in draws)
        healthy = torch.stack([each.pseudo_healthy for each in draws]).mean(dim=0)
        return Restoration(torch.stack(maps).mean(dim=0), healthy, draw_maps=maps)

    @torch.inference_mode()
    def _draw(self, x: Tensor, names: Sequence[str], draw: int, on_step: OnBatchStep | None) -> Restoration:
        generators = [case_generator(self.seed, picture, draw) for picture in x]
        x = x.to(self.device) * 2 - 1  # the one place where [0, 1] becomes [-1, 1]
        kinds = self.model.recipe.noise.kinds
        draw_noise = self.model.recipe.draw_noise(self.noise or kinds[0])
        kind = torch.full((len(x),), kinds.index(self.noise) if self.noise in kinds else 0, device=self.device)
        trained_on = range(self.model.recipe.noise.train_from, self.model.recipe.noise.train_below)

        def noise() -> Tensor:
            drawn: Tensor = draw_noise(generators, self.model_size, self.model_size, self.device)
            return drawn

        def denoise(x_t: Tensor, t: int) -> Tensor:
            if t not in trained_on:
                raise ThoradError(
                    f"method {self.method!r} asks for timestep {t}, but model {self.model_name!r} was trained on those "
                    f"from {trained_on.start} to {trained_on.stop - 1}. Give other steps, or another noise level."
                )
            return self._engine(x_t, torch.full((len(x_t),), t, device=self.device), kind)

        try:
            made = self._method.restore(
                denoise, x, self.model.schedule, noise, self._compare, options=self.options, on_step=on_step
            )
            made_of = (made.anomaly_map, made.pseudo_healthy, *made.draw_maps)
            odd = [tuple(each.shape) for each in made_of if each.shape != x.shape]
        except (ThoradError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of a method, noise, network or engine, which may be anybody's
            raise ThoradError(
                f"method {self.method!r} failed on {names[0]}: {type(error).__name__}: {error}"
            ) from error
        if odd:
            raise ThoradError(
                f"method {self.method!r} made an anomaly map or a pseudo-healthy image of {odd[0]}, expected "
                f"{tuple(x.shape)}."
            )
        maps = tuple(each * self._region for each in made.draw_maps)
        return replace(made, anomaly_map=made.anomaly_map * self._region, draw_maps=maps)

    def _pictures(self, x: Tensor, step: Step) -> list[StepPictures]:
        """Those of each image of the batch x, (B, 1, S, S) in [0, 1]."""
        cleans = _to_unit(step.clean)[:, 0].float().cpu().numpy()  # (B, S, S)
        maps = [None] * len(cleans)
        if step.anomaly_map is not None:
            maps = list((step.anomaly_map * self._region)[:, 0].float().cpu().numpy())
        return [StepPictures(step.t, *of_image) for of_image in zip(x[:, 0].numpy(), cleans, maps, strict=True)]

    def _checked_noise(self, noise: str | None) -> str | None:
        if noise is not None and not self._method.noises:
            raise ThoradError(f"method {self.method!r} uses no noise, but {noise!r} was asked for.")
        return possible_noises(self.method, self.model.recipe, None if noise is None else [noise])[0]

    def _checked_steps(self, steps: int | str | None) -> int | Literal["all"] | None:
        """The number of timesteps that are visited; None where the method has none to choose."""
        if self._method.published:
            if steps not in (None, "all"):
                raise ThoradError(
                    f"steps is {steps!r}, but method {self.method!r} visits all timesteps, as the published code does. "
                    "Leave it out."
                )
            return "all"
        if self.noise is None or self.noise not in self._method.default_steps:
            if steps is not None:
                raise ThoradError(f"method {self.method!r} has no steps to choose, but steps {steps} was asked for.")
            return None
        level = self._level(self.noise)
        if steps is None:
            return min(self._method.default_steps[self.noise], level)
        if steps == "all":
            return "all"
        if not (isinstance(steps, int) and 1 <= steps <= level):
            raise ThoradError(
                f"steps is {steps!r}, expected 'all' or a number from 1 to {level} (the noise level of {self.method})."
            )
        return steps

    def _level(self, noise: str) -> int:
        """The timestep that images are noised to: as asked, or the method's own for this noise."""
        return self.noise_level or self._method.noise_levels[noise]

    def _checked_draws(self, draws: int | None) -> int:
        if draws is None:
            return self._method.default_draws
        if draws < 1 or (draws > 1 and self.noise is None):
            expected = "1, for the method draws no noise" if self.noise is None else "1 or more"
            raise ThoradError(f"draws is {draws}, expected {expected} (method {self.method!r}).")
        return draws

    def _method_options(self) -> Options:
        """The method's own options for what was asked for and this model."""
        if self.noise_level is not None and self.noise is None:
            raise ThoradError(
                f"method {self.method!r} uses no noise, but the noise level {self.noise_level} was given."
            )
        if self.finish and not self._method.can_finish:
            raise ThoradError(f"method {self.method!r} has no chain to finish; leave finish out.")
        recipe = self.model.recipe
        level = None if self.noise is None else self._level(self.noise)
        if level is not None and level >= recipe.noise.train_below:
            raise ThoradError(
                f"model {recipe.name!r} was trained below timestep {recipe.noise.train_below}; "
                f"{self.method} starts at {level}."
            )
        request = Request(
            method=self.method,
            noise=self.noise,
            noise_level=level,
            steps=self.steps if isinstance(self.steps, int) else None,
            finish=self.finish,
            size=self.model_size,
            patch_noise=recipe.noise.patch_noise,
            statistics=self.model.statistics if self._method.statistics else None,
            region=torch.from_numpy(self.model.region) if self._method.statistics else None,
            judge=self.model.own_critic.to(self.device) if self._method.critic else None,
        )
        return self._method.options(request)

    def _take_calibrated_threshold(self) -> None:
        """Take the method's own threshold from the model's calibration, unless it was given or there is none."""
        source = self._method.threshold_from
        if not source or getattr(self.options, "threshold", None) is not None:
            return
        decided = ("noise", "steps", "noise_level", "perceptual_weights_sha256")
        wanted = {"method": source, "draws": 1} | {name: self.provenance()[name] for name in decided}
        for calibration in self.calibrations:
            if wanted.items() <= {"draws": 1, **calibration.options}.items():
                self.options = replace(self.options, threshold=calibration.thresholds[OWN_FALSE_POSITIVES])  # type: ignore[type-var]  # Options are dataclasses
                return

    def _made_engine(self, engine: str | Engine) -> tuple[str, Engine]:
        """The engine's name, and the engine."""
        if not isinstance(engine, str):
            return getattr(engine, "__name__", type(engine).__name__), engine
        make = ENGINES[engine]
        full_precision = self._method.published
        made = make(self.model.network, size=self.model_size, device=self.device, full_precision=full_precision)
        return engine, made

    def _comparison(self, perceptual_weights: Path | None) -> tuple[Path | None, Compare]:
        """LPIPS's weights, where they are not the bundled ones by default, and what compares two images."""
        if not self._method.perceptual:
            if perceptual_weights is not None:
                raise ThoradError(
                    f"method {self.method!r} uses no LPIPS, but weights for it were given: {perceptual_weights}."
                )
            return None, residual
        if self.model_size < SMALLEST_PERCEPTUAL:
            raise ThoradError(
                f"model {self.model_name!r} works on {self.model_size} px, but {self.method!r} needs LPIPS, "
                f"which needs {SMALLEST_PERCEPTUAL} px or more. Use another method, or a larger image.size."
            )
        bundled = BUNDLED_WEIGHTS if self._method.published else None
        weights = perceptual_weights or self.model.perceptual_weights or bundled
        perceptual = load_perceptual_distance(weights).to(self.device)
        maps: dict[str, Compare] = {
            "perceptual": perceptual,
            "anomaly_map": AnomalyMap(perceptual),
            "published_map": PublishedMap(perceptual),
        }
        return weights, maps[self._method.compare]

    def _settings_sha256(self) -> str:
        """Of what else decides the map: the recipe that the weights belong to, and the method's own values."""
        recipe = self.model.recipe
        # Left out is what decides no map, given the weights, and came after the first calibrations were made.
        network = recipe.network.model_dump_json(exclude={"kind"} if recipe.network.kind == "unet" else None)
        left_out = {"train_from", "min_snr"}
        if recipe.noise.simplex_wavelength * recipe.image.size == FIRST_WAVELENGTH:  # as it was before it was said
            left_out.add("simplex_wavelength")
        noise = recipe.noise.model_dump_json(exclude=left_out)
        values = {
            field.name: getattr(self.options, field.name)
            for field in fields(self.options)  # type: ignore[arg-type]  # Options are dataclasses
            if field.name != "judge"  # the provenance has its sha256
            and not (field.metadata.get("ablation") and getattr(self.options, field.name) == field.default)
        }
        decided = [recipe.image.model_dump_json(), network, noise]
        decided += [
            f"{name}={value}"
            for name, value in values.items()
            if name != "finish" and not isinstance(value, Tensor)  # tensors are the model's; finish changes no map
        ]
        decided += self._code_of_another()
        return hashlib.sha256("\n".join(decided).encode()).hexdigest()

    def _code_of_another(self) -> list[str]:
        """The code of a method that isn't thorad's own, which may change while its name stays."""
        function = self._method.restore
        if getattr(function, "__module__", "").split(".")[0] == "thorad":
            return []
        for written in (inspect.getmodule(function), function):
            with contextlib.suppress(OSError, TypeError):  # in a notebook a function has code, its module has none
                return [inspect.getsource(written)]  # type: ignore[arg-type]  # None has no source: TypeError
        return []

    def _checked_threshold(self, threshold: float | None, asked: float | None) -> float | None:
        """Where masks begin: the given value, the calibration's, or the method's own; None where there is none.

        A calibration that nobody asked a share of makes the method's own threshold stricter, never laxer: below it a
        probability says healthy, however rarely healthy scans reach it.
        """
        if threshold is None:
            own = self._method.own_threshold
            if self.calibration is None or self.false_positives is None:
                return own
            calibrated = self.calibration.thresholds[self.false_positives]
            if asked is None and own is not None and own > calibrated:
                self.false_positives = None
                return own
            return calibrated
        if not (threshold >= 0 and np.isfinite(threshold)):
            raise ThoradError(f"the threshold is {threshold:g}, expected a value of the map, 0 or above.")
        self.false_positives = None
        return threshold


def _refuse_input_range(recipe: Recipe) -> None:
    if recipe.image.input_range != "-1..1":
        raise ThoradError(
            f"model {recipe.name!r} is for images in {recipe.image.input_range}, but all methods work in -1..1, where "
            "the noise would be half as strong beside the image: its maps would be wrong. If the model was trained on "
            "-1..1 after all, import it anew with --input-range -1..1."
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


def _score(values: Tensor) -> Tensor:
    """The mean of the highest share of (pixels) values; 0 of none."""
    if not len(values):
        return values.new_zeros(())
    return values.topk(max(1, round(HIGHEST_SHARE * len(values)))).values.mean()
