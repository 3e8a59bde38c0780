"""What the gallery reads of one notebook: title, captions, figures, tables, provenance.

A file that is missing or cut short becomes one sentence in `Section.problems`, never an error.

Public names, in reading order: `Section`, `Picture`, `Sheet`, `heading`, `results`.
Imports the standard library only.
"""

from __future__ import annotations

import csv
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from lib import claims, config

MAX_ROWS, MAX_COLUMNS = 20, 14  # larger tables are cut on the page and linked whole
PNG_HEAD, PNG_TAIL = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
WIDE_PIXELS = 1000  # a two-column figure at screen resolution; wider ones get a row to themselves


@dataclass(frozen=True)
class Picture:
    """One figure of one profile."""

    name: str
    profile: str
    src: str  # URL relative to the page
    links: tuple[tuple[str, str], ...]  # (word, URL)
    alt: str
    caption: str  # HTML
    width: int  # px; 0 when unknown (svg only)
    height: int

    @property
    def is_wide(self) -> bool:
        return self.width > WIDE_PIXELS


@dataclass(frozen=True)
class Sheet:
    """One table of one profile, cut to what fits a page."""

    name: str
    profile: str
    url: str
    caption: str
    head: list[str]
    rows: list[list[str]]
    n_rows: int  # in the file
    n_columns: int


@dataclass(frozen=True)
class Ours:
    """What one profile says about one claim."""

    profile: str
    verdict: str  # one of the three words
    symbol: str
    number: str  # "0.91 ± 0.02", or "" when not run
    remark: str  # why there is no number, or that the margin is thin


@dataclass(frozen=True)
class Row:
    """One line of a claims table."""

    claim: claims.Claim
    band: str
    ours: list[Ours]
    notes: list[tuple[str, str]]  # (profile, sentence), for those that differ


@dataclass
class Section:
    """Everything the page shows of one notebook."""

    notebook: str
    title: str  # HTML
    question: str  # HTML
    url: str  # of the notebook; "" when there is no such file
    pictures: list[Picture] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    facts: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)  # per profile
    problems: list[str] = field(default_factory=list)

    @property
    def has_results(self) -> bool:
        return bool(self.pictures or self.sheets or self.facts)


def heading(name: str, path: Path | None, figures: Path) -> tuple[Section, dict[str, str]]:
    """An empty section with title and question, and the notebook's caption of each figure."""
    plain = escape(name[3:].replace("_", " ").capitalize())
    if path is None:
        section = Section(name, plain, "", "")
        section.problems.append(f"{name} has results, but notebooks/{name}.ipynb is not there.")
        return section, {}
    section = Section(name, plain, "", relative_url(path, figures))
    try:
        cells = [
            (cell["cell_type"], "".join(cell["source"]))
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        ]
    except (ValueError, KeyError, TypeError, OSError):
        section.problems.append(
            f"notebooks/{name}.ipynb cannot be read as a notebook, so title and captions are bare."
        )
        return section, {}
    first = next((text for kind, text in cells if kind == "markdown"), "")
    heading = re.search(r"^#+ +(.+?)\s*$", first, re.MULTILINE)
    if heading:
        section.title = _inline(heading[1])
    prose = " ".join(x for x in first.splitlines() if not x.startswith(("#", "|", "-", "[")))
    question = re.search(r"(?:^|[.!:*?] +)\**([A-Z][^.!?]*\?)", prose)
    section.question = _inline(question[1]) if question else ""
    captions: dict[str, str] = {}
    for (kind, source), (next_kind, text) in pairwise(cells):
        if kind == "code" and next_kind == "markdown" and not text.startswith("#"):
            for found in re.findall(r"""["']([\w-]+)["']""", source):
                captions.setdefault(found, _inline(text.split("\n\n")[0]))
    return section, captions


def _inline(markdown: str) -> str:
    """One line of markdown as HTML: code, bold and emphasis; a link keeps its words."""
    text = escape(" ".join(markdown.split()))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<![\w*])[*_](\S(?:.*?\S)?)[*_](?![\w*])", r"<em>\1</em>", text)
    return re.sub(r"\$([^$]+)\$", r'<span class="math">\1</span>', text)


def results(
    section: Section, profile: str, root: Path, figures: Path, captions: Mapping[str, str]
) -> None:
    """Add one profile's figures, tables and provenance to the section."""
    folder = figures / profile / section.notebook
    names = {x.stem for x in folder.glob("*.png")} | {x.stem for x in folder.glob("*.svg")}
    for name in sorted(names, key=_natural):
        picture = _picture(folder, name, section, profile, figures, captions.get(name, ""))
        if picture:
            section.pictures.append(picture)
    for path in sorted(folder.glob("*.csv"), key=lambda x: _natural(x.stem)):
        sheet = _sheet(path, section, profile, figures)
        if sheet:
            section.sheets.append(sheet)
    # the same figure of two profiles side by side
    section.pictures.sort(key=lambda x: (_natural(x.name), config.PROFILES.index(x.profile)))
    section.sheets.sort(key=lambda x: (_natural(x.name), config.PROFILES.index(x.profile)))
    base = root / "build" if profile == "quick" else figures
    path = base / profile / section.notebook / "run.json"
    if path.is_file():
        run = read_json(path, f"{section.notebook} at {profile}", section)
        if run is not None:
            section.facts.append((profile, _facts(run, section.notebook, profile)))
    elif folder.is_dir() and profile != "quick":
        section.problems.append(
            f"{section.notebook} at {profile} has no run.json, so its provenance is unknown."
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which fig2 comes before fig10."""
    return [(int(x), "") if x.isdigit() else (0, x) for x in re.split(r"(\d+)", name)]


def relative_url(path: Path, figures: Path) -> str:
    return quote(Path(os.path.relpath(path, figures)).as_posix())


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return ""


def _picture(
    folder: Path, name: str, section: Section, profile: str, figures: Path, caption: str
) -> Picture | None:
    where = f"{section.notebook} at {profile}"
    links, width, height = [], 0, 0
    for kind, measure in (("svg", _svg_size), ("png", _png_size)):
        path = folder / f"{name}.{kind}"
        if not path.is_file():
            section.problems.append(f"{where} has no {path.name}; run the notebook again.")
            continue
        size = measure(path)
        if size:
            links.append((kind, relative_url(path, figures)))
            width, height = size
        else:
            section.problems.append(f"{where}: {path.name} is damaged; run the notebook again.")
    if not links:
        return None
    alt = _text(folder / f"{name}.txt")
    if not alt:
        section.problems.append(f"{where}: {name} has no description (alt text) in {name}.txt.")
    words = escape(name.replace("_", " "))
    return Picture(
        name,
        profile,
        links[-1][1],  # png when there is one: it draws faster than an svg with many marks
        tuple(links),
        alt or f"Figure {name}, without a description",
        caption or words[:1].upper() + words[1:],
        width,
        height,
    )


def _png_size(path: Path) -> tuple[int, int] | None:
    """Width and height in px of a whole png; None for one cut short."""
    data = _bytes(path)
    if not (data.startswith(PNG_HEAD) and data.endswith(PNG_TAIL)):
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _svg_size(path: Path) -> tuple[int, int] | None:
    """(0, 0), for "unknown", of a whole svg; None for one cut short."""
    return (0, 0) if _bytes(path).rstrip().endswith(b"</svg>") else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _sheet(path: Path, section: Section, profile: str, figures: Path) -> Sheet | None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        if any(len(row) != len(head) for row in rows):
            raise ValueError
    except (ValueError, csv.Error, OSError):
        section.problems.append(
            f"{section.notebook} at {profile}: {path.name} is damaged; run the notebook again."
        )
        return None
    caption = _text(path.with_suffix(".txt")) or path.stem.replace("_", " ").capitalize()
    shown = [row[:MAX_COLUMNS] for row in rows[:MAX_ROWS]]
    return Sheet(
        path.stem,
        profile,
        relative_url(path, figures),
        caption,
        head[:MAX_COLUMNS],
        shown,
        len(rows),
        len(head),
    )


def read_json(path: Path, where: str, section: Section) -> dict[str, object] | None:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(whole, dict):
            return whole
    except (ValueError, OSError):
        pass
    section.problems.append(f"{where}: {path.name} is damaged; run the notebook again.")
    return None


def _facts(run: Mapping[str, object], notebook: str, profile: str) -> list[tuple[str, str]]:
    """Provenance of a run as (label, text), leaving out what is not known."""
    size = config.SIZES.get(notebook, {}).get(profile, {})
    versions, commit = run.get("versions"), str(run.get("commit") or "")[:12]
    dirty = " with uncommitted changes" if run.get("dirty") else ""
    seconds = [
        f"{value:.0f} {words}"
        for key, words in (("seconds", "this run"), ("cold_seconds", "from an empty cache"))
        if isinstance(value := run.get(key), int | float)
    ]
    params = run.get("params") or {}
    facts = {
        "Data": run.get("data") or size.get("data"),
        "Seconds": ", ".join(seconds),
        "Device": run.get("device"),
        "Seed": run.get("seed"),
        "Parameters": " ".join(f"{k}={v}" for k, v in params.items())
        if isinstance(params, dict)
        else "",
        "Date": run.get("date"),
        "Commit": commit and commit + dirty,
        "Versions": ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))
        if isinstance(versions, dict)
        else "",
    }
    return [(label, str(value)) for label, value in facts.items() if value not in (None, "")]
