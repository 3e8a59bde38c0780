"""help, clean, clean-cache, refresh, the settings of nbval, and the folders that make exports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lib.engine.facts import blob_id
from tests.engine.toy import FROM_MAKE, ROOT

TARGETS = ["figures", "test", "lab", "claims", "gallery", "bench", "refresh", "lint", "data"]
TARGETS += ["clean", "clean-cache"]


def stored(toy, name: str) -> dict[str, list[dict[str, object]]]:
    """A notebook of the toy as it lies on disk."""
    return json.loads((toy.root / "notebooks" / f"{name}.ipynb").read_text())


def plan(toy, only: str) -> str:
    """The prerequisites that were planned for one notebook, without running it."""
    toy.make("figures", f"ONLY={only}", "-n")
    return (toy.root / f"build/quick/plan-{only}.mk").read_text().splitlines()[-1]


def test_help_is_the_default_and_lists_every_target_and_variable(toy):
    status, output = toy.make()
    assert status == 0
    listed = [line.split()[0] for line in output.splitlines() if line.startswith("  ")]
    assert set(TARGETS) <= set(listed)
    for name in ("PROFILE", "DEVICE", "SEED", "DATA_ROOT", "CACHE_DIR", "ONLY", "P"):
        assert f"{name}=" in output


def test_imports_of_every_form_are_followed(toy):
    toy.write("lib/pack/__init__.py", "from . import inner\n")
    toy.write("lib/pack/inner.py", "def f():\n    from ..shared import deep\n")
    toy.write("lib/pack/apart.py", "")
    toy.write("lib/late.py", "")
    toy.notebook("11_first", "%matplotlib inline\nimport lib.pack as p")
    assert "lib/pack/__init__.py lib/pack/inner.py lib/shared.py" in plan(toy, "11")
    assert "apart" not in plan(toy, "11")
    toy.notebook("12_second", "from lib.pack import apart, inner")
    assert "lib/pack/apart.py" in plan(toy, "12")
    late = "import importlib\nimportlib.import_module('lib.late')"
    toy.notebook("21_third", late)
    assert "lib/late.py" in plan(toy, "21")


def test_relative_folders_become_absolute(toy):
    toy.make("figures", "ONLY=12", "-n", "DATA_ROOT=../data", "CACHE_DIR=elsewhere")
    stamp = (toy.root / "build/quick/12_second/.params").read_text()
    assert f"DATA_ROOT {toy.root.parent / 'data'}\n" in stamp
    assert f"CACHE_DIR {toy.root / 'elsewhere'}\n" in stamp


def test_clean_keeps_the_cache_and_clean_cache_asks(toy):
    entry = toy.write("build/cache/mlp-1.safetensors", "")
    mine = toy.write("build/cache/mine.txt", "")
    log = toy.write("build/cache.log", "built mlp 1 2.0\n")
    toy.write("build/quick/11_first.ipynb", "")
    assert toy.make("clean")[0] == 0
    assert not (toy.root / "build/quick").exists()
    assert entry.exists()
    assert log.exists()
    clean = {k: v for k, v in os.environ.items() if k not in FROM_MAKE}  # not our own cache
    for answer, is_kept in (("n", True), ("y", False)):
        done = subprocess.run(
            ["make", "clean-cache"],
            cwd=toy.root,
            env=clean,
            input=f"{answer}\n",
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert entry.exists() == log.exists() == is_kept
    assert mine.exists()


def test_seconds_of_cached_work_and_the_blob_ids_are_recorded(toy):
    toy.write("build/cache.log", "built mlp old 30.0\n")
    note = "import os\nwith open(os.environ['CACHE_USE_LOG'], 'a') as f:\n"
    note += "    f.write('used mlp old 30.0\\nused mlp old 30.0\\nused mlp new 5.0\\n')"
    path = toy.notebook("12_second", note)
    assert toy.make("figures", "ONLY=12")[0] == 0
    record = json.loads((toy.root / "build/quick/12_second/run.json").read_text())
    assert abs(record["cold_seconds"] - record["seconds"] - 30.0) < 0.11
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert record["blobs"] == {"notebook": git.stdout.strip(), "ledger": None}
    assert blob_id(path) == git.stdout.strip()
    assert str(toy.root) not in json.dumps(record)


def test_refresh_stores_outputs_and_drops_what_differs_between_runs(toy):
    claims = "import os, pathlib, json\nf = pathlib.Path('../figures/quick/12_second')\n"
    claims += "f.mkdir(parents=True, exist_ok=True)\nrow = {'id': 'P1-01', 'verdict': 'holds'}\n"
    claims += "row |= {'spread': None, 'low': 0, 'high': 1}\n"
    claims += "(f / 'claims.json').write_text(json.dumps({'claims': [row | {'value': 0.5}]}))\n"
    path = toy.notebook("12_second", claims + "print(os.environ['PROFILE'])")
    toy.notebook("11_first", "1 / 0")
    before = (toy.root / "notebooks/11_first.ipynb").read_text()
    status, output = toy.make("refresh", "ONLY=1", "PROFILE=full")
    assert status == 2
    assert "FAIL     11_first  ZeroDivisionError: division by zero" in output
    assert (toy.root / "notebooks/11_first.ipynb").read_text() == before

    last = stored(toy, "12_second")["cells"][-1]
    assert last["outputs"][0]["text"] == ["quick\n"]
    assert last["execution_count"] == 3
    assert last["metadata"] == {"tags": []}
    reference = json.loads((toy.root / "tests/reference/claims.json").read_text())
    assert reference == {"P1-01": {"verdict": "holds", "value": 0.5, "spread": None}}

    stamp = path.stat().st_mtime_ns
    assert toy.make("refresh", "ONLY=12")[0] == 0
    assert path.stat().st_mtime_ns == stamp


def test_refresh_keeps_the_values_of_other_seeds_and_touches_nothing_else(toy):
    claims = "import os, pathlib, json\n"
    claims += "root = pathlib.Path(os.environ.get('FIGURES_DIR', '../figures'))\n"
    claims += "f = root / 'quick/12_second'\nf.mkdir(parents=True, exist_ok=True)\n"
    claims += "row = {'id': 'P1-01', 'verdict': 'holds', 'value': 0.5 + SEED / 10}\n"
    claims += "row |= {'spread': None, 'low': 0, 'high': 1}\n"
    claims += "(f / 'claims.json').write_text(json.dumps({'claims': [row]}))"
    toy.notebook("12_second", claims)
    status, output = toy.make("refresh", "ONLY=12", "SEEDS=one")
    assert status == 2
    assert "SEEDS are whole numbers with spaces between" in output
    assert toy.make("refresh", "ONLY=12", "SEEDS=1 2")[0] == 0
    target = toy.root / "tests/reference/claims.json"
    row = {"verdict": "holds", "value": 0.5, "spread": None, "seeds": [0.6, 0.7]}
    assert json.loads(target.read_text()) == {"P1-01": row}
    stored_row = json.loads((toy.root / "figures/quick/12_second/claims.json").read_text())
    assert stored_row["claims"][0]["value"] == 0.5
    assert toy.make("refresh", "ONLY=12")[0] == 0  # without SEEDS they stay
    assert json.loads(target.read_text()) == {"P1-01": row}


def test_nbval_compares_the_tagged_cell_and_writes_no_figures(toy):
    toy.write("tests/reference/claims.json", "{}")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, toy.root / name)
    for name in ("11_first", "21_third"):
        (toy.root / "notebooks" / f"{name}.ipynb").unlink()
    said = "import os, sys; print(os.environ['PROFILE'], 'figures-' in os.environ['FIGURES_DIR'])"
    path = toy.notebook("12_second", said + "; print('progress', file=sys.stderr)")
    whole = stored(toy, "12_second")
    for number, cell in enumerate(whole["cells"], start=1):
        cell["execution_count"] = number
    whole["cells"][-1]["metadata"]["tags"] = ["nbval-check-output"]

    def check(text: str) -> tuple[int, str]:
        output = {"output_type": "stream", "name": "stdout", "text": text}
        whole["cells"][-1]["outputs"] = [output]
        path.write_text(json.dumps(whole))
        words = ["--nbval-lax", "notebooks", "--nbval-current-env", "-q"]
        command = [sys.executable, "-m", "pytest", *words]
        done = subprocess.run(command, cwd=toy.root, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert check("quick True\n")[0] == 0
    status, output = check("full True\n")
    assert status == 1
    assert "mismatch 'stdout'" in output
    assert not Path(toy.root / "figures").exists()
