"""Housing: the normalisation and its inverse, known dependence, and what the loader refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib.data import housing
from lib.data.base import DamagedData, MissingData


@pytest.fixture(scope="module")
def worlds():
    return {w: housing.synthetic(0, rho=0.7, world=w, n=20_000) for w in ("shared", "independent")}


def log_correlation(table, i, j):
    return torch.corrcoef(table.train.x[:, [i, j]].log().T)[0, 1].item()


def test_dependence_of_rooms_and_bedrooms_is_as_written(worlds):
    # 10,000 rows: one sd of a correlation is about .01
    assert abs(log_correlation(worlds["shared"], housing.ROOMS, housing.BEDROOMS) - 0.7) < 0.03
    assert abs(log_correlation(worlds["independent"], housing.ROOMS, housing.BEDROOMS)) < 0.04
    assert abs(log_correlation(worlds["shared"], housing.BEDROOMS, housing.OCCUPANCY)) < 0.04


def test_worlds_differ_in_bedrooms_and_their_part_of_the_value_alone(worlds):
    a, b = worlds["shared"].train.x, worlds["independent"].train.x
    same = [k for k in range(6) if k != housing.BEDROOMS]
    assert torch.equal(a[:, same], b[:, same])
    assert not torch.equal(a[:, housing.BEDROOMS], b[:, housing.BEDROOMS])


def test_medians_are_those_of_the_real_table(worlds):
    x = torch.cat([worlds["shared"].train.x, worlds["shared"].test.x])
    for column, want in housing.MEDIANS.items():
        assert x[:, column].median().item() == pytest.approx(want, rel=0.02)
    ratio = housing.bedroom_ratio(housing.normalise(x, housing.fit_scale(x)))
    assert ratio.median().item() == pytest.approx(0.99, abs=0.02)


def test_normalisation_has_an_inverse_below_the_caps(worlds):
    x = worlds["shared"].train.x
    x = x[(x[:, housing.OCCUPANCY] < 8) & (x[:, housing.BEDROOMS] < 3)]
    scale = housing.fit_scale(x)
    v = housing.normalise(x, scale)
    torch.testing.assert_close(housing.physical(v, scale), x, rtol=1e-4, atol=1e-4)
    assert v[:, [0, 1]].max() == 1


def test_normalisation_clips_where_the_document_does():
    row = torch.tensor([[5.0, 10.0, 40.0, 9.0, 1000.0, 20.0]])
    v = housing.normalise(row, housing.Scale(income=10.0, age=50.0))
    torch.testing.assert_close(v, torch.tensor([[0.5, 0.2, 1.0, 1.0, 0.0, 1.0]]))


def test_ratio_one_is_three_eighths_bedrooms_a_person():
    x = torch.tensor([[3.0, 20.0, 5.0, 0.75, 1000.0, 2.0]])
    v = housing.normalise(x, housing.Scale(1.0, 1.0))
    assert housing.bedroom_ratio(v).item() == pytest.approx(1.0)
    assert housing.bedrooms_per_person(x).item() == pytest.approx(0.375)
    assert housing.rooms_per_person(x).item() == pytest.approx(2.5)


def test_a_seed_gives_the_same_table():
    a, b, c = (housing.synthetic(seed, n=50) for seed in (1, 1, 2))
    assert a.provenance.sha256 == b.provenance.sha256 != c.provenance.sha256
    assert (len(a.train), len(a.test)) == (24, 26)


@pytest.mark.parametrize("spec", [{"world": "other"}, {"rho": 1.5}, {"n": 10, "n_train": 10}])
def test_impossible_worlds_are_refused(spec):
    with pytest.raises(ValueError, match="want world shared or independent"):
        housing.synthetic(0, **spec)


def test_absent_data_is_one_sentence(tmp_path):
    with pytest.raises(MissingData, match=r"California housing not found .* housing/housing.csv"):
        housing.load(tmp_path)


def test_another_csv_is_refused(tmp_path):
    (tmp_path / "housing").mkdir()
    (tmp_path / housing.CSV).write_text("longitude,latitude\n1,2\n")
    with pytest.raises(DamagedData, match="damaged or another version"):
        housing.load(tmp_path)


HEADER = (
    "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,"
    "median_income,median_house_value,ocean_proximity\n"
)


def write_csv(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEADER + "".join(rows))


def test_a_table_of_another_length_is_refused(tmp_path):
    path = tmp_path / housing.CSV
    write_csv(path, ["-122.23,37.88,41.0,880.0,129.0,322.0,126.0,8.3252,452600.0,NEAR BAY\n"])
    with pytest.raises(DamagedData, match="has 20640 rows, got 1"):
        housing._from_csv(path)


def test_statistics_of_another_table_are_refused(tmp_path):
    path = tmp_path / housing.CSV
    row = "-122.23,37.88,41.0,880.0,129.0,322.0,126.0,8.3252,452600.0,NEAR BAY\n"
    write_csv(path, [row] * housing.N_ROWS)
    with pytest.raises(DamagedData, match=r"median of MedInc is 3\.535, got 8\.3252"):
        housing._from_csv(path)


def archive(folder: Path, n_rows: int) -> Path:
    """scikit-learn's archive of a table of `n_rows` rows, in the columns that it stores."""
    import joblib

    rows = torch.rand(n_rows, 9, generator=torch.Generator().manual_seed(0)).double() + 1
    path = folder / "cal_housing_py3.pkz"
    joblib.dump(rows.numpy(), path, compress=6)
    return path


def test_the_archive_of_scikit_learn_is_read_and_verified(tmp_path: Path) -> None:
    archive(tmp_path, 7)
    with pytest.raises(DamagedData, match="has 20640 rows, got 7"):
        housing.load(tmp_path)


def test_an_archive_of_other_numbers_is_refused_by_its_statistics(tmp_path: Path) -> None:
    archive(tmp_path, 20640)
    with pytest.raises(DamagedData, match=r"the median of .* fetch it again"):
        housing.load(tmp_path)


def test_a_truncated_archive_is_one_sentence(tmp_path: Path) -> None:
    path = archive(tmp_path, 100)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DamagedData, match=r"cannot be read .* run `make data`"):
        housing.load(tmp_path)
