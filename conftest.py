"""For every test and every stored notebook: the profile, the device, and where figures go.

It stands at the root so that `pytest tests` and `pytest --nbval-lax notebooks` both read it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
# Kernels inherit the environment; without the folder a test run would overwrite figures/.
FIGURES = Path(tempfile.mkdtemp(prefix="figures-"))
os.environ |= {"PROFILE": "quick", "DEVICE": "cpu", "FIGURES_DIR": str(FIGURES)}
os.environ |= {"IPYTHONDIR": str(ROOT / "build" / "ipython")}
# Tests train networks into the cache that the notebooks read. With another number of threads than
# theirs (`lib.config.THREADS_AT_QUICK`) sums round differently, and a network can become another.
os.environ |= {"OMP_NUM_THREADS": "2"}
for of_a_run in ("CACHE_USE_LOG", "P", "ONLY", "SEED"):
    os.environ.pop(of_a_run, None)

# A shell that runs us in the background has us ignore SIGINT, and all we start with us: the tests
# that interrupt a process would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Progress bars write to stderr, tables of pandas change their html: neither is compared."""
    for item in items:
        skipped = getattr(item.parent, "skip_compare", None)
        if skipped is not None:
            extra = {"stderr", "text/html"} - set(skipped)
            item.parent.skip_compare = (*skipped, *sorted(extra))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the stored notebooks have run again, no verdict may differ from the reference."""
    from lib import claims

    reference = ROOT / "tests" / "reference" / "claims.json"
    now = claims.results("quick", FIGURES)
    if not now or session.exitstatus == pytest.ExitCode.INTERRUPTED:
        return
    differences = claims.changed(json.loads(reference.read_text()), now)
    print("", *differences, f"{len(now)} verdicts compared with the reference", sep="\n")
    if differences:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(FIGURES, ignore_errors=True)
