"""Where evidence lies on disk: runs in progress, finished records, artifacts, locks.

Everything is written beside its target and renamed, carries a checksum, and is set aside (never deleted) when it does not match.

    PROBATUM_HOME/
      runs/PAPER/CLAIM.BUDGET.DEVICE/KEY/   plan.json and one seed-N.json a finished seed; KEY names version and code
      records/PAPER/CLAIM.BUDGET.DEVICE.json  finished, from a clean tree; its figures in a folder of the same name
      modified/...  labelled/...            the same, from a modified tree or with another number of seeds: never quoted
      artifacts/  locks/
"""

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probatum.errors import ProbatumError
from probatum.home import home

__all__ = ["committed_records", "home", "load_record", "load_records", "lock", "read_json", "write_bytes", "write_json"]

KINDS = ("records", "modified", "labelled")


def folder(path: Path) -> Path:
    """The folder, made if it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProbatumError(f"cannot make the folder {path}: {error.strerror}; PROBATUM_HOME chooses another") from None
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ProbatumError: the target cannot be written or the disk is full; what stood there before is untouched.
    """
    folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ProbatumError(f"cannot write {path}: {error.strerror}; what was finished before is kept") from None


def _checksum(document: dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document with its checksum, whole or not at all."""
    document = json.loads(json.dumps(document))  # what is summed is what a reader will see
    write_bytes(path, (json.dumps({**document, "checksum": _checksum(document)}, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The document, or None if there is none; one that is broken is set aside under another name, with a warning."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProbatumError(f"cannot read {path}: {error.strerror}") from None
    try:
        document = json.loads(content)
        if isinstance(document, dict) and document.get("checksum") == _checksum(document):
            return document
    except ValueError:
        pass
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        os.replace(path, aside)
        where = f"set aside as {aside.name}"
    except OSError:
        where = "ignored"
    print(f"warning: {path} is damaged: {where}", file=sys.stderr)
    return None


@contextmanager
def lock(name: str, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of this name (flock: it ends with its process).

    Args:
        busy: raise ProbatumError with this text at once if another process holds it; None waits.
    """
    path = folder(home() / "locks") / f"{name}.lock"
    with open(path, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise ProbatumError(busy or name) from None
        yield


def committed_records() -> Path | None:
    """The folder of the records that are published with this version, in a checkout or in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "records", package.parents[1] / "records"):
        if place.is_dir():
            return place
    return None


def record_name(claim: str, budget: str, device: str) -> str:
    return f"{claim}.{budget}.{device.partition(':')[0]}.json"


def load_record(path: Path) -> dict[str, Any] | None:
    """One record, with `_path` added; None where it is missing, broken or of another format."""
    record = read_json(path)
    if record is None or record.get("format") != 1:
        return None
    return {**record, "_path": str(path)}


def load_records(*roots: Path) -> list[dict[str, Any]]:
    """All records below these folders."""
    paths = (path for root in roots for path in sorted(root.glob("*/*.json")))
    return [record for path in paths if (record := load_record(path)) is not None]
