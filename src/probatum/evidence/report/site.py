"""Writing the site: which record speaks for which claim, the files, and the finished folder put in place at once."""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from probatum import ProbatumError, __version__
from probatum.catalog import catalog, families
from probatum.evidence.report.pages import (
    Comparison,
    Entry,
    Picture,
    Shown,
    asset,
    comparison_page,
    index_page,
    paper_page,
)
from probatum.evidence.report.reading import is_older_code, problem, rank

__all__ = ["MARKER", "write_site"]

MARKER = "probatum-report.json"
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any folder they show
STALE = 3600  # seconds after which a half-written folder beside ours belongs to a run that was killed

Record = dict[str, Any]


def write_site(
    records: Iterable[Record], out: Path, current_hashes: Mapping[tuple[str, str], str] | None = None
) -> Path:
    """Write the site of these records to the folder `out` and return its ``index.html``.

    Args:
        records: record documents of format 1. ``_path``, which the loader adds, says where a record lies: its figures
            are ``path.with_suffix("") / file``. ``kind`` is ``"claim"`` (default) or ``"comparison"``; a comparison has
            a ``name`` instead of paper and claim, optionally a ``title``, and no verdict. A record of another form is
            left out, and the index says why.
        out: the folder. It may be missing, empty, or a report written before, which is replaced; whatever else is there
            is left alone and refused.
        current_hashes: (paper, claim) -> hash of today's files; records of another hash are marked "measured by older
            code".

    The folder is written beside `out` and renamed, so a reader sees the old site or the new one and never half of one.
    The same records give the same bytes.

    Raises:
        ProbatumError: `out` is a file, holds something else, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    # a link to a folder: replace what it points at, not the link
    out = out.resolve() if out.is_symlink() else out
    shown, left_out = _read(records, current_hashes or {})
    try:
        _refuse_foreign(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        draft = out.parent / f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.draft"
        draft.mkdir()
        try:
            _write(draft, shown, left_out)
            _put_in_place(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise ProbatumError(f"out: cannot write the report to {out}: {error.strerror or error}") from error
    return out / "index.html"


def _read(
    records: Iterable[Record], current: Mapping[tuple[str, str], str]
) -> tuple[list[Shown], list[tuple[str, str]]]:
    shown: list[Shown] = []
    left_out: list[tuple[str, str]] = []
    taken: set[str] = set()
    for at, record in enumerate(records):
        path = record.get("_path") if isinstance(record, dict) else None
        why = problem(record, catalog())
        if why:
            left_out.append((str(path or f"record {at}"), why))
            continue
        folder = record["paper"] if record.get("kind", "claim") == "claim" else "comparisons"
        stem = _free(f"data/{folder}/{_file_name(Path(path).stem if path else _own_name(record))}", taken)
        pictures = tuple(_picture(figure, path, stem) for figure in record.get("figures", []))
        shown.append(Shown(record, f"{stem}.json", pictures, is_older_code(record, current)))
    return shown, left_out


def _own_name(record: Record) -> str:
    parts = [record.get("claim") or record.get("name"), record.get("budget"), record.get("device")]
    return "-".join(str(part) for part in parts if part)


def _file_name(text: str) -> str:
    """A name that is a plain file name everywhere; whatever else the text holds becomes hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80] or "record"


def _free(stem: str, taken: set[str]) -> str:
    found, n = stem, 1
    while found.lower() in taken:  # not every disk tells cases apart
        n += 1
        found = f"{stem}-{n}"
    taken.add(found.lower())
    return found


def _source(path: str | Path | None, file: str) -> Path | None:
    """The figure's file inside the record's own folder; None where it is missing, elsewhere, or no image."""
    if path is None:
        return None
    try:
        folder = Path(path).with_suffix("").resolve()
        source = (folder / file).resolve()
        inside = source.is_relative_to(folder) and source.suffix.lower() in IMAGES
        return source if inside and source.is_file() else None
    except (OSError, ValueError):  # a name that no disk can hold
        return None


def _picture(figure: dict[str, Any], path: str | Path | None, stem: str) -> Picture:
    source = _source(path, figure["file"])
    at = f"{stem}/{_file_name(source.stem)}{source.suffix.lower()}" if source else None
    return Picture(str(figure.get("name", "")), str(figure.get("caption", "")), at, _size(source) if source else None)


def _size(image: Path) -> tuple[int, int] | None:
    """Width and height of a PNG in pixels, so that the page does not jump when it loads."""
    with image.open("rb") as file:
        head = file.read(24)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _write(root: Path, shown: list[Shown], left_out: list[tuple[str, str]]) -> None:
    entries = {paper.id: Entry(paper) for paper in catalog().values()}
    ranked = sorted(shown, key=lambda s: rank(s.record, older=s.older), reverse=True)
    found: dict[str, list[Shown]] = {}
    for s in ranked:
        if s.record.get("kind", "claim") == "claim":
            entries[s.record["paper"]].claims.setdefault(s.record["claim"], []).append(s)
        else:
            found.setdefault(str(s.record.get("name") or s.record["claim"]), []).append(s)
    comparisons = _comparisons(found)
    for entry in entries.values():  # the catalog's order of claims, then any it does not know
        order = {claim: at for at, claim in enumerate(entry.paper.claims)}
        entry.claims = dict(sorted(entry.claims.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))

    _save(root, "index.html", index_page(list(families().values()), list(entries.values()), comparisons, left_out))
    _save(root, "style.css", asset("style.css"))
    for entry in entries.values():
        neighbours = [paper for paper in catalog().values() if paper.family == entry.paper.family]
        _save(root, f"papers/{entry.paper.id}.html", paper_page(entry, families()[entry.paper.family], neighbours))
    for comparison in comparisons:
        _save(root, f"comparisons/{comparison.page}", comparison_page(comparison))
    for s in shown:
        kept = {key: value for key, value in s.record.items() if not key.startswith("_")}
        _save(root, s.data, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        for figure, picture in zip(s.record.get("figures", []), s.pictures, strict=True):
            source = _source(s.record.get("_path"), figure["file"])
            if source and picture.at:
                (root / picture.at).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, root / picture.at)
    listed = sorted(str(path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file())
    _save(root, MARKER, json.dumps({"format": 1, "probatum": __version__, "files": listed}, indent=1) + "\n")


def _comparisons(found: Mapping[str, list[Shown]]) -> list[Comparison]:
    taken: set[str] = set()
    return [
        Comparison(
            name, str(shown[0].record.get("title") or name), f"{_free(_file_name(name), taken)}.html", tuple(shown)
        )
        for name, shown in sorted(found.items())
    ]


def _save(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")  # lone surrogates of a damaged record


def _refuse_foreign(out: Path) -> None:
    """Let nothing of the user's be replaced: only a missing or empty folder, or a report with no file but its own."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ProbatumError(f"out: {out} is a file; give a folder")
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir() and p.name not in LITTER}
    if not there:
        return
    hint = "give an empty folder, a new one or an earlier report"
    try:
        ours = {MARKER, *json.loads((out / MARKER).read_text("utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ProbatumError(f"out: {out} is not a report of probatum and is left alone; {hint}") from None
    foreign = sorted(there - ours)
    if foreign:
        raise ProbatumError(f"out: {out} holds {foreign[0]}, which is not of the report, and is left alone; {hint}")


def _sweep(out: Path) -> None:
    """Remove what killed runs left beside the target."""
    for old in out.parent.glob(f".{_glob(out.name)}.*.draft"):
        if old.is_dir() and time.time() - old.stat().st_mtime > STALE:
            shutil.rmtree(old, ignore_errors=True)


def _glob(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _put_in_place(draft: Path, out: Path) -> None:
    if not out.exists():
        draft.rename(out)
        return
    old = draft.with_name(draft.name.removesuffix(".draft") + "-old.draft")
    out.rename(old)
    try:
        draft.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
