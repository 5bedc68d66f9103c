"""How commands speak: rich for people on a terminal, one JSON document for machines."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["console", "duration", "interruptible", "print_json", "progress_bar", "size", "verdict"]

COLOURS = {"holds": "green", "fails": "red", "inconclusive": "yellow", "error": "magenta", "ran": "cyan", "built": "cyan"}


def console(*, to_stderr: bool = False) -> "Console":
    """A console for people; `to_stderr` where standard output belongs to JSON."""
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False, soft_wrap=False)


def progress_bar(out: "Console") -> "Progress":
    """What is being done, how much of it, and the time left; shown on terminals only and gone afterwards."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=out, disable=not out.is_terminal, transient=True,
    )  # fmt: skip


def print_json(document: Any) -> None:
    """One JSON document on standard output; numbers that JSON lacks become null."""

    def strict(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {key: strict(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [strict(entry) for entry in value]
        return value

    json.dump(strict(document), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def verdict(word: str | None) -> str:
    """A verdict in its colour, as rich markup."""
    return f"[{COLOURS[word]}]{word}[/]" if word in COLOURS else (word or "")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


@contextmanager
def interruptible(kept: str = "what was finished is kept, and the same command goes on from there") -> Iterator[None]:
    """Ctrl-C inside ends with one line that says what is kept, and the status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        raise SystemExit(130) from None
