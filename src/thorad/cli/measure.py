"""Evaluate and reproduce: `evaluate`, `reproduce`, `bench`, `implant`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

from typer import Argument, Exit, Option, Typer

from thorad.cli import options as opt
from thorad.cli.look import print_report
from thorad.cli.render import (
    RESUMES,
    end_with_failures,
    in_short,
    print_error,
    print_left_out,
    print_line,
    print_table,
    print_warning,
    progress_bar,
    write_json,
)
from thorad.diffusion import NOISES
from thorad.errors import ThoradError
from thorad.executor import Executor
from thorad.io.tables import listing

if TYPE_CHECKING:
    from thorad.apps.reproduce_data import LayoutCheck
    from thorad.datasets.cases import Case
    from thorad.detector import Detector

app = Typer(rich_help_panel="Evaluate and reproduce")

BRAIN_MODELS: Final = "brain-t1-gaussian,brain-t1-compact,brain-t1-patched"
"""Each method of the paper on a network that was trained for its kind of noise."""


@dataclass(frozen=True)
class ComparisonOptions(opt.RunOptions):
    """Which methods to compare, on which models, with which noises; words separated by commas."""

    model: Annotated[str, opt.MethodOption(help="Models, separated by commas, the preferred first.")] = (
        opt.DEFAULT_MODEL
    )
    method: Annotated[str | None, opt.MethodOption(help="Methods, separated by commas. Default: all possible.")] = None
    noise: Annotated[str, opt.MethodOption(help=f"{', '.join(NOISES)}, or all that are possible.")] = "all"

    draws: Annotated[
        str | None,
        opt.MethodOption(help="Draws of the noise whose maps are averaged, or several numbers: 1,4. Default: 1."),
    ] = None
    calls: Annotated[
        str | None,
        opt.MethodOption(help="Equal cost: as many draws of each method as come nearest to these network calls: 8,40."),
    ] = None
    seeds: Annotated[
        str | None, opt.ComputeOption(help="Several seeds, 0,1,2: also writes mean and spread over them.")
    ] = None

    @property
    def several_costs(self) -> bool:
        """Whether methods are compared at more than one number of draws, or at equal calls."""
        return self.calls is not None or len(opt.parse_numbers(self.draws, "--draws", 1)) > 1

    def by_seed(self, make: opt.MakeDetector) -> dict[int, list[Detector]]:
        """{seed: its detectors}; see `detectors`."""
        seeds = opt.parse_numbers(self.seeds, "--seeds", 0) or [self.seed]
        return {seed: replace(self, seed=seed).detectors(make) for seed in seeds}

    def detectors(self, make: opt.MakeDetector) -> list[Detector]:
        """Detectors of each method with each noise, at each cost; options that a method doesn't have are not for it.

        Raises:
            ThoradError: as `thorad.selection.comparison` and `thorad.Detector`.
        """
        from thorad.apps.compare import at_calls, at_draws
        from thorad.methods import METHODS
        from thorad.selection import comparison

        methods = self.methods(opt.parse_words(self.method) if self.method else None)
        noises = None if self.noise == "all" else opt.parse_words(self.noise)
        draws, calls = opt.parse_numbers(self.draws, "--draws", 1), opt.parse_numbers(self.calls, "--calls", 1)
        if draws and calls:
            raise ThoradError("--draws and --calls were given: choose one of them.")
        detectors = []
        wanted = comparison(opt.parse_words(self.model), methods, noises)
        self.check_settings(list(dict.fromkeys(method for _, method, _ in wanted)))
        for model, method, noise in wanted:
            facts, settings = METHODS[method], opt.parse_settings(self.settings or (), method)
            takes = {"steps": facts.default_steps, "noise_level": noise, "perceptual_weights": facts.perceptual}
            others = {name: None for name in takes if not takes[name]}
            run = partial(self.run, model, method, noise, make, **others)
            if calls:
                detectors += at_calls(run, calls, settings)
            elif draws:
                detectors += [at_draws(run, number, settings) for number in (draws if noise else draws[:1])]
            else:
                detectors.append(run(draws=1))
        return detectors


@dataclass(frozen=True)
class ProtocolOptions:
    """What is measured, and on what besides the cases."""

    protocol: Annotated[
        Literal["brain-lesions", "brain-volumes", "boxes"],
        Option(help="What to measure: lesions by size, means over volumes, or boxes in X-rays."),
    ] = "brain-lesions"
    healthy: Annotated[Path | None, Option(help="Folder or CSV of additional healthy images.")] = None
    validation: Annotated[
        Path | None, Option(help="CSV like CASES, of other subjects, on which brain-volumes chooses its threshold.")
    ] = None
    bootstrap: opt.Bootstrap = 1000
    permutations: Annotated[int, Option(help="For the tests against THOR and the z-score; 0: no p-values.", min=0)] = (
        2000
    )


@opt.verb(app, example="thorad evaluate cases.csv --method thor,zscore -o evaluation", interrupted=RESUMES)
def evaluate(
    cases: Annotated[
        Path, Argument(help="CSV with columns image and mask or boxes (empty if healthy), and optionally subject.")
    ],
    out: Annotated[Path, opt.OutOption(help="Folder for tables, figures and maps; an interrupted run resumes in it.")],
    measured: ProtocolOptions,
    compared: ComparisonOptions,
    cluster: opt.Cluster = None,
    make_report: opt.Report = False,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
) -> None:
    """Measure methods on images with known lesions, by one of the field's protocols."""
    from thorad.datasets.cases import read_cases
    from thorad.evaluation.evaluate import PROTOCOLS
    from thorad.evaluation.runs import healthy_cases
    from thorad.io.scans import find_scans, patients_doubt, picture_files

    read = PROTOCOLS[measured.protocol].read(cases)
    scans = find_scans([measured.healthy], healthy=True) if measured.healthy else None
    if scans is not None:
        told = {scan.path: scan.told_subject for scan in scans.values()}
        read = [*read, *healthy_cases(read, picture_files(scans), told)]
    if doubt := patients_doubt([case.image for case in read], [case.subject for case in read]):
        print_warning(f"Warning: {doubt}")
    validation = read_cases(measured.validation) if measured.validation else []

    with opt.workers(cluster) as (make, executor):
        by_seed = compared.by_seed(make)
        refused = _refused(by_seed, [case.image for case in (*read, *validation)])
        of: Any = (measured, compared, refused)
        found, warnings = _measure(read, validation, by_seed, out, *of, executor=executor, quiet=quiet)
    if not quiet:
        print_left_out({} if scans is None else scans.left_out)
    if make_report:
        print_report(out if len(by_seed) == 1 else out / f"seed-{next(iter(by_seed))}", quiet=quiet)
    write_json(json, {"results_of_seed": found, "refused": refused, "warnings": [*filter(None, [doubt]), *warnings]})
    first = next(iter(found.values()))[0]
    end_with_failures({failure["name"]: failure["reason"] for failure in first["failures"]})


def _refused(by_seed: Mapping[int, list[Detector]], images: Sequence[Path]) -> dict[str, dict[str, str]]:
    """{model: {image: why}} of the images that a model can't judge; warns of them."""
    from thorad.apps.run import refused_images

    refused = refused_images(next(iter(by_seed.values())), images)
    for model, of_model in refused.items():
        told = listing([f"{Path(path).name}: {why}" for path, why in in_short(of_model).items()])
        print_warning(
            f"{len(of_model)} of {len(images)} images are not what model {model!r} can judge, and are measured all the "
            f"same (run.json lists them): {told}"
        )
    return refused


def _measure(
    cases: Sequence[Case],
    validation: Sequence[Case],
    by_seed: Mapping[int, list[Detector]],
    out: Path,
    measured: ProtocolOptions,
    compared: ComparisonOptions,
    refused: Mapping[str, Mapping[str, str]],
    *,
    executor: Executor,
    quiet: bool,
) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """Evaluate with each seed, and write, print and give what was found, and what speaks against it."""
    from thorad.apps.compare import write_cost_figure, write_seeds
    from thorad.apps.run import write_evaluation_run
    from thorad.evaluation.evaluate import baseline_warning, evaluate
    from thorad.evaluation.tables import table_of
    from thorad.results.figure import import_matplotlib

    if compared.several_costs:
        import_matplotlib()  # its absence should be told before the work
    found: dict[int, list[dict[str, Any]]] = {}
    warnings: list[str] = []
    for seed, detectors in by_seed.items():
        folder, began = out if len(by_seed) == 1 else out / f"seed-{seed}", monotonic()
        with progress_bar("evaluate" if len(by_seed) == 1 else f"seed {seed}", quiet) as show:
            found[seed] = evaluate(
                cases,
                [],
                detectors,
                folder,
                protocol=measured.protocol,
                validation=validation,
                bootstrap=measured.bootstrap,
                permutations=measured.permutations,
                seed=compared.seed,
                asked_calls=opt.parse_numbers(compared.calls, "--calls", 1),
                on_progress=show,
                keep_maps=True,
                executor=executor,
            )
        told = write_evaluation_run(detectors, found[seed], folder, monotonic() - began, refused, opt.command_line())
        warnings += [warning for warning in told if warning not in warnings]
    first = next(iter(found.values()))
    table, means = (table_of(first, brief=True), first) if len(found) == 1 else write_seeds(found, out)
    if compared.several_costs:
        write_cost_figure(means, out)
    if warning := baseline_warning(first):
        print_warning(warning)
    if not quiet:
        print_table(table)
        explained = "table.md explains the columns" if len(found) == 1 else "seeds.md, and a folder for each seed"
        print_line(f"Results: {out} ({explained}{', cost.png' if compared.several_costs else ''})")
    return found, warnings


Target = Annotated[
    Literal["table1", "table2", "fig4", "ablation", "train"],
    Argument(help="The table or figure of the THOR paper; ablation: what its parts give; train: its networks."),
]
PaperFolder = Annotated[
    Path,
    Option(help="ATLAS v2.0, for table2 GRAZPEDWRI-DX, as published; or a folder of cases.csv and healthy/."),
]


@dataclass(frozen=True)
class ReproduceOptions:
    """The fields are those of `thorad.apps.reproduce.Settings`."""

    every: Annotated[int, Option(help="Take only every N-th case, on slow machines.", min=1)] = 1
    skip_artefacts: Annotated[
        bool, Option("--skip-artefacts", help="Leave out the slices of ATLAS that the published evaluation leaves out.")
    ] = False
    bootstrap: opt.Bootstrap = 1000
    steps: opt.Steps = None
    device: opt.Device = "auto"
    seed: opt.Seed = 0
    batch_size: opt.BatchSize = 16
    engine: opt.Engine = "torch"


@dataclass(frozen=True)
class PaperTrainingOptions:
    """Of the target `train`."""

    ixi: Annotated[Path | None, Option(help="train: IXI's T1 volumes as published, or their slices as PNG.")] = None
    noise: Annotated[str, Option(help="train: a network for each of these, separated by a comma.")] = "simplex,gaussian"
    recipe: Annotated[str, Option(help="train: the recipe; its noise is replaced.")] = "brain-t1"
    training_steps: Annotated[int | None, Option(help="train: instead of the paper's 1500 epochs.", min=1)] = None


@opt.verb(app, example="thorad reproduce table1 --data ATLAS/ -o table1", interrupted=RESUMES)
def reproduce(
    target: Target,
    data: PaperFolder,
    options: ReproduceOptions,
    training: PaperTrainingOptions,
    out: Annotated[Path | None, opt.OutOption(help="Folder for report.md and the rest; --check needs none.")] = None,
    models: Annotated[
        str | None,
        Option(help=f"Models. Default: hand-xray64 for table2, otherwise {BRAIN_MODELS}."),
    ] = None,
    check: Annotated[bool, Option("--check", help="Only check the folder and print what it holds.")] = False,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
) -> None:
    """Reproduce a table, the figure or the training of the THOR paper, next to the published numbers."""
    if target == "train":
        return _reproduce_training(data, training, options, out, check=check, quiet=quiet)
    if training != PaperTrainingOptions():
        raise ThoradError("--ixi, --noise, --recipe and --training-steps are of the target train alone.")

    from thorad.apps import reproduce as paper
    from thorad.apps.reproduce_data import check_layout

    if check:
        with progress_bar(target, quiet) as show:
            _end_with_layout(check_layout(target, data, on_progress=show))
    if out is None:
        raise ThoradError("--out is missing: name a folder for the results, or --check the data only.")

    chosen = models or ("hand-xray64" if target == "table2" else BRAIN_MODELS)
    settings = paper.Settings(**{**vars(options), "steps": opt.parse_steps(options.steps)})
    with progress_bar(target, quiet) as show:
        measured = paper.reproduce(target, data, opt.parse_words(chosen), out, settings, on_progress=show)
    if not quiet:
        print_table(measured.table)
        print_line(f"Results: {out} (report.md first)")
    write_json(json, {"results": measured.results, "failures": measured.failures})
    end_with_failures(measured.failures)


def _end_with_layout(layout: LayoutCheck) -> NoReturn:
    """Print what a folder holds, and end the verb."""
    for line in layout.found:
        print_line(line)
    for problem in layout.problems:
        print_error(f"Unusable: {problem}")
    raise Exit(1 if layout.problems else 0)


def _reproduce_training(
    data: Path, training: PaperTrainingOptions, options: ReproduceOptions, out: Path | None, *, check: bool, quiet: bool
) -> None:
    if training.ixi is None:
        raise ThoradError("--ixi is missing: name the folder of IXI's T1 volumes, or of their slices.")
    from thorad.apps.reproduce_train import build_training_set, check_training_data, train_paper

    if check:
        layout = check_training_data(training.ixi, data)
        _end_with_layout(layout)
    if out is None:
        raise ThoradError("--out is missing: name a folder for the images and the models.")
    with progress_bar("train", quiet) as show:
        made = build_training_set(training.ixi, data, out, skip_artefacts=options.skip_artefacts, on_progress=show)
    for line in made.found:
        print_line(line)
    models = train_paper(
        made,
        out,
        opt.parse_words(training.noise),
        recipe=training.recipe,
        steps=training.training_steps,
        accelerator={"cuda": "gpu"}.get(options.device, options.device),
        progress_bar=not quiet,
    )
    for noise, model in models.items():
        print_line(f"Model for {noise} noise: {model}")


@opt.verb(app, example="thorad bench --json speed.json")
def bench(model: opt.Model = opt.DEFAULT_MODEL, device: opt.Device = "auto", json: opt.Json = None) -> None:
    """Measure the speed of detection and training on this machine."""
    from thorad.apps.speed import measure_speed

    with progress_bar("bench") as show:
        speed = measure_speed(model, device=device, on_progress=show)
    for table in speed.tables():
        print_table(table)
        print_line()
    write_json(json, speed.figures())


@opt.verb(app, example="thorad implant healthy/ -o test-set --findings dark,bright")
def implant(
    healthy: Annotated[
        list[Path], Argument(help="Pictures, DICOM pictures, folders of them, or CSV files with a column image.")
    ],
    out: Annotated[Path, opt.OutOption(help="Folder for the test set; must be new or empty.")],
    findings: Annotated[
        str, Option(help="Kinds, separated by commas: these for X-rays; dark,bright for lesions in anything else.")
    ] = "pins,plate,fracture,foreign-body,swelling",
    seed: Annotated[int, Option(help="Random seed for everything that is drawn.", min=0)] = 0,
    healthy_share: Annotated[float, Option(help="Fraction of the subjects left without a finding.")] = 0.25,
    body_share: Annotated[
        float, Option(help="The largest fraction of an X-ray that the body may fill: 0.4 for a hand, 0.8 for a wrist.")
    ] = 0.4,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
) -> None:
    """Make a labelled test set from healthy images: simulated findings, with boxes or masks."""
    from thorad.implant.image_sets import LESION_KINDS, make_lesion_set, make_xray_set

    kinds = opt.parse_words(findings)
    lesions = set(kinds) <= set(LESION_KINDS)
    if lesions:
        made = make_lesion_set(healthy, out, seed=seed, kinds=kinds, healthy_share=healthy_share)
    else:
        made = make_xray_set(healthy, out, seed=seed, kinds=kinds, healthy_share=healthy_share, body_share=body_share)
    if not quiet:
        counts = ", ".join(f"{count} {kind}" for kind, count in made.counts.items())
        print_line(f"{sum(made.counts.values())} cases: {counts}; {len(made.left_out)} images left out.")
        print_left_out(made.no_images)
        if made.doubt:
            print_warning(f"Warning: {made.doubt}")
        print_line("The findings are simulated: figures on them compare methods and say nothing about patients.")
        protocol = "brain-lesions" if lesions else "boxes"
        print_line(f"Measure: thorad evaluate {made.table} --protocol {protocol} --model MODEL -o DIR")
    left_out = {path.name: reason for path, reason in made.left_out.items()}
    write_json(json, {"table": made.table, "counts": made.counts, "left_out": left_out})
    end_with_failures(left_out, what="left out")
