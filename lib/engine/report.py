"""The summary that ends `make figures`: `python -m lib.engine.report <plan>`.

Per notebook the seconds of its last run and its claims, then failures by the names of their
files. Exit code 1 if a selected notebook has no finished run of this plan.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lib.claims import DIFFERS, HOLDS, NOT_RUN
from lib.config import ROOT
from lib.engine import notebooks
from lib.engine.notebooks import Problem, Request

WORDS = {HOLDS: "hold", DIFFERS: "differ", NOT_RUN: "not run"}


def claims(folder: Path) -> Counter[str]:
    """Verdict -> count, of one notebook.

    Raises:
        Problem: its claims.json is damaged.
    """
    path = folder / "claims.json"
    if not path.is_file():
        return Counter()
    try:
        return Counter(row["verdict"] for row in json.loads(path.read_text())["claims"])
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(
            f"{path.name} of {folder.name} is damaged; run that notebook again"
        ) from error


def counted(verdicts: Counter[str]) -> str:
    """ "3 hold, 1 differ, 0 not run", or nothing."""
    return ", ".join(f"{verdicts[key]} {word}" for key, word in WORDS.items())


def lines(request: Request, since: float) -> tuple[list[str], int]:
    """The summary and the exit code; a run is of this call if it began after `since`."""
    text, status, ran, total = [], 0, 0, Counter[str]()
    for name in request.notebooks:
        target, failed = (request.run_folder / f"{name}{end}.ipynb" for end in ("", ".failed"))
        if failed.is_file():
            names = [failed, failed.with_name(f"{name}.log")]
            where = " and ".join(p.relative_to(ROOT).as_posix() for p in names)
            text.append(f"  {name:26} FAILED  see {where}")
            status, ran = 1, ran + 1
        elif not target.is_file():
            text.append(f"  {name:26} not finished")
            status, ran = 1, ran + 1
        else:
            try:
                seconds = json.loads(request.record(name).read_text())["seconds"]
                verdicts = claims(request.figures_dir / request.profile / name)
            except (OSError, ValueError, KeyError, Problem) as error:
                text.append(f"  {name:26} its results cannot be read: {error}")
                status = 1
                continue
            total += verdicts
            ran += target.stat().st_mtime >= since
            said = f"   claims: {counted(verdicts)}" if verdicts else ""
            text.append(f"  {name:26} {seconds:6.1f} s{said}")
    head = f"figures at profile {request.profile}"
    head += "" if ran else ": nothing to do, every notebook is newer than what it reads"
    text.insert(0, head)
    if total:
        text.append(f"claims: {counted(total)}")
    folder = request.figures_dir
    shown = folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else str(folder)
    page = "" if request.is_variant else f"; all of it on one page: {shown}/index.html"
    text.append(f"figures and tables: {shown}/{request.profile}{page}")
    return text, status


def main(arguments: Sequence[str]) -> int:
    """Print the summary."""
    try:
        request = notebooks.request(os.environ)
        text, status = lines(request, Path(arguments[0]).stat().st_mtime)
    except (Problem, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    print(*text, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
