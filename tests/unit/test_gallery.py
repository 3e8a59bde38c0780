"""The gallery shows every figure, table and claim of a small made-up project."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lib import claims, config
from lib.engine import gallery, gallery_files
from tests.gallery_project import make_project

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags with attributes and checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def page_of(project: Path) -> tuple[str, Reader]:
    path, page = gallery.write(project, project / "figures")
    assert page.all_problems() == []
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return text, reader


def visible(text: str) -> str:
    """The page's words: no tags, one space between words."""
    return " ".join(re.sub(r"<[^>]+>", " ", text.partition("<body>")[2]).split())


def test_every_figure_is_shown_with_alt_text_caption_and_link_to_svg(project: Path) -> None:
    text, reader = page_of(project)
    images = reader.all("img")
    assert [x["src"] for x in images] == [
        "quick/51_tabular/fig2_bars.png",
        "full/51_tabular/fig2_bars.png",
        "quick/51_tabular/fig10_path.png",
    ]
    assert all(x["alt"] == "Bars that rise from left to right" for x in images[:2])
    links = [x["href"] for x in reader.all("a")]
    for image in images:
        assert str(image["src"]).replace(".png", ".svg") in links
    assert "Mean change of <strong>each</strong> feature, <em>95%</em> intervals." in text


def test_relative_links_lead_to_files(project: Path) -> None:
    _, reader = page_of(project)
    targets = [x.get("src") or "" for x in reader.all("img")]
    targets += [x["href"] or "" for x in reader.all("a")]
    files = [x for x in targets if not x.startswith("#")]
    assert "../notebooks/51_tabular.ipynb" in files
    assert "quick/51_tabular/t1_probes.csv" in files
    for target in files:
        assert (project / "figures" / target).is_file(), target


def test_links_within_the_page_lead_to_unique_ids(project: Path) -> None:
    _, reader = page_of(project)
    ids = [x["id"] for _, x in reader.tags if "id" in x]
    assert len(ids) == len(set(ids))
    for _, attributes in reader.tags:
        href = attributes.get("href") or ""
        for target in [href[1:]] if href.startswith("#") else []:
            assert target in ids
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_page_loads_nothing_from_elsewhere(project: Path) -> None:
    text, reader = page_of(project)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    for tag in ("script", "iframe", "object"):
        assert not [x for x in reader.all(tag) if x.get("src")]


def test_page_has_landmarks_and_headings_in_order(project: Path) -> None:
    text, reader = page_of(project)
    for tag in ("header", "nav", "main", "footer"):
        assert len(reader.all(tag)) == 1
    levels = [int(x) for x in re.findall(r"<h([1-6])\b", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_verdicts_carry_a_word_and_a_symbol_and_our_number(project: Path) -> None:
    text, _ = page_of(project)
    words = visible(text)
    assert "✓ holds 1.23 ± 0.12" in words
    assert "≠ DIFFERS 0.292 ± 0.03" in words
    assert "○ not run needs full" in words
    assert "[0, ∞)" in words
    assert "The shared denominator explains the rise." in words
    assert "No explanation is written yet." in words  # the one that differs at full


def test_counts_include_claims_that_no_run_has_judged(project: Path) -> None:
    page = gallery.gather(project, project / "figures")
    counts = {p: {word: n for word, _, n in row} for p, row in page.tally.items()}
    assert counts["quick"] == {claims.HOLDS: 1, claims.DIFFERS: 1, claims.NOT_RUN: 2}
    assert counts["full"] == {claims.HOLDS: 1, claims.DIFFERS: 1, claims.NOT_RUN: 2}
    assert page.n_claims == 4
    assert [part.number for part in page.parts] == [0, 1, 2, 3, 4, 5]


def test_thin_margin_is_remarked_and_a_wide_one_is_not(project: Path) -> None:
    page = gallery.gather(project, project / "figures")
    rows = {row.claim.id: row for row in page.parts[5].sections[0].rows}
    assert "3 spreads" in rows["P5-02"].ours[1].remark  # 0.45 ± 0.03, edge 0.5
    assert rows["P5-02"].ours[0].remark == ""  # 0.292 ± 0.03


def test_title_question_and_provenance_are_shown(project: Path) -> None:
    text, _ = page_of(project)
    words = visible(text)
    assert "Concept backpropagation on a table" in words
    assert "Which features move when we ask for more bedrooms?" in words
    assert "31 this run, 52 from an empty cache" in words
    assert "0123456789ab with uncommitted changes" in words
    assert "numpy 2.3, python 3.11" in words
    assert "make figures ONLY=00" in words  # the notebook without results


def test_paper_column_appears_once_paper_has_run(project: Path) -> None:
    assert gallery.gather(project, project / "figures").profiles == ["quick", "full"]
    (project / "figures/paper/51_tabular").mkdir(parents=True)
    assert gallery.gather(project, project / "figures").profiles == ["quick", "full", "paper"]


def test_same_inputs_give_the_same_bytes(project: Path) -> None:
    first = gallery.write(project, project / "figures")[0].read_bytes()
    assert gallery.write(project, project / "figures")[0].read_bytes() == first
    twin = make_project(project.parent / "twin")
    assert gallery.write(twin, twin / "figures")[0].read_bytes() == first


def test_markup_in_the_inputs_is_escaped(project: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = project / "figures/quick/51_tabular"
    (folder / "fig2_bars.txt").write_text(f'"{evil}', encoding="utf-8")
    (folder / "t1_probes.csv").write_text(f"a,b\n{evil},2\n", encoding="utf-8")
    notebook = project / "notebooks/51_tabular.ipynb"
    notebook.write_text(notebook.read_text().replace("on a table", evil))
    text, reader = page_of(project)
    assert evil not in text
    assert len(reader.all("script")) == 1


def test_large_table_is_cut_and_says_so(project: Path) -> None:
    rows = "".join(f"{k},{k}\n" for k in range(50))
    (project / "figures/quick/51_tabular/t1_probes.csv").write_text("a,b\n" + rows)
    text, _ = page_of(project)
    assert "First 20 of 50 rows" in visible(text)
    assert "<td>19</td>" in text
    assert "<td>20</td>" not in text


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("a `b_c` **d** *e*", "a <code>b_c</code> <strong>d</strong> <em>e</em>"),
        ("snake_case_name stays", "snake_case_name stays"),
        ("see [the page](x.html)", "see the page"),
        ("a < b & c", "a &lt; b &amp; c"),
    ],
)
def test_inline_markdown(markdown: str, html: str) -> None:
    assert gallery_files._inline(markdown) == html


def test_figures_dir_is_respected_and_one_line_is_printed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "ROOT", project)
    monkeypatch.setenv("FIGURES_DIR", str(project / "figures"))
    assert gallery.main() == 0
    out, err = capsys.readouterr()
    assert out.startswith("gallery  ")
    assert out.count("\n") == 1
    assert err == ""
    assert (project / "figures/index.html").is_file()


def test_writing_the_page_loads_no_heavy_package(project: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from lib.engine import gallery\n"
        "early = 'jinja2' in sys.modules\n"
        f"root = pathlib.Path({str(project)!r})\n"
        "gallery.write(root, root / 'figures')\n"
        "heavy = {'torch', 'matplotlib', 'papermill', 'numpy', 'nbformat'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy or early else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=config.ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
