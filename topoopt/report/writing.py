"""Whole files, written beside their place and renamed into it: never half a file, never through a symbolic link."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from topoopt.errors import FileError


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a whole file (text as UTF-8) and return its path; what stood there before is replaced at once, or not at all.

    A symbolic link at `path` is itself replaced: what it points to is not touched.

    Raises:
        FileError: where nothing can be written, with the system's reason.
    """
    with opened_whole(path) as file:
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def opened_whole(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` to write to; it takes the place of `path` when the block ends without error.

    Raises:
        FileError: where nothing can be written, with the system's reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}") if path.name else path
    try:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except (OSError, ValueError) as error:  # a ValueError is a name with a null character in it
        raise unwritable(path, error) from error
    try:
        with os.fdopen(number, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise unwritable(path, error) from error
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        FileError: where that cannot be done, with the system's reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: Exception) -> FileError:
    """Say that a place cannot be written to, and why."""
    reason = getattr(error, "strerror", None) or str(error)
    return FileError(f"{shortened(path)} cannot be written ({reason}): give another place")


def shortened(path: object) -> str:
    """A path for a message: a very long one by its ends."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
