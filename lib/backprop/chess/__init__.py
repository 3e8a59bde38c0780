"""Concept backpropagation on chess boards (document 5, chess; its open question 1).

What does a network think a concept looks like, where an input is a position and not a picture?
Boards cannot be changed a little, and most changes make no position. In reading order:

- `boards`: many positions at once, as bitboards; `rules6`: the same rules on python-chess;
- `moves`: attacks, exact legality, legal moves; `unmoves`: the move before, as a stronger rule;
- `concepts`: what the rules decide; `planes`: what networks read;
- `positions`: games to fit and test on; `typical`: how like them a board is;
- `networks`, `maia`: the authors' 6x6 tower and checker, small ones like them, Maia;
- `reading`: probes of a frozen network; `detection`: how they are fitted and guarded;
- `edits`, `search`: the fewest legal edits; `certificates`: that there are no fewer;
- `relaxed`: the authors' bits, and a smooth form of them;
- `outcomes`, `studies`, `quality`, `layer_maps`, `large_board`, `verdicts`, `pictures`, `editor`:
  notebook 53. Import these by name.
"""

from __future__ import annotations

from lib.backprop.chess.boards import Boards, from_chess, to_chess
from lib.backprop.chess.concepts import CONCEPTS
from lib.backprop.chess.moves import is_legal, legal_moves, violations
from lib.backprop.chess.positions import Positions, play_games
from lib.backprop.chess.reading import Reader
from lib.backprop.chess.relaxed import relaxed_bop, relaxed_ste
from lib.backprop.chess.search import VARIANTS, Answer, Beam, maximise_board, maximise_boards

__all__ = [
    "CONCEPTS",
    "VARIANTS",
    "Answer",
    "Beam",
    "Boards",
    "Positions",
    "Reader",
    "from_chess",
    "is_legal",
    "legal_moves",
    "maximise_board",
    "maximise_boards",
    "play_games",
    "relaxed_bop",
    "relaxed_ste",
    "to_chess",
    "violations",
]
