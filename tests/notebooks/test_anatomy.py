"""Every notebook keeps the anatomy, and every rule of it finds a notebook that does not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from lib import claims
from lib.config import ROOT
from lib.documents import DOCUMENTS
from tests.notebooks import rules
from tests.notebooks.rules import Notebook

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
Change = Callable[[Notebook], None]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda x: x.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda x: x.stem)
def test_notebook_keeps_the_rule(path, rule) -> None:
    assert rule(Notebook.read(path)) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda x: x.stem)
def test_title_names_the_claims_of_the_ledger(path) -> None:
    ledger = {x.id: x.notebook for x in claims.ledger().values()}
    assert rules.claims_match_the_ledger(Notebook.read(path), ledger) == []


def test_every_claim_names_a_notebook_of_its_part() -> None:
    """One that exists, or is planned: claims are written down before the first run."""
    names = {section for document in DOCUMENTS.values() for section in document.sections}
    assert PATHS
    for claim in claims.ledger().values():
        assert claim.notebook in names, f"{claim.id} names {claim.notebook}"
        assert claim.notebook[0] == claim.id[1], f"{claim.id} is not of {claim.notebook}"


# A notebook that keeps every rule, and ways to break each

PARAMETERS = """PROFILE: str = "auto"  # quick | full | paper
SEED: int = 0  # base seed
DEVICE: str = "auto"  # auto | cpu
LAYERS: list = [
    1,
    2,
]  # which layers"""
IMPORTS = "from lib import claims, config, figures\n"
RUN = 'run = config.resolve("51_tabular", PROFILE, SEED, DEVICE, layers=LAYERS)\n'


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, tags: tuple[str, ...] = (), output: str | None = None) -> dict:
    outputs = (
        [] if output is None else [{"output_type": "stream", "name": "stdout", "text": output}]
    )
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source,
        "outputs": outputs,
        "execution_count": None,
    }


def notebook(*extra: dict) -> Notebook:
    """A good one, with `extra` cells before its claims, counted as run from top to bottom."""
    cells = [
        markdown("# A table\n\nIt checks `P5-01`, and P5-02."),
        code(PARAMETERS, ("parameters",)),
        markdown("## Setup"),
        code(f"{rules.SETUP}\n\n{IMPORTS}\n{RUN}figures.use_style()"),
        code("def half(x):\n    return x / 2\n\n\nhalf(2)", output="1.0"),
        *extra,
        code("print(*claims.judge(run, {}))", ("nbval-check-output",), "P5-01  holds"),
        code("slider", ("nbval-ignore-output", "widgets"), "a slider"),
        markdown("## What to try next\n\n1. One\n2. Two\n3. Three"),
    ]
    for count, cell in enumerate([x for x in cells if x["cell_type"] == "code"], 1):
        cell["execution_count"] = count
    return Notebook("51_tabular", {"cells": cells, "metadata": {}}, 5_000)


def source(position: int, new: str) -> Change:
    return lambda nb: nb.cells[position].__setitem__("source", new)


def replace(position: int, old: str, new: str) -> Change:
    def change(nb: Notebook) -> None:
        assert old in nb.cells[position]["source"]
        nb.cells[position]["source"] = nb.cells[position]["source"].replace(old, new)

    return change


def retag(position: int, *tags: str) -> Change:
    return lambda nb: nb.cells[position]["metadata"].__setitem__("tags", list(tags))


def put(position: int, key: str, value: object) -> Change:
    return lambda nb: nb.cells[position].__setitem__(key, value)


def note(position: int, key: str) -> Change:
    return lambda nb: nb.cells[position]["metadata"].__setitem__(key, {})


PATH = "/".join(("", "ho" + "me", "me", "data"))
ERROR = [{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}]
BROKEN: list[tuple[Callable[[Notebook], list[str]], Change]] = [
    (rules.title_comes_first, source(0, "A table")),
    (rules.title_comes_first, lambda nb: nb.cells.insert(0, code("1"))),
    (rules.parameters_come_second, lambda nb: nb.cells.insert(1, markdown("words"))),
    (rules.parameters_come_second, retag(4, "parameters")),
    (rules.parameters_are_documented_literals, replace(1, "  # base seed", "")),
    (rules.parameters_are_documented_literals, replace(1, ": int", "")),
    (rules.parameters_are_documented_literals, replace(1, ": int", ": int | None")),
    (rules.parameters_are_documented_literals, replace(1, "= 0", "= int(0)")),
    (rules.parameters_are_documented_literals, replace(1, "SEED", "SEEDS")),
    (rules.parameters_are_documented_literals, retag(1)),
    (rules.setup_is_the_four_lines, replace(3, "sys.path.insert(0", "sys.path.insert(1")),
    (rules.setup_is_the_four_lines, replace(3, "51_tabular", "52_images")),
    (rules.setup_is_the_four_lines, replace(3, "layers=LAYERS", "layers=[1, 2]")),
    (rules.setup_is_the_four_lines, replace(3, "figures.use_style()", "print(run)")),
    (rules.setup_is_the_four_lines, replace(3, IMPORTS, IMPORTS + "x = 2\n")),
    (rules.claims_cell_is_compared, retag(5)),
    (rules.claims_cell_is_compared, retag(4, "nbval-check-output")),
    (rules.claims_cell_is_compared, source(5, "print(2)")),
    (rules.claims_cell_is_compared, put(5, "outputs", [])),
    (rules.explore_cell_is_not_compared, retag(6)),
    (rules.explore_cell_is_not_compared, retag(6, "widgets")),
    (rules.explore_cell_is_not_compared, lambda nb: nb.cells.insert(4, nb.cells.pop(6))),
    (rules.next_steps_come_last, lambda nb: nb.cells.append(markdown("Thanks"))),
    (rules.next_steps_come_last, source(7, "## What to try next\n\n1. One\n2. Two")),
    (rules.cells_are_short, source(4, "\n".join("x = 1" for _ in range(16)))),
    (rules.notebook_is_short, lambda nb: nb.cells.extend(code("x = 1\n" * 15) for _ in range(8))),
    (rules.functions_are_short, source(4, "def f():\n" + "    x = 1\n" * 5)),
    (rules.functions_are_short, source(4, "if x:\n    def f():\n" + "        x = 1\n" * 5)),
    (rules.no_class, source(4, "class A:\n    x = 1")),
    (rules.installs_nothing, source(4, "%pip install torch")),
    (rules.installs_nothing, source(4, "!uv pip install torch")),
    (rules.installs_nothing, source(4, 'run(["pip", "install", "torch"])')),
    (rules.no_absolute_path, source(4, f'open("{PATH}")')),
    (rules.no_absolute_path, source(4, 'open("~/x")')),
    (rules.no_absolute_path, source(4, r'open("C:\\x")')),
    (rules.no_absolute_path, source(0, f"# See {PATH}")),
    (rules.no_absolute_path, put(4, "outputs", [{"output_type": "stream", "text": f"in {PATH}"}])),
    (rules.no_training_loop, source(4, "for epoch in range(3):\n    step()")),
    (rules.no_training_loop, source(4, "x = [step() for _ in range(run.size.epochs)]")),
    (rules.no_training_loop, source(4, "while epoch < 3:\n    epoch += 1")),
    (rules.no_training_loop, source(4, "loss.backward()")),
    (rules.no_closing_semicolon, source(4, "half(2);")),
    (rules.no_closing_semicolon, source(4, "half(2);  # hush\n")),
    (rules.style_is_left_to_lib, source(4, "plt.rcParams['font.size'] = 3")),
    (rules.style_is_left_to_lib, source(4, "plt.style.use('dark')")),
    (rules.style_is_left_to_lib, source(4, "sns.set_theme()")),
    (rules.profile_is_not_asked, source(4, "if run.profile == 'quick':\n    x = 1")),
    (rules.profile_is_not_asked, source(4, "x = 1 if PROFILE in ('quick', 'full') else 2")),
    (rules.outputs_are_stored_with_counts, put(4, "execution_count", None)),
    (rules.outputs_are_stored_with_counts, put(4, "execution_count", 9)),
    (rules.outputs_are_stored_with_counts, put(4, "outputs", ERROR)),
    (
        rules.outputs_are_stored_with_counts,
        put(4, "outputs", [{"output_type": "execute_result", "execution_count": 7, "data": {}}]),
    ),
    (rules.outputs_are_stored_with_counts, lambda nb: [x.pop("outputs", 0) for x in nb.cells]),
    (
        rules.outputs_are_small,
        put(4, "outputs", [{"output_type": "stream", "text": "x" * 100_000}]),
    ),
    (rules.no_run_metadata, lambda nb: nb.whole["metadata"].__setitem__("widgets", {})),
    (rules.no_run_metadata, lambda nb: nb.whole["metadata"].__setitem__("papermill", {})),
    (rules.no_run_metadata, note(4, "papermill")),
    (rules.no_run_metadata, note(4, "execution")),
    (rules.no_run_metadata, retag(4, "injected-parameters")),
]


def test_the_good_notebook_keeps_every_rule() -> None:
    assert {rule.__name__: rule(notebook()) for rule in rules.RULES} == {
        rule.__name__: [] for rule in rules.RULES
    }


@pytest.mark.parametrize(
    ("rule", "change"), BROKEN, ids=[f"{k}-{rule.__name__}" for k, (rule, _) in enumerate(BROKEN)]
)
def test_rule_finds_the_notebook_that_breaks_it(rule, change) -> None:
    bad = copy.deepcopy(notebook())
    change(bad)
    assert rule(bad)


def test_rules_about_the_file_find_a_bad_one() -> None:
    good = notebook()
    assert rules.notebook_is_small(Notebook(good.name, good.whole, 300_001))
    for name in ("tabular", "5_tabular", "51-tabular", "51_Tabular"):
        assert rules.name_has_number_and_words(Notebook(name, good.whole, 1))


def test_every_rule_is_shown_a_bad_notebook() -> None:
    elsewhere = {rules.notebook_is_small, rules.name_has_number_and_words}
    assert {rule for rule, _ in BROKEN} | elsewhere == set(rules.RULES)


def test_the_tour_needs_no_claims_cell_and_others_do() -> None:
    nb = notebook()
    retag(5)(nb)
    assert rules.claims_cell_is_compared(nb)
    assert rules.claims_cell_is_compared(Notebook("00_start_here", nb.whole, 1)) == []


def test_claims_rule_finds_unknown_and_forgotten_claims() -> None:
    good = {"P5-01": "51_tabular", "P5-02": "51_tabular", "P1-01": "11_concept_presence"}
    assert rules.claims_match_the_ledger(notebook(), good) == []
    assert rules.claims_match_the_ledger(notebook(), {"P5-01": "51_tabular"})
    assert rules.claims_match_the_ledger(notebook(), good | {"P5-03": "51_tabular"})


def test_prose_may_hold_slashes() -> None:
    words = "rooms/person, https://example.org/home/work/x, and/or 1/2"
    assert rules.no_absolute_path(notebook(markdown(words), code("x = 'rooms/person'"))) == []
