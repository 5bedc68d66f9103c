"""Enlarging files and folders: what `probatum upscale` does, as functions.

A folder's tree is made again under the output folder, file by file. Each result is written beside its place and
renamed, then listed in `.probatum-upscale.jsonl` of the output folder, so that the same command goes on after a stop of
any kind and skips what is finished.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probatum.errors import MissingExtra, NotHere, ProbatumError
from probatum.files import alone
from probatum.superres import media, pairs, weights
from probatum.superres.arbitrary import parse_scale
from probatum.superres.parts import SRModel, bicubic, pick_scale
from probatum.superres.tiling import bytes_per_pixel, strips, tile_for

__all__ = ["Job", "Result", "Upscaler", "plan", "plan_pairs", "run", "upscale_array", "upscale_pair"]

LEDGER = ".probatum-upscale.jsonl"
PARTIAL = ".probatum-part"
BUDGET = 1 << 30  # bytes that a tile may hold on a CPU


@dataclass
class Upscaler:
    """A network ready to enlarge pictures.

    Args:
        model: name of weights that we ship, or a file.
        scale: factor; must be one of the net's. Nets of video take any factor from 1 on, or two for height and width.
        tile: side of a tile in input pixels, or "auto": as large as `budget` bytes allow.
        device: torch device. `budget`: bytes for a tile; default 1 GiB on a CPU (a third of the free memory, if that
            is less), half of the free memory on a CUDA device, and for pairs on a CPU too: their strips are exact only when they are large.
        layout: for nets of stereo pairs, how the views come: "pair" (two files), "sbs" (side by side in one), "tb" (left above right), or
            "duplicate" (one picture given as both views). Their `tile` is rows of a strip as wide as the picture.
        overlap: with a layout, rows run with a strip on either side; None takes those that make it exact, or with tile "auto" what fits
            in memory, and the error is told.
    Raises:
        ProbatumError: unknown model, a scale that the net has no head for, a tile below 16, a layout with a net of single pictures or
            none with one of pairs.
        NotHere: no such device.
    """

    model: str
    scale: Any
    tile: int | Literal["auto"] = "auto"
    device: str = "cpu"
    budget: float | None = None
    layout: pairs.Layout | None = None
    overlap: int | None = None
    net: SRModel = field(init=False)
    digest: str = field(init=False)
    video: bool = field(init=False)

    def __post_init__(self) -> None:
        _check_device(self.device)
        known = weights.shipped_files()
        path = known.get(self.model) or Path(self.model)
        if not path.is_file() and not path.suffix:
            weights.shipped(self.model)  # says what there is
        self.net = weights.load(path, device=self.device)  # type: ignore[assignment]
        self.video = bool(getattr(self.net, "video", False))
        if self.video:
            self.scale = parse_scale(self.scale)
        else:
            pick_scale(self.net.scales, self.scale)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self._check_layout()
        if self.tile == "auto" and (self.layout or self.video):
            self.size = 0  # by each picture's width, or whole frames
        elif self.tile == "auto":
            self.size = tile_for(self.net, self.scale, self.budget or _budget(self.device))
        elif isinstance(self.tile, int) and self.tile >= 16:
            self.size = self.tile
        else:
            raise ProbatumError(f"--tile must be auto or a number of pixels from 16 on, got {self.tile!r}")

    def _check_layout(self) -> None:
        """Raise unless the net's views are what the layout brings."""
        views = getattr(self.net, "views", 1)
        if self.video and self.layout:
            raise ProbatumError(f"{self.model} enlarges video: --right, --layout and --duplicate need a net of pairs (nafssr)")
        if self.layout is not None and self.layout not in pairs.LAYOUTS:
            raise ProbatumError(f"layout must be one of {', '.join(pairs.LAYOUTS)} or None, got {self.layout!r}")
        if views == 2 and self.layout is None:
            raise ProbatumError(
                f"{self.model} enlarges stereo pairs, and stereo needs two views: --right FILE, or --layout sbs or tb for a file that "
                "holds both; use --model carn for one picture, or --duplicate to give it as both views"
            )
        if views == 1 and self.layout is not None:
            raise ProbatumError(f"{self.model} enlarges single pictures: --right, --layout and --duplicate need a net of pairs (nafssr)")
        if self.overlap is not None and (not self.layout or self.overlap < 0):
            raise ProbatumError(f"--overlap is the rows around a strip of a stereo pair, 0 or more, got {self.overlap!r}")

    def check_pictures(self) -> None:
        """Raise if the net is one of video."""
        if self.video:
            raise ProbatumError(f"{self.model} enlarges video, not single pictures; use --model carn for one")

    def pieces(self, pictures: Sequence[media.Picture], notes: list[str]) -> Iterator[tuple[np.ndarray, ...]]:
        """Enlarged rows of each result, strip by strip: one result, or two of a pair of files. `notes` gets warnings."""
        if self.layout is None:
            yield from ((rows,) for rows in self.rows(pictures[0]))
            return
        first = pictures[0]
        left, right = (
            (first, pictures[1]) if self.layout == "pair" else (first, first) if self.layout == "duplicate" else pairs.cut(first, self.layout)
        )
        pairs.same_size(left, right)
        height, width = left.colour.shape[:2]
        net: Any = self.net
        budget = self.budget or _budget(self.device, half=True)
        tile, overlap = pairs.rows_for(net, self.scale, height, width, budget=budget, tile=self.tile, overlap=self.overlap)
        below = []
        for a, b in pairs.enlarged(
            net, self.scale, left, right, tile=tile, overlap=overlap, device=self.device, notes=notes, warn=self.layout != "duplicate",
            alpha=lambda p, top, bottom: self._alpha(p.alpha, top, bottom, 65535.0 if p.depth == 16 else 255.0),  # type: ignore[arg-type]
            colour=lambda p: p.colour if p.alpha is None else _fill_transparent(p.colour, p.alpha),
        ):  # fmt: skip
            if self.layout == "pair":
                yield a, b
            elif self.layout == "sbs":
                yield (np.concatenate([a, b], 1),)
            else:
                yield (a,)
                below += [b] if self.layout == "tb" else []
        yield from ((rows,) for rows in below)

    def rows(self, picture: media.Picture) -> Iterator[np.ndarray]:
        """The enlarged picture from top to bottom, in strips (h, W[, C]) of its own type, alpha last."""
        self.check_pictures()
        colour, alpha = picture.colour, picture.alpha
        if alpha is not None:
            colour = _fill_transparent(colour, alpha)
        peak = 65535.0 if picture.depth == 16 else 255.0

        def finish(y: Tensor) -> Tensor:
            y = y.mean(0, keepdim=True) if picture.grey else y
            y = y.mul(peak).round_().clamp_(0, peak)
            return y.to(torch.uint16 if picture.depth == 16 else torch.uint8)

        top = 0
        image = _planes(colour)
        tile = self.size
        if self.tile == "auto" and tile < 2 * (self.net.radius or 0):  # mostly border: whole, if that fits
            fits = (self.budget or _budget(self.device)) / bytes_per_pixel(self.net, self.scale)
            tile = max(image.shape[1:]) if image.shape[1] * image.shape[2] <= fits else tile
        for strip in strips(
            self.net,
            image.expand(3, -1, -1),
            self.scale,
            tile=tile,
            overlap=self.net.radius or 0,
            device=self.device,
            finish=finish,
        ):
            rows = strip.permute(1, 2, 0).numpy()
            if alpha is not None:
                height = len(rows) // self.scale
                rows = np.concatenate([rows, self._alpha(alpha, top, top + height, peak)[..., None]], 2)
                top += height
            yield rows[..., 0] if rows.shape[2] == 1 else rows

    def _alpha(self, alpha: np.ndarray, top: int, bottom: int, peak: float) -> np.ndarray:
        """Rows of the enlarged alpha: bicubic, never the network, which knows pictures and not masks."""
        first, last = max(0, top - 4), min(len(alpha), bottom + 4)
        x = _planes(alpha[first:last])[None].to(torch.float32)
        y = bicubic(x, self.scale)[0, 0, (top - first) * self.scale : (bottom - first) * self.scale]
        return y.round_().clamp_(0, peak).numpy().astype(alpha.dtype)


def upscale_array(upscaler: Upscaler, pixels: np.ndarray) -> np.ndarray:
    """Enlarge one array (H, W) grey, (H, W, 2), (H, W, 3) or (H, W, 4) with alpha last; uint8 or uint16 in and out."""
    if (
        pixels.dtype not in (np.uint8, np.uint16)
        or pixels.ndim not in (2, 3)
        or (pixels.ndim == 3 and pixels.shape[2] not in (1, 2, 3, 4))
    ):
        raise ProbatumError(
            f"pixels must be uint8 or uint16, (H, W) or (H, W, 1 to 4), got {pixels.dtype} {pixels.shape}"
        )
    apart = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    colour = pixels[..., :-1] if apart else pixels
    colour = colour[..., 0] if colour.ndim == 3 and colour.shape[2] == 1 else colour
    return np.concatenate(
        list(upscaler.rows(media.Picture(colour, pixels[..., -1] if apart else None, None, None, "png")))
    )


def upscale_pair(upscaler: Upscaler, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge two views, each (H, W) grey or (H, W, 3), uint8 or uint16; `upscaler` has the layout "pair". Warnings are not given here:
    `stereo.check_pair` has them."""
    if upscaler.layout != "pair":
        raise ProbatumError(f"upscaler must have layout 'pair', got {upscaler.layout!r}")
    for name, view in (("left", left), ("right", right)):
        if view.dtype not in (np.uint8, np.uint16) or view.ndim not in (2, 3) or (view.ndim == 3 and view.shape[2] != 3):
            more = ": take alpha off first" if view.ndim == 3 and view.shape[2] in (2, 4, 7, 8) else ""
            more = ": give the two views apart" if view.ndim == 3 and view.shape[2] == 6 else more
            raise ProbatumError(f"{name} must be uint8 or uint16, (H, W) or (H, W, 3), got {view.dtype} {view.shape}{more}")
    strips_of = list(upscaler.pieces([media.Picture(view, None, None, None, "png") for view in (left, right)], []))
    a, b = (np.concatenate([strip[view] for strip in strips_of]) for view in (0, 1))
    return a, b


def _planes(pixels: np.ndarray) -> Tensor:
    """(H, W[, C]) -> (C, H, W) without a copy where memory order allows."""
    x = torch.from_numpy(np.ascontiguousarray(pixels))
    return x[None] if x.ndim == 2 else x.permute(2, 0, 1)


def _fill_transparent(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give pixels that are wholly transparent the colour of the nearest one that is not: what they hide must not bleed
    into edges."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    from scipy.ndimage import distance_transform_edt

    y, x = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return colour[y, x]


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ProbatumError(f"--device must be cpu, cuda, cuda:N or mps, got {device!r}") from None
    if (kind.type == "cuda" and not torch.cuda.is_available()) or (
        kind.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise NotHere(f"this machine has no {kind.type} device that torch can use")


def _budget(device: str, half: bool = False) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        free = 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return BUDGET
    return free / 2 if half else min(BUDGET, free / 3)


@dataclass(frozen=True)
class Job:
    """A file to enlarge: where from, where to, its size as stored (0 where the header is unreadable), and what is wrong
    with it; of a stereo pair in two files also the right view's."""

    source: Path
    target: Path
    pixels: int = 0
    error: str | None = None
    right: Path | None = None
    right_target: Path | None = None

    @property
    def files(self) -> list[tuple[Path, Path]]:
        """(source, target) of all views."""
        right = [(self.right, self.right_target)] if self.right and self.right_target else []
        return [(self.source, self.target), *right]


@dataclass
class Result:
    """What became of a file: done, kept (finished before) or failed."""

    source: str
    target: str
    state: Literal["done", "kept", "failed"]
    seconds: float = 0.0
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "size": list(self.size) if self.size else None, "notes": list(self.notes)}


def plan(inputs: Sequence[str | Path], out: str | Path, form: str = "auto") -> tuple[list[Job], bool, str]:
    """What `inputs` mean: (jobs, single, format).

    One file and an OUT that ends like an image: that file is written (single). Otherwise OUT is a folder: folders in
    `inputs` are walked, and their trees made again in it; links to folders are not followed.

    Raises:
        ProbatumError: no such input, nothing to enlarge in it, two inputs for one output, a format that OUT's ending
            contradicts.
    """
    out = Path(out)
    if form != "auto" and form not in media.FORMATS:
        raise ProbatumError(f"--format must be auto, {', '.join(media.FORMATS)}, got {form!r}")
    for given in inputs:
        if not Path(given).exists():
            raise ProbatumError(f"{given}: no such file or folder")
    single = len(inputs) == 1 and Path(inputs[0]).is_file() and out.suffix.lower() in media.ENDINGS and not out.is_dir()
    if single:
        return [_look(Path(inputs[0]), lambda _: out)], True, _format_of(out, form)
    if out.exists() and not out.is_dir():
        raise ProbatumError(f"-o {out} is a file, and several results need a folder")
    jobs: list[Job] = []
    for given in map(Path, inputs):
        if given.is_file():
            jobs.append(_look(given, lambda own, p=given: out / _named(Path(p.name), own, form)))  # type: ignore[misc]
            continue
        found = [p for p in _walk(given, out) if p.suffix.lower() in media.ENDINGS]
        if not found:
            raise ProbatumError(f"{given}: no images in this folder ({', '.join(sorted(media.ENDINGS))})")
        jobs += [_look(p, lambda own, p=p, g=given: out / _named(p.relative_to(g), own, form)) for p in found]  # type: ignore[misc]
    owner: dict[Path, Path] = {}
    for job in jobs:
        other = owner.setdefault(job.target, job.source)
        if other != job.source:
            raise ProbatumError(
                f"{other} and {job.source} would both become {job.target}; enlarge them into different folders"
            )
    return list({job.source: job for job in jobs}.values()), False, form


def plan_pairs(left: str | Path, right: str | Path, out: str | Path, form: str = "auto") -> list[Job]:
    """Jobs of stereo pairs in two files: a left and a right file, or two folders with the same names in them. The results go into the
    folders left and right of OUT.

    Raises:
        ProbatumError: no such input, a file beside a folder, a picture without its other view, an OUT that is a file.
    """
    sides, out = (Path(left), Path(right)), Path(out)
    if sides[0].is_file() != sides[1].is_file():
        raise ProbatumError(f"--right must be a {'file' if sides[0].is_file() else 'folder'}, as {left} is, got {right}")
    if sides[0].exists() and sides[1].exists() and sides[0].samefile(sides[1]):
        raise ProbatumError(f"--right is the left view itself ({right}); --duplicate gives one picture as both views")
    if out.suffix.lower() in media.ENDINGS and not out.is_dir():
        raise ProbatumError(f"-o {out}: with --right it is a folder, which gets left/ and right/")
    found = []
    for side, name in zip(sides, ("left", "right"), strict=True):
        jobs, _, _ = plan([side], out, form)
        jobs = [replace(job, target=out / name / job.target.relative_to(out)) for job in jobs]
        found.append({None if side.is_file() else job.source.relative_to(side): job for job in jobs})
    alone = sorted(str(name) for name in set(found[0]) ^ set(found[1]))
    if alone:
        raise ProbatumError(f"{alone[0]} has no other view: {left} and {right} must hold the same names ({len(alone)} differ)")
    return [
        Job(a.source, a.target, a.pixels + b.pixels, a.error or b.error, right=b.source, right_target=b.target)
        for a, b in ((job, found[1][name]) for name, job in found[0].items())
    ]


def _walk(folder: Path, out: Path) -> Iterator[Path]:
    """Files below a folder in order, without hidden ones and without the output folder, if that lies inside."""
    inside = out.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (Path(place) / n).resolve() != inside)
        yield from (Path(place) / n for n in sorted(names) if not n.startswith("."))


def _look(source: Path, target: Callable[[str], Path]) -> Job:
    try:
        with media.opened(source) as image:
            own = (image.format or "").lower()
            return Job(source, target({"mpo": "jpeg"}.get(own, own)), image.size[0] * image.size[1])
    except ProbatumError as error:
        return Job(source, target(""), error=str(error))


def _named(path: Path, own: str, form: str) -> Path:
    """The output's name: the input's, with another ending where that would not say what is in it."""
    written = (own if own in media.FORMATS else "png") if form == "auto" else form
    fits = {"jpeg": {".jpg", ".jpeg"}, "tiff": {".tif", ".tiff"}}.get(written, {media.FORMATS[written]})
    return path if path.suffix.lower() in fits else path.with_suffix(media.FORMATS[written])


def _format_of(out: Path, form: str) -> str:
    meant = {".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".png": "png", ".webp": "webp"}.get(
        out.suffix.lower()
    )
    if meant is None:
        raise ProbatumError(f"-o {out}: results are written as {', '.join(media.FORMATS.values())}, got {out.suffix}")
    if form not in ("auto", meant):
        raise ProbatumError(f"--format {form} and -o {out.name} contradict each other")
    return meant


class Watch:
    """What a run tells; override what you need."""

    def start(self, jobs: Sequence[Job]) -> None: ...

    def begin(self, job: Job) -> None: ...

    def advance(self, pixels: int) -> None:
        """So many input pixels more are enlarged."""

    def end(self, job: Job, result: Result) -> None: ...


def run(
    upscaler: Upscaler,
    jobs: Sequence[Job],
    *,
    out: Path | None,
    form: str = "auto",
    overwrite: bool = False,
    watch: Watch | None = None,
) -> list[Result]:
    """Enlarge the files of a plan. A file that fails is reported and the others go on.

    Args:
        out: the output folder, whose ledger and lock are used; None for a single file.
        overwrite: write over files that this command did not make.
    Raises:
        ProbatumError: a single output that exists; another run into the same folder.
    """
    upscaler.check_pictures()
    return each(jobs, out, watch, lambda job, ledger, watch: _one(upscaler, job, form, overwrite, ledger, watch))


def each(
    jobs: Sequence[Job], out: Path | None, watch: Watch | None, do: "Callable[[Job, Ledger | None, Watch], Result]"
) -> list[Result]:  # fmt: skip
    """Do all jobs under the folder's lock; one that fails is reported and the others go on, unless nothing of its kind can work here."""
    watch = watch or Watch()
    watch.start(jobs)
    results = []
    with _folder(out) as ledger:
        for job in jobs:
            watch.begin(job)
            begun = time.perf_counter()
            try:
                result = do(job, ledger, watch)
            except (ProbatumError, OSError) as error:
                if isinstance(error, (NotHere, MissingExtra)):
                    raise
                text = str(error)
                result = Result(
                    str(job.source),
                    str(job.target),
                    "failed",
                    error=text if str(job.source) in text else f"{job.source}: {text}",
                )
            result.seconds = round(time.perf_counter() - begun, 3)
            results.append(result)
            watch.end(job, result)
    return results


def _one(upscaler: Upscaler, job: Job, form: str, overwrite: bool, ledger: "Ledger | None", watch: Watch) -> Result:
    if job.error:
        raise ProbatumError(job.error)
    made: list[Any] = [hashlib.sha256(source.read_bytes()).hexdigest() for source, _ in job.files]
    made += [upscaler.digest, upscaler.scale, form]
    if upscaler.layout:  # what changes the pixels of pairs beyond that
        made += [upscaler.layout, upscaler.tile, upscaler.overlap]
    key = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    finished = []
    for _, target in job.files:
        if target.exists():
            if any(target.samefile(source) for source, _ in job.files):
                raise ProbatumError(f"the result would replace the picture {target} itself; choose another -o")
            state = ledger.state(target) if ledger else None
            if state is None and not overwrite:
                raise ProbatumError(f"{target} exists and was not made by this command; --overwrite replaces it")
            finished.append(state == key)
    if len(finished) == len(job.files) and all(finished) and not overwrite:
        return Result(str(job.source), str(job.target), "kept")
    pictures = [media.read(source) for source, _ in job.files]
    notes = list(dict.fromkeys(note for picture in pictures for note in picture.notes))
    pieces = upscaler.pieces(pictures, notes)
    sinks: list[media.Sink] = []
    partials = [target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}") for _, target in job.files]
    try:
        for picture, (_, target), partial in zip(pictures, job.files, partials, strict=True):
            height, width = (n * upscaler.scale for n in picture.colour.shape[:2])
            own = media.format_for(picture, width, height, form)
            target.parent.mkdir(parents=True, exist_ok=True)
            sinks.append(media.Sink(partial, picture, width, height, own))
        for piece in pieces:
            for sink, rows in zip(sinks, piece, strict=True):
                sink.write(rows)
                watch.advance(rows.shape[0] * rows.shape[1] // upscaler.scale**2)
        for sink in sinks:
            sink.close()
        for (_, target), partial in zip(job.files, partials, strict=True):
            if ledger:
                ledger.add(target, partial, key)
        # a kill between two renames leaves one view of a pair: the next run makes both again
        for (_, target), partial in zip(job.files, partials, strict=True):
            partial.replace(target)
    except BaseException:
        for sink in sinks:
            sink.abandon()
        raise
    height, width = (n * upscaler.scale for n in pictures[0].colour.shape[:2])
    return Result(str(job.source), str(job.target), "done", size=(width, height), notes=tuple(notes))


class Ledger:
    """Which files of an output folder this command made, from what, with what: one JSON line each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LEDGER
        self.rows: dict[str, list[dict[str, Any]]] = {}
        text = self.path.read_text("utf-8", errors="replace") if self.path.is_file() else ""
        self.torn = bool(text) and not text.endswith("\n")  # a run was killed in mid-line
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self.rows.setdefault(row["file"], []).append(row)
            except (ValueError, KeyError, TypeError):
                continue

    def state(self, target: Path) -> str | None:
        """The key that a file was made with; None if it is not ours or was changed."""
        rows = self.rows.get(target.relative_to(self.folder).as_posix(), [])
        now, digest = target.stat(), None
        for row in reversed(rows):
            if (now.st_size, now.st_mtime_ns) == (row["size"], row["mtime_ns"]):
                return row["key"]
            if now.st_size == row["size"]:  # copied about: the content tells
                digest = digest or sha256_of(target)
                if digest == row["sha256"]:
                    return row["key"]
        return None

    def add(self, target: Path, partial: Path, key: str) -> None:
        """Before `partial` is renamed: a kill between the two leaves the old file, and its own line still names it."""
        now = partial.stat()
        row: dict[str, Any] = {
            "file": target.relative_to(self.folder).as_posix(),
            "key": key,
            "size": now.st_size,
            "mtime_ns": now.st_mtime_ns,
            "sha256": sha256_of(partial),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if self.torn else "") + json.dumps(row) + "\n")
        self.torn = False
        self.rows.setdefault(row["file"], []).append(row)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _folder(out: Path | None) -> Iterator[Ledger | None]:
    """The output folder, made, locked, and swept of what killed runs left."""
    if out is None:
        yield None
        return
    with alone(out, "-o", "another upscale"):
        for left in out.rglob(f".*{PARTIAL}"):
            left.unlink(missing_ok=True)
        yield Ledger(out)
