"""What a training shows, and how it ends early without a loss: callbacks for any LightningModule.

A module logs its loss as ``train/loss`` and what it validates as ``validation/...``; nothing else is asked of it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from thorad.errors import Interrupted, ThoradError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What ends a training: Ctrl-C, what `kill` and schedulers send, what SLURM sends where a job asks for it."""

LINE_SECONDS = 60.0
"""Between two lines of progress where there is no bar."""

MEASURED_SECONDS, MEASURED_STEPS = 0.3, 3
"""For each number of threads that is tried: at least so long, and so many steps after a first one."""

log = logging.getLogger("thorad.training")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole one: a kill may leave a torn one behind, and a ZIP archive ends with its list of contents."""
    whole = (path for path in folder.glob("*.ckpt") if zipfile.is_zipfile(path))
    return max(whole, key=lambda path: path.stat().st_mtime, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The steps that were done when it was saved; 0 without one."""
    return int(checkpoint.stem.rpartition("=")[2]) if checkpoint else 0


class Checkpoints(Checkpoint):
    """Keeps the newest state in ``step=<step>.ckpt``, and ends the training when a signal asks for it.

    The state is saved every so many minutes, before each validation, after the last step, and when one of `STOPPING`
    comes: once the step is done, so that a resumed training ends with the weights of an uninterrupted one. A second
    Ctrl-C ends it at once. After SIGUSR1 SLURM is asked to queue the job again, as Lightning does it.

    Raises:
        Interrupted: a signal came, and the state is saved.
    """

    def __init__(self, folder: Path, *, minutes: float, validate_every: int | None = None) -> None:
        self._folder, self._seconds, self._validate_every = folder, 60 * minutes, validate_every
        self._signal, self._processes = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"processes": self._processes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of how many processes each step was until now."""
        self._processes = state_dict["processes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and take the signals over; Lightning gives them back when the training ends."""
        if self._processes not in (0, trainer.world_size):
            raise ThoradError(
                f"{self._folder.parent}: its steps until now were of {self._processes} processes, now there are "
                f"{trainer.world_size}: a step would have other images, and another number of them. Give as many "
                "devices as before, or another folder."
            )
        self._processes = trainer.world_size
        self._signal, self._saved = 0, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self._signal and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signum

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if it is time; end the training if a signal came."""
        step = trainer.global_step
        validates = self._validate_every is not None and step % self._validate_every == 0
        due = validates or step == trainer.max_steps or time.monotonic() - self._saved >= self._seconds
        wanted = self._agreed(trainer, max(self._signal, int(due)))  # no signal has the number 1 here
        if wanted:
            self._save(trainer)
        if wanted > 1:
            self._end(trainer, wanted)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End the training if a signal came: its state is as it was saved before the validation."""
        if wanted := self._agreed(trainer, self._signal):
            self._end(trainer, wanted)

    def _agreed(self, trainer: Trainer, wanted: int) -> int:
        """The largest of all processes: they save and stop after the same step."""
        if trainer.world_size == 1:
            return wanted
        mine = torch.tensor(wanted, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max"))

    def _save(self, trainer: Trainer) -> None:
        path = self._folder / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            for older in {*self._folder.glob("*.ckpt")} - {path}:
                older.unlink()
        self._saved = time.monotonic()

    def _end(self, trainer: Trainer, signum: int) -> None:
        if not trainer.is_global_zero:
            raise Interrupted(signum, "")
        queued = _queue_again() if signum == signal.SIGUSR1 and SLURMEnvironment.detect() else ""
        raise Interrupted(
            signum,
            f"{self._folder.parent}: stopped by {signal.Signals(signum).name} after step {trainer.global_step} of "
            f"{trainer.max_steps}, which is saved. The same command or call resumes there.{queued}",
        )


def _queue_again() -> str:
    """Ask SLURM to run this job once more; what became of it, to append to a sentence."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f" SLURM did not queue job {job} again ({said.strip()}): submit it yourself."
    return f" SLURM has queued job {job} again."


class ThreadChoice(Callback):
    """Sets the number of threads with which steps take least on this machine, as busy as it is now.

    The first steps are done with fewer and fewer threads, until that is slower; they count like all others. A resumed
    training keeps the number, since a sum's last digits depend on it.

    Args:
        threads: the number, if it is not to be measured.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._seconds: dict[int, list[float]] = {}
        """Of the steps with each number of threads, the latest last."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"threads": self.threads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the number, unless another one is asked for or this machine has fewer cores."""
        if self.threads is None and (state_dict["threads"] or 0) <= (os.cpu_count() or 1):
            self.threads = state_dict["threads"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number, or start to measure."""
        self._before = torch.get_num_threads()
        on_cpu = trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        elif not on_cpu or self._before == 1 or "OMP_NUM_THREADS" in os.environ:
            self.threads = self._before
        else:
            self._seconds = {self._before: []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note the time, and choose when enough is known."""
        if self.threads is not None:
            return
        tried = list(self._seconds)[-1]
        seconds = self._seconds[tried]
        seconds.append(time.perf_counter() - self._began)
        if len(seconds) <= MEASURED_STEPS or sum(seconds) < MEASURED_SECONDS:
            return
        # The first step with a number of threads prepares for the others.
        means = {count: sum(of[1:]) / len(of[1:]) for count, of in self._seconds.items()}
        best = min(means, key=lambda count: means[count])
        if best == tried and tried > 1:
            self._seconds[tried // 2] = []
            torch.set_num_threads(tried // 2)
            return
        self.threads = best
        torch.set_num_threads(best)
        measured = ", ".join(f"{count}: {mean:.3g} s a step" for count, mean in means.items())
        log.info("threads: %d (measured: %s)", best, measured)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the number back."""
        torch.set_num_threads(self._before)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the number back."""
        if hasattr(self, "_before"):
            torch.set_num_threads(self._before)


class TrainingProgress(Callback):
    """Says what is trained on what, then how far it is: a bar on a terminal, else a line of the log now and then.

    Lines are of level INFO of the logger ``thorad.training``.

    Args:
        facts: what to say at the start, besides what the trainer knows.
        bar: whether to draw a bar on stderr if that is a terminal.
    """

    def __init__(self, facts: Mapping[str, str], *, bar: bool) -> None:
        self._facts = dict(facts)
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        if bar and self._console.is_terminal:
            columns = (BarColumn(None), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, expand=True)
        self._loss: Tensor | None = None
        """Averaged over the last hundred steps or so."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the header and start the clock."""
        self._began = self._line = time.monotonic()
        self._first, self._said_when = trainer.global_step, False
        if not trainer.is_global_zero:
            return
        for name, fact in {**self._facts, **trainer_facts(trainer, pl_module)}.items():
            self._say(f"{name:<12}{fact}")
        if self._first:
            self._say(f"{'resumed':<12}after step {self._first}")
        if self._bar is not None:
            self._bar.add_task("", total=int(trainer.max_steps), completed=self._first)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Note the loss; show it now and then."""
        if not trainer.is_global_zero:
            return
        loss = outputs["loss"].detach()
        self._loss = loss if self._loss is None else self._loss.lerp(loss, 0.02)
        done, now = trainer.global_step - self._first, time.monotonic()
        if not self._said_when and (done >= 100 or now - self._began > 10):
            self._said_when = True
            rate = self._rate(trainer, now)
            self._say(f"{'expected':<12}{self._left(trainer, rate)}, at {1 / rate:.3g} s a step")
        if self._bar is not None and now - self._line > 0.5:
            self._line = now
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, description=self._figures(trainer))
        elif self._bar is None and now - self._line >= LINE_SECONDS:
            self._write_line(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was validated."""
        if trainer.is_global_zero and self._bar is None:
            self._write_line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the bar."""
        self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is."""
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self._bar is not None and self._bar.tasks:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, description=self._figures(trainer))
            self._bar.stop()

    def _write_line(self, trainer: Trainer) -> None:
        self._line = time.monotonic()
        share = 100 * trainer.global_step / trainer.max_steps
        place = f"step {trainer.global_step} of {trainer.max_steps} ({share:.0f} %)"
        log.info("%s  %s", place, self._figures(trainer))

    def _figures(self, trainer: Trainer) -> str:
        """Losses, speed and what remains; a bar has no room for single kinds of noise."""
        losses = {} if self._loss is None else {"loss": float(self._loss)}
        measured = {name: float(value) for name, value in trainer.callback_metrics.items() if "validation/" in name}
        losses |= {"validation": measured.pop("validation/loss")} if "validation/loss" in measured else {}
        losses |= {} if self._bar is not None else measured
        rate = self._rate(trainer, time.monotonic())
        speed = f"{rate:.2f} steps/s" if rate >= 0.1 else f"{1 / rate:.1f} s a step" if rate else "?"
        return "  ".join([*(f"{name} {value:.4g}" for name, value in losses.items()), speed, self._left(trainer, rate)])

    def _rate(self, trainer: Trainer, now: float) -> float:
        return (trainer.global_step - self._first) / max(now - self._began, 1e-9)

    @staticmethod
    def _left(trainer: Trainer, rate: float) -> str:
        seconds = (int(trainer.max_steps) - trainer.global_step) / rate if rate else None
        return "? left" if seconds is None else f"{timedelta(seconds=round(seconds))} left"

    def _say(self, text: str) -> None:
        if self._bar is None:
            log.info(text)
        else:
            self._console.print(text, markup=False, highlight=False)


def trainer_facts(trainer: Trainer, module: LightningModule) -> dict[str, str]:
    """What runs where, by what is to be told of it."""
    learned = sum(weights.numel() for weights in module.parameters() if weights.requires_grad)
    device = trainer.strategy.root_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return {
        "parameters": f"{learned / 1e6:.3g} million",
        "device": f"{where}{processes}, precision {trainer.precision}",
        "steps": f"{trainer.max_steps}",
    }
