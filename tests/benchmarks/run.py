"""`make bench`: every row ours and a peer in turns, in one run, with the same threads.

A row is a job with two ways to do it, in a process of its own: what an earlier row has left behind
(an allocator that keeps large blocks makes some peers twice as fast) would else decide. Each is run
once to warm up and then five times in turns; medians are compared. Exit code 1 if a ratio is below
its target or the results disagree. Without names of rows, the Pareto front of attribution methods
(`pareto.py`) is measured last.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks import pareto, rows

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 5
THREADS = 2
MODULES = {"scikit-learn": "sklearn", "traker": "trak"}  # where the names differ
PACKAGES = ("torch", "numpy", "scikit-learn", "traker", "dattri", "kronfluence", "captum")


@dataclass(frozen=True)
class Outcome:
    """A measured row; seconds are medians."""

    name: str
    ours_seconds: float
    peer: str
    peer_seconds: float
    ratio: float
    target: float
    limit: float  # seconds
    agreement: str
    agrees: bool
    peak_mib: float  # of our side, beyond what the imports take
    peer_peak_mib: float | None  # of the peer, where the row compares memory
    memory: float | None  # the most that the first may be of the second
    repeats: int
    sizes: str

    @property
    def passes(self) -> bool:
        fast = self.ratio >= self.target and self.ours_seconds <= self.limit
        return self.agrees and fast and self.fits

    @property
    def fits(self) -> bool:
        if self.memory is None or self.peer_peak_mib is None:
            return True
        return self.peak_mib <= self.memory * self.peer_peak_mib


def measure(name: str) -> Outcome:
    """Run one row."""
    row = rows.ROWS[name]()
    ours, peer = row.ours(), row.peer()  # warm-up, and what is compared
    agrees, words = row.agree(ours, peer)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(REPEATS):
        times["ours"].append(_seconds(row.ours))
        times["peer"].append(_seconds(row.peer))
    mine = statistics.median(times["ours"])
    theirs = statistics.median(times["peer"]) / row.peer_share
    return Outcome(
        name=name,
        ours_seconds=mine,
        peer=row.peer_name,
        peer_seconds=theirs,
        ratio=theirs / mine,
        target=row.target,
        limit=row.limit,
        agreement=words,
        agrees=agrees,
        peak_mib=_peak_mib(name, "ours"),
        peer_peak_mib=None if row.memory is None else _peak_mib(name, "peer"),
        memory=row.memory,
        repeats=REPEATS,
        sizes=row.sizes,
    )


def _alone(name: str) -> Outcome:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.run", "--row", name]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return _read(out.stdout)


def _read(printed: str) -> Outcome:
    return Outcome(**json.loads(printed.splitlines()[-1]))


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _peak_mib(name: str, side: str) -> float:
    """Peak resident memory of one side alone, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.run", "--peak", name, side]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def _peak_of(job: Callable[[], object]) -> float:
    """MiB that `job` adds at its peak to what is resident before it."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.is_file():  # not Linux: the process's whole peak is all there is
        job()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gc.collect()  # garbage that is freed during the job would hide what it adds
    reset.write_text("5")  # the high-water mark falls back to what is resident now
    before = _kib(status.read_text(), "VmRSS")
    job()
    return (_kib(status.read_text(), "VmHWM") - before) / 1024


def _kib(text: str, name: str) -> int:
    return int(text.split(f"{name}:")[1].split()[0])


def main(arguments: list[str]) -> int:
    """All rows, or those named.

    `--row NAME` prints the outcome of one, `--peak NAME SIDE` the memory of one side of it.
    """
    torch.set_num_threads(THREADS)
    if arguments[:1] == ["--peak"]:
        row = rows.ROWS[arguments[1]]()
        print(_peak_of(row.peer if arguments[2] == "peer" else row.ours))
        return 0
    if arguments[:1] == ["--row"]:
        print(json.dumps(asdict(measure(arguments[1]))))
        return 0
    unknown = [name for name in arguments if name not in rows.ROWS]
    if unknown:
        print(f"bench: no row {', '.join(unknown)}; there are {', '.join(rows.ROWS)}")
        return 1
    outcomes = []
    for name in arguments or rows.ROWS:
        print(f"measuring {name}: warm-up, then {REPEATS} times in turns", flush=True)
        outcomes.append(_alone(name))
    packages = {name: version(name) for name in PACKAGES if find_spec(MODULES.get(name, name))}
    whole = {"threads": THREADS, "versions": packages, "rows": [asdict(x) for x in outcomes]}
    target = ROOT / "build" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"{THREADS} threads, median of {REPEATS}, {packages}")
    for x in outcomes:
        print(
            f"{'ok  ' if x.passes else 'FAIL'} {x.name}: ours {x.ours_seconds:.3f} s, {x.peer} "
            f"{x.peer_seconds:.3f} s, ratio {x.ratio:.1f} (target {x.target:g}"
            f"{f', at most {x.limit:g} s' if x.limit < math.inf else ''}), "
            f"{x.agreement}, peak +{x.peak_mib:.0f} MiB{_of_peer(x)} ({x.sizes})"
        )
    return 0 if all(x.passes for x in outcomes) else 1


def _of_peer(x: Outcome) -> str:
    if x.memory is None or x.peer_peak_mib is None:
        return ""
    return f" of the peer's {x.peer_peak_mib:.0f} (at most {x.memory:.0%})"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.exit(code if sys.argv[1:] else max(code, pareto.main()))
