"""Renews the stored outputs: `python -m lib.engine.refresh`, at quick, on the CPU.

Each notebook is run as it stands and written back with its outputs and execution counts, without
what differs between two equal runs (times, papermill's notes, widget state). Then the verdicts
and values of all notebooks become `tests/reference/claims.json`, which the tests compare with.
`SEEDS="1 2 3"` also runs them at these seeds, and keeps those values beside the reference's: how
far apart two networks are is what no single run can tell.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lib import claims, files
from lib.config import ROOT
from lib.engine import notebooks
from lib.engine.notebooks import Problem
from lib.engine.run import failure, log_everything

if TYPE_CHECKING:
    from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"
RUN_FACTS = ("execution", "papermill", "ExecuteTime")


def stripped(notebook: NotebookNode) -> NotebookNode:
    """Remove, in place, what is of this run only; returns the notebook."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k not in RUN_FACTS}
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):  # names a model that is not stored
                del output["data"][WIDGET]
    return notebook


def renew(name: str) -> None:
    """Run one notebook and write it back if anything differs."""
    import nbformat
    from nbclient import NotebookClient

    path = notebooks.FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebooks.FOLDER)}},
        store_widget_state=False,
        coalesce_streams=True,
    )
    client.execute()
    files.write_if_changed(path, nbformat.writes(stripped(notebook)) + "\n")


def _seeds(text: str) -> list[int]:
    if not all(word.isdecimal() for word in text.split()):
        raise Problem(f'SEEDS are whole numbers with spaces between, as in "1 2"; got {text!r}')
    return [int(word) for word in text.split()]


def at_seed(name: str, seed: int) -> dict[str, dict[str, object]]:
    """Rows of a notebook's claims at another seed; nothing stored is touched."""
    import papermill

    with tempfile.TemporaryDirectory() as folder:
        os.environ["FIGURES_DIR"] = folder
        try:
            papermill.execute_notebook(
                notebooks.FOLDER / f"{name}.ipynb",
                Path(folder) / "run.ipynb",
                parameters={"SEED": seed},
                kernel_name="python3",
                cwd=notebooks.FOLDER,
                progress_bar=False,
            )
            return claims.results("quick", Path(folder))
        finally:
            del os.environ["FIGURES_DIR"]


def main() -> int:
    """Exit code 1 if a notebook fails; it is left as it was, and the others are renewed."""
    os.environ |= {"PROFILE": "quick", "DEVICE": "cpu", "IPYTHONDIR": str(ROOT / "build/ipython")}
    os.environ[claims.RENEWING] = "1"
    os.environ.pop("FIGURES_DIR", None)
    status, terminal = 0, 1
    log = ROOT / "build" / "refresh.log"

    def tell(line: str) -> None:
        os.write(terminal, f"{line}\n".encode())

    try:
        request = notebooks.request(os.environ | {"SEED": "0", "P": ""})
        seeds = _seeds(os.environ.get("SEEDS", ""))
        log.parent.mkdir(exist_ok=True)
        terminal = log_everything(log)
        for name in request.notebooks:
            started = time.perf_counter()
            try:
                renew(name)
                tell(f"renewed  {name}  {time.perf_counter() - started:.0f} s")
            except Exception as error:
                tell(f"FAIL     {name}  {failure(error)}  (see {log.relative_to(ROOT)})")
                print(error, file=sys.stderr)
                status = 1
        rows = claims.results("quick")
        fields = ("verdict", "value", "spread")
        kept = {k: {field: v[field] for field in fields} for k, v in sorted(rows.items())}
        before = json.loads(claims.REFERENCE.read_text()) if claims.REFERENCE.is_file() else {}
        others = {k: row["seeds"] for k, row in before.items() if "seeds" in row}
        for name in request.notebooks if seeds else ():
            found = [at_seed(name, seed) for seed in seeds]
            others |= {k: [row[k]["value"] for row in found] for k in found[0]}
            tell(f"seeds    {name}  {', '.join(map(str, seeds))}")
        for k in sorted(set(kept) & set(others)):
            kept[k]["seeds"] = others[k]
        files.write_if_changed(claims.REFERENCE, json.dumps(kept, indent=1) + "\n")
        tell(f"reference: {len(kept)} claims in {claims.REFERENCE.relative_to(ROOT)}")
    except (Problem, ValueError, OSError) as error:
        tell(f"refresh: {error}")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
