"""California housing, real and synthetic, as document 5's tabular experiment uses it.

`load` reads the real table (1990 census block groups) from scikit-learn's archive or from the csv
of the raw census columns. `synthetic` draws a table with the same six columns, plausible
marginals and *known* dependence between rooms and bedrooms, for experiments that need the truth.

`fit_scale`, `normalise` and `physical` are the document's normalisation and its inverse
(specification of document 5, section 3.1); `bedroom_ratio` is its concept, in normalised units.

Public names: `FEATURES`, `Housing`, `load`, `synthetic`, `Scale`, `fit_scale`, `normalise`,
`physical`, `bedroom_ratio`, `bedrooms_per_person`, `rooms_per_person`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib.data.base import DamagedData, Provenance, Split, missing, sha256_of, verify_file

FEATURES = ("MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup")
UNITS = ("10,000 $", "years", "per household", "per household", "people", "per household")
INCOME, AGE, ROOMS, BEDROOMS, PEOPLE, OCCUPANCY = range(6)
N_ROWS, N_TRAIN = 20_640, 10_000  # of the published table; the first rows train, the others test
CSV = "housing/housing.csv"
CSV_DIGEST = "sha256:8a3727f4cf54ac1a327f69b1d5b4db54c5834ea81c6e4efc0d163300022a685e"
ARCHIVE = "cal_housing_py3.pkz"
ROOMS_CAP, BEDROOMS_CAP, OCCUPANCY_CAP = 20.0, 3.0, 8.0
# Medians of the columns and the correlation of rooms with bedrooms (specification 3.1)
MEDIANS = {INCOME: 3.535, ROOMS: 5.229, BEDROOMS: 1.049, OCCUPANCY: 2.818}
CORRELATION = 0.848
CELL_DEGREES = 0.1  # neighbourhoods: cells of about 10 km
LOG_SD = {INCOME: 0.47, ROOMS: 0.27, BEDROOMS: 0.17, PEOPLE: 0.74, OCCUPANCY: 0.27}  # real rows


@dataclass(frozen=True)
class Housing:
    """One row a block group, in physical units."""

    train: Split  # x float32 [n, 6] in the order of FEATURES, y [n] in 100,000 $
    test: Split
    test_rows: Tensor  # [n_test], row numbers in the published table
    test_groups: Tensor | None  # [n_test], neighbourhood of each test row, where it is known
    provenance: Provenance


def load(root: Path) -> Housing:
    """Load the real table from below `root`.

    Accepts scikit-learn's archive (`cal_housing_py3.pkz`, here or in `housing/`) or the csv with
    the raw census columns (`housing/housing.csv`, rows in the same order), from which the ratios
    follow. The csv lacks the bedrooms of 207 block groups: those rows are left out, the others
    keep their row numbers. Rows are in geographic order, so train and test differ.

    Raises:
        MissingData: neither file is there.
        DamagedData: a checksum or the published statistics disagree.
    """
    for folder in (root, root / "housing"):
        if (folder / ARCHIVE).is_file():
            return _from_archive(folder)
    if not (root / CSV).is_file():
        raise missing("California housing", root, [ARCHIVE, CSV])
    verify_file(root / CSV, CSV_DIGEST)
    return _from_csv(root / CSV)


def _from_archive(folder: Path) -> Housing:
    from sklearn.datasets import fetch_california_housing

    try:
        table = fetch_california_housing(data_home=str(folder), download_if_missing=False)
    except Exception as error:  # joblib raises whatever the damaged byte leads it to
        raise DamagedData(
            f"{folder / ARCHIVE} cannot be read ({type(error).__name__}); delete it and run "
            "`make data`"
        ) from error
    x = torch.tensor(table.data, dtype=torch.float32)
    y = torch.tensor(table.target, dtype=torch.float32)
    return _real(x[:, :6], y, x[:, 6:], "scikit-learn fetch_california_housing", "not stated")


def _from_csv(path: Path) -> Housing:
    import pandas as pd

    raw = pd.read_csv(path)
    households = raw["households"]
    columns = [
        raw["median_income"],
        raw["housing_median_age"],
        raw["total_rooms"] / households,
        raw["total_bedrooms"] / households,
        raw["population"],
        raw["population"] / households,
        raw["latitude"],
        raw["longitude"],
    ]
    x = torch.tensor(pd.concat(columns, axis=1).to_numpy(), dtype=torch.float32)
    y = torch.tensor((raw["median_house_value"] / 1e5).to_numpy(), dtype=torch.float32)
    source = "ageron/handson-ml2, datasets/housing/housing.csv (1990 census)"
    return _real(x[:, :6], y, x[:, 6:], source, "Apache-2.0")


def _real(x: Tensor, y: Tensor, place: Tensor, source: str, licence: str) -> Housing:
    if len(x) != N_ROWS:
        raise DamagedData(f"California housing has {N_ROWS} rows, got {len(x)}; fetch it again")
    known = torch.isfinite(x).all(1)
    rows = torch.arange(N_ROWS)[known]
    for column, want in MEDIANS.items():
        got = x[known, column].median().item()
        if abs(got - want) > 2e-3:
            raise DamagedData(
                f"California housing: the median of {FEATURES[column]} is {want}, got {got:.4f}; "
                "this is another version of the table, so fetch it again"
            )
    got = torch.corrcoef(x[known][:, [ROOMS, BEDROOMS]].double().T)[0, 1].item()
    if abs(got - CORRELATION) > 2e-3:
        raise DamagedData(
            f"California housing: rooms and bedrooms correlate by {CORRELATION}, got {got:.4f}; "
            "this is another version of the table, so fetch it again"
        )
    cells = (place / CELL_DEGREES).floor().long()
    group = cells[:, 0] * 100_000 + cells[:, 1]
    train, test = rows[rows < N_TRAIN], rows[rows >= N_TRAIN]
    dropped = N_ROWS - len(rows)
    note = f"{len(train)} / {len(test)} train / test, split at row {N_TRAIN} (geographic order)"
    note += f", {dropped} rows without bedrooms left out" * bool(dropped)
    return Housing(
        train=Split(x[train], y[train]),
        test=Split(x[test], y[test]),
        test_rows=test,
        test_groups=group[test],
        provenance=Provenance(
            "California housing", source, licence, sha256_of(x[known], y[known]), len(rows), note
        ),
    )


def synthetic(
    seed: int, *, rho: float = 0.7, world: str = "shared", n: int = N_ROWS, n_train: int = -1
) -> Housing:
    """Draw a table with a known dependence between rooms and bedrooms.

    Structural equations, with e_k independent standard normals and s_k the log-sds of the real
    table (`LOG_SD`), medians those of the real columns:

        log rooms     = log 5.229 + .27 (sqrt(rho) f + sqrt(1 - rho) e_1)
        log bedrooms  = log 1.049 + .17 (sqrt(rho) g + sqrt(1 - rho) e_2)
        log occupancy = log 2.818 + .27 e_3
        log income    = log 3.535 + .47 (.6 z_rooms + .8 e_4),    z_rooms the bracket of rooms
        age           = 52 Phi(e_5), rounded up;   log population = 7.02 + .74 e_6
        value         = .45 income + .4 z_rooms + .2 z_bedrooms - .35 e_3 + .3 e_7, kept in [.15, 5]

    In the world "shared" g is f, the size of the homes, so that log rooms and log bedrooms
    correlate by rho; in "independent" g is a factor of its own: every other column and every
    marginal is the same, the dependence is gone.

    Args:
        n, n_train: rows in all, and how many of them train; -1 for the real table's share.

    Raises:
        ValueError: an unknown world, rho outside [0, 1], or no rows to train or test.
    """
    n_train = n * N_TRAIN // N_ROWS if n_train == -1 else n_train
    if world not in ("shared", "independent") or not 0 <= rho <= 1 or not 0 < n_train < n:
        raise ValueError(
            "want world shared or independent, rho in [0, 1] and 0 < n_train < n; "
            f"got {world!r}, {rho}, {n_train}, {n}"
        )
    f, own, *e = torch.randn(9, n, generator=torch.Generator().manual_seed(seed)).double()
    g = f if world == "shared" else own
    z_rooms = math.sqrt(rho) * f + math.sqrt(1 - rho) * e[0]
    z_bedrooms = math.sqrt(rho) * g + math.sqrt(1 - rho) * e[1]
    z = {
        INCOME: 0.6 * z_rooms + 0.8 * e[3],
        ROOMS: z_rooms,
        BEDROOMS: z_bedrooms,
        OCCUPANCY: e[2],
    }
    columns = {k: MEDIANS[k] * torch.exp(LOG_SD[k] * z[k]) for k in z}
    columns[AGE] = (52 * torch.special.ndtr(e[4])).ceil()
    columns[PEOPLE] = torch.exp(7.02 + LOG_SD[PEOPLE] * e[5])
    x = torch.stack([columns[k] for k in range(6)], 1).float()
    value = 0.45 * columns[INCOME] + 0.4 * z_rooms + 0.2 * z_bedrooms - 0.35 * e[2] + 0.3 * e[6]
    y = value.clamp(0.15, 5.0).float()
    return Housing(
        train=Split(x[:n_train], y[:n_train]),
        test=Split(x[n_train:], y[n_train:]),
        test_rows=torch.arange(n_train, n),
        test_groups=None,
        provenance=Provenance(
            f"synthetic housing ({world})",
            f"structural equations, seed {seed}, rho {rho if world == 'shared' else 0}",
            "no data of others in it",
            sha256_of(x, y),
            n,
            f"{n_train} / {n - n_train} train / test",
        ),
    )


@dataclass(frozen=True)
class Scale:
    """Constants of the normalisation that come from the training rows."""

    income: float  # their largest MedInc
    age: float  # their largest HouseAge


def fit_scale(x: Tensor) -> Scale:
    """The constants for training rows `x`, `[n, 6]`, physical units."""
    return Scale(income=x[:, INCOME].max().item(), age=x[:, AGE].max().item())


def normalise(x: Tensor, scale: Scale) -> Tensor:
    """Physical units `[..., 6]` -> the network's input.

    Source: the authors' notebook by way of specification 3.1, with test rows normalised by train
    constants; the notebook's own code assigns train columns to the test table and cannot run.
    """
    return torch.stack(
        [
            x[..., INCOME] / scale.income,
            x[..., AGE] / scale.age,
            x[..., ROOMS].clamp(0, ROOMS_CAP) / ROOMS_CAP,
            x[..., BEDROOMS].clamp(0, BEDROOMS_CAP) / BEDROOMS_CAP,
            x[..., PEOPLE].log10() - 3,
            x[..., OCCUPANCY].clamp(0, OCCUPANCY_CAP) / OCCUPANCY_CAP,
        ],
        -1,
    )


def physical(v: Tensor, scale: Scale) -> Tensor:
    """The network's input `[..., 6]` -> physical units; what was clipped stays at its cap."""
    factor = torch.tensor(
        [scale.income, scale.age, ROOMS_CAP, BEDROOMS_CAP, 1.0, OCCUPANCY_CAP],
        dtype=v.dtype,
        device=v.device,
    )
    x = v * factor
    people = 10 ** (v[..., PEOPLE : PEOPLE + 1] + 3)
    return torch.cat([x[..., :PEOPLE], people, x[..., PEOPLE + 1 :]], -1)


def bedroom_ratio(v: Tensor) -> Tensor:
    """The concept on normalised inputs: bedrooms over occupancy, each on its own scale, `[...]`.

    1 means 0.375 bedrooms a person, about the median of the table (specification 3.2).
    """
    return v[..., BEDROOMS] / v[..., OCCUPANCY]


def bedrooms_per_person(x: Tensor) -> Tensor:
    """The concept in physical units, `[...]`."""
    return x[..., BEDROOMS] / x[..., OCCUPANCY]


def rooms_per_person(x: Tensor) -> Tensor:
    """Rooms over occupancy in physical units, `[...]`."""
    return x[..., ROOMS] / x[..., OCCUPANCY]
