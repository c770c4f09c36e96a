"""Options that several verbs share, each declared once, and the decorator that makes a function a verb."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, cleandoc, get_annotations, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_type_hints

from typer import Argument, Option, Typer
from typer.models import ArgumentInfo

from thorad.cli.render import STARTS_OVER, STDOUT, one_line_errors, set_log_level, words_on_stderr
from thorad.diffusion import ENGINES, NOISES
from thorad.errors import ThoradError
from thorad.executor import Executor, processes
from thorad.methods import METHODS

if TYPE_CHECKING:
    from thorad.detector import Detector

MakeDetector = Callable[..., "Detector"]
"""`Detector`, or what makes one on a cluster."""

DEFAULT_MODEL = "brain-t1-compact"

MethodOption = partial(Option, rich_help_panel="Method")
ComputeOption = partial(Option, rich_help_panel="Computation")
OutOption = partial(Option, "--out", "-o")


def completion(words: Iterable[str]) -> Callable[[str], list[str]]:
    """What the shell offers for an option whose value is one of the words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


Inputs = Annotated[
    list[Path], Argument(help="Pictures, volumes, DICOM files, folders of them, or CSV files with a column image.")
]
Model = Annotated[str, MethodOption(help="Name of a bundled model, or a model folder.")]
Steps = Annotated[str | None, MethodOption(help="Timesteps to visit, or all. Default: the method's, few.")]
Device = Annotated[str, ComputeOption(help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, ComputeOption(help="Random seed for the noise.")]
BatchSize = Annotated[int, ComputeOption(help="Images at once on an accelerator; a CPU takes one.", min=1)]
Engine = Annotated[
    str,
    ComputeOption(
        help=f"What runs the network: {', '.join(ENGINES)}. openvino is faster on x86 processors and needs the extra "
        "`openvino`.",
        autocompletion=completion(ENGINES),
    ),
]
Shard = Annotated[
    str | None, ComputeOption(help="I/N: process only part I of N. Others can do the rest into the same --out.")
]
Cluster = Annotated[
    str | None,
    ComputeOption(
        metavar="ADDRESS",
        help="Do it on the workers of a Dask cluster: tcp://host:8786, or the scheduler's file. --device is theirs.",
    ),
]
Bootstrap = Annotated[int, Option(help="Bootstrap resamples over subjects; 0: no confidence intervals.", min=0)]
Slices = Annotated[
    str | None, Option(help="Axial slices of a volume, in the template's grid: 95, or 90-100. Default: the model's.")
]
KeepIdentity = Annotated[bool, Option("--keep-identity", help="Keep DICOM files' paths, which often name patients.")]
Side = Annotated[
    Literal["neurological", "radiological"] | None,
    Option(
        help="Patient's right on the right (neurological) or left (radiological) of slices. Default: the run's, on "
        "the right."
    ),
]
Report = Annotated[bool, Option("--report", help="Also write report.html, a page with every case to look at.")]
Json = Annotated[
    Path | None, Option(metavar="FILE", help="Also write the figures to this JSON file; -: only print them, on stdout.")
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print errors only.")]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    Option(help="What stderr tells: progress (info), warnings, errors; debug adds where an error comes from."),
]


@dataclass(frozen=True)
class RunOptions:
    """How any method is run; the fields, but for the preset, are arguments of `thorad.Detector`."""

    steps: Steps = None
    noise_level: Annotated[int | None, MethodOption(help="Timestep to noise to. Default: the method's.", min=1)] = None
    preset: Annotated[
        Literal["published"] | None, MethodOption(help="The methods published-..., as the published code runs them.")
    ] = None
    perceptual_weights: Annotated[Path | None, MethodOption(help="torchvision's SqueezeNet 1.1 for LPIPS.")] = None
    settings: Annotated[
        list[str] | None,
        MethodOption("--set", help="Value of a method's own option: threshold=0.13, or autoddpm.threshold=0.13."),
    ] = None
    device: Device = "auto"
    seed: Seed = 0
    batch_size: BatchSize = 16
    engine: Engine = "torch"

    def run(self, model: str | Path, method: str | None, noise: Any, make: MakeDetector, **replaced: Any) -> Detector:
        """A detector run like this, but for the options that are replaced.

        Raises:
            ThoradError: as `Detector`.
        """
        others = ("preset", "calls", "seeds")  # that no detector takes
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        options |= {"model": model, "method": method, "noise": noise, "steps": parse_steps(self.steps)}
        options["settings"] = parse_settings(self.settings or (), method or "thor")
        return make(**{**options, **replaced})

    def check_settings(self, methods: Iterable[str]) -> None:
        """Refuse a `--set` for a method that isn't run: it would change nothing, without a word.

        Raises:
            ThoradError: there is one.
        """
        for text in self.settings or ():
            if not any(parse_settings([text], method) for method in methods):
                raise ThoradError(f"--set {text} is for a method that is not run here ({', '.join(methods)}).")

    def methods(self, names: list[str] | None) -> list[str] | None:
        """The methods that the names mean under the preset; None if neither is given.

        Raises:
            ThoradError: the preset has no such method.
        """
        if self.preset is None:
            return names
        known = [name.removeprefix(f"{self.preset}-") for name in METHODS if name.startswith(f"{self.preset}-")]
        for name in names or ():
            if name not in known:
                raise ThoradError(f"the preset {self.preset!r} has no method {name!r}. It has {', '.join(known)}.")
        return [f"{self.preset}-{name}" for name in names or known]


@dataclass(frozen=True)
class DetectorOptions(RunOptions):
    """One method with one model."""

    method: Annotated[
        str | None,
        MethodOption(
            help=f"{', '.join(METHODS)}. `thorad methods` describes them. "
            "Default: critic-only, or thor where the model has no critic or a diffusion method's option is given.",
            autocompletion=completion(METHODS),
        ),
    ] = None
    noise: Annotated[
        str | None,
        MethodOption(help=f"{' or '.join(NOISES)}. Default: the method's own.", autocompletion=completion(NOISES)),
    ] = None
    model: Model = DEFAULT_MODEL
    draws: Annotated[
        int | None,
        MethodOption(help="Draws of the noise whose maps are averaged. Default: the method's, of most 2.", min=1),
    ] = None

    def detector(self, make: MakeDetector | None = None) -> Detector:
        """The detector that was asked for; see `run`."""
        method = self.method
        if self.preset is not None:
            (method,) = self.methods([method or "thor"]) or ["thor"]
        self.check_settings([method or "thor"])
        return self.run(self.model, method, self.noise, make or _make_detector)


@contextmanager
def workers(cluster: str | None, shared: Path | None = None, jobs: int = 1) -> Iterator[tuple[MakeDetector, Executor]]:
    """What makes a detector, and where a run is done: here, in so many processes, or on a cluster.

    Raises:
        ThoradError: both are asked for; as `thorad.apps.cluster.connected`.
    """
    if cluster is None:
        yield _make_detector, processes(jobs)
    elif jobs > 1:
        raise ThoradError("--jobs and --cluster were given: choose one of them.")
    else:
        from thorad.apps.cluster import connected

        with connected(cluster, shared) as its_workers:
            yield its_workers.detector, its_workers


def _make_detector(**options: Any) -> Detector:
    from thorad.detector import Detector

    return Detector(**options)


def parse_steps(text: str | None) -> int | Literal["all"] | None:
    """`--steps` as `Detector` takes it.

    Raises:
        ThoradError: neither a number nor "all".
    """
    if text is None or text == "all":
        return text  # type: ignore[return-value]  # mypy doesn't narrow str to the literal
    try:
        return int(text)
    except ValueError as error:
        raise ThoradError(f"--steps is {text!r}, expected a number or all.") from error


def parse_settings(given: Iterable[str], method: str) -> dict[str, str]:
    """{option: value} of those `--set METHOD.OPTION=VALUE` and `--set OPTION=VALUE` that are for a method.

    Raises:
        ThoradError: one without a value, or for a method that there isn't.
    """
    settings: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        of_method, dot, option = name.rpartition(".")
        if not equals or not option or (dot and of_method not in METHODS):
            raise ThoradError(
                f"--set is {text!r}, expected OPTION=VALUE, or METHOD.OPTION=VALUE with one of {', '.join(METHODS)}."
            )
        if of_method in ("", method):
            settings[option] = value
    return settings


def parse_numbers(text: str | None, option: str, lowest: int) -> list[int]:
    """The numbers of `1, 2,4`, in their order, each once; none of None.

    Raises:
        ThoradError: no whole numbers, or one below the lowest.
    """
    try:
        numbers = [int(word) for word in parse_words(text)] if text else []
    except ValueError:
        numbers = [lowest - 1]
    if any(number < lowest for number in numbers):
        raise ThoradError(f"{option} is {text!r}, expected whole numbers from {lowest} on, separated by commas.")
    return list(dict.fromkeys(numbers))


def parse_words(text: str) -> list[str]:
    """The words of `a, b,c`."""
    return [word.strip() for word in text.split(",")]


_running: ContextVar[tuple[str, list[tuple[Parameter, Any]]]] = ContextVar("running")
"""The verb that runs, and the values of its parameters."""


def command_line(**hidden: bool) -> str:
    """The verb that runs, as one would type it; for a parameter that is `hidden`, as it may name patients, its name."""
    verb, given = _running.get()
    words = ["thorad", verb]
    for parameter, value in given:
        if value == parameter.default:
            continue
        info = get_args(parameter.annotation)[1]
        # What `Option` is given first stands in its default.
        flags = [flag for flag in (info.default, *(info.param_decls or ())) if str(flag).startswith("--")]
        flag = [] if isinstance(info, ArgumentInfo) else flags[:1] or [f"--{parameter.name.replace('_', '-')}"]
        values = value if isinstance(value, list) else [value]
        shown = [parameter.name.upper()] if hidden.get(parameter.name) else [str(each) for each in values]
        words += flag if value is True else [word for each in shown for word in (*flag, each)]
    return shlex.join(words)


def verb(
    app: Typer, name: str | None = None, *, example: str, interrupted: str = STARTS_OVER
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a verb of a group, with one-line errors and the option --log-level.

    A parameter whose type is a dataclass of options stands for its fields: Typer sees each as a parameter of its own.

    Args:
        app: the group.
        name: the verb's; None: the function's.
        example: a command line, shown below the verb's help.
        interrupted: what to say after Ctrl-C.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        declared = signature(function, eval_str=True)
        spread = {key: _spread(parameter) for key, parameter in declared.parameters.items()}
        parameters = [option.replace(kind=Parameter.KEYWORD_ONLY) for options in spread.values() for option in options]
        parameters.append(Parameter("log_level", Parameter.KEYWORD_ONLY, default="info", annotation=LogLevel))

        @wraps(function)
        def call(*, log_level: str, **given: Any) -> None:
            set_log_level(log_level)
            _running.set((name or function.__name__, [(one, given[one.name]) for one in parameters[:-1]]))
            for spread_out, parameter in declared.parameters.items():
                if is_dataclass(parameter.annotation):
                    values = {option.name: given.pop(option.name) for option in spread[spread_out]}
                    given[spread_out] = cast(Any, parameter.annotation)(**values)
            with one_line_errors(interrupted), words_on_stderr(given.get("json") == STDOUT):
                function(**given)

        call.__signature__ = declared.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {option.name: option.annotation for option in parameters}
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(function.__doc__ or ""))  # Typer keeps line breaks
        app.command(name, help=text, epilog=f"Example: [bold]{example}[/]", rich_help_panel=app.rich_help_panel)(call)
        return call

    return register


def _spread(parameter: Parameter) -> list[Parameter]:
    """The options that a parameter stands for."""
    kind = parameter.annotation
    return list(_option_parameters(kind)) if is_dataclass(kind) else [parameter]


def _option_parameters(kind: Any) -> Iterator[Parameter]:
    """The fields of a dataclass of options as a function's parameters: its own first, then those of its bases."""
    types = get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in fields(kind)}
    for name in dict.fromkeys(name for part in kind.__mro__ for name in get_annotations(part)):
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=types[name])
