"""How fast this machine detects and trains, and how that compares with the published implementation."""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from thorad.detector import Detector
from thorad.diffusion.engine import torch_engine
from thorad.model import build_network, save_model
from thorad.recipe import Recipe, load_recipe
from thorad.table import Table

PUBLISHED_CALLS = 351
"""Of the network, for one slice by the published code (github ci-ber/THOR_DDPM): every timestep from 350 to 0, with the
paper-size network, in float32, one image at a time. So much of its cost is told here, on the machine at hand; its LPIPS
and noise come on top."""

PAPER_RECIPE = "brain-t1"
COMPACT_RECIPE = "brain-t1-compact"
PAPER_CALLS = 5  # timed of the paper-size network, to estimate what all its steps take
SLICES = 4  # timed for the default steps of the compact network
TRAINING_STEPS = 3
MATRIX = 2048  # rows and columns of the matrices whose product is the machine's peak

Progress = Callable[[int, int, str], None]
"""Called with (parts done, parts in all, what is measured now)."""


@dataclass(frozen=True)
class DetectionSpeed:
    """One slice by one draw of THOR with simplex noise."""

    network: str
    steps: str
    network_calls: int
    seconds: float
    cpu_seconds: float  # of all threads together
    estimated_from_calls: int | None  # None: measured in full; otherwise the time of so many calls was multiplied

    def row(self, published_cpu_seconds: float) -> list[str]:
        """Its cells in the table, with what is saved against the published code's network calls on this machine."""
        saved = published_cpu_seconds / self.cpu_seconds
        by_fewer = PUBLISHED_CALLS / self.network_calls
        name = f"{self.network}, {self.steps}" + ("" if self.estimated_from_calls is None else " *")
        seconds = [f"{self.seconds:.2f}", f"{self.cpu_seconds:.2f}"]
        ratios = [f"{ratio:.1f}" for ratio in (saved, by_fewer, saved / by_fewer)]
        return [name, str(self.network_calls), *seconds, *ratios]


@dataclass(frozen=True)
class NetworkSpeed:
    """One call of a network on one slice."""

    network: str
    parameters: int
    gflop_a_call: float
    seconds_a_call: float
    gflops: float  # 10^9 operations a second
    share_of_peak: float  # of the machine's matrix product in the same precision

    def row(self) -> list[str]:
        """Its cells in the table."""
        size = [f"{self.parameters / 1e6:.1f}", f"{self.gflop_a_call:.1f}"]
        speed = [f"{self.seconds_a_call:.3f}", f"{self.gflops:.0f}", f"{100 * self.share_of_peak:.0f} %"]
        return [self.network, *size, *speed]


@dataclass(frozen=True)
class Speed:
    """All that was measured."""

    machine: str
    device: str
    threads: int
    precision: str
    matrix_product_gflops: dict[str, float]  # {precision: 10^9 operations a second}
    networks: list[NetworkSpeed]
    detecting: list[DetectionSpeed]
    published_call: tuple[float, float]  # seconds and CPU-seconds of a call of the paper-size network in float32
    training_images_a_second: float  # the compact recipe: noise, forward, backward and optimiser
    peak_memory_gb: float  # of this process, the measurement of both networks and the training together

    @property
    def published_cpu_seconds(self) -> float:
        """Of the published code's network calls for one slice, on this machine."""
        return PUBLISHED_CALLS * self.published_call[1]

    def tables(self) -> list[Table]:
        """One slice, one call of the network, and the machine."""
        cost = self.published_cpu_seconds
        published = (
            f"The published code's {PUBLISHED_CALLS} calls of the paper-size network in float32 would take {cost:.0f} "
            f"CPU-seconds on this machine ({self.published_call[1]:.2f} each; its LPIPS and noise not counted)."
        )
        saved = f"Saved: {cost:.0f} / CPU s, by fewer calls times by cheaper calls."
        peaks = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in self.matrix_product_gflops.items())
        detecting = Table(
            ["network, steps", "calls", "s", "CPU s", "saved", "by fewer", "by cheaper"],
            [speed.row(cost) for speed in self.detecting],
            notes=[published, f"{saved} * estimated from {PAPER_CALLS} calls"],
            title="One slice by one draw of THOR; detect makes two",
        )
        networks = Table(
            ["network", "M params", "GFLOP", "s", "GFLOP/s", "of peak"],
            [speed.row() for speed in self.networks],
            notes=[f"On {self.device}, {self.precision}; matrix product here: {peaks}."],
            title="One call of the network",
        )
        figures = [
            ["training, compact recipe, images/s", f"{self.training_images_a_second:.1f}"],
            ["peak memory of this measurement, GB", f"{self.peak_memory_gb:.2f}"],
        ]
        notes = [f"{self.machine}, {self.threads} threads."]
        return [detecting, networks, Table(["what", "value"], figures, notes=notes, title="This machine")]

    def figures(self) -> dict[str, Any]:
        """All of it, and what it is compared with."""
        published = {"cpu_seconds": self.published_cpu_seconds, "network_calls": PUBLISHED_CALLS}
        return {**asdict(self), "published": published}


def measure_speed(
    model: str | Path = COMPACT_RECIPE, *, device: str = "auto", on_progress: Progress | None = None
) -> Speed:
    """Measure this machine with a compact model (name or folder); about 2 minutes on 2 cores.

    Raises:
        ThoradError: the model or the device can't be used.
    """
    parts = ["matrix product", "compact, default steps", "compact, all steps", "paper-size", "training", "training"]

    def report(part: int) -> None:
        if on_progress:
            on_progress(part, len(parts) - 1, parts[part])

    report(0)
    compact = Detector(model, device=device, draws=1)
    peaks = {name: matrix_product_gflops(getattr(torch, name), compact.device) for name in ("float32", "bfloat16")}
    report(1)
    _detection_speed("compact", compact, slices=1)  # warms up: not kept
    compact_network = _network_speed("compact", compact, peaks)
    default_steps = _detection_speed("compact", compact, SLICES)
    report(2)
    all_steps = _detection_speed("compact", Detector(model, device=device, draws=1, steps="all"), slices=1)
    report(3)
    paper_network, published_call, *paper_steps = _paper_size(device, peaks)
    report(4)
    rate = training_rate(load_recipe(COMPACT_RECIPE), {"cuda": "gpu"}.get(compact.device.type, compact.device.type))
    report(5)
    return Speed(
        machine=f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()}, torch {torch.__version__}",
        device=str(compact.device),
        threads=torch.get_num_threads(),
        precision=compact.precision,
        matrix_product_gflops=peaks,
        networks=[compact_network, paper_network],
        detecting=[default_steps, all_steps, *paper_steps],
        published_call=published_call,
        training_images_a_second=rate,
        peak_memory_gb=_peak_memory_gb(),
    )


def _paper_size(
    device: str, peaks: Mapping[str, float]
) -> tuple[NetworkSpeed, tuple[float, float], DetectionSpeed, DetectionSpeed]:
    """The paper-size network with random weights: a call, one as the published code makes it (seconds, CPU-seconds), a
    slice by default steps, and an estimate for all steps.
    """
    recipe = load_recipe(PAPER_RECIPE)
    size = recipe.image.size
    zeros = torch.zeros(1, size, size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, recipe, build_network(recipe).state_dict(), zeros, zeros + 1, "Random weights.")
        detector = Detector(folder, device=device, draws=1)
        # Its steps are those of THOR's chain that aren't harmonised: a network call and fresh noise.
        unguided = Detector(folder, method="anoddpm", device=device, draws=1, steps=PAPER_CALLS)
        all_calls = Detector(folder, device=device, draws=1, steps="all").network_calls
    network = _network_speed("paper-size", detector, peaks)
    default = _detection_speed("paper-size", detector, slices=1)
    few = _detection_speed("paper-size", unguided, slices=1)
    times = (all_calls - default.network_calls) / few.network_calls
    seconds, cpu_seconds = default.seconds + times * few.seconds, default.cpu_seconds + times * few.cpu_seconds
    estimate = DetectionSpeed("paper-size", "all", all_calls, seconds, cpu_seconds, few.network_calls)
    return network, _float32_call(detector), default, estimate


def _float32_call(detector: Detector) -> tuple[float, float]:
    """Seconds and CPU-seconds of one call of a detector's network in float32, the mean of several on all threads."""
    size, device = detector.model_size, detector.device
    engine = torch_engine(detector.model.network, size=size, device=device, full_precision=True)
    x, t = torch.zeros(1, 1, size, size, device=device), torch.full((1,), 100, device=device)

    def calls(count: int) -> None:
        for _ in range(count):
            engine(x, t, torch.zeros_like(t))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        calls(1)  # warms up
        seconds, cpu_seconds = timed(lambda: calls(PAPER_CALLS))
    return seconds / PAPER_CALLS, cpu_seconds / PAPER_CALLS


def matrix_product_gflops(dtype: torch.dtype, device: torch.device, size: int = MATRIX) -> float:
    """The best of a few products of two (size, size) matrices, 10^9 operations a second."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: torch.mm(a, b)) / 1e9


def flops(network: nn.Module, size: int) -> int:
    """Operations (multiplications and additions) of one call on one slice of `size` x `size` px."""
    device = next(network.parameters()).device
    x, t = torch.zeros(1, 1, size, size, device=device), torch.zeros(1, dtype=torch.long, device=device)
    # Plain attention does the same operations as the fused one, whose processor form the counter doesn't know.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, t, t)
    return int(counter.get_total_flops())


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """What `work` takes, once: seconds, and CPU-seconds of all threads together."""
    clock, processor = timer(), time.process_time()
    work()
    return timer() - clock, time.process_time() - processor


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after calls to warm up, on all of torch's threads."""
    measured = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(measured.blocked_autorange(min_run_time=1.0).times)


def training_rate(recipe: Recipe, accelerator: str, steps: int = TRAINING_STEPS) -> float:
    """Images a second of `thorad train`, augmentation and noise included, on made-up images."""
    from lightning.pytorch.callbacks import Callback

    from thorad.training.fit import fit

    ends: list[float] = []

    class StepTimes(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            ends.append(timer())

    batch = recipe.training.batch_size
    images = TensorDataset(torch.rand(batch, 1, recipe.image.size, recipe.image.size))
    training = recipe.training.model_copy(update={"steps": steps + 1})  # the first one warms up
    few = recipe.model_copy(update={"training": training})
    with tempfile.TemporaryDirectory() as folder:
        out, callbacks = Path(folder), [StepTimes()]
        fit(few, images, out, accelerator=accelerator, devices="1", progress_bar=False, callbacks=callbacks, loggers=[])
    return batch * steps / (ends[-1] - ends[0])


def _network_speed(name: str, detector: Detector, peaks: Mapping[str, float]) -> NetworkSpeed:
    network, size, device = detector.model.network, detector.model_size, detector.device
    engine = torch_engine(network, size=size, device=device, full_precision=False)
    x, t = torch.zeros(1, 1, size, size, device=device), torch.full((1,), 100, device=device)
    gflop = flops(network, size) / 1e9
    with torch.inference_mode():
        seconds = _fastest(lambda: engine(x, t, torch.zeros_like(t)))
    speed, peak = gflop / seconds, peaks[engine.precision]
    return NetworkSpeed(name, detector.model.parameters, gflop, seconds, speed, speed / peak)


def _detection_speed(name: str, detector: Detector, slices: int) -> DetectionSpeed:
    """The mean of several slices of noise, detected in one call."""
    images = torch.rand(slices, 1, detector.model_size, detector.model_size, generator=torch.Generator().manual_seed(0))
    seconds, cpu_seconds = timed(lambda: detector.model_maps(images, [str(index) for index in range(slices)]))
    steps = "all" if detector.steps == "all" else "default"
    return DetectionSpeed(name, steps, detector.network_calls, seconds / slices, cpu_seconds / slices, None)


def _peak_memory_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # bytes there, KiB elsewhere
