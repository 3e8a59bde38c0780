"""Broden's format on disk: the reader, and a writer that makes such a folder of annotated images.

Layout: `index.csv` lists the images with, for each category, label planes (PNG files) or labels of
the whole image; `label.csv` names the labels, `category.csv` the categories, `c_<category>.csv` the
labels of each. In a plane, label number = red + 256 * green, 0 is no label.

The whole set does not fit in memory, so `load` reads the lists and gives a `Broden`, which reads
pixels and planes of the rows that are asked for. Counts come from the files, none is assumed.

Public names: `load`, `Broden`, `write`, `FOLDER`.

Source: Network Dissection's data set, used by document 2; specification section 1.3.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import config
from lib.data.annotations import CATEGORIES, Annotations, Concept, word_of
from lib.data.base import DamagedData, MissingData
from lib.files import write_whole

FOLDER = "broden1_224"
HOW = "curl -O http://netdissect.csail.mit.edu/data/broden1_224.zip && unzip broden1_224.zip"
LICENCE = "that of each of its sources (ADE20K, PASCAL, OpenSurfaces, DTD); none for the whole"
SIZES = ("ih", "iw", "sh", "sw")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Entry:
    """One line of `index.csv`."""

    image: str  # below images/; the image's identity everywhere
    split: str
    size: tuple[int, int]  # of the image, height and width
    label_size: tuple[int, int]
    planes: tuple[tuple[str, ...], ...]  # files of each category
    scalars: tuple[int, ...]  # label numbers of the whole image
    annotated: tuple[bool, ...]  # each category


@dataclass(frozen=True)
class Broden:
    """The lists of a folder in Broden's format; pixels and planes are read when asked for."""

    root: Path
    categories: tuple[str, ...]
    concepts: tuple[Concept, ...]
    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def ids(self) -> tuple[str, ...]:
        """The images' names, in order."""
        return tuple(e.image for e in self.entries)

    def images(self, rows: Sequence[int] | None = None) -> Tensor:
        """Pixels of some images (default all), uint8 `[m, h, w, 3]`.

        Raises:
            MissingData: a file that the index names is not there.
            DamagedData: not an image, or of another size than the index or its neighbours say.
        """
        found: list[np.typing.NDArray[np.uint8]] = []
        for entry in self._chosen(rows):
            pixels = _pixels(self.root / "images" / entry.image, convert=True)
            if pixels.shape[:2] != entry.size:
                raise DamagedData(
                    f"{entry.image} is {pixels.shape[:2]}, index.csv says {entry.size}"
                )
            if found and pixels.shape != found[0].shape:
                raise DamagedData(
                    f"{entry.image} is {pixels.shape[:2]}, others {found[0].shape[:2]}; ask for "
                    "rows of one size at a time"
                )
            found.append(pixels)
        return torch.from_numpy(np.stack(found))

    def annotations(self, rows: Sequence[int] | None = None) -> Annotations:
        """Labels of some images (default all).

        Raises:
            MissingData: a plane that the index names is not there.
            DamagedData: a plane of the wrong size or kind, or a number that `label.csv` lacks.
        """
        entries = self._chosen(rows)
        value = {c.number: k for k, c in enumerate(self.concepts, 1)}
        slots = [max(len(e.planes[k]) for e in self.entries) for k in range(len(self.categories))]
        first = np.cumsum([0, *slots])
        n_whole = max(1, *(len(e.scalars) for e in self.entries))
        sizes = {e.label_size for e in entries}
        if len(sizes) > 1:
            raise DamagedData(f"label planes have sizes {sorted(sizes)}; ask for rows of one size")
        planes = np.zeros((len(entries), max(1, int(first[-1])), *entries[0].label_size), np.int32)
        whole = torch.zeros(len(entries), n_whole, dtype=torch.int32)
        annotated = torch.zeros(len(entries), len(CATEGORIES), dtype=torch.bool)
        for i, entry in enumerate(entries):
            for k, files in enumerate(entry.planes):
                annotated[i, CATEGORIES.index(self.categories[k])] = entry.annotated[k]
                for j, file in enumerate(files):
                    numbers = _plane(self.root, entry, file)
                    planes[i, first[k] + j] = _values(numbers, value, entry.image, file)
            for j, number in enumerate(entry.scalars):
                where = "as a label of the whole image"
                whole[i, j] = int(_values(np.array([number]), value, entry.image, where)[0])
        dtype = torch.int16 if len(self.concepts) < 2**15 else torch.int32
        return Annotations(self.concepts, torch.from_numpy(planes).to(dtype), whole, annotated)

    def _chosen(self, rows: Sequence[int] | None) -> list[Entry]:
        chosen = list(self.entries) if rows is None else [self.entries[k] for k in rows]
        if not chosen:
            raise ValueError("want at least one row")
        return chosen


def load(
    root: Path | None = None,
    *,
    categories: Sequence[str] = CATEGORIES,
    split: str | None = None,
) -> Broden:
    """Read the lists of a folder in Broden's format.

    Args:
        root: the folder with `index.csv`; default `broden1_224` below DATA_ROOT.
        categories: which to read; images without a label in any of them are left out.
        split: train or val alone.

    Raises:
        MissingData: no such folder, or a list is not there.
        DamagedData: a column, a label or a size is not as the format wants it.
        ValueError: an unknown category or split.
    """
    root = root or config.data_root() / FOLDER
    unknown = set(categories) - set(CATEGORIES)
    if unknown or not categories or split not in (None, *SPLITS):
        raise ValueError(
            f"categories are {', '.join(CATEGORIES)} and splits {', '.join(SPLITS)}; got "
            f"{list(categories)} and {split!r}"
        )
    chosen = tuple(c for c in CATEGORIES if c in categories)
    present = {row["name"] for row in _rows(root, "category.csv", ("name",))}
    chosen = tuple(c for c in chosen if c in present)
    concepts = _concepts(root, chosen)
    rows = _rows(root, "index.csv", ("image", "split", *SIZES, *chosen))
    entries = [_entry(row, chosen) for row in rows]
    kept = [e for e in entries if any(e.annotated) and split in (None, e.split)]
    if not kept:
        raise DamagedData(f"index.csv lists no image with a label in {', '.join(chosen) or 'none'}")
    return Broden(root, chosen, concepts, tuple(kept))


def _rows(root: Path, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    path = root / name
    if not path.is_file():
        raise MissingData(
            f"Broden not found: wanted {path} (63,305 images, about 1 GB; licence: {LICENCE}); in "
            f"{root.parent} run `{HOW}`, or use the scenes of lib.data.scenes"
        )
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        absent = [c for c in columns if c not in (reader.fieldnames or [])]
        if absent:
            raise DamagedData(f"{path} lacks the columns {absent}; it has {reader.fieldnames}")
        return list(reader)


def _concepts(root: Path, categories: Sequence[str]) -> tuple[Concept, ...]:
    """The labels that occur in the categories, each in that which it covers most."""
    coverage: dict[tuple[str, int], float] = {}
    for category in categories:
        if (root / f"c_{category}.csv").is_file():
            for row in _rows(root, f"c_{category}.csv", ("number",)):
                share = float(row.get("coverage") or 0)
                coverage[category, _integer(row["number"], f"c_{category}.csv")] = share
    found = []
    for row in _rows(root, "label.csv", ("number", "name", "category")):
        number = _integer(row["number"], "label.csv")
        entries = [item.strip().partition("(") for item in row["category"].split(";")]
        counts = {name: float(rest.rstrip(")") or 0) for name, _, rest in entries}
        own = [c for c in categories if c in counts]
        if number == 0 or not own:  # 0 is the background
            continue
        primary = max(own, key=lambda c: (coverage.get((c, number), 0.0), counts[c]))
        found.append(Concept(number, row["name"], word_of(row["name"]), primary))
    numbers = [c.number for c in found]
    if len(set(numbers)) < len(numbers):
        raise DamagedData(f"label.csv in {root} lists a number twice")
    return tuple(found)


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DamagedData(f"{where} has {text!r} where a number should be") from error


def _entry(row: dict[str, str], categories: Sequence[str]) -> Entry:
    image = row["image"]
    if row["split"] not in SPLITS:
        raise DamagedData(f"{image} has split {row['split']!r} in index.csv, want train or val")
    height, width, label_height, label_width = (_integer(row[k], image) for k in SIZES)
    planes: list[tuple[str, ...]] = []
    scalars: list[int] = []
    annotated = []
    for category in categories:
        items = [item for item in (row[category] or "").split(";") if item]
        planes.append(tuple(item for item in items if not item.isdigit()))
        scalars += [int(item) for item in items if item.isdigit()]
        annotated.append(bool(items))
    return Entry(
        image,
        row["split"],
        (height, width),
        (label_height, label_width),
        tuple(planes),
        tuple(scalars),
        tuple(annotated),
    )


def _pixels(path: Path, convert: bool = False) -> np.typing.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if not convert and image.mode != "RGB":
                raise DamagedData(
                    f"{path} has colour mode {image.mode}, want RGB with 8 bits: label numbers "
                    "cannot be read from it; unpack the set again"
                )
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise MissingData(f"{path} is in index.csv but not there; unpack the set again") from error
    except OSError as error:
        raise DamagedData(f"{path} cannot be decoded ({error}); unpack the set again") from error


def _plane(root: Path, entry: Entry, file: str) -> np.typing.NDArray[np.int32]:
    rgb = _pixels(root / "images" / file)
    if rgb.shape[:2] != entry.label_size:
        raise DamagedData(
            f"label plane {file} of {entry.image} is {rgb.shape[:2]}, index.csv says "
            f"{entry.label_size}"
        )
    wide = rgb.astype(np.int32)  # 256 * green does not fit in 8 bits
    return wide[..., 0] + 256 * wide[..., 1]


def _values(
    numbers: np.typing.NDArray[np.integer], value: dict[int, int], image: str, where: str
) -> np.typing.NDArray[np.int32]:
    """Label values of label numbers."""
    present, inverse = np.unique(numbers, return_inverse=True)
    unknown = [int(v) for v in present if v and int(v) not in value]
    if unknown:
        raise DamagedData(
            f"{image} has label number {unknown[0]} ({where}), which label.csv does not list for "
            "the categories that are read"
        )
    table = np.array([value.get(int(v), 0) for v in present], np.int32)
    return table[inverse].reshape(numbers.shape)


def write(
    root: Path,
    images: Tensor,
    annotations: Annotations,
    *,
    names: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> None:
    """Write annotated images as a folder in Broden's format; `index.csv` comes last.

    Args:
        root: made if it is not there.
        images: uint8 `[n, h, w, 3]`, stored without loss.
        annotations: of the same images; a plane may mix categories, each gets a plane of its own.
        names: of the images below `images/`, default 00000.png and so on.
        splits: train or val, default all train.

    Raises:
        ValueError: as many images as annotations are wanted; label numbers from 1 to 65,535.
    """
    n = len(images)
    names = names or [f"{i:05d}.png" for i in range(n)]
    splits = splits or ["train"] * n
    if not len(annotations) == len(names) == len(splits) == n:
        raise ValueError(
            f"want as many images, annotations, names and splits, got {n}, {len(annotations)}, "
            f"{len(names)}, {len(splits)}"
        )
    numbers = [c.number for c in annotations.concepts]
    if not all(0 < k < 2**16 for k in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError("label numbers are from 1 to 65,535, each once; got others")
    table = np.array([0, *numbers], np.int32)
    category = np.array([-1, *annotations.categories.tolist()])
    index = []
    for i in range(n):
        cells = [_cell(root, names[i], k, annotations, i, table, category) for k in range(6)]
        write_whole(root / "images" / names[i], _png(images[i].numpy()))
        size = (*images.shape[1:3], *annotations.planes.shape[2:])
        index.append([names[i], splits[i], *size, *cells])
    _write_lists(root, annotations)
    _write_csv(root / "index.csv", ["image", "split", *SIZES, *CATEGORIES], index)


def _cell(
    root: Path,
    name: str,
    k: int,
    annotations: Annotations,
    i: int,
    table: np.typing.NDArray[np.int32],
    category: np.typing.NDArray[np.int64],
) -> str:
    """What `index.csv` says of category k of image i; writes its planes."""
    if not annotations.annotated[i, k]:
        return ""
    items = [str(table[v]) for v in annotations.whole[i].tolist() if v and category[v] == k]
    planes = annotations.planes[i].numpy().astype(np.int64)
    owned = [np.where(category[plane] == k, plane, 0) for plane in planes]
    kept = [plane for plane in owned if plane.any()]
    if not kept and not items:  # annotated, and nothing of it there
        kept = owned[:1]
    for j, plane in enumerate(kept):
        number = table[plane]
        rgb = np.stack([number % 256, number // 256, 0 * number], -1).astype(np.uint8)
        file = f"{Path(name).with_suffix('')}_{CATEGORIES[k]}_{j}.png"
        write_whole(root / "images" / file, _png(rgb))
        items.append(file)
    return ";".join(items)


def _png(pixels: np.typing.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(data, "PNG")
    return data.getvalue()


def _write_lists(root: Path, annotations: Annotations) -> None:
    coverage = annotations.coverage()
    frequency, total = (coverage > 0).sum(0).tolist(), coverage.sum(0).tolist()
    labels: list[list[object]] = [[0, "-", "", 0, 0, ""]]
    for c, f, t in zip(annotations.concepts, frequency, total, strict=True):
        labels.append([c.number, c.raw, f"{c.category}({f})", f, f"{t:.6f}", ""])
    _write_csv(
        root / "label.csv", ["number", "name", "category", "frequency", "coverage", "syns"], labels
    )
    categories = []
    for k, name in enumerate(CATEGORIES):
        own = [
            [c.number, c.raw, f, f"{t:.6f}"]
            for c, f, t in zip(annotations.concepts, frequency, total, strict=True)
            if c.category == name
        ]
        if not own:
            continue
        columns = ["code", "number", "name", "frequency", "coverage"]
        _write_csv(root / f"c_{name}.csv", columns, [[j, *row] for j, row in enumerate(own, 1)])
        some = int(annotations.annotated[:, k].sum())
        categories.append([name, own[0][0], own[-1][0], len(own), some])
    _write_csv(root / "category.csv", ["name", "first", "last", "count", "frequency"], categories)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_whole(path, text.getvalue())
