"""Claims of the documents, judged against bands written down before the run.

A claim is data: an entry of `lib/ledger/part<k>.toml` with its source, the document's own number,
how it is measured, the band and why that band. A notebook measures, `judge` compares, `save`
writes `claims.json` beside the notebook's figures. `python -m lib.claims` merges those of a
profile and prints the ledger. Three words: `holds`, `DIFFERS` (a result, not an error) and
`not run`.

Imports the standard library only.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.config import PROFILES, ROOT, Run, figures_root
from lib.files import write_result

LEDGER = ROOT / "lib" / "ledger"
HOLDS, DIFFERS, NOT_RUN = "holds", "DIFFERS", "not run"
FIELDS = (
    "id",
    "source",
    "says",
    "published",
    "measure",
    "band",
    "why",
    "notebook",
    "profiles",
)
REFERENCE = ROOT / "tests" / "reference" / "claims.json"  # verdicts at `quick`, as stored
RENEWING = "REFERENCE_IS_RENEWED"  # set to 1 by `make refresh`
SAFE_MARGIN = 3.0  # spreads between a value and the nearer edge; below it a verdict may flake
NEAR_MARGIN = 2.0  # the same of a stored value; below it another machine may well say otherwise

ROW = {"id", "verdict", "value", "spread", "low", "high"}  # of a notebook's claims.json

Measured = float | tuple[float, float] | None


@dataclass(frozen=True)
class Claim:
    """One sentence or number of a document that can be tested."""

    id: str
    source: str  # where the document says it
    says: str  # what it says, in our words
    published: str  # the document's own number, or that it gives none
    measure: str  # how it is measured here
    band: tuple[float, float]  # inclusive
    why: str  # why this band
    notebook: str
    profiles: tuple[str, ...]  # the profiles large enough to judge it


@dataclass(frozen=True)
class Verdict:
    """A claim after a run."""

    id: str
    verdict: str  # holds | DIFFERS | not run
    value: float | None
    spread: float | None  # one sd or half a 95% interval, as the claim's `measure` says
    low: float
    high: float
    says: str
    is_near: bool = False  # see `is_undecided`

    def __str__(self) -> str:
        where = "near the edge of" if self.is_near else "in"
        return f"{self.id}  {self.verdict:7}  {where} {interval(self.low, self.high)}  {self.says}"

    @property
    def is_close(self) -> bool:
        """Whether the value lies nearer to an edge of its band than three spreads."""
        return _is_within(SAFE_MARGIN, self.value, self.spread, (self.low, self.high))


def _is_within(
    spreads: float, value: float | None, spread: float | None, band: tuple[float, float]
) -> bool:
    if value is None or not spread:
        return False
    return min(abs(value - edge) for edge in band) < spreads * spread


def is_undecided(
    before: Mapping[str, Any], now: Mapping[str, Any], band: tuple[float, float]
) -> bool:
    """Whether either verdict is fair: the stored value near an edge, the new one not far past it.

    Networks trained on two machines differ by rounding and what rounding grows into. A verdict
    about as near to an edge as its own spread is then a toss, and no test may depend on it; one
    that is turned and more than three spreads from the edge is a change. Where the reference has
    values of networks of other seeds, a spread is at least their standard deviation.

    Args:
        before: the claim's row of the reference.
        now: its row of a run; of both "verdict", "value" and "spread" are read.
    """
    least = between_seeds(before)
    mine, new = (max(row.get("spread") or 0.0, least) for row in (before, now))
    stored = _is_within(NEAR_MARGIN, before.get("value"), mine, band)
    same = now["verdict"] == before.get("verdict")
    return stored and (same or _is_within(SAFE_MARGIN, now["value"], new, band))


def between_seeds(row: Mapping[str, Any]) -> float:
    """Standard deviation of a reference row's values over seeds; 0 if it was run at one alone."""
    values = [row.get("value"), *row.get("seeds", ())]
    return statistics.stdev(values) if len(values) > 2 and None not in values else 0.0


def interval(low: float, high: float) -> str:
    """A band in brackets: "[0.5, 1]", "[0, ∞)"."""
    left = "(-∞" if math.isinf(low) else f"[{low:g}"
    right = "∞)" if math.isinf(high) else f"{high:g}]"
    return f"{left}, {right}"


def ledger(folder: Path = LEDGER) -> dict[str, Claim]:
    """All claims by id, in the order of the files.

    Raises:
        ValueError: a file is not TOML; a claim lacks a field or has one too many, repeats an id,
            names an unknown profile, or has a band that is not [low, high].
    """
    claims: dict[str, Claim] = {}
    for path in sorted(folder.glob("part*.toml")):
        for entry in _toml(path).get("claim", []):
            missing = [name for name in FIELDS if name not in entry]
            extra = sorted(set(entry) - set(FIELDS))
            if missing or extra:
                raise ValueError(
                    f"{path.name}: claim {entry.get('id', '?')} lacks {missing}, has extra {extra}"
                )
            if not _is_band(entry["band"]):
                raise ValueError(
                    f"{path.name}: {entry['id']} wants band [low, high], got {entry['band']}"
                )
            if not isinstance(entry["profiles"], list) or set(entry["profiles"]) - set(PROFILES):
                raise ValueError(
                    f"{path.name}: {entry['id']} wants profiles of {', '.join(PROFILES)}, "
                    f"got {entry['profiles']}"
                )
            if entry["id"] in claims:
                raise ValueError(f"{path.name}: two claims are called {entry['id']}")
            low, high = entry["band"]
            entry |= {
                "band": (float(low), float(high)),
                "profiles": tuple(entry["profiles"]),
            }
            claims[entry["id"]] = Claim(**entry)
    return claims


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from error


def _is_band(band: object) -> bool:
    if not isinstance(band, list) or len(band) != 2:
        return False
    return all(isinstance(edge, (int, float)) for edge in band) and band[0] <= band[1]


def explanations(folder: Path = LEDGER) -> dict[str, dict[str, str]]:
    """Claim id -> profile -> the sentence that explains why the result differs."""
    path = folder / "notes.toml"
    return _toml(path) if path.is_file() else {}


def judge(run: Run, values: Mapping[str, Measured]) -> list[Verdict]:
    """Compare what a notebook measured with the bands of its claims.

    Args:
        values: claim id -> value, or (value, spread), or None for "not run"; exactly the
            claims of `run.notebook`, so that none is forgotten.

    Raises:
        ValueError: a claim of this notebook is missing, an id is unknown, or a value is NaN.
    """
    mine = {k: v for k, v in ledger().items() if v.notebook == run.notebook}
    judged_by = REFERENCE if run.profile == "quick" else None  # it holds that profile alone
    stored = json.loads(judged_by.read_text()) if judged_by and judged_by.is_file() else {}
    if set(mine) != set(values):
        raise ValueError(
            f"{run.notebook} must judge exactly {sorted(mine)}; missing "
            f"{sorted(set(mine) - set(values))}, unknown {sorted(set(values) - set(mine))}"
        )
    return [
        _verdict(claim, values[name], run.profile, stored.get(name, {}))
        for name, claim in mine.items()
    ]


def _verdict(claim: Claim, measured: Measured, profile: str, before: Mapping[str, Any]) -> Verdict:
    value, spread = measured if isinstance(measured, tuple) else (measured, None)
    low, high = claim.band
    if value is None or profile not in claim.profiles:
        return Verdict(claim.id, NOT_RUN, None, None, low, high, claim.says)
    if math.isnan(value):
        raise ValueError(f"{claim.id} was measured as NaN; a claim that cannot be measured is None")
    word = HOLDS if low <= value <= high else DIFFERS
    number = None if spread is None else float(spread)
    kept = number if number is None or math.isfinite(number) else None  # as `save` writes it
    row = {"verdict": word, "value": value, "spread": kept}
    renewed = os.environ.get(RENEWING) == "1"  # this row becomes the reference
    near = is_undecided({**before, **row} if renewed else before, row, claim.band)
    return Verdict(claim.id, word, float(value), number, low, high, claim.says, near)


def save(verdicts: Sequence[Verdict], run: Run) -> None:
    """Write `run.figures_dir/claims.json`, whole or not at all."""
    rows = [
        {k: _finite(v) for k, v in asdict(x).items() if k not in ("says", "is_near")}
        for x in verdicts
    ]
    whole = {
        "notebook": run.notebook,
        "profile": run.profile,
        "seed": run.seed,
        "claims": rows,
    }
    write_result(run.figures_dir / "claims.json", _json(whole))


def _finite(value: object) -> object:
    """JSON has no infinity and no NaN: an open end, or the spread of one sample, is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open(edge: Any, infinite: float) -> float:
    """The edge of a band as JSON has it, back to a number."""
    return infinite if edge is None else float(edge)


def _json(whole: object) -> str:
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def results(profile: str, folder: Path | None = None) -> dict[str, dict[str, object]]:
    """Claim id -> its row of the notebooks' `claims.json` at one profile.

    Raises:
        ValueError: a file is not whole JSON.
    """
    found: dict[str, dict[str, object]] = {}
    for path in sorted(((folder or figures_root()) / profile).glob("*/claims.json")):
        try:
            rows = {row["id"]: row for row in json.loads(path.read_text())["claims"]}
            if not all(set(row) >= ROW for row in rows.values()):
                raise KeyError("a row lacks a field")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path.parent.name}/claims.json at {profile} is damaged; run that notebook again"
            ) from error
        found |= rows
    return found


def changed(
    reference: Mapping[str, Mapping[str, object]], now: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """One sentence for each claim of `now` whose verdict is not that of the reference.

    Undecided ones (`is_undecided`) are passed over.
    """
    found = []
    for name, row in now.items():
        before = reference.get(name, {"verdict": "absent from the reference", "value": None})
        band = (_open(row.get("low"), -math.inf), _open(row.get("high"), math.inf))
        if row["verdict"] != before["verdict"] and not is_undecided(before, row, band):
            found.append(
                f"{name}: was {before['verdict']} ({before['value']}), now {row['verdict']} "
                f"({row['value']}); find out why, and only then run `make refresh`"
            )
    return found


def report() -> list[str]:
    """Lines of the ledger: id, document's number, quick, full, verdicts; unjudged ones too."""
    judged = {profile: results(profile) for profile in PROFILES}
    notes = explanations()
    lines = [f"{'claim':7} {'document':>22}  {'band':14} {'quick':26} {'full':26} says"]
    for name, claim in ledger().items():
        cells = [_short(judged[profile].get(name)) for profile in ("quick", "full")]
        lines.append(
            f"{name:7} {claim.published[:22]:>22}  {interval(*claim.band):14} "
            f"{cells[0]:26} {cells[1]:26} {claim.says}"
        )
        for profile, text in notes.get(name, {}).items():
            lines.append(f"{'':7} {profile}: {text}")
    return lines


def _short(row: Mapping[str, object] | None) -> str:
    if row is None or row["value"] is None:
        return NOT_RUN
    spread = "" if row["spread"] is None else f" ± {row['spread']:.2g}"
    return f"{row['value']:.3g}{spread} {row['verdict']}"


def readme(text: str, folder: Path | None = None) -> str:
    """README text with its two generated passages renewed: the table, and what differs and why.

    A passage stands between `<!-- name -->` and `<!-- end name -->`.

    Raises:
        ValueError: a marker is missing.
    """
    judged = {profile: results(profile, folder) for profile in ("quick", "full")}
    notes = explanations()
    table = ["| claim | document says | its number | band | quick | full | notebook |"]
    table.append("| --- | --- | --- | --- | --- | --- | --- |")
    differing = []
    for name, claim in ledger().items():
        rows = {profile: found.get(name) for profile, found in judged.items()}
        cells = [name, claim.says, claim.published, interval(*claim.band)]
        cells += [_short(row) for row in rows.values()]
        table.append("| " + " | ".join([*cells, f"`{claim.notebook[:2]}`"]) + " |")
        for profile, row in rows.items():
            if row is not None and row["verdict"] == DIFFERS:
                why = notes.get(name, {}).get(profile, "not yet explained.")
                differing.append(f"- **{name}** at `{profile}` ({claim.says}): {why}")
    for marker, lines in (("claims", table), ("differs", differing)):
        start, end = f"<!-- {marker} -->\n", f"<!-- end {marker} -->"
        if start not in text or end not in text:
            raise ValueError(f"README.md lacks the marker {start.strip()} or {end}")
        before, rest = text.split(start, 1)
        text = before + start + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    return text


def main() -> int:
    """Merge each profile's claims, renew the README's passages and print the ledger."""
    try:
        for profile in PROFILES:
            merged = results(profile)
            if merged:
                write_result(figures_root() / profile / "claims.json", _json(merged))
        page = ROOT / "README.md"
        if page.is_file() and figures_root() == ROOT / "figures":  # the committed results
            page.write_text(readme(page.read_text()))
        print(*report(), sep="\n")
    except (ValueError, OSError) as error:
        print(f"claims: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
