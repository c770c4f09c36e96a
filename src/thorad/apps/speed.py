"""How fast this machine detects and trains, and how that compares with the published implementation."""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thorad.detector import Detector
from thorad.diffusion.network import Denoiser, fast_precision
from thorad.diffusion.noise import case_generator, simplex_noise
from thorad.io.atomic import write_atomic
from thorad.model import build_network, save_model
from thorad.recipe import Recipe, load_recipe

PUBLISHED_CPU_SECONDS = (700.0, 810.0)
"""Of one slice by the published code (github ci-ber/THOR_DDPM, February 2026), measured by this project on 2 cores:
one image at a time, the paper-size network in float32."""
PUBLISHED_CALLS = 351
"""Network calls of one slice by the published code: every timestep from 350 to 0."""

PAPER_RECIPE = "brain-t1"
COMPACT_RECIPE = "brain-t1-compact"
PAPER_CALLS = 5  # timed of the paper-size network, to estimate what all its steps take
SLICES = 4  # timed for the default steps of the compact network
TRAINING_STEPS = 3
MATRIX = 2048  # rows and columns of the matrices whose product is the machine's peak

Progress = Callable[[int, int, str], None]
"""Called with (parts done, parts in all, what is measured now)."""


@dataclass(frozen=True)
class Spent:
    """What a piece of work took."""

    seconds: float
    cpu_seconds: float
    """Of all threads together."""


@dataclass(frozen=True)
class Detecting:
    """One slice by THOR with simplex noise."""

    network: str
    steps: str
    network_calls: int
    seconds: float
    cpu_seconds: float
    estimated_from_calls: int | None
    """None: measured in full. Else the time of so many calls was multiplied."""

    @property
    def times_fewer_cpu_seconds(self) -> float:
        """Than the published code, by the lower of its figures."""
        return PUBLISHED_CPU_SECONDS[0] / self.cpu_seconds

    @property
    def times_fewer_calls(self) -> float:
        """Than the published code."""
        return PUBLISHED_CALLS / self.network_calls


@dataclass(frozen=True)
class NetworkSpeed:
    """One call of a network on one slice."""

    network: str
    parameters: int
    gflop_a_call: float
    seconds_a_call: float
    gflops: float
    """10^9 operations a second."""
    share_of_peak: float
    """Of the machine's matrix product in the same precision."""


@dataclass(frozen=True)
class Figures:
    """All that was measured."""

    machine: str
    device: str
    threads: int
    precision: str
    matrix_product_gflops: dict[str, float]
    """{precision: 10^9 operations a second}."""
    networks: list[NetworkSpeed]
    detecting: list[Detecting]
    training_images_a_second: float
    """The compact recipe: noise, forward, backward and optimiser."""
    peak_memory_gb: float
    """Of this process, the benchmark of both networks and the training together."""

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Titles, headings and rows, for people."""
        low, high = PUBLISHED_CPU_SECONDS
        peaks = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in self.matrix_product_gflops.items())
        detecting = [
            [
                f"{one.network}, {one.steps}" + ("" if one.estimated_from_calls is None else " *"),
                str(one.network_calls),
                f"{one.seconds:.2f}",
                f"{one.cpu_seconds:.2f}",
                f"{one.times_fewer_cpu_seconds:.1f}",
                f"{one.times_fewer_calls:.1f}",
                f"{one.times_fewer_cpu_seconds / one.times_fewer_calls:.1f}",
            ]
            for one in self.detecting
        ]
        networks = [
            [
                one.network,
                f"{one.parameters / 1e6:.1f}",
                f"{one.gflop_a_call:.1f}",
                f"{one.seconds_a_call:.3f}",
                f"{one.gflops:.0f}",
                f"{100 * one.share_of_peak:.0f} %",
            ]
            for one in self.networks
        ]
        return [
            (
                f"One slice by THOR. The published code takes {low:.0f} to {high:.0f} CPU-seconds and "
                f"{PUBLISHED_CALLS} calls.\nSaved: {low:.0f} / CPU s here, by fewer calls times by cheaper calls. "
                f"* estimated from {PAPER_CALLS} calls",
                ["network, steps", "calls", "s", "CPU s", "saved", "by fewer", "by cheaper"],
                detecting,
            ),
            (
                f"One call of the network on {self.device}, {self.precision}; matrix product here: {peaks}",
                ["network", "M params", "GFLOP", "s", "GFLOP/s", "of peak"],
                networks,
            ),
            (
                f"This machine: {self.machine}, {self.threads} threads",
                ["", ""],
                [
                    ["training, compact recipe, images/s", f"{self.training_images_a_second:.1f}"],
                    ["peak memory of this benchmark, GB", f"{self.peak_memory_gb:.2f}"],
                ],
            ),
        ]

    def write(self, path: Path) -> None:
        """The same as JSON, for machines.

        Raises:
            ThoradError: the file can't be written.
        """
        published = {"cpu_seconds": PUBLISHED_CPU_SECONDS, "network_calls": PUBLISHED_CALLS}
        write_atomic(path, (json.dumps({**asdict(self), "published": published}, indent=2) + "\n").encode())


def run_bench(
    model: str | Path = COMPACT_RECIPE, *, device: str = "auto", on_progress: Progress | None = None
) -> Figures:
    """Measure this machine; about 2 minutes on 2 cores.

    Args:
        model: name or folder of the compact model.
        device: as `Detector` takes it.
        on_progress: see `Progress`.

    Raises:
        ThoradError: the model or the device can't be used.
    """
    parts = ["matrix product", "compact, default steps", "compact, all steps", "paper-size", "training"]

    def report(part: int) -> None:
        if on_progress:
            on_progress(part, len(parts), parts[min(part, len(parts) - 1)])

    report(0)
    compact = Detector(model, device=device)
    peaks = {
        name: matrix_product_gflops(dtype, compact.device)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    report(1)
    _detecting("compact", compact, slices=1)  # not kept: the first is slower by what every library prepares once
    networks = [_network_speed("compact", compact, peaks)]
    detecting = [_detecting("compact", compact, SLICES)]
    report(2)
    detecting.append(_detecting("compact", Detector(model, device=device, steps="all"), slices=1))
    report(3)
    with tempfile.TemporaryDirectory() as folder:
        _save_random_model(load_recipe(PAPER_RECIPE), Path(folder))
        paper = Detector(Path(folder), device=device)
        networks.append(_network_speed("paper-size", paper, peaks))
        default = _detecting("paper-size", paper, slices=1)
        detecting.append(default)
        all_calls = Detector(Path(folder), device=device, steps="all").network_calls
    a_call = _step_time(paper, PAPER_CALLS)
    more = all_calls - default.network_calls
    detecting.append(
        Detecting(
            network="paper-size",
            steps="all",
            network_calls=all_calls,
            seconds=default.seconds + more * a_call.seconds,
            cpu_seconds=default.cpu_seconds + more * a_call.cpu_seconds,
            estimated_from_calls=PAPER_CALLS,
        )
    )
    report(4)
    rate = training_rate(load_recipe(COMPACT_RECIPE), {"cuda": "gpu"}.get(compact.device.type, compact.device.type))
    report(5)
    return Figures(
        machine=f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()}, torch {torch.__version__}",
        device=str(compact.device),
        threads=torch.get_num_threads(),
        precision=compact.precision,
        matrix_product_gflops=peaks,
        networks=networks,
        detecting=detecting,
        training_images_a_second=rate,
        peak_memory_gb=_peak_memory_gb(),
    )


def matrix_product_gflops(dtype: torch.dtype, device: torch.device, size: int = MATRIX) -> float:
    """The best of a few products of two (size, size) matrices, 10^9 operations a second."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=product)
        _wait(device)

    multiply()
    return 2 * size**3 / min(timed(multiply).seconds for _ in range(4)) / 1e9


def flops(network: Denoiser, size: int) -> int:
    """Operations (multiplications and additions) of one call on one slice of `size` x `size` px."""
    device = next(network.parameters()).device
    x, t = torch.zeros(1, 1, size, size, device=device), torch.zeros(1, dtype=torch.long, device=device)
    # Plain attention does the same operations as the fused one, whose processor form the counter doesn't know.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, t, t)
    return int(counter.get_total_flops())


def timed(work: Callable[[], object]) -> Spent:
    """What `work` takes."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - clock, time.process_time() - processor)


def training_rate(recipe: Recipe, accelerator: str, steps: int = TRAINING_STEPS) -> float:
    """Images a second of `thorad train`, augmentation and noise included, on made-up images."""
    import lightning

    from thorad.training.fit import DiffusionTraining

    class Timed(DiffusionTraining):
        """Notes when each step ends."""

        def on_train_batch_end(self, *_: object) -> None:
            ends.append(time.perf_counter())

    # A benchmark needs no list of what Lightning leaves out for it.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    ends: list[float] = []
    images = torch.rand(recipe.training.batch_size, 1, recipe.image.size, recipe.image.size)
    fast = fast_precision(torch.device("cuda" if accelerator == "gpu" else "cpu")) == torch.bfloat16
    trainer = lightning.Trainer(
        barebones=True,
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed" if fast else "32-true",
        max_steps=steps + 1,  # the first is slower by what every library prepares once
        max_epochs=-1,
        limit_val_batches=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is logged, for one
        trainer.fit(Timed(recipe, images, images[:0], Path()))
    return recipe.training.batch_size * steps / (ends[-1] - ends[0])


def _network_speed(name: str, detector: Detector, peaks: dict[str, float]) -> NetworkSpeed:
    network = detector.model.network
    size = detector.model_size
    gflop = flops(network, size) / 1e9
    call = _call(detector)
    call()
    seconds = min(timed(call).seconds for _ in range(3))
    return NetworkSpeed(
        network=name,
        parameters=detector.model.parameters,
        gflop_a_call=gflop,
        seconds_a_call=seconds,
        gflops=gflop / seconds,
        share_of_peak=gflop / seconds / peaks[detector.precision],
    )


def _detecting(name: str, detector: Detector, slices: int) -> Detecting:
    images = torch.rand(slices, 1, detector.model_size, detector.model_size, generator=torch.Generator().manual_seed(0))
    names = [str(index) for index in range(slices)]
    spent = timed(lambda: detector.model_maps(images, names))
    return Detecting(
        network=name,
        steps="all" if detector.steps == "all" else "default",
        network_calls=detector.network_calls,
        seconds=spent.seconds / slices,
        cpu_seconds=spent.cpu_seconds / slices,
        estimated_from_calls=None,
    )


def _step_time(detector: Detector, calls: int) -> Spent:
    """One step of the chain that isn't harmonised: a network call and fresh noise; the mean of `calls`.

    On a CPU on one thread, as `Detector` works on an image there.
    """
    generators = [case_generator(0, "bench")]
    call = _call(detector)

    def steps() -> None:
        for _ in range(calls):
            call()
            simplex_noise(generators, detector.model_size, detector.model_size, detector.device)
        _wait(detector.device)

    threads = torch.get_num_threads()
    if detector.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        spent = timed(steps)
    finally:
        torch.set_num_threads(threads)
    return Spent(spent.seconds / calls, spent.cpu_seconds / calls)


def _call(detector: Detector) -> Callable[[], None]:
    """One call of a detector's network on one slice."""
    device, network = detector.device, detector.model.network
    x = torch.zeros(1, 1, detector.model_size, detector.model_size, device=device)
    t = torch.full((1,), 100, device=device)
    kind = torch.zeros(1, dtype=torch.long, device=device)
    precision = fast_precision(device)

    @torch.inference_mode()
    def call() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            network(x, t, kind)
        _wait(device)

    return call


def _save_random_model(recipe: Recipe, folder: Path) -> None:
    size = recipe.image.size
    zeros = torch.zeros(1, size, size)
    save_model(folder, recipe, build_network(recipe).state_dict(), zeros, zeros + 1, "Random weights.")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # bytes there, KiB elsewhere
