"""What holds for the package as a whole: who imports whom, how light it starts, what its files may say."""

import ast
import hashlib
import importlib
import inspect
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import thorad

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "thorad"
ASSETS = SOURCE / "assets"
MODULES = sorted(SOURCE.rglob("*.py"))

# Every room (a folder or a module of src/thorad), and the rooms it may import from: the top stands on the bottom.
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {
        *("table", "records", "check", "executor"),
        *("viewer", "apps", "results", "training", "evaluation", "implant", "datasets", "volume_detection", "detector"),
        *("selection", "methods", "diffusion", "calibration", "model", "io", "recipe", "errors", "__init__"),
    },
    "viewer": {
        *("selection", "datasets"),
        *("apps", "results", "records", "check", "pictures", "detector", "methods", "io", "model", "recipe", "errors"),
        "__init__",
    },
    "apps": {
        *("results", "training", "evaluation", "implant", "datasets", "volume_detection", "detector", "calibration"),
        *("check", "domain", "executor"),
        *("selection", "methods", "records", "pictures", "table", "model", "diffusion", "maps", "io", "recipe"),
        *("errors", "__init__"),
    },
    "volume_detection": {"detector", "domain", "check", "records", "findings", "io", "recipe", "errors"},
    "training": {
        "critic",
        "maps",
        "methods",
        "results",
        "diffusion",
        "domain",
        "datasets",
        "io",
        "model",
        "recipe",
        "errors",
        "__init__",
    },
    "detector": {
        *(
            "selection",
            "check",
            "records",
            "calibration",
            "findings",
            "domain",
            "methods",
            "diffusion",
            "maps",
            "io",
            "model",
            "recipe",
            "errors",
        ),
        "__init__",
    },
    "results": {"table", "evaluation", "check", "records", "pictures", "datasets", "io", "errors", "__init__"},
    "calibration": {"evaluation", "records", "io", "errors"},
    "evaluation": {"datasets", "io", "findings", "maps", "table", "executor", "errors"},
    "implant": {"datasets", "io", "errors"},
    "datasets": {"io", "registry", "errors"},
    "model": {"critic", "diffusion", "domain", "io", "recipe", "errors", "__init__"},
    "domain": {"check", "io", "recipe", "errors"},
    "methods": {"diffusion", "maps", "registry", "errors"},
    "diffusion": {"registry", "errors"},
    "critic": {"maps", "errors", "__init__"},
    "maps": {"errors"},
    "io": {"check", "errors"},
    "recipe": {"diffusion", "registry", "errors"},
    "findings": {"records"},
    "records": {"check", "notebook", "io", "errors"},
    "check": {"errors"},
    "notebook": {"pictures"},
    "pictures": set(),
    "table": set(),
    "registry": {"errors"},
    "selection": {"methods", "diffusion", "model", "recipe", "errors"},
    "extend": {"datasets", "methods", "diffusion", "recipe"},
    "__init__": {"volume_detection", "detector", "training", "extend", "methods", "records", "recipe", "errors"},
    "executor": {"errors", "__init__"},
    "errors": set(),
}
# What one room's modules must not import from each other, though they are one room.
APART = [{"diffusion.network", "diffusion.schedule", "diffusion.noise"}]
# Rooms that nobody waits for: none of their modules imports torch, nor anything that does.
WITHOUT_TORCH = {"__init__", "cli", "errors", "executor", "recipe", "results"}


def module_name(path: Path) -> str:
    """`diffusion.noise` for diffusion/noise.py, `diffusion` for diffusion/__init__.py, `__init__` for the package's."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names that a file imports, wherever in it; `from a import b` counts as `a.b`. Types do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = ["thorad", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """The modules of thorad that a file imports, named without `thorad.`; `__init__` stands for the package's names."""
    names = {module_name(module) for module in MODULES}
    for imported in imported_modules(path):
        if imported.partition(".")[0] != "thorad":
            continue
        parts = imported.split(".")[1:]
        candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        yield next((name for name in candidates if name in names), "__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    room = name.partition(".")[0]
    assert room in MAY_IMPORT, f"a new room {room!r}: say in MAY_IMPORT what it may import"
    for imported in own_imports(path):
        other = imported.partition(".")[0]
        assert other == room or other in MAY_IMPORT[room], f"{name} imports {imported}: {room} stands below {other}"
        for group in APART:
            assert not ({name, imported} <= group and name != imported), f"{name} imports {imported}"


def test_no_room_stands_on_itself() -> None:
    """The table of rooms has no circle (`import thorad` itself is lazy, so it does not count)."""
    standing = {room: below - {"__init__"} for room, below in MAY_IMPORT.items() if room != "__init__"}
    while standing:
        ground = {room for room, below in standing.items() if not below & standing.keys()}
        assert ground, f"these rooms stand on each other: {sorted(standing)}"
        standing = {room: below for room, below in standing.items() if room not in ground}


def test_no_module_imports_itself_through_others() -> None:
    """Also not inside functions: a circle there is one that somebody has noticed and hidden."""
    below = {module_name(path): set(own_imports(path)) - {"__init__", module_name(path)} for path in MODULES}
    while below:
        ground = {name for name, imported in below.items() if not imported & below.keys()}
        assert ground, f"these modules import each other: {sorted(below)}"
        below = {name: imported for name, imported in below.items() if name not in ground}


def test_no_room_overrides_what_is_private_to_another() -> None:
    found = []
    for path in MODULES:
        module = importlib.import_module(f"thorad.{module_name(path)}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            room = kind.__module__.split(".")[1:2]
            for base in kind.__mro__[1:]:
                if base.__module__.startswith("thorad.") and base.__module__.split(".")[1:2] != room:
                    private = {
                        n for n in vars(kind) if n.startswith("_") and not n.startswith("__") and n != "_abc_impl"
                    }
                    found += [f"{name}.{n} overrides {base.__name__}.{n}" for n in private & vars(base).keys()]
    assert not found, "\n".join(found)


def test_functions_are_short() -> None:
    """None above 80 lines with its signature and docstring, few above 40."""
    lengths = {
        f"{module_name(path)}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: length for name, length in lengths.items() if length > 40}
    assert len(long) <= 15, long
    assert max(long.values(), default=0) <= 80, long


def run_python(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A fresh interpreter's result and its processor seconds (by the clock, other programs would count too)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [("-c", "import thorad"), ("-m", "thorad", "--help")], ids=["import", "help"])
def test_starts_without_torch_in_half_a_second(arguments: tuple[str, ...]) -> None:
    done, _ = run_python("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "thorad" in imported
    assert not imported & {"torch", "monai", "lightning", "scipy", "sklearn", "dask", "distributed"}
    assert min(run_python(*arguments)[1] for _ in range(3)) < 0.5


@pytest.mark.parametrize("name", [name for name in map(module_name, MODULES) if name.split(".")[0] in WITHOUT_TORCH])
def test_module_never_imports_torch(name: str) -> None:
    done, _ = run_python("-c", f"import thorad.{name}, sys; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr[-2000:] or f"{name} imports torch"


def test_public_names_load() -> None:
    assert set(thorad.__all__) <= set(dir(thorad))
    for name in thorad.__all__:
        assert getattr(thorad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        thorad.nothing  # noqa: B018


def own_files() -> list[Path]:
    """Every file that git has or would take; without git, every file that is not in a hidden or built folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    else:
        built = {".venv", "build", "dist", "__pycache__", ".git", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
        paths = [p for p in REPOSITORY.rglob("*") if not built & set(p.relative_to(REPOSITORY).parts)]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_machine_or_a_package_host() -> None:
    # Put together from pieces, so that this file does not hold what it forbids.
    folders = "|".join(["wo" + "rk", "tm" + "p", "ro" + "ot", "op" + "t", "ho" + "me", "Us" + "ers"])
    hosts = [
        ("pypi", "org"),
        ("python" + "hosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("download.pytorch", "org"),
    ]
    hosts += [("debian", "org"), ("anaconda", "org"), ("anaconda", "com"), ("jsdelivr", "net"), ("unpkg", "com")]
    options = ["index" + "-url", "find" + "-links", "trusted" + "-host"]
    forbidden = re.compile(
        rf"(?<![\w.)\]}}])/(?:{folders})/\w"
        rf"|\b(?:{'|'.join(re.escape('.'.join(host)) for host in hosts)})\b"
        rf"|--(?:extra-)?(?:{'|'.join(options)})"
    )
    assert forbidden.search("see /" + "tmp/x")
    assert forbidden.search("https://" + "pypi" + ".org/simple")
    found = []
    for path in own_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            if match := forbidden.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {match[0]}")
    assert not found, "\n".join(found)


def bundled_binaries() -> list[Path]:
    return [path for path in sorted(ASSETS.rglob("*")) if path.is_file() and b"\0" in path.read_bytes()]


@pytest.mark.parametrize("path", bundled_binaries(), ids=lambda path: str(path.relative_to(ASSETS)))
def test_asset_is_the_one_its_note_describes(path: Path) -> None:
    """A note (.md or .json) beside the file, or in a folder over it, names the file and its SHA-256."""
    folders = [folder for folder in path.parents if folder.is_relative_to(ASSETS)]
    notes = [note for folder in folders for note in sorted(folder.iterdir()) if note.suffix in (".json", ".md")]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    texts = [note.read_text(encoding="utf-8") for note in notes]
    assert any(path.name in text and digest in text for text in texts), (
        f"{path.relative_to(REPOSITORY)} has SHA-256 {digest}, which none of its notes says: "
        f"{[str(note.relative_to(ASSETS)) for note in notes]}"
    )


def test_constraints_pin_everything_declared() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins), "only name==version"
    pinned = {pin.partition("==")[0] for pin in pins}
    assert not [name for name in pinned if name.startswith("nvidia") or name in ("torchvision", "triton")]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["dev"], *extras["docs"]]:
        if requirement.startswith("thorad["):
            continue
        assert re.split(r"[<>=!~\[ ;]", requirement)[0].lower() in pinned, f"{requirement} is not in constraints.txt"


def test_imports_are_declared() -> None:
    """A package that the source imports is a dependency, not something that happens to be installed with another."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [of_extra for extra, of_extra in project["optional-dependencies"].items() if extra not in ("dev", "docs")]
    declared = {re.split(r"[<>=!~\[ ;]", name)[0] for name in sum(extras, project["dependencies"])}
    import_names = {"pillow": "PIL", "scikit-learn": "sklearn"}
    allowed = {import_names.get(name, name.replace("-", "_")) for name in declared} | set(sys.stdlib_module_names)
    for path in MODULES:
        roots = {name.partition(".")[0] for name in imported_modules(path)} - {"thorad"}
        assert roots <= allowed, f"{path.name} imports {sorted(roots - allowed)}, which pyproject.toml does not require"


def test_one_version_everywhere() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", changelog, flags=re.MULTILINE)
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert released[0][0] == thorad.__version__
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [thorad.__version__]
    assert re.findall(r"^date-released: (.+)$", citation, flags=re.MULTILINE) == [released[0][1]]
