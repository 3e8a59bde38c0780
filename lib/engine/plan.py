"""What each notebook depends on, written for Make: `python -m lib.engine.plan`.

Checks the request, then writes `<run folder>/plan-<label>.mk` and prints its path. A notebook's
prerequisites are its file, the files of `lib` that it really imports (directly or through others,
inside functions too), its part's claims, the lock, and a stamp of the parameters that is rewritten
only when a value changes. Make compares file times; nothing is imported to find this out.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lib import files
from lib.config import ROOT
from lib.engine import notebooks
from lib.engine.notebooks import Problem, Request

LOCK = "requirements.txt"
STAMP = ".params"
OUTPUTS = "outputs"  # the files that the last run left in the figures folder
MISSING = "outputs-missing"  # a phony prerequisite: one of them is gone


def imported_files(notebook: str) -> list[Path]:
    """Files of `lib` that a notebook imports, with all that these import, sorted.

    Raises:
        Problem: the notebook cannot be read.
    """
    pending: list[Path] = []
    for cell in notebooks.cells(notebook):
        lines = str(cell["source"]).splitlines()
        code = "\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in lines)
        pending += _imports(code, package=())
    found: set[Path] = set()
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            parts = path.relative_to(ROOT).with_suffix("").parts
            pending += _imports(path.read_text(), package=parts[:-1])
    return sorted(found)


def _imports(source: str, package: tuple[str, ...]) -> Iterator[Path]:
    """Files of `lib` named by the import statements of one source text."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # running it will say so better than this could
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(tuple(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield from _files((*base, alias.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant):
                yield from _files(tuple(str(name.value).split(".")))


def _files(dotted: tuple[str, ...]) -> Iterator[Path]:
    """Files that importing a dotted name of `lib` executes; its last part may be an attribute."""
    if dotted[0] != "lib":
        return
    for n in range(1, len(dotted) + 1):
        stem = ROOT.joinpath(*dotted[:n])
        for path in (stem / "__init__.py", stem.with_suffix(".py")):
            if path.is_file():
                yield path


def prerequisites(notebook: str, request: Request) -> list[str]:
    """Everything that makes a notebook stale, as paths relative to the root."""
    source = notebooks.FOLDER / f"{notebook}.ipynb"
    ledger = ROOT / "lib" / "ledger" / f"part{notebook[0]}.toml"
    try:
        files = [source, *imported_files(notebook)]
    except Problem:  # its run will fail with that sentence, and the other notebooks go on
        files = [source]
    files += [ledger] if ledger.is_file() else []
    files += [ROOT / LOCK, request.run_folder / notebook / STAMP]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    return names + ([MISSING] if is_output_missing(notebook, request) else [])


def is_output_missing(notebook: str, request: Request) -> bool:
    """Whether a figure or table that the last run wrote has been deleted since."""
    listed = request.run_folder / notebook / OUTPUTS
    if not listed.is_file():
        return False
    folder = request.figures_dir / request.profile / notebook
    return not all((folder / name).is_file() for name in listed.read_text().splitlines())


def makefile(request: Request) -> str:
    """The text that Make includes."""
    run = request.run_folder.relative_to(ROOT).as_posix()
    lines = ["# written by lib/engine/plan.py: what each notebook depends on"]
    lines += [f"RUN := {run}", f"NOTEBOOKS := {' '.join(request.notebooks)}"]
    lines += ["PAGE :="] if request.is_variant else []  # the gallery shows committed figures only
    for name in request.notebooks:
        lines.append(f"{run}/{name}.ipynb: {' '.join(prerequisites(name, request))}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the path of the plan; exit code 1 and one sentence if the request is wrong."""
    try:
        request = notebooks.request(os.environ)
        for name in request.notebooks:
            files.write_if_changed(request.run_folder / name / STAMP, request.stamp())
        path = request.run_folder / f"plan-{request.label}.mk"
        files.write_whole(path, makefile(request))
    except Problem as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"figures: cannot write in build/: {error.strerror}", file=sys.stderr)
        return 1
    print(path.relative_to(ROOT).as_posix())
    return 0


if __name__ == "__main__":
    sys.exit(main())
