"""Who may import whom in `lib`, and what no tracked file may hold.

Shared files never import topic code; topics import only downwards and by public names; heavy
packages are imported inside the function that needs them. Each rule is shown an offender too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib.config import ROOT
from tests.notebooks.rules import MACHINE_PATH

TOPICS = ("probes", "attribution", "monitoring", "npeff", "backprop")  # lowest first
HEAVY = {"umap", "open_clip", "trak", "captum", "dask", "distributed"}
HEAVY_FOR_ENGINE = HEAVY | {"torch", "torchvision", "papermill", "matplotlib", "seaborn"}
LIGHT = (
    "documents",
    "files",
    "config",
    "profiles",
    "claims",
    "cache",
)  # what the engine uses of lib
VAGUE_NAMES = {"utils", "helpers", "misc", "common"}
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    """One imported module or name, dotted: "torch.nn", "lib.probes._fit"."""

    target: str
    line: int
    is_lazy: bool  # inside a function, or for type checking alone


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import of a file, relative ones resolved against its dotted module name."""
    package = module if is_package else module.rpartition(".")[0]
    return list(_imports(ast.parse(source), package, False))


def _imports(node: ast.AST, package: str, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(x.name, child.lineno, is_lazy) for x in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                kept = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            yield from (Import(f"{base}.{x.name}", child.lineno, is_lazy) for x in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for inner in child.body:
                yield from _imports(ast.Module([inner], []), package, True)
            for inner in child.orelse:
                yield from _imports(ast.Module([inner], []), package, is_lazy)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, package, is_lazy or is_function)


def area(module: str) -> str:
    """The first name below lib: "lib.npeff.fisher" -> "npeff"."""
    return [*module.split("."), ""][1]


def wrong_directions(files: Mapping[str, list[Import]]) -> list[str]:
    """Shared files that import a topic, topics that import a later one or a private name."""
    said = []
    for module, imports in files.items():
        mine = area(module)
        for found in imports:
            theirs = area(found.target)
            if not found.target.startswith("lib.") or theirs not in TOPICS or theirs == mine:
                continue
            where = f"{module}, line {found.line}, imports {found.target}"
            if mine not in TOPICS:
                said.append(f"{where}: shared code imports no topic")
            elif TOPICS.index(theirs) > TOPICS.index(mine):
                said.append(f"{where}: topics import downwards in the order {', '.join(TOPICS)}")
            elif any(x.startswith("_") for x in found.target.split(".")):
                said.append(f"{where}: a private name of another topic")
    return said


def eager_heavy_imports(files: Mapping[str, list[Import]]) -> list[str]:
    """Heavy packages that are imported when the module is."""
    said = []
    for module, imports in files.items():
        is_engine = area(module) in ("engine", *LIGHT)
        heavy = HEAVY_FOR_ENGINE if is_engine else HEAVY
        for found in imports:
            if found.target.split(".")[0] in heavy and not found.is_lazy:
                said.append(f"{module}, line {found.line}, imports {found.target} at the top")
    return said


def dotted(path: Path) -> str:
    """lib/npeff/fisher.py -> "lib.npeff.fisher"; a package for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = sorted((ROOT / "lib").rglob("*.py"))


@pytest.fixture(scope="module")
def lib_imports() -> dict[str, list[Import]]:
    return {
        dotted(x): imports_of(x.read_text(), dotted(x), is_package=x.stem == "__init__")
        for x in PATHS
    }


def test_lib_imports_in_the_right_direction(lib_imports) -> None:
    assert "lib.config" in lib_imports
    assert wrong_directions(lib_imports) == []


def test_heavy_packages_are_imported_inside_functions(lib_imports) -> None:
    assert eager_heavy_imports(lib_imports) == []


def test_what_the_engine_imports_of_lib_is_light(lib_imports) -> None:
    for module, imports in lib_imports.items():
        if area(module) in ("engine", *LIGHT):
            mine = [x.target for x in imports if x.target.startswith("lib.") and not x.is_lazy]
            assert [x for x in mine if area(x) not in ("engine", *LIGHT)] == [], module


def test_engine_starts_without_torch() -> None:
    """At run time too, whatever the packages it imports bring along."""
    names = [dotted(x) for x in PATHS if area(dotted(x)) in ("engine", *LIGHT)]
    code = f"import sys, {', '.join(x for x in names if not x.endswith('__main__'))}\n"
    code += f"print(sorted({HEAVY_FOR_ENGINE!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize("path", PATHS, ids=dotted)
def test_lib_file_is_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert path.stem not in VAGUE_NAMES


def off_the_map(text: str, names: set[str]) -> set[str]:
    """Files that a map does not name, and names on it that are no files."""
    lines = [line.split() for line in text.splitlines() if line.startswith("    ")]
    return {words[0] for words in lines} ^ names


def test_every_file_of_attribution_is_on_its_map_once() -> None:
    folder = ROOT / "lib" / "attribution"
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()), clean=False) or ""
    assert off_the_map(text, {p.stem for p in folder.glob("*.py")} - {"__init__"}) == set()


def test_files_that_a_map_lacks_or_invents_are_found() -> None:
    text = "A map\n    trak   networks\n    gone   moved away\nand words"
    assert off_the_map(text, {"trak", "new"}) == {"gone", "new"}


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / x for x in done.stdout.split("\0") if x]


def machine_paths(data: bytes) -> list[str]:
    """Paths of a machine in a text file; a binary file has none."""
    try:
        return [x[0] for x in MACHINE_PATH.finditer(data.decode("utf-8"))]
    except UnicodeDecodeError:
        return []


def test_no_tracked_file_holds_a_path_of_a_machine() -> None:
    paths = [x for x in tracked_files() if x.is_file()]
    assert paths
    found = {os.path.relpath(x, ROOT): machine_paths(x.read_bytes()) for x in paths}
    assert {k: v for k, v in found.items() if v} == {}


# Offenders

OFFENDERS = {
    "shared imports topic": ("lib.features", "from lib import probes"),
    "shared imports topic lazily": ("lib.features", "def f():\n    import lib.npeff.fisher"),
    "engine imports topic": ("lib.engine.run", "from lib.backprop import maximise"),
    "relative import": ("lib.data.digits", "from ..attribution import trak"),
    "upwards": ("lib.probes", "from lib.backprop import maximise"),
    "upwards in a package": ("lib.attribution.trak", "from lib.npeff import fisher"),
    "private name": ("lib.backprop.maximisation", "from lib.probes import _solve"),
    "private module": ("lib.backprop.maximisation", "from lib.probes._inner import solve"),
}
KEPT = {
    "downwards": ("lib.backprop.maximisation", "from lib.probes import fit_ridge"),
    "itself": ("lib.npeff.fisher", "from lib.npeff._inner import x\nfrom . import factorise"),
    "shared": ("lib.probes", "from lib import cache, config\nimport torch"),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_wrong_direction_is_found(name: str) -> None:
    module, source = OFFENDERS[name]
    assert len(wrong_directions({module: imports_of(source, module)})) == 1


@pytest.mark.parametrize("name", KEPT)
def test_right_direction_is_accepted(name: str) -> None:
    module, source = KEPT[name]
    assert wrong_directions({module: imports_of(source, module)}) == []


def test_relative_imports_of_a_package_are_resolved() -> None:
    found = imports_of("from .solve import x\nfrom .. import probes", "lib.npeff", is_package=True)
    assert [x.target for x in found] == ["lib.npeff.solve.x", "lib.probes"]


@pytest.mark.parametrize(
    ("module", "source", "is_found"),
    [
        ("lib.parallel", "import dask.array", True),
        ("lib.parallel", "try:\n    from distributed import Client\nexcept ImportError: ...", True),
        ("lib.parallel", "class A:\n    import umap", True),
        ("lib.parallel", "def f():\n    from distributed import Client", False),
        ("lib.features", "import torch", False),
        ("lib.engine.run", "import torch", True),
        ("lib.config", "from torch import Tensor", True),
        (
            "lib.cache",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
            False,
        ),
        ("lib.cache", "if TYPE_CHECKING:\n    x = 1\nelse:\n    import torch", True),
    ],
)
def test_eager_heavy_import_is_found(module: str, source: str, is_found: bool) -> None:
    assert bool(eager_heavy_imports({module: imports_of(source, module)})) == is_found


def test_machine_paths_are_found_and_addresses_are_not() -> None:
    for folder in ("ho" + "me", "Us" + "ers", "wo" + "rk", "ro" + "ot"):
        assert machine_paths(f'x = "/{folder}/me/data"'.encode())
    assert machine_paths(b"see https://example.org/home/me and build/work/x") == []
    assert machine_paths(b"\xff\xfe\x00") == []
