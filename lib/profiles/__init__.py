"""Every size of every notebook, a file a part, and why some cannot run at the document's own.

`SIZES` is notebook -> profile -> size -> value; `NO_PAPER` gives the reason where there is no
`paper` profile. Imports the standard library only.
"""

from __future__ import annotations

from lib.profiles import part1, part2, part3, part4, part5

SIZES: dict[str, dict[str, dict[str, object]]] = (
    part1.SIZES | part2.SIZES | part3.SIZES | part4.SIZES | part5.SIZES
)
NO_PAPER: dict[str, str] = (
    part1.NO_PAPER | part2.NO_PAPER | part3.NO_PAPER | part4.NO_PAPER | part5.NO_PAPER
)
