"""Which code made a measurement: commit, whether the tree was clean, and a hash of the files that a claim rests on."""

import base64
import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from probatum.catalog import Paper

__all__ = ["code_hash", "code_state"]

PACKAGE = Path(__file__).resolve().parents[1]


def code_hash(paper: Paper) -> str:
    """SHA-256 over the claim's, the paper's and the family's Python files: equal hashes measured the same thing."""
    claim = PACKAGE / "claims" / paper.family / f"{paper.id}.py"
    files = sorted({*(PACKAGE / paper.family).rglob("*.py"), *([claim] if claim.exists() else [])})
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _state() -> tuple[str | None, str]:
    root = _git("rev-parse", "--show-toplevel")
    if root and (Path(root) / "src" / "probatum").resolve() == PACKAGE:
        changed = _git("-C", root, "status", "--porcelain", "--", "src", "pyproject.toml", "constraints.txt")
        return _git("rev-parse", "HEAD"), "clean" if changed == "" else "modified"
    return None, "installed" if _matches_installation() else "modified"


def code_state(paper: Paper) -> dict[str, Any]:
    """The `code` part of a record. state: clean (a committed tree), installed (a release whose files match its RECORD) or modified."""
    commit, state = _state()
    return {"commit": commit, "state": state, "hash": code_hash(paper)}


def _matches_installation() -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution("probatum").files or []
    except PackageNotFoundError:
        return False
    ours = [file for file in files if file.parts[0] == "probatum" and file.suffix == ".py"]
    for file in ours:
        path = Path(str(file.locate()))
        if file.hash is None or not path.is_file() or PACKAGE not in path.resolve().parents:
            return False
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
            return False
    return bool(ours)
