"""A made-up project with results, small enough to read: what the gallery's tests look at."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

CLAIM = """[[claim]]
id = "{id}"
source = "section 3"
says = "{says}"
published = ""
measure = "median over seeds"
band = {band}
why = "most of it is more than half"
notebook = "{notebook}"
profiles = {profiles}
"""


def png(width: int = 8, height: int = 6) -> bytes:
    """A white picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = zlib.compress((b"\0" + b"\xff" * 3 * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def make_project(root: Path) -> Path:
    """Notebooks 00 (never run), 11 (never run) and 51 (quick and full), with their ledger."""
    for folder in ("notebooks", "lib/ledger", "build/quick/51_tabular"):
        (root / folder).mkdir(parents=True)
    _notebook(root, "00_start_here", "# Start here", {})
    _notebook(root, "11_concept_presence", "# Presence\n\nWhere is a concept?", {})
    _notebook(
        root,
        "51_tabular",
        "# Concept backpropagation on a table\n\nDocument 5, section 3. "
        "**Which features move when we ask for more bedrooms?** It checks\n\n- `P5-01`",
        {"fig2_bars": "Mean change of **each** feature, *95%* intervals."},
    )
    _ledger(root)
    for profile in ("quick", "full"):
        _figure(root, profile, "fig2_bars", "Bars that rise from left to right")
        _claims(root, profile)
    _figure(root, "quick", "fig10_path", "A path that falls and levels off")
    quick, full = (root / "figures" / x / "51_tabular" for x in ("quick", "full"))
    (quick / "t1_probes.csv").write_text("probe,R2\nridge,0.87 ± 0.01\n", encoding="utf-8")
    (quick / "t1_probes.txt").write_text("Probe quality on held-out rows.\n")
    run = {
        "seconds": 31.2,
        "cold_seconds": 51.7,
        "date": "2030-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef0123",
        "dirty": True,
        "device": "some CPU, 2 cores",
        "seed": 0,
        "params": {},
        "versions": {"python": "3.11", "numpy": "2.3"},
    }
    for folder in (root / "build/quick/51_tabular", full):
        (folder / "run.json").write_text(json.dumps(run))
    return root


def _notebook(root: Path, name: str, title: str, captions: dict[str, str]) -> None:
    cells = [{"cell_type": "markdown", "source": title.splitlines(keepends=True)}]
    for figure, caption in captions.items():
        cells.append({"cell_type": "code", "source": [f'figures.save(fig, run, "{figure}", "a")']})
        cells.append({"cell_type": "markdown", "source": [caption]})
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))


def _ledger(root: Path) -> None:
    both = '["quick", "full"]'
    entries = [
        ("P5-01", "Rooms rise", "[0, inf]", "51_tabular", both),
        ("P5-02", "The rise is entanglement", "[0.5, 1]", "51_tabular", both),
        ("P5-03", "The probe reaches its target", "[0.9, 1]", "51_tabular", '["full"]'),
    ]
    fields = ("id", "says", "band", "notebook", "profiles")
    text = "\n".join(CLAIM.format(**dict(zip(fields, x, strict=True))) for x in entries)
    (root / "lib/ledger/part5.toml").write_text(text)
    one = dict(
        zip(
            fields,
            ("P1-01", "Deeper is easier", "[0, 1]", "11_concept_presence", both),
            strict=True,
        )
    )
    (root / "lib/ledger/part1.toml").write_text(CLAIM.format(**one))
    notes = '["P5-02"]\nquick = "The shared denominator explains the rise."\n'
    (root / "lib/ledger/notes.toml").write_text(notes)


def _claims(root: Path, profile: str) -> None:
    share = 0.292 if profile == "quick" else 0.45
    rows: list[tuple[str, str, float | None, float | None, float, float | None]] = [
        ("P5-01", "holds", 1.234, 0.12, 0.0, None),
        ("P5-02", "DIFFERS", share, 0.03, 0.5, 1.0),
        ("P5-03", "not run", None, None, 0.9, 1.0),
    ]
    fields = ("id", "verdict", "value", "spread", "low", "high")
    whole = {
        "notebook": "51_tabular",
        "profile": profile,
        "seed": 0,
        "claims": [dict(zip(fields, row, strict=True)) for row in rows],
    }
    (root / "figures" / profile / "51_tabular" / "claims.json").write_text(json.dumps(whole))


def _figure(root: Path, profile: str, name: str, alt: str) -> None:
    folder = root / "figures" / profile / "51_tabular"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(png())
    (folder / f"{name}.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"></svg>\n')
    (folder / f"{name}.txt").write_text(alt + "\n")
