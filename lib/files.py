"""Files that are written whole or not at all. Imports the standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a killed process leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(_bytes(data))
    os.replace(temporary, path)


def write_if_changed(path: Path, data: bytes | str) -> None:
    """The same, but leave an identical file alone, so that its date means something."""
    if not path.is_file() or path.read_bytes() != _bytes(data):
        write_whole(path, data)


def write_result(path: Path, data: bytes | str) -> None:
    """Write a figure, table or verdict if it changed.

    Raises:
        OSError: the folder cannot be written, in one sentence.
    """
    try:
        write_if_changed(path, data)
    except OSError as error:
        raise OSError(
            f"cannot write {path.name} in {path.parent}: {error.strerror}; make the folder "
            "writable or set FIGURES_DIR to another"
        ) from error


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data
