"""The import law, read from the import lines, and the light start that it is there for.

    cli -> stages -> { numerics, storage, nn, runtime, formats } -> BOTTOM, the plain records
    cli, stages -> settings          cli -> terminal -> stages, runtime, settings
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import unetflow

PACKAGE = Path(unetflow.__file__).parent

BOTTOM = {"architecture", "errors", "failpoints", "forward_memory", "geometry", "memory", "row_stream"}
MIDDLE = {"formats", "nn", "numerics", "runtime", "storage"}
MAY_IMPORT = {
    "__init__": {"stages"},
    "__main__": {"cli"},
    "cli": {"terminal", "stages", "settings"} | BOTTOM,
    "terminal": {"stages", "settings", "runtime"} | BOTTOM,
    "stages": {"stages", "settings"} | MIDDLE | BOTTOM,
    "settings": BOTTOM,
    **{room: {room} | BOTTOM for room in MIDDLE},
    **{room: BOTTOM for room in BOTTOM},
}
HEAVY = {"cc3d", "dask", "distributed", "matplotlib", "numba", "scipy", "skimage", "torch", "zarr"}
FILES = {"PIL", "fsspec", "h5py", "tifffile", "zarr"}
MAY_NOT_LOAD = {
    **{room: HEAVY | FILES for room in ("__init__", "__main__", "cli", "terminal", "settings", *BOTTOM)},
    "formats": {"dask", "distributed", "torch"},
    "nn": {"dask", "distributed"} | FILES,
    "numerics": {"dask", "distributed", "torch"} | FILES,
    "runtime": {"cc3d", "scipy", "skimage"} | FILES,
    "storage": {"dask", "distributed", "torch"},
}


def imports_of(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of each import in a module that lies in ``package``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def room_of(path: Path, package: Path) -> str:
    """Return the folder or the module directly inside the package."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def violations(package: Path) -> list[str]:
    """List the imports that break the law, and the modules that stand in no room."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        where = path.relative_to(package)
        if room not in MAY_IMPORT:
            found.append(f"{where}: stands in no room")
            continue
        inside = ".".join(["unetflow", *where.parts[:-1]])
        for line, name in imports_of(path.read_text(), inside):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top != "unetflow":
                allowed = top not in MAY_NOT_LOAD.get(room, set())
            else:
                allowed = target == "__version__" or target in MAY_IMPORT[room]
            if not allowed:
                found.append(f"{where}:{line}: {room} may not import {name}")
    return found


def test_no_import_breaks_the_law() -> None:
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


def test_every_room_of_the_law_is_there() -> None:
    assert {room_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("numerics/weights.py", "from unetflow.storage.volume import open_volume"),
        ("numerics/weights.py", "from unetflow import settings"),
        ("numerics/weights.py", "from unetflow import segment"),
        ("numerics/weights.py", "import unetflow"),
        ("numerics/weights.py", "import torch.nn as nn"),
        ("numerics/weights.py", "import zarr"),
        ("storage/volume.py", "import unetflow.formats.tiff as tiff"),
        ("storage/volume.py", "from dask import delayed"),
        ("nn/unet.py", "from ..runtime import ranks"),
        ("nn/deep/unet.py", "from ...storage import patches"),
        ("nn/loop.py", "def late():\n    from unetflow.settings import Settings"),
        ("nn/loop.py", "import distributed"),
        ("runtime/ranks.py", "from unetflow.stages.train import train"),
        ("runtime/ranks.py", "import zarr"),
        ("formats/tiff.py", "importlib.import_module('unetflow.storage.ngff')"),
        ("geometry.py", "from unetflow.numerics import elastic"),
        ("errors.py", "from . import settings"),
        ("architecture.py", "import torch"),
        ("settings.py", "from unetflow.stages import train"),
        ("stages/train.py", "from unetflow.cli import main"),
        ("cli.py", "from unetflow.runtime.cluster import open_client"),
        ("cli.py", "import dask"),
        ("terminal.py", "from unetflow.nn import checkpoint"),
        ("stages/train.py", "from unetflow.terminal import run_stage"),
        ("helpers.py", "import math"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("numerics/weights.py", "from unetflow.geometry import Box"),
        ("numerics/weights.py", "from . import intensity"),
        ("nn/checkpoint.py", "from unetflow import __version__"),
        ("nn/checkpoint.py", "from ..errors import InputError"),
        ("runtime/cluster.py", "import distributed"),
        ("stages/train.py", "from unetflow.nn.loop import train\nfrom unetflow.settings import Settings"),
        ("cli.py", "from unetflow.stages.train import train"),
        ("terminal.py", "def run():\n    from unetflow.runtime.cluster import open_client"),
    ],
)
def test_a_lawful_import_passes(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert violations(tmp_path) == []


LIST_MODULES = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
"""
ASK_FOR_HELP = "import sys; sys.argv = ['unetflow', '--help']; from unetflow.cli import main; main()"


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it wrote to stdout."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_help_loads_neither_torch_nor_dask() -> None:
    *text, modules = run_python(LIST_MODULES + ASK_FOR_HELP).splitlines()
    assert any("segment" in line for line in text)
    loaded = {name.split(".")[0] for name in json.loads(modules)}
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_help_answers_in_under_600_milliseconds() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        run_python(ASK_FOR_HELP)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.6


def test_importing_the_package_loads_no_library() -> None:
    modules = json.loads(run_python(LIST_MODULES + "import unetflow; unetflow.__version__").splitlines()[-1])
    loaded = {name.split(".")[0] for name in modules}
    assert "unetflow" in loaded
    assert not loaded & (HEAVY | {"numpy", "pydantic", "rich", "typer"})


@pytest.mark.parametrize("name", [name for name in unetflow.__all__ if name != "__version__"])
def test_each_stage_is_a_function_of_the_package(name: str) -> None:
    assert callable(getattr(unetflow, name))


def test_an_unknown_attribute_of_the_package_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'segmnet'"):
        _ = unetflow.segmnet


def test_no_kernel_calls_a_kernel_of_another_file() -> None:
    # Numba's cache on disk looks at the kernel's own file only: changed code elsewhere would not run.
    kernels: dict[str, set[str]] = {}
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    for path, tree in trees.items():
        kernels[path.stem] = {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and _is_kernel(f)}
    assert sum(map(len, kernels.values())) > 10
    for path, tree in trees.items():
        foreign = set().union(*(names for stem, names in kernels.items() if stem != path.stem)) - kernels[path.stem]
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and _is_kernel(function):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                names = {f.id if isinstance(f, ast.Name) else getattr(f, "attr", "") for f in calls}
                assert not names & foreign, f"{path.name}: {function.name} calls {names & foreign}"


def _is_kernel(function: ast.FunctionDef) -> bool:
    return any("njit" in ast.unparse(decorator) for decorator in function.decorator_list)
