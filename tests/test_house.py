"""The rules of the house that a program can check: who may import whom, file sizes, what an import costs."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PACKAGE = "tapeprop"

# Lowest floor first. A module imports from its own unit (the first name under the package, or a package of UPSTAIRS) and from
# lower floors only.
FLOORS = (
    ("errors",),
    ("ir",),
    ("targets",),
    ("ops",),
    ("compiler",),
    ("runtime",),
    ("layers", "initializers"),
    ("graph",),
    ("training", "datasets", "losses", "optimizers", "schedules", "metrics"),
    ("profiler", "interchange", "callbacks"),
    ("model", "formula"),
    ("onnx",),
    ("zoo",),
    ("__init__",),
    ("cli", "__main__"),  # the command line is a user of the public face
)
# Packages that stand higher than the one that they lie in: {package: unit}.
UPSTAIRS = {("interchange", "onnx"): "onnx"}
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
# On every other floor, units of one floor may import each other.
STRANGERS = {frozenset({"profiler", "interchange"})}
# Units that must load without a compiler.
NO_COMPILER = {"errors", "ir", "layers", "initializers", "graph", "callbacks", *FLOORS[FLOOR_OF["training"]]}
COMPILERS = ("numba", "llvmlite")
LONGEST_FILE = 800


@dataclass(frozen=True)
class Import:
    """One imported module, or name in a module: `from a import b` counts as a.b."""

    file: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def imports_in(text: str, file: Path) -> Iterator[Import]:
    """Every import in a module, nested ones and `importlib.import_module("...")` with a literal included."""
    package = (PACKAGE, *file.parent.parts)
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield Import(file, node.lineno, name.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join(package[: len(package) + 1 - level]) if level else ""
                full = ".".join(part for part in (base, module) if part)
                for name in names:
                    yield Import(file, node.lineno, full if name.name == "*" else f"{full}.{name.name}")
            case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(name)), *_]):
                yield Import(file, node.lineno, name)
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield Import(file, node.lineno, name)


def unit_of_file(file: Path) -> str:
    return UPSTAIRS.get(file.parts[:2]) or (file.parts[0] if len(file.parts) > 1 else file.stem)


def unit_of_import(name: str) -> str | None:
    """The unit of ours that an import reaches; `from tapeprop import x` reaches unit x, or the top for any other x."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    if upstairs := UPSTAIRS.get(tuple(parts[1:3])):
        return upstairs
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "__init__"


def reaches(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def is_kernel_file(file: Path) -> bool:
    return bool({"cpu", "cuda"} & {*file.parts[:-1], file.stem})


def is_cuda_target(file: Path) -> bool:
    return unit_of_file(file) == "targets" and len(file.parts) > 1 and file.parts[1].startswith("cuda")


def breaches(text: str, file: Path) -> list[str]:
    """What a module at `file`, relative to the package, does against the rules; empty where it keeps them."""
    unit = unit_of_file(file)
    if unit not in FLOOR_OF:
        return [f"{file}: unit {unit!r} stands on no floor; add it to FLOORS"]
    found = []
    for item in imports_in(text, file):
        other = unit_of_import(item.name)
        if other is not None and other != unit:
            if FLOOR_OF[other] > FLOOR_OF[unit]:
                found.append(f"{item}: {other} is above {unit}")
            elif frozenset({unit, other}) in STRANGERS:
                found.append(f"{item}: {unit} and {other} do not know each other")
        if reaches(item.name, "numba.cuda") and not is_cuda_target(file):
            found.append(f"{item}: only targets/cuda*.py may")
        if reaches(item.name, *COMPILERS) and unit in NO_COMPILER:
            found.append(f"{item}: {unit} loads without a compiler")
        if unit == "ops" and not is_kernel_file(file) and reaches(item.name, f"{PACKAGE}.targets", *COMPILERS):
            found.append(f"{item}: an op's spec and reference import no target; its cpu.py or cuda.py may")
    return found


SOURCES = sorted(path.relative_to(SOURCE / PACKAGE) for path in (SOURCE / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_imports_go_down(file: Path) -> None:
    assert breaches((SOURCE / PACKAGE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("ir/tensor.py", "from tapeprop.errors import GraphError", None),
        ("ir/tensor.py", "from . import value\nfrom .dims import Shape", None),
        ("ir/tensor.py", "from tapeprop.ops import add", "ops is above ir"),
        ("ir/tensor.py", "from ..ops import add", "ops is above ir"),
        ("ir/tensor.py", "def f():\n    import tapeprop.ops.conv", "ops is above ir"),
        ("ir/tensor.py", "if TYPE_CHECKING:\n    from tapeprop import ops", "ops is above ir"),
        ("ir/tensor.py", "importlib.import_module('tapeprop.graph')", "graph is above ir"),
        ("ir/tensor.py", "import tapeprop as tp", "__init__ is above ir"),
        ("ir/tensor.py", "from tapeprop import LayerGraph", "__init__ is above ir"),
        ("ir/tensor.py", "import numba", "ir loads without a compiler"),
        ("layers/conv.py", "from tapeprop import initializers", None),
        ("losses.py", "def f():\n    from llvmlite import ir", "losses loads without a compiler"),
        ("training/fit.py", "from tapeprop.losses import MSE", None),
        ("profiler/report.py", "from tapeprop.interchange import save", "do not know each other"),
        ("interchange/saved.py", "from tapeprop.interchange.onnx import model", "onnx is above interchange"),
        ("interchange/onnx/graphs.py", "from tapeprop.formula import function", None),
        ("model.py", "from tapeprop.interchange import onnx", "onnx is above model"),
        ("ops/add.py", "import numpy as np", None),
        ("ops/add.py", "def f():\n    from tapeprop.targets import cpu", "import no target"),
        ("ops/conv/spec.py", "import numba", "import no target"),
        ("ops/conv/cpu.py", "import numba\nfrom tapeprop.targets import cpu", None),
        ("ops/cuda/conv.py", "from tapeprop.targets.cuda import jit", None),
        ("ops/cuda/conv.py", "from numba import cuda", "only targets/cuda"),
        ("runtime/cuda.py", "import numba.cuda.cudadrv", "only targets/cuda"),
        ("targets/cuda.py", "from numba import cuda", None),
        ("targets/cuda/device.py", "from numba.cuda import jit", None),
        ("targets/cpu.py", "from numba import cuda", "only targets/cuda"),
        ("cli/main.py", "import tapeprop.training", None),
        ("__init__.py", "from . import graph, model", None),
        ("cellar/__init__.py", "", "stands on no floor"),
    ],
)
def test_the_rules_see_what_they_should(file: str, text: str, expected: str | None) -> None:
    found = breaches(text, Path(file))
    assert (found == []) if expected is None else (len(found) == 1 and expected in found[0])


def repository_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git, whatever lies in the folders that hold text."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        folders = (ROOT / name for name in ("src", "tests", "docs", "bench", "examples"))
        paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_python_file_is_too_long() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in repository_files()
        if path.suffix == ".py"
    }
    assert lengths
    assert {str(path): length for path, length in lengths.items() if length > LONGEST_FILE} == {}


# A path that begins at the root of one machine; `a/root/b` in a formula or an URL is none.
MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(?:work|root|home|Users)/\w")


@pytest.mark.parametrize("start", ["work", "root", "home", "Users"])
def test_machine_paths_are_seen(start: str) -> None:
    path = f"/{start}/someone/file"
    assert MACHINE_PATH.search(f'open("{path}")')
    assert MACHINE_PATH.search(path)
    assert not MACHINE_PATH.search(f"graph{path}")
    assert not MACHINE_PATH.search(f"https://example.org{path}")


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in repository_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # an image, a data file
            continue
        found += [
            f"{path.relative_to(ROOT)}:{i}: {line}" for i, line in enumerate(lines, 1) if MACHINE_PATH.search(line)
        ]
    assert found == []


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.datasets"])
def test_import_loads_no_compiler(module: str) -> None:
    """A fresh interpreter, since this one may have compiled already. The linker brings subprocess and tempfile with it."""
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert PACKAGE in loaded
    assert not {*COMPILERS, "numba_cuda", "cuda", f"{PACKAGE}.runtime.linker"} & {*loaded}
