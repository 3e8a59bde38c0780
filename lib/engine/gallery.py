"""The gallery: one static page, `figures/index.html`, of every figure, table and claim.

`python -m lib.engine.gallery` reads what the runs left (`figures/<profile>/<notebook>/`), the
ledger, the notebooks' titles and captions, and writes one page that needs no network and no
script. A file that is missing or cut short becomes one sentence, on the page and on stderr, and
never stops the rest. Same inputs, same bytes: the page carries no date of its own.

Public names, in reading order: `main`, `write`, `gather`, `render`.
Imports neither torch nor matplotlib; jinja2 inside the function that renders.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib import claims, config
from lib.documents import DOCUMENTS
from lib.engine import gallery_files as files
from lib.engine.gallery_files import Ours, Row, Section

TEMPLATE = "gallery.html.j2"
SYMBOLS = {claims.HOLDS: "✓", claims.DIFFERS: "≠", claims.NOT_RUN: "○"}

# part -> (document, question); 0 and 6 are ours
PARTS: dict[int, tuple[str, str]] = {
    0: ("Start here", "What does each part ask, and what is on this machine?"),
    **{number: (x.title, x.question) for number, x in DOCUMENTS.items()},
    6: ("Five lenses", "One concept in one model, seen by all five methods: do they agree?"),
}


@dataclass(frozen=True)
class Part:
    """One document: its sections and its tally per profile."""

    number: int
    document: str
    question: str
    sections: list[Section]
    n_claims: int
    tally: dict[str, list[tuple[str, str, int]]]  # profile -> (word, symbol, count)


@dataclass(frozen=True)
class Page:
    """The whole gallery."""

    parts: list[Part]
    profiles: list[str]  # quick and full always, paper when it ran
    tally: dict[str, list[tuple[str, str, int]]]
    n_claims: int
    problems: list[str]  # those that belong to no notebook

    def all_problems(self) -> list[str]:
        mine = [x for part in self.parts for section in part.sections for x in section.problems]
        return [*self.problems, *mine]


def main() -> int:
    """Write the page; print one sentence for each file that could not be shown."""
    try:
        path, page = write(config.ROOT, config.figures_root())
    except OSError as error:
        print(
            f"gallery: cannot write index.html in {config.figures_root()}: {error.strerror}; "
            "make the folder writable or set FIGURES_DIR to another",
            file=sys.stderr,
        )
        return 1
    for sentence in page.all_problems():
        print(f"gallery: {sentence}", file=sys.stderr)
    print(f"gallery  {os.path.relpath(path)}")
    return 0


def write(root: Path, figures: Path) -> tuple[Path, Page]:
    """Write `<figures>/index.html`, whole or not at all."""
    page = gather(root, figures)
    text = render(page)
    path = figures / "index.html"
    figures.mkdir(parents=True, exist_ok=True)
    for left in figures.glob(".index.html.*.part"):  # by a run that was killed while writing
        if not _is_alive(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    temporary = figures / f".index.html.{os.getpid()}.part"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path, page


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True


def render(page: Page) -> str:
    """The page as HTML; everything but our own markup is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(page=page, symbols=SYMBOLS)


def gather(root: Path, figures: Path) -> Page:
    """Read everything the page shows.

    Args:
        root: the project: `notebooks/`, `lib/ledger/`, `build/`.
        figures: the folder of results, `<profile>/<notebook>/` below it.
    """
    problems: list[str] = []
    ledger = _ledger(root / "lib" / "ledger", problems)
    notes = _notes(root / "lib" / "ledger", problems)
    paths = {x.stem: x for x in (root / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    ran = {
        x.name for p in config.PROFILES for x in (figures / p).glob("[0-9][0-9]_*") if x.is_dir()
    }
    profiles = ["quick", "full"] + ["paper"] * any((figures / "paper").glob("[0-9][0-9]_*"))
    sections = []
    for name in sorted({*paths, *ran}):
        section, captions = files.heading(name, paths.get(name), figures)
        for profile in profiles:
            files.results(section, profile, root, figures, captions)
        mine = [claim for claim in ledger.values() if claim.notebook == name]
        _judge(section, mine, notes, profiles, figures)
        sections.append(section)
    parts = []
    for number in sorted({*PARTS, *(int(x.notebook[0]) for x in sections)}):
        document, question = PARTS.get(number, (f"Part {number}", ""))
        inside = [x for x in sections if int(x.notebook[0]) == number]
        known = [x for x in ledger.values() if x.notebook[:1] == str(number)]
        if inside or known or 1 <= number <= 5:
            tally = _tally(inside, len(known), profiles)
            parts.append(Part(number, document, question, inside, len(known), tally))
    total = _tally(sections, len(ledger), profiles)
    return Page(parts, profiles, total, len(ledger), problems)


def _ledger(folder: Path, problems: list[str]) -> dict[str, claims.Claim]:
    try:
        return claims.ledger(folder)
    except (ValueError, KeyError, TypeError, OSError) as error:
        problems.append(f"The ledger cannot be read, so no claim is shown: {_line(error)}.")
        return {}


def _notes(folder: Path, problems: list[str]) -> dict[str, dict[str, str]]:
    try:
        notes = claims.explanations(folder)
        if not all(isinstance(x, dict) for x in notes.values()):
            raise ValueError('wanted ["<claim>"] with <profile> = "sentence" below it')
        return notes
    except (ValueError, OSError) as error:
        problems.append(f"The explanations in notes.toml cannot be read: {_line(error)}.")
        return {}


def _line(error: Exception) -> str:
    """An error on one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


def _tally(
    sections: Iterable[Section], n_claims: int, profiles: list[str]
) -> dict[str, list[tuple[str, str, int]]]:
    """Holds, differs, not run per profile; a claim that no run has judged was not run."""
    found = {profile: Counter[str]() for profile in profiles}
    for section in sections:
        for row in section.rows:
            for ours in row.ours:
                found[ours.profile][ours.verdict] += 1
    for count in found.values():
        count[claims.NOT_RUN] += n_claims - sum(count.values())
    return {p: [(word, sign, found[p][word]) for word, sign in SYMBOLS.items()] for p in profiles}


def _judge(
    section: Section,
    mine: list[claims.Claim],
    notes: Mapping[str, Mapping[str, str]],
    profiles: list[str],
    figures: Path,
) -> None:
    """Add the notebook's claims, each with what every profile measured."""
    judged = {p: _judged(section, mine, p, figures) for p in profiles}
    for claim in mine:
        ours = [_ours(claim, judged[p].get(claim.id), p) for p in profiles]
        why = notes.get(claim.id, {})
        told = [
            (x.profile, why.get(x.profile) or "No explanation is written yet.")
            for x in ours
            if x.verdict == claims.DIFFERS
        ]
        section.rows.append(Row(claim, claims.interval(*claim.band), ours, told))


def _judged(
    section: Section, mine: list[claims.Claim], profile: str, figures: Path
) -> dict[str, claims.Verdict]:
    """Claim id -> verdict of one profile's claims.json, checked against the ledger."""
    where = f"{section.notebook} at {profile}"
    path = figures / profile / section.notebook / "claims.json"
    if not path.is_file():
        if mine and path.parent.is_dir():
            section.problems.append(f"{where} has no claims.json; run the notebook again.")
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["claims"]
        found = {row["id"]: _verdict(row) for row in rows}
    except (ValueError, KeyError, TypeError, OSError):
        section.problems.append(f"{where}: claims.json is damaged; run the notebook again.")
        return {}
    known = {claim.id: claim for claim in mine}
    strange = [name for name in found if name not in known]
    if strange:
        section.problems.append(
            f"{where} judged {', '.join(strange)}, which the ledger does not list for it."
        )
    found = {name: verdict for name, verdict in found.items() if name in known}
    moved = [name for name, x in found.items() if (x.low, x.high) != known[name].band]
    if moved:
        section.problems.append(
            f"{where}: the ledger's band of {', '.join(moved)} is no longer the one it was "
            "judged by; run the notebook again."
        )
    return found


def _verdict(row: Mapping[str, object]) -> claims.Verdict:
    """A row of claims.json, where an open end of a band is null."""
    if row["verdict"] not in SYMBOLS:
        raise ValueError(f"a verdict is one of {', '.join(SYMBOLS)}; got {row['verdict']!r}")
    low, high = _number(row, "low"), _number(row, "high")
    return claims.Verdict(
        str(row["id"]),
        str(row["verdict"]),
        _number(row, "value"),
        _number(row, "spread"),
        -math.inf if low is None else low,
        math.inf if high is None else high,
        "",
    )


def _number(row: Mapping[str, object], key: str) -> float | None:
    value = row[key]
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{key} of claim {row['id']} is a number or null; got {value!r}")


def _ours(claim: claims.Claim, verdict: claims.Verdict | None, profile: str) -> Ours:
    if verdict is None or verdict.value is None:
        if profile not in claim.profiles:
            remark = f"needs {' or '.join(claim.profiles)}"
        else:
            remark = "no run yet" if verdict is None else "not measured in this run"
        return Ours(profile, claims.NOT_RUN, SYMBOLS[claims.NOT_RUN], "", remark)
    spread = "" if verdict.spread is None else f" ± {verdict.spread:.2g}"
    remark = "less than 3 spreads from the edge" if verdict.is_close else ""
    return Ours(
        profile, verdict.verdict, SYMBOLS[verdict.verdict], f"{verdict.value:.3g}{spread}", remark
    )


if __name__ == "__main__":
    sys.exit(main())
