"""`probatum upscale`: enlarge photographs and videos, single files and folders with the same options."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from probatum.cli.output import console, duration, interruptible, print_json, progress_bar
from probatum.errors import MissingExtra, ProbatumError

__all__ = ["upscale"]


def upscale(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="Images, folders of them that are walked, or videos.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder; for one image or video also a file name.")],
    model: Annotated[str, typer.Option(help="Weights that we ship (carn), or a file of weights.")] = "carn",
    scale: Annotated[str, typer.Option(help="Factor; the net must have a head for it. For st_avsr any, or two: 2.5,3 (height, width).")] = "4",
    tile: Annotated[
        str, typer.Option(help="Side of a tile in pixels, or auto: by memory. It does not change the result.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps.")] = "cpu",
    format: Annotated[str, typer.Option(help="auto (as the input), png, jpeg, webp, tiff.")] = "auto",
    right: Annotated[Path | None, typer.Option(help="Right view of a stereo pair (IN is the left one), or a folder of them.")] = None,
    layout: Annotated[str | None, typer.Option(help="Both views are in each IN: sbs (side by side) or tb (left above right).")] = None,
    duplicate: Annotated[bool, typer.Option("--duplicate", help="Give one picture to a stereo net as both views.")] = False,
    overlap: Annotated[int | None, typer.Option(help="Rows around the strips of a pair; by default exact where memory allows.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that this command did not make.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="A summary as one JSON document on standard output.")] = False,
) -> None:
    """Enlarge photographs or videos by a network: grey stays grey, alpha and 16 bits are kept, of videos sound, subtitles, times and colour
    tags, and what is finished is not done twice."""
    try:
        from probatum.superres import upscaling, video
    except ImportError as error:
        raise MissingExtra(f"upscale needs {error.name}: pip install 'probatum[superres]'") from None
    if tile != "auto" and not tile.isdigit():
        raise ProbatumError(f"--tile must be auto or a number of pixels from 16 on, got {tile!r}")
    if layout not in (None, "sbs", "tb"):
        raise ProbatumError(f"--layout must be sbs or tb, got {layout!r}")
    given = [name for name, there in (("--right", right), ("--layout", layout), ("--duplicate", duplicate)) if there]
    if len(given) > 1:
        raise ProbatumError(f"{' and '.join(given)} exclude each other")
    films = any(video.is_video(path) and path.is_file() for path in inputs)
    if films and (given or overlap is not None or format != "auto"):
        raise ProbatumError(f"{given[0] if given else '--overlap' if overlap is not None else '--format'} is for pictures; the ending of -o says what a video becomes")
    if right and len(inputs) != 1:
        raise ProbatumError(f"--right goes with one IN, the left view or a folder of them, got {len(inputs)}")
    views: Any = "pair" if right else "duplicate" if duplicate else layout
    factor: Any = int(scale) if scale.strip().isdecimal() else scale
    upscaler = upscaling.Upscaler(model, factor, tile if tile == "auto" else int(tile), device, layout=views, overlap=overlap)  # type: ignore[arg-type]
    if films:
        jobs, single = video.plan(inputs, out)
        form = "auto"
    elif right:
        jobs, single, form = upscaling.plan_pairs(inputs[0], right, out, format), False, format
    else:
        jobs, single, form = upscaling.plan(inputs, out, format)
    with interruptible(), _Screen(json) as screen:
        if films:
            results = video.run(upscaler, jobs, out=None if single else out, overwrite=overwrite, watch=screen)  # type: ignore[arg-type]
        else:
            results = upscaling.run(  # type: ignore[arg-type]
                upscaler, jobs, out=None if single else out, form=form, overwrite=overwrite, watch=screen  # type: ignore[arg-type]
            )
    failed = [r for r in results if r.state == "failed"]
    if json:
        print_json({"model": model, "scale": upscaler.scale, "tile": upscaler.size, "files": [r.to_json() for r in results]})
    else:
        done, kept = (sum(r.state == word for r in results) for word in ("done", "kept"))
        parts = (
            [f"{done} enlarged"]
            + ([f"{kept} were finished before"] if kept else [])
            + ([f"{len(failed)} failed"] if failed else [])
        )
        console().print(f"{', '.join(parts)}, in {duration(sum(r.seconds for r in results))}: {out}", soft_wrap=True)
    if failed:
        raise SystemExit(2)


class _Screen:
    """A bar with time left on a terminal, a line a file elsewhere; failures always as one line on standard error."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.out = console(to_stderr=True)
        self.bar = progress_bar(self.out)
        self.task: Any = self.bar.add_task("starting", total=1)
        self.done = 0

    def __enter__(self) -> "_Screen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, jobs: Any) -> None:
        self.count = len(jobs)
        self.bar.update(self.task, total=max(1, sum(job.pixels for job in jobs)))

    def begin(self, job: Any) -> None:
        self.within = 0
        self.bar.update(self.task, description=f"{job.source.name} ({self.done + 1} of {self.count})")

    def advance(self, pixels: int) -> None:
        self.within += pixels
        self.bar.advance(self.task, pixels)

    def end(self, job: Any, result: Any) -> None:
        self.done += 1
        self.bar.advance(self.task, job.pixels - self.within)
        if result.error:
            print(f"error: {result.error}", file=sys.stderr)
        elif not self.out.is_terminal and not self.json:
            print(
                f"{self.done}/{self.count} {result.state} {result.target}"
                + (f" ({duration(result.seconds)})" if result.state == "done" else ""),
                file=sys.stderr,
            )
        for note in result.notes:
            if not self.json and note.startswith(("CMYK", "warning")):
                print(f"{result.source}: {note}", file=sys.stderr)
