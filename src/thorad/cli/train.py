"""Train and calibrate: `train`, `calibrate`, `models`."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option, Typer
from typer.core import TyperGroup

from thorad.cli import options as opt
from thorad.cli.render import (
    end_with_failures,
    print_left_out,
    print_line,
    print_table,
    print_warning,
    progress_bar,
    write_json,
)
from thorad.table import Table

if TYPE_CHECKING:
    from thorad.calibration import Calibration
    from thorad.critic.critic import Critic

PANEL = "Train and calibrate"

app = Typer(rich_help_panel=PANEL)


@dataclass(frozen=True)
class MachineOptions:
    """What a training runs on; the fields are arguments of `thorad.fit`."""

    devices: Annotated[str, opt.ComputeOption(help="Number of devices per node, or auto.")] = "auto"
    nodes: Annotated[int, opt.ComputeOption(help="Number of machines.", min=1)] = 1
    accelerator: Annotated[str, opt.ComputeOption(help="auto, cpu, gpu or mps.")] = "auto"
    threads: Annotated[
        int | None,
        opt.ComputeOption(help="Of a CPU. Default: the fastest in the first steps.", min=1),
    ] = None


@opt.verb(
    app,
    example="thorad train --recipe brain-t1-compact --train healthy.csv -o training",
    interrupted="Run the same command again to resume from the last checkpoint.",
)
def train(
    recipe: Annotated[str, Option(help="Name of a bundled recipe, or a TOML file. `thorad models` lists them.")],
    train: Annotated[Path, Option(help="Healthy pictures, volumes or DICOM: a folder, or a CSV with a column image.")],
    out: Annotated[Path, opt.OutOption(help="Folder for logs, checkpoints and the model; an interrupted run resumes.")],
    machine: MachineOptions,
    validation: Annotated[Path | None, Option(help="Pictures, volumes or DICOM of other subjects, likewise.")] = None,
    steps: Annotated[int | None, Option(help="Training steps, instead of the recipe's number.", min=1)] = None,
    start_from: Annotated[str | None, Option(help="A model whose weights to start from.")] = None,
    json: opt.Json = None,
) -> None:
    """Train a model on healthy images."""
    from thorad.recipe import load_recipe

    chosen = load_recipe(recipe)
    if steps is not None:
        chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"steps": steps})})

    from lightning.pytorch.utilities import rank_zero_only

    from thorad.training.fit import fit

    folder = fit(
        chosen,
        train,
        out,
        validation=validation,
        **vars(machine),
        start_from=start_from,
    )
    # Every process of a distributed training comes by here.
    for line in (f"Model: {folder}", f"Use it: thorad detect INPUT --model {folder} -o DIR"):
        rank_zero_only(print_line)(line)
    rank_zero_only(write_json)(json, {"model": folder, "page": out / "training.html", "recipe": chosen.model_dump()})


@opt.verb(
    app,
    "train-critic",
    example="thorad train-critic brain-t1-compact --train healthy/ --validation other/ -o my-model",
    interrupted="Run the same command again to resume from the last checkpoint.",
)
def train_critic(
    model: Annotated[str, Argument(help="A bundled model or a model folder.")],
    machine: MachineOptions,
    train: Annotated[Path, Option(help="Healthy pictures, volumes or DICOM, such as the model was trained on.")],
    validation: Annotated[Path, Option(help="Healthy ones of other subjects: they make its answers probabilities.")],
    out: Annotated[Path | None, opt.OutOption(help="Folder for a copy of the model; needed for a bundled one.")] = None,
    recipe: Annotated[
        str | None, Option(help="A recipe whose critic section says how to train. Default: the model's own.")
    ] = None,
    steps: Annotated[int | None, Option(help="Steps of the last network, instead of the recipe's.", min=1)] = None,
    json: opt.Json = None,
) -> None:
    """Teach a model's critic, from healthy images alone, to tell what is not healthy.

    It learns from anomalies that are made up in healthy images. Afterwards `thorad detect` uses it by default: its map
    is a probability, so that masks and findings come without a calibration.
    """
    from lightning.pytorch.utilities import rank_zero_only

    from thorad.apps.train_critic import train_critic_of
    from thorad.model import load_recipe_of
    from thorad.recipe import load_recipe

    section = (load_recipe_of(model) if recipe is None else load_recipe(recipe)).critic
    if steps is not None:
        section = section.model_copy(update={"steps": steps})
    folder, critic = train_critic_of(model, section, train, validation, out, **vars(machine))
    rank_zero_only(_tell_of_critic)(folder, critic, json)  # every process of a distributed training comes by here


def _tell_of_critic(folder: Path, critic: Critic, json: Path | None) -> None:
    from thorad.apps.train_critic import outdated_calibrations

    write_json(json, {"model": folder, "critic": critic.facts})
    for name, value in critic.facts.items():
        if value != critic.warning:
            print_line(f"{name}: {value}")
    if critic.warning:
        print_warning(f"Warning: the critic is written, but {critic.warning}.")
    if outdated_calibrations(folder):
        print_warning(
            f"Warning: {folder} was calibrated with another critic, whose thresholds and p-values no longer apply. "
            f"Calibrate anew: thorad calibrate HEALTHY --model {folder}"
        )
    print_line(f"Model: {folder}")
    print_line(f"Use it: thorad detect INPUT --model {folder} -o DIR")


@opt.verb(app, example="thorad calibrate healthy/ --model brain-t1-compact -o my-model")
def calibrate(
    healthy: opt.Inputs,
    options: opt.DetectorOptions,
    out: Annotated[Path | None, opt.OutOption(help="Folder for a copy of the model; needed for a bundled one.")] = None,
    level: Annotated[float, Option(help="The smallest p-value that must be possible.")] = 0.05,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
) -> None:
    """Derive thresholds and p-values for `thorad detect` from healthy scans that the model was not trained on.

    They hold for the same method and options only. A model without domain.safetensors (imported, or of an earlier
    version) also learns here what its pictures look like, so that other kinds of image are refused.
    """
    from thorad.io.scans import find_scans

    scans = find_scans(healthy, leave_out=out, healthy=True)

    from thorad.apps.calibrate import calibrate_files, save_calibration
    from thorad.calibration import format_options
    from thorad.methods import METHODS
    from thorad.model import own_folder

    own_folder(options.model, out)  # a refusal should come before the work
    detector = options.detector()
    with progress_bar("calibrate", quiet) as report:
        summary = calibrate_files(detector, scans, level=level, on_progress=report)
    calibration, count = summary.calibration, summary.calibration.scans
    folder = save_calibration(calibration, options.model, out, picture_domain=summary.picture_domain)
    if summary.warning:
        print_warning(f"Warning: {summary.warning}")
    if not quiet:
        print_line(f"Calibrated with {format_options(calibration.options)} on {count} scans, {summary.seconds:.1f} s.")
        _print_thresholds(calibration, METHODS[detector.method].own_threshold)
        print_line(f"The smallest p-value is 1 / {count + 1} = {1 / (count + 1):.3g}.")
        if summary.picture_domain is not None:
            print_line("The model didn't say what its pictures look like: it was learned from these scans.")
        print_line(f"Calibrated model: {folder}")
        print_left_out(scans.left_out)
    write_json(json, {"model": folder, "calibration": calibration, "failed": summary.failed})
    end_with_failures(summary.failed, what="left out")


def _print_thresholds(calibration: Calibration, own: float | None) -> None:
    rows = [(f"{100 * rate:g} %", f"{threshold:.5g}") for rate, threshold in calibration.thresholds.items()]
    print_table(Table(("healthy pixels above", "the threshold"), rows))
    if own is not None and own > min(calibration.thresholds.values()):
        print_line(f"Masks begin at the method's own {own:g} where these are lower, unless --false-positives asks.")


class _ModelsGroup(TyperGroup):
    """`thorad models NAME`: a first word that is no command of the group names a model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if args and args[0] in known else ["show", *args])


models_app = Typer(
    cls=_ModelsGroup, help="List models and recipes, describe a model, or import one.", rich_help_panel=PANEL
)
app.add_typer(models_app, name="models", rich_help_panel=PANEL)


@opt.verb(models_app, "show", example="thorad models brain-t1-compact")
def show_models(
    model: Annotated[str | None, Argument(help="A bundled model or a model folder. Default: list them.")] = None,
    json: opt.Json = None,
) -> None:
    """List the bundled models and recipes, or describe one model. `thorad models NAME` does the same."""
    if model is not None:
        return _print_model(model, json)

    from thorad.model import bundled_models, load_model, weight_megabytes
    from thorad.recipe import bundled_recipes, load_recipe
    from thorad.selection import default_method

    rows, defaults = [], {name: default_method(name) for name in bundled_models()}
    for name, method in defaults.items():
        loaded = load_model(name)
        about = (", ".join(loaded.recipe.noise.trained_kinds), "no" if loaded.critic is None else "yes", method)
        rows.append((name, *about, f"{weight_megabytes(name):.1f}", loaded.recipe.description))
    text = frozenset({"noise", "critic", "method", "description"})
    note = "critic: whether it has one. method: what `thorad detect` does with it unless --method says otherwise."
    columns = ("model", "noise", "critic", "method", "MB", "description")
    print_table(Table(columns, rows, notes=[note], text_columns=text))
    recipes = {name: load_recipe(name) for name in bundled_recipes()}
    described = [(name, ", ".join(recipe.noise.trained_kinds), recipe.description) for name, recipe in recipes.items()]
    print_line()
    print_table(Table(("recipe", "noise", "description"), described, text_columns=text))
    print_line()
    print_line("`thorad models NAME` describes a model; `thorad train --recipe NAME` trains one.")
    said = {name: recipe.model_dump() for name, recipe in recipes.items()}
    write_json(json, {"models": bundled_models(), "default_methods": defaults, "recipes": said})


def _print_model(model: str, json: Path | None) -> None:
    from thorad.model import load_model, model_card, model_folder, weight_megabytes
    from thorad.selection import default_method

    loaded = load_model(model)
    print_line(f"{loaded.recipe.name}: {loaded.recipe.description}")
    print_line(f"folder      {model_folder(model)}")
    print_line(f"noise       {', '.join(loaded.recipe.noise.trained_kinds)}")
    print_line(f"parameters  {loaded.parameters / 1e6:.2f} million, {weight_megabytes(model):.1f} MB")
    print_line(f"sha256      {loaded.sha256} (checked: the weights are as they were saved)")
    added = "not judged: no domain.safetensors, which `thorad calibrate` adds from 20 scans on"
    print_line(f"pictures    {'judged' if loaded.picture_domain else added}")
    refused = f"{len(loaded.trained_on)} images, which evaluate and calibrate refuse"
    print_line(f"trained on  {refused if loaded.trained_on else 'not known'}")
    made = "none: thorad train-critic makes one"
    if loaded.critic is not None:
        made = f"sha256 {loaded.critic.sha256}, {loaded.critic_source}; figures below"
    print_line(f"critic      {made}")
    print_line(f"method      {default_method(model)}, if none is asked for")
    said_above = ("weights_sha256", "trained_on")
    measured = {key: value for key, value in loaded.calibration.items() if key not in said_above}
    if "calibrations" in measured:
        measured["calibrations"] = [
            {key: value for key, value in made.items() if key != "scores"} for made in measured["calibrations"]
        ]
    parts = {
        "recipe": loaded.recipe.as_trained().to_toml(),
        "calibration": dumps(measured, indent=2),
        **({} if loaded.critic is None else {"critic": "\n".join(f"{k}: {v}" for k, v in loaded.critic.facts.items())}),
        "model card": model_card(model),
    }
    for title, text in parts.items():
        for line in ("", f"--- {title} ---", *text.strip().splitlines()):
            print_line(line)
    facts = {"folder": model_folder(model), "parameters": loaded.parameters, "weights_sha256": loaded.sha256}
    facts |= {} if loaded.critic is None else {"critic_sha256": loaded.critic.sha256}
    write_json(json, {**facts, "recipe": loaded.recipe.model_dump(), "calibration": measured})


@opt.verb(models_app, "import", example="thorad models import best_model.pt my-model --noise simplex")
def import_model(
    checkpoint: Annotated[Path, Argument(help="latest_model.pt or best_model.pt of the published code.")],
    out: Annotated[Path, Argument(help="The model folder to make; must not exist.")],
    noise: Annotated[Literal["gaussian", "simplex"], Option(help="The noise it was trained with.")] = "gaussian",
    name: Annotated[str | None, Option(help="Name of the model. Default: the folder's name.")] = None,
    input_range: Annotated[Literal["-1..1", "0..1"], Option(help="Intensities of its training images.")] = "-1..1",
    size: Annotated[int, Option(help="Side length of those images, px.", min=1)] = 128,
    head_channels: Annotated[
        int | None,
        Option(help="Channels of an attention head. Default: 256 if that divides the channels, or 32.", min=1),
    ] = None,
    region: Annotated[str, Option(help="Where to look for anomalies. Default: everywhere.")] = "",
) -> None:
    """Import a checkpoint of the published implementation (GitHub: ci-ber/THOR_DDPM) as a model folder."""
    from thorad.apps.published_checkpoint import import_checkpoint

    report = import_checkpoint(
        checkpoint,
        out,
        name=name or out.resolve().name,
        noise=noise,
        input_range=input_range,
        size=size,
        head_channels=head_channels,
        region=region,
    )
    network = report.network
    print_line(f"{report.parameters / 1e6:.2f} million parameters, channels {network.channels}, {noise} noise.")
    print_line(f"Its own LPIPS weights: {'kept' if report.perceptual else 'none, the bundled ones will be used'}.")
    for tensor in report.dropped:
        print_line(f"Dropped, because nothing uses it: {tensor}")
    if report.head_channels_assumed:
        assumed = f"Assumed attention heads of {network.head_channels} channels, because checkpoints don't say: "
        print_line(assumed + "a different --head-channels would give different results.", style="yellow")
    print_line(f"Model: {report.folder}")
