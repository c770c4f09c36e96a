"""The command `thorad`: parse, call, print. Everything heavy is imported inside the verbs.

Exit codes: 0 all went well, 1 some files failed, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from thorad import __version__
from thorad.errors import ThoradError

MODEL = "brain-t1-compact"
HIGHEST = 5  # scores shown at the end of a detection
GOES_ON = "The same command goes on where it stopped."
STARTS_ANEW = "Nothing was written; the same command starts anew."

app = typer.Typer(
    name="thorad",
    help="Find what is not healthy in medical images, with models that know healthy anatomy only. Research use; not a "
    "medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

Inputs = Annotated[list[Path], typer.Argument(help="Image files, folders of images, or CSV files with a column image.")]
ModelOption = Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
SeedOption = Annotated[int, typer.Option(help="Of all noise.")]
BatchOption = Annotated[int, typer.Option(help="Images at once on an accelerator; a CPU takes them one by one.", min=1)]
StepsOption = Annotated[
    str | None, typer.Option(help="Timesteps visited, or all. Default: the fewest that keep the quality.")
]
PerceptualOption = Annotated[
    Path | None, typer.Option(help="A torchvision SqueezeNet 1.1 file for LPIPS instead of the bundled weights.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def main() -> None:
    """The console script."""
    app()


@contextmanager
def _one_line_each(interrupted: str) -> Iterator[None]:
    """What the user can mend, and Ctrl-C, as one line on stderr and an exit code instead of a traceback."""
    try:
        yield
    except ThoradError as error:
        error_console.print(f"Error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from error
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns the one into the other.
        if not isinstance(stop if isinstance(stop, KeyboardInterrupt) else stop.__context__, KeyboardInterrupt):
            raise
        error_console.print(f"Interrupted. {interrupted}", style="yellow", markup=False, highlight=False)
        raise typer.Exit(130) from stop


@contextmanager
def _progress(title: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar with the remaining time; nothing where nobody watches. Yields a function of (done, total, title)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    disable = quiet or not error_console.is_terminal
    with Progress(
        *columns, TextColumn("remaining"), TimeRemainingColumn(), console=error_console, disable=disable
    ) as bar:

        def report(done: int, total: int, now: str = title) -> None:
            if not bar.tasks:
                bar.add_task(now, total=total, completed=done)
            bar.update(bar.tasks[0].id, completed=done, description=now)

        yield report


def _print(text: str = "", style: str | None = None) -> None:
    out_console.print(text, style=style, markup=False, highlight=False)


def _table(*columns: str) -> Table:
    """The first column is text, the others are numbers."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _steps(text: str | None) -> int | Literal["all"] | None:
    if text is None or text == "all":
        return text  # type: ignore[return-value]  # mypy doesn't narrow str to the literal
    try:
        return int(text)
    except ValueError as error:
        raise ThoradError(f"--steps is {text!r}, expected a number or all.") from error


def _version(asked: bool) -> None:
    if asked:
        _print(f"thorad {__version__}")
        raise typer.Exit


@app.callback()
def _thorad(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def detect(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder for the results; an interrupted run goes on in it.")],
    method: Annotated[str, typer.Option(help="thor, anoddpm, ddpm, zscore or zscore-two-sided.")] = "thor",
    noise: Annotated[str | None, typer.Option(help="gaussian or simplex. Default: the method's own.")] = None,
    model: ModelOption = MODEL,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    finish: Annotated[
        bool, typer.Option("--finish", help="Spend more calls on a finer pseudo-healthy image; the map stays.")
    ] = False,
    perceptual_weights: PerceptualOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find what is not healthy in images: an anomaly map, an overlay, a pseudo-healthy image and a score each."""
    with _one_line_each(GOES_ON):
        from thorad.data.images import named_images

        named = named_images(inputs, leave_out=out)

        from thorad.detector import Detector
        from thorad.run import detect_files, open_results

        detector = Detector(
            model,
            method=method,
            noise=noise,
            steps=_steps(steps),
            device=device,
            seed=seed,
            batch_size=batch_size,
            finish=finish,
            perceptual_weights=perceptual_weights,
        )
        results = open_results(detector, out)
        with _progress("detect", quiet) as report:
            summary = detect_files(detector, named, results, on_progress=report)
        for name, reason in summary.failed.items():
            error_console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
        if not quiet:
            earlier = f" ({summary.already_done} of them before)" if summary.already_done else ""
            _print(f"{len(summary.done)} done{earlier}, {len(summary.failed)} failed, in {summary.seconds:.1f} s.")
            table = _table("highest scores", "")
            for name, score in list(summary.done.items())[:HIGHEST]:
                table.add_row(name, f"{score:.5g}")
            if table.row_count:
                out_console.print(table)
            _print(f"Results: {out}")
        if summary.failed:
            raise typer.Exit(1)


@app.command()
def evaluate(
    cases: Annotated[Path, typer.Argument(help="CSV with columns image and mask (empty: healthy), subject optional.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, cases.csv and table.md.")],
    model: ModelOption = MODEL,
    method: Annotated[
        str | None,
        typer.Option(
            help="Methods, separated by commas. Default: thor,anoddpm,ddpm,zscore as the model's noise allows."
        ),
    ] = None,
    noise: Annotated[
        str, typer.Option(help="gaussian, simplex, or all: each method with every kind that it and the model know.")
    ] = "all",
    steps: StepsOption = None,
    healthy: Annotated[Path | None, typer.Option(help="Folder or CSV of more healthy images.")] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    perceptual_weights: PerceptualOption = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples over subjects for the intervals; 0: none.", min=0)] = 1000,
    quiet: QuietOption = False,
) -> None:
    """Measure methods on images whose lesions are known."""
    with _one_line_each(STARTS_ANEW):
        from thorad.data.images import find_images
        from thorad.data.splits import read_cases

        read = read_cases(cases)
        more_healthy = find_images([healthy]) if healthy else []

        from thorad.detector import Detector, compared_methods, possible_noises, uses_perceptual
        from thorad.evaluation.evaluate import evaluate as measure
        from thorad.evaluation.evaluate import honest_floor_warning
        from thorad.model import load_model
        from thorad.run import write_evaluation_run

        asked = None if noise == "all" else [kind.strip() for kind in noise.split(",")]
        recipe = load_model(model).recipe
        methods = [name.strip() for name in method.split(",")] if method else compared_methods(recipe, asked)
        detectors = [
            Detector(
                model,
                method=name,
                noise=kind,
                steps=_steps(steps),
                device=device,
                seed=seed,
                batch_size=batch_size,
                perceptual_weights=perceptual_weights if uses_perceptual(name) else None,
            )
            for name in methods
            for kind in possible_noises(name, recipe, asked)
        ]
        began = monotonic()
        with _progress("evaluate", quiet) as report:
            found = measure(read, more_healthy, detectors, out, bootstrap=bootstrap, seed=seed, on_progress=report)
        write_evaluation_run(detectors, out, monotonic() - began)
        warning = honest_floor_warning(found)
        if not quiet:
            _print_metrics(found)
            if warning:
                _print(warning, style="yellow")
            _print(f"Results: {out} (table.md says what the columns mean)")
        for failure in found[0]["failures"]:
            error_console.print(
                f"{failure['name']} failed: {failure['reason']}", style="red", markup=False, highlight=False
            )
        if found[0]["failures"]:
            raise typer.Exit(1)


def _print_metrics(found: list[dict[str, Any]]) -> None:
    def cell(value: float | None, decimals: int = 1) -> str:
        return "-" if value is None else f"{value:.{decimals}f}"

    table = _table("best Dice, %", "calls", "small", "medium", "large", "avg.", "AP", "1% FP", "images", "CPU s")
    for result in found:
        dice = result["best_dice"]
        table.add_row(
            " ".join(filter(None, (result["method"], result["noise"]))),
            str(result["network_calls"]),
            *(cell(dice[group]) for group in ("small", "medium", "large", "average")),
            cell(result["auprc"], 3),
            cell(result["dice_at_fpr"]["0.01"], 3),
            cell(result["image_auroc"], 3),
            cell(result["cpu_seconds_per_case"], 2),
        )
    out_console.print(table)
    _print("Best Dice takes its threshold from the test labels: an upper bound. 1% FP: Dice")
    _print("(0 to 1) at the threshold that 1 % of the pixels of healthy scans exceed.")
    _print("images: AUROC of diseased against healthy images. CPU s: of one case.")


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A bundled recipe's name, or a TOML file. `thorad models` lists them.")],
    train: Annotated[Path, typer.Option(help="Folder or CSV of healthy images.")],
    out: Annotated[Path, typer.Option(help="Folder for logs, checkpoints and the model; training goes on in it.")],
    validation: Annotated[Path | None, typer.Option(help="Folder or CSV of healthy images of other subjects.")] = None,
    devices: Annotated[str, typer.Option(help="How many devices of a node, or auto.")] = "auto",
    nodes: Annotated[int, typer.Option(help="How many machines.", min=1)] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu or mps.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the recipe's.", min=1)] = None,
    start_from: Annotated[str | None, typer.Option(help="A model whose weights to begin with.")] = None,
) -> None:
    """Train a model on healthy images."""
    with _one_line_each("The same command goes on from the last checkpoint."):
        from thorad.recipe import load_recipe

        chosen = load_recipe(recipe)
        if steps is not None:
            chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"steps": steps})})

        from lightning.pytorch.utilities import rank_zero_only

        from thorad.training import fit

        folder = fit(
            chosen,
            train,
            out,
            validation=validation,
            accelerator=accelerator,
            devices=devices,
            nodes=nodes,
            start_from=start_from,
            progress_bar=out_console.is_terminal,
        )
        # Every process of a training comes by here.
        rank_zero_only(_print)(f"Model: {folder}\nUse it: thorad detect INPUT --model {folder} --out DIR")


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="A bundled model's name or a model folder; none: list.")] = None,
) -> None:
    """List the bundled models and recipes, or describe one model."""
    with _one_line_each(STARTS_ANEW):
        from thorad.model import bundled_models, load_model, model_card, model_folder, weight_megabytes
        from thorad.recipe import bundled_recipes, load_recipe

        if model is not None:
            loaded = load_model(model)
            _print(f"{loaded.recipe.name}: {loaded.recipe.description}")
            _print(f"folder      {model_folder(model)}")
            _print(f"noise       {', '.join(loaded.recipe.noise.kinds)}")
            _print(f"parameters  {loaded.parameters / 1e6:.2f} million, {weight_megabytes(model):.1f} MB")
            _print(f"sha256      {loaded.sha256} (checked: the weights are as they were saved)")
            measured = {key: value for key, value in loaded.calibration.items() if key != "weights_sha256"}
            for title, text in {
                "recipe": loaded.recipe.to_toml(),
                "calibration": dumps(measured, indent=2),
                "model card": model_card(model),
            }.items():
                _print(f"\n--- {title} ---\n{text.strip()}")
            return
        table = Table("model", "noise", "MB", "parameters", "description", box=SIMPLE_HEAD, show_edge=False)
        for name in bundled_models():
            loaded = load_model(name)
            size = (f"{weight_megabytes(name):.1f}", f"{loaded.parameters / 1e6:.1f} M")
            table.add_row(name, ", ".join(loaded.recipe.noise.kinds), *size, loaded.recipe.description)
        out_console.print(table)
        table = Table("recipe", "noise", "description", box=SIMPLE_HEAD, show_edge=False)
        for name in bundled_recipes():
            recipe = load_recipe(name)
            table.add_row(name, ", ".join(recipe.noise.kinds), recipe.description)
        out_console.print(table)
        _print("`thorad models NAME` tells more; `thorad train --recipe NAME` makes a model.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and results.")],
    model: ModelOption = MODEL,
    device: DeviceOption = "auto",
) -> None:
    """Anomaly maps of a real head, as it is and with implanted lesions."""
    with _one_line_each("The same command starts anew."):
        from thorad.demo import run_demo

        with _progress("demo") as report:
            found = run_demo(out, model, device=device, on_progress=report)
        table = _table("case", "method", "score", "the map's peak", "seconds")
        places = {None: "no lesion here", True: "in the lesion", False: "elsewhere"}
        for case in found:
            place = places[case.peak_in_lesion]
            table.add_row(case.name, case.method, f"{case.score:.4g}", place, f"{case.seconds:.1f}")
        out_console.print(table)
        _print(f"Look at {out / 'montage.png'} first. The overlays, one by one:")
        for case in found:
            _print(f"  {case.overlay}")


@app.command()
def bench(
    model: ModelOption = MODEL,
    device: DeviceOption = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file, too.")] = None,
) -> None:
    """Measure the speed of detection and training on this machine."""
    with _one_line_each(STARTS_ANEW):
        from thorad.benchmark import run_bench

        with _progress("bench") as report:
            figures = run_bench(model, device=device, on_progress=report)
        for title, headings, rows in figures.tables():
            _print(title, style="bold")
            table = _table(*headings)
            for row in rows:
                table.add_row(*row)
            out_console.print(table)
            _print()
        if json is not None:
            figures.write(json)
            _print(f"Figures: {json}")
