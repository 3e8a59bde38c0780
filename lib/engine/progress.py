"""The line that shows how far a notebook has come."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol

QUIET_SECONDS = 10.0  # between two lines where a line cannot be rewritten
CLEAR = "\r\x1b[K"


class Tell(Protocol):
    """Writes to the terminal."""

    def __call__(self, line: str, end: str = "\n") -> None: ...


class Progress(threading.Thread):
    """Shows "name  cell 7/23  12 s": rewritten every second on a terminal, else a line at times."""

    def __init__(self, name: str, tell: Tell, is_live: bool) -> None:
        super().__init__(daemon=True)
        self.notebook = name
        self.tell = tell
        self.is_live = is_live
        self.cell = self.cells = 0
        self.started = time.perf_counter()
        self.ended = threading.Event()

    def at(self, cell: int, cells: int) -> None:
        """Cell number `cell` of `cells` has begun."""
        self.cell, self.cells = cell, cells

    def place(self) -> str:
        """Where a failure happened: "cell 7/23  ", or nothing before the first cell."""
        return f"cell {self.cell}/{self.cells}  " if self.cells else ""

    def line(self) -> str:
        """The line as it is now."""
        where = self.place() or "starting  "
        return f"      {self.notebook}  {where}{time.perf_counter() - self.started:.0f} s"

    def run(self) -> None:
        """Until the end: rewrite the line, or add one."""
        while not self.ended.wait(1.0 if self.is_live else QUIET_SECONDS):
            self.tell(CLEAR + self.line() if self.is_live else self.line(), end=self._end())

    def _end(self) -> str:
        return "" if self.is_live else "\n"

    def __enter__(self) -> Progress:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self.join()
        if self.is_live:
            self.tell(CLEAR, end="")
