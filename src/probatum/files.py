"""Files that are written whole or not at all, and folders that one process at a time writes into."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from probatum.errors import ProbatumError

__all__ = ["alone", "whole"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path`, of the same ending, to write to; it is renamed when the block ends, and removed when it fails."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def alone(folder: Path, option: str, work: str) -> Iterator[Path]:
    """Make a folder and hold it (flock: it ends with its process).

    Args:
        option: names the folder in errors, "--out". `work`: what may be under way there, "another upscale".
    Raises:
        ProbatumError: it cannot be made, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ProbatumError(f"{option} {folder}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ProbatumError(f"{work} is writing into {option} {folder}; wait for it or stop it") from None
        yield folder
    finally:
        os.close(handle)
