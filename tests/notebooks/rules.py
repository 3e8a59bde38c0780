"""The anatomy of a notebook, one small function a rule.

Each rule takes a `Notebook` and returns its complaints as sentences; none means the rule is kept.
`test_anatomy.py` applies them to every notebook and shows each one a notebook that breaks it.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_CELL_LINES, MAX_NOTEBOOK_LINES, MAX_DEF_LINES = 15, 120, 5
MAX_NOTEBOOK_BYTES, MAX_OUTPUT_BYTES = 300_000, 100_000
ANNOTATIONS = {"str", "int", "float", "bool", "list"}  # what papermill's help can read
SETUP = """import sys
from pathlib import Path
ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "lib" / "config.py").is_file())
sys.path.insert(0, str(ROOT))"""
STYLE_NAMES = {"rcParams", "rcParamsDefault", "rc_context", "rc", "set_theme", "set_style"}
TRAINING_NAMES = {"backward", "zero_grad"}
WITHOUT_CLAIMS = {"00_start_here"}  # the tour measures nothing
# assembled, so that this file does not hold what it forbids
HOMES = "|".join(("ho" + "me", "Us" + "ers", "wo" + "rk", "ro" + "ot"))
MACHINE_PATH = re.compile(rf"(?<![\w.~/:-])/(?:{HOMES})/[\w.-]")
ANY_PATH = re.compile(r"^(?:/[\w.-]+|~/|[A-Za-z]:[\\/]|file:)")


@dataclass(frozen=True)
class Notebook:
    """A notebook file as JSON."""

    name: str
    whole: dict
    n_bytes: int

    @classmethod
    def read(cls, path: Path) -> Notebook:
        data = path.read_bytes()
        return cls(path.stem, json.loads(data), len(data))

    @property
    def cells(self) -> list[dict]:
        return self.whole["cells"]

    @property
    def code(self) -> list[tuple[int, str]]:
        """(number, source) of each code cell."""
        return [(k, text(c)) for k, c in enumerate(self.cells, 1) if c["cell_type"] == "code"]

    def trees(self) -> Iterator[tuple[int, ast.Module]]:
        """(number, syntax tree) of each code cell; magics and shell lines are left out."""
        for number, source in self.code:
            kept = [x if not x.lstrip().startswith(("%", "!")) else "" for x in source.split("\n")]
            yield number, ast.parse("\n".join(kept))

    def tagged(self, tag: str) -> list[int]:
        """Positions (from 0) of the cells that carry a tag."""
        return [k for k, cell in enumerate(self.cells) if tag in tags(cell)]


def text(cell: dict) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def name_has_number_and_words(nb: Notebook) -> list[str]:
    if re.fullmatch(r"\d\d(_[a-z0-9]+)+", nb.name):
        return []
    return [f"{nb.name} is not named NN_words"]


def title_comes_first(nb: Notebook) -> list[str]:
    first = nb.cells[0]
    if first["cell_type"] == "markdown" and text(first).startswith("# "):
        return []
    return ["cell 1 is not a markdown cell that starts with '# '"]


def parameters_come_second(nb: Notebook) -> list[str]:
    if nb.tagged("parameters") == [1] and nb.cells[1]["cell_type"] == "code":
        return []
    return ["cell 2, and only it, must be code tagged 'parameters'"]


def parameters_are_documented_literals(nb: Notebook) -> list[str]:
    found = nb.tagged("parameters")
    if not found:
        return ["no cell is tagged 'parameters'"]
    source = text(nb.cells[found[0]])
    lines, names, said = source.split("\n"), [], []
    for statement in ast.parse(source).body:
        words = ast.unparse(statement)
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            said.append(f"parameter {words!r} is not 'NAME: type = literal'")
            continue
        names.append(statement.target.id)
        if ast.unparse(statement.annotation) not in ANNOTATIONS:
            said.append(f"parameter {words!r} is not annotated with one of {sorted(ANNOTATIONS)}")
        try:
            ast.literal_eval(statement.value or ast.Name("missing"))
        except ValueError:
            said.append(f"parameter {words!r} is not a literal")
        if not any("  # " in x for x in lines[statement.lineno - 1 : statement.end_lineno]):
            said.append(f"parameter {words!r} has no help comment")
    if names[:3] != ["PROFILE", "SEED", "DEVICE"]:
        said.append(f"parameters start with PROFILE, SEED, DEVICE, not {names[:3]}")
    return said


def setup_is_the_four_lines(nb: Notebook) -> list[str]:
    """The second code cell: the pattern, then imports, `run = ...`, `figures.use_style()`."""
    if len(nb.code) < 2:
        return ["there is no setup cell"]
    number, source = nb.code[1]
    body = [ast.unparse(x) for x in ast.parse(source).body]
    wanted = [ast.unparse(x) for x in ast.parse(SETUP).body]
    said = []
    if body[:4] != wanted:
        said.append(f"cell {number} does not start with the four setup lines")
    start = f"run = config.resolve('{nb.name}', PROFILE, SEED, DEVICE"
    if len(body) < 6 or not re.fullmatch(re.escape(start) + r"(, \w+=[A-Z_0-9]+)*\)", body[-2]):
        said.append(f"cell {number} wants {start}) in its last line but one")
    if body[-1] != "figures.use_style()":
        said.append(f"cell {number} does not end with figures.use_style()")
    for line in body[4:-2]:
        if not line.startswith(("import ", "from ")):
            said.append(f"cell {number} computes something: {line}")
    return said


def claims_cell_is_compared(nb: Notebook) -> list[str]:
    found = nb.tagged("nbval-check-output")
    if not found and nb.name in WITHOUT_CLAIMS:
        return []
    if len(found) != 1:
        return [f"one cell is tagged nbval-check-output, not {len(found)}"]
    cell = nb.cells[found[0]]
    said = []
    if not re.search(r"\bclaims\.|verdict", text(cell)):
        said.append("the cell tagged nbval-check-output shows no verdicts")
    if not cell.get("outputs"):
        said.append("the cell tagged nbval-check-output has no stored output to compare")
    return said


def explore_cell_is_not_compared(nb: Notebook) -> list[str]:
    widgets, ignored = nb.tagged("widgets"), nb.tagged("nbval-ignore-output")
    said = [] if widgets else ["no cell is tagged 'widgets'"]
    said += [
        f"cell {k + 1}: 'widgets' goes with 'nbval-ignore-output'"
        for k in widgets
        if k not in ignored
    ]
    claims = nb.tagged("nbval-check-output")
    if claims and widgets and widgets[0] < claims[0]:
        said.append("the explore cell comes after the claims cell")
    return said


def next_steps_come_last(nb: Notebook) -> list[str]:
    last = nb.cells[-1]
    if last["cell_type"] != "markdown" or not re.match(r"#+ What to try next", text(last)):
        return ["the last cell is not markdown headed 'What to try next'"]
    items = re.findall(r"^(?:[-*]|\d+\.) ", text(last), re.MULTILINE)
    return [] if len(items) >= 3 else [f"'What to try next' lists {len(items)} edits, not 3"]


def n_lines(source: str) -> int:
    """Lines that are neither blank nor only a comment."""
    return sum(bool(x.strip()) and not x.strip().startswith("#") for x in source.split("\n"))


def cells_are_short(nb: Notebook) -> list[str]:
    counts = [(number, n_lines(source)) for number, source in nb.code]
    return [
        f"cell {k} has {n} lines of code, over {MAX_CELL_LINES}"
        for k, n in counts
        if n > MAX_CELL_LINES
    ]


def notebook_is_short(nb: Notebook) -> list[str]:
    n = sum(n_lines(source) for _, source in nb.code)
    return [f"{n} lines of code, over {MAX_NOTEBOOK_LINES}"] if n > MAX_NOTEBOOK_LINES else []


def functions_are_short(nb: Notebook) -> list[str]:
    said = []
    for number, tree in nb.trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n = (node.end_lineno or 0) - node.lineno + 1
                if n > MAX_DEF_LINES:
                    said.append(f"cell {number}: {node.name} has {n} lines, over {MAX_DEF_LINES}")
    return said


def no_class(nb: Notebook) -> list[str]:
    return [
        f"cell {number} defines class {node.name}"
        for number, tree in nb.trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


def installs_nothing(nb: Notebook) -> list[str]:
    pattern = re.compile(r"\b(?:pip3?|uv|conda|mamba|apt(?:-get)?)\W+(?:\w+\W+)?install\b")
    return [
        f"cell {number} installs something" for number, source in nb.code if pattern.search(source)
    ]


def no_absolute_path(nb: Notebook) -> list[str]:
    """In code any absolute path; in prose and outputs one of this machine."""
    said = [
        f"cell {number} holds the absolute path {node.value!r}"
        for number, tree in nb.trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and ANY_PATH.match(node.value)
    ]
    for number, cell in enumerate(nb.cells, 1):
        words = text(cell) + json.dumps(cell.get("outputs", []))
        if MACHINE_PATH.search(words):
            said.append(f"cell {number} holds a path of a machine in its text or outputs")
    return said


def no_training_loop(nb: Notebook) -> list[str]:
    """No loop over epochs, no backward pass: that is lib code."""
    said = []
    for number, tree in nb.trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                head = ast.unparse(node.target) + " " + ast.unparse(node.iter)
                if "epoch" in head.lower():
                    said.append(f"cell {number} loops over epochs")
            elif isinstance(node, ast.While) and "epoch" in ast.unparse(node.test).lower():
                said.append(f"cell {number} loops over epochs")
            elif isinstance(node, ast.Attribute) and node.attr in TRAINING_NAMES:
                said.append(f"cell {number} trains: .{node.attr}")
    return said


def no_closing_semicolon(nb: Notebook) -> list[str]:
    said = []
    for number, source in nb.code:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        layout = {
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.ENDMARKER,
            tokenize.DEDENT,
        }
        words = [x.string for x in tokens if x.type not in layout]
        if words and words[-1] == ";":
            said.append(f"cell {number} ends in ';'")
    return said


def style_is_left_to_lib(nb: Notebook) -> list[str]:
    return [
        f"cell {number} sets the figure style: .{node.attr}"
        for number, tree in nb.trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (node.attr in STYLE_NAMES or ast.unparse(node) in ("plt.style", "matplotlib.style"))
    ]


def profile_is_not_asked(nb: Notebook) -> list[str]:
    """Sizes come from `run.size`; no code compares the profile's name."""
    return [
        f"cell {number} compares the profile: {ast.unparse(node)}"
        for number, tree in nb.trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and re.search(r"\b(PROFILE|profile)\b", ast.unparse(node))
        and re.search(r"'(quick|full|paper)'", ast.unparse(node))
    ]


def outputs_are_stored_with_counts(nb: Notebook) -> list[str]:
    """As after one run from top to bottom: counts 1, 2, 3, ... and no error."""
    said, count = [], 0
    for number, cell in enumerate(nb.cells, 1):
        if cell["cell_type"] != "code" or not text(cell).strip():
            continue
        count += 1
        if cell.get("execution_count") != count:
            said.append(
                f"cell {number} has execution count {cell.get('execution_count')}, not {count}"
            )
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                said.append(f"cell {number} stores an error: {output.get('ename')}")
            if output.get("execution_count", count) != count:
                said.append(f"cell {number} stores an output of another run")
    if not any(cell.get("outputs") for cell in nb.cells):
        said.append("no cell stores an output")
    return said


def notebook_is_small(nb: Notebook) -> list[str]:
    if nb.n_bytes <= MAX_NOTEBOOK_BYTES:
        return []
    return [f"the file has {nb.n_bytes} bytes, over {MAX_NOTEBOOK_BYTES}"]


def outputs_are_small(nb: Notebook) -> list[str]:
    said = []
    for number, cell in enumerate(nb.cells, 1):
        for output in cell.get("outputs", []):
            n = len(json.dumps(output, ensure_ascii=False).encode())
            if n > MAX_OUTPUT_BYTES:
                said.append(f"cell {number} stores an output of {n} bytes, over {MAX_OUTPUT_BYTES}")
    return said


def no_run_metadata(nb: Notebook) -> list[str]:
    said = [
        f"the notebook keeps {x} metadata"
        for x in ("widgets", "papermill")
        if x in nb.whole["metadata"]
    ]
    for number, cell in enumerate(nb.cells, 1):
        for key in ("papermill", "execution"):
            if key in cell.get("metadata", {}):
                said.append(f"cell {number} keeps {key} metadata")
        if "injected-parameters" in tags(cell):
            said.append(f"cell {number} holds injected parameters")
    return said


def claims_match_the_ledger(nb: Notebook, ledger: dict[str, str]) -> list[str]:
    """The title cell names exactly the claims of this notebook; `ledger`: claim id -> notebook."""
    named = set(re.findall(r"\bP\d-\d\d\b", text(nb.cells[0])))
    mine = {claim for claim, notebook in ledger.items() if notebook == nb.name}
    said = [f"the title names {x}, which is not in the ledger" for x in sorted(named - set(ledger))]
    return said + [f"the title does not name its claim {x}" for x in sorted(mine - named)]


RULES = (
    name_has_number_and_words,
    title_comes_first,
    parameters_come_second,
    parameters_are_documented_literals,
    setup_is_the_four_lines,
    claims_cell_is_compared,
    explore_cell_is_not_compared,
    next_steps_come_last,
    cells_are_short,
    notebook_is_short,
    functions_are_short,
    no_class,
    installs_nothing,
    no_absolute_path,
    no_training_loop,
    no_closing_semicolon,
    style_is_left_to_lib,
    profile_is_not_asked,
    outputs_are_stored_with_counts,
    notebook_is_small,
    outputs_are_small,
    no_run_metadata,
)
