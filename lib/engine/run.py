"""Executes one notebook: `python -m lib.engine.run <notebook> <changed prerequisite> ...`.

papermill runs `notebooks/<name>.ipynb` to `<run folder>/<name>.running.ipynb`, which becomes
`<name>.ipynb` only when every cell has run; a failure keeps `<name>.failed.ipynb` and
`<name>.log`. One process at a time runs a notebook: a live owner is named and waited for, and the
system drops the lock of a dead one. The terminal gets a line of progress; all else goes to the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lib import files
from lib.config import ROOT
from lib.engine import facts, notebooks, plan
from lib.engine.notebooks import Problem, Request
from lib.engine.progress import Progress, Tell

if TYPE_CHECKING:
    from nbformat import NotebookNode

REASONS = {plan.STAMP: "parameters changed", plan.MISSING: "a figure or table of it is missing"}
OUT_OF_SPACE = "the disk is full; free some space and run the same command again"


class Interrupted(KeyboardInterrupt):  # which asyncio lets through from any of its tasks
    """A signal asked for the end; not an error of the notebook."""


class Job:
    """One notebook of one request, with the names of its files."""

    def __init__(self, name: str, request: Request) -> None:
        self.name = name
        self.request = request
        self.source = notebooks.FOLDER / f"{name}.ipynb"
        self.target = request.run_folder / f"{name}.ipynb"
        self.running = request.run_folder / f"{name}.running.ipynb"
        self.failed = request.run_folder / f"{name}.failed.ipynb"
        self.log = request.run_folder / f"{name}.log"
        self.own = request.run_folder / name
        self.stamp = self.own / plan.STAMP
        self.owner = self.own / "owner.json"

    def reason(self, changed: Sequence[str]) -> str:
        """Why it runs, in words, from the prerequisites that are newer than the last run."""
        if not self.target.is_file():
            if self.failed.is_file():
                return "failed last time"
            return "interrupted last time" if self.running.is_file() else "never run"
        words = [REASONS.get(Path(name).name, f"{name} changed") for name in changed]
        rest = f" and {len(words) - 3} more" if len(words) > 3 else ""
        return ", ".join(words[:3]) + rest or "asked for"

    def is_fresh(self, changed: Sequence[str]) -> bool:
        """Whether another process has run it with these parameters while we waited."""
        if not self.target.is_file() or self.stamp.read_text() != self.request.stamp():
            return False
        done = self.target.stat().st_mtime_ns
        files = [ROOT / name for name in changed if name != plan.MISSING]
        missing = plan.is_output_missing(self.name, self.request)
        return not missing and all(f.stat().st_mtime_ns <= done for f in files if f.exists())


@contextlib.contextmanager
def exclusive(job: Job, tell: Tell) -> Iterator[bool]:
    """Hold the notebook's lock; yields whether another process had it first."""
    from filelock import FileLock, Timeout

    job.own.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.own / "run.lock")
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        tell(f"wait  {job.name}: process {_read_owner(job).get('pid')} is running it")
        lock.acquire()
    try:
        before = _read_owner(job)
        files.write_whole(job.owner, json.dumps({"pid": os.getpid()}))
        _end_orphan(before)
        yield waited
        job.owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _read_owner(job: Job) -> dict[str, float]:
    try:
        return dict(json.loads(job.owner.read_text()))
    except (OSError, ValueError):
        return {}


def _end_orphan(owner: dict[str, float]) -> None:
    """End the kernel of a runner that was killed, lest it writes figures beside ours."""
    import psutil

    if "kernel" in owner:
        with contextlib.suppress(psutil.Error):
            kernel = psutil.Process(int(owner["kernel"]))
            if abs(kernel.create_time() - owner["kernel_started"]) < 1:
                kernel.kill()
                kernel.wait(10)


def _note_kernel(job: Job) -> None:
    import psutil

    for child in psutil.Process().children():
        note = {"pid": os.getpid(), "kernel": child.pid, "kernel_started": child.create_time()}
        files.write_whole(job.owner, json.dumps(note))


def execute(job: Job, progress: Progress) -> None:
    """Run all cells to `job.running`; raises what papermill raises."""
    # An optional import of jsonschema that notebooks have no use for; it builds a grammar, which
    # takes half of the 3 s that a run needs beside its cells (measured).
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    class Watched(NBClientEngine):
        """papermill's own engine, telling which cell has begun."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):  # type: ignore
            code = [i for i, cell in enumerate(nb_man.nb.cells) if _is_own_code(cell)]
            begin = nb_man.cell_start

            def cell_start(cell, cell_index=None, **rest):  # type: ignore
                if cell_index in code:
                    if cell_index == code[0]:
                        _note_kernel(job)
                    progress.at(code.index(cell_index) + 1, len(code))
                return begin(cell, cell_index, **rest)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("watched", Watched)
    papermill.execute_notebook(
        str(job.source),
        str(job.running),
        parameters=job.request.arguments(job.name),
        engine_name="watched",
        kernel_name="python3",
        cwd=str(notebooks.FOLDER),
        log_output=True,
        progress_bar=False,
    )


def _is_own_code(cell: NotebookNode) -> bool:
    """A code cell of the source, which the one that papermill injects is not."""
    return cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])


def failure(error: Exception) -> str:
    """What went wrong, in one line."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, (PapermillExecutionError, CellExecutionError)):
        lines = str(error.evalue).strip().splitlines()
        return f"{error.ename}: {lines[-1].strip()}" if lines else str(error.ename)
    if isinstance(error, Problem):
        return str(error)
    if isinstance(error, DeadKernelError) or "Kernel died" in str(error):
        return "the kernel died; it was killed, perhaps for want of memory"
    if isinstance(error, OSError) and error.errno == 28:
        return OUT_OF_SPACE
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def perform(job: Job, reason: str, tell: Tell, is_live: bool) -> int:
    """Run the notebook and put every file in its place; exit code 0 or 1."""
    started, clock = time.time(), time.perf_counter()
    cache = facts.CacheUse(job.own / "cache-use")
    environment = {"FIGURES_DIR": str(job.request.figures_dir), "CACHE_USE_LOG": str(cache.path)}
    os.environ.update(environment | {"IPYTHONDIR": str(ROOT / "build" / "ipython")})
    tell(f"run   {job.name} ({job.request.profile}): {reason}")
    progress = Progress(job.name, tell, is_live)
    try:
        with progress:
            execute(job, progress)
        seconds = time.perf_counter() - clock
        record = facts.collect(job, seconds, seconds + cache.saved_seconds())
        files.write_whole(job.request.record(job.name), json.dumps(record, indent=1) + "\n")
        folder = job.request.figures_dir / job.request.profile / job.name
        names = sorted(p.name for p in folder.glob("*") if p.is_file() and p.name != "run.json")
        files.write_whole(job.own / plan.OUTPUTS, "".join(f"{name}\n" for name in names))
        os.utime(job.running, (started, started))  # an edit made meanwhile is newer than this
        os.replace(job.running, job.target)
    except Interrupted:
        _end_children()
        job.running.unlink(missing_ok=True)
        raise
    except Exception as error:
        logging.getLogger().exception("%s failed", job.name)
        with contextlib.suppress(OSError):
            os.replace(job.running, job.failed)
        where = " and ".join(str(p.relative_to(ROOT)) for p in (job.failed, job.log) if p.is_file())
        tell(f"FAIL  {job.name}  {progress.place()}{failure(error)}  (see {where})")
        return 1
    job.failed.unlink(missing_ok=True)
    tell(f"done  {job.name}  {progress.cells} cells  {seconds:.0f} s")
    return 0


def _stop(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough; the kernel must be stopped in peace
    raise Interrupted


def _end_children() -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def log_everything(path: Path) -> int:
    """Send this process's and its kernel's output to the log; returns the terminal."""
    terminal = os.dup(1)
    with open(path, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    return terminal


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done or fresh, 1 failed, 130 interrupted."""
    terminal = 1

    def tell(line: str, end: str = "\n") -> None:
        with contextlib.suppress(OSError):  # a closed terminal is no reason to stop
            os.write(terminal, (line + end).encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    name, changed = arguments[0], arguments[1:]
    try:
        job = Job(name, notebooks.request(os.environ))
        with exclusive(job, tell) as waited:
            if waited and job.is_fresh(changed):
                tell(f"fresh {name}: the other process has run it")
                return 0
            reason = job.reason(changed)
            files.write_if_changed(job.stamp, job.request.stamp())
            is_live = os.isatty(1) and "--jobserver" not in os.environ.get("MAKEFLAGS", "")
            terminal = log_everything(job.log)
            return perform(job, reason, tell, is_live)
    except Problem as error:
        tell(f"FAIL  {name}  {error}")
        return 1
    except OSError as error:
        tell(f"FAIL  {name}  {failure(error)}")
        return 1
    except Interrupted:
        tell(f"stop  {name}: interrupted; the same command starts it again")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
