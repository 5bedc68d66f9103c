"""Enlarging video files: what `probatum upscale FILM` does, as functions.

Frames are decoded, enlarged by a video network or one by one, and encoded, a few at a time; sound, subtitles, chapters and tags are copied
as they are. Enlarged frames are kept in segments beside the output until all are there, with what the network remembers: the same command
goes on after a stop of any kind at the last segment. The whole is written beside its place and renamed.
"""

import hashlib
import heapq
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Protocol

import numpy as np
import torch

from probatum.errors import MissingExtra, ProbatumError
from probatum.files import whole
from probatum.superres import media
from probatum.superres.arbitrary import target_size
from probatum.superres.st_avsr import VideoStream
from probatum.superres.upscaling import PARTIAL, Job, Ledger, Result, Upscaler, Watch, each, sha256_of

__all__ = ["ENDINGS", "Clip", "Lost", "decoded", "enlarge_video", "is_video", "plan", "probe", "run"]

FORMS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # what is written
ENDINGS = {*FORMS, ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".nut"}  # what is read
SEGMENT = 120  # frames that a stop can cost
AHEAD = 4  # decoded frames that wait
MATRICES = {1, 4, 5, 6, 7, 9, 10}  # of luma and colour differences, as swscale knows them; others are taken as 601, there and back
ENCODERS = {
    "libx264": {"crf": "16", "preset": "medium", "bf": "0"},  # no frames out of order: segments then join by themselves
    "libvpx-vp9": {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4"},
}


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingExtra("video needs av: pip install 'probatum[video]'") from None
    av.logging.set_level(av.logging.PANIC)  # what is wrong is told in our words
    return av


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in ENDINGS


@dataclass(frozen=True)
class Clip:
    """The video of a file, as its header tells.

    Attributes:
        frames: as many as there should be, 0 where that is not known. `tags`: primaries, transfer, matrix, range as FFmpeg numbers them.
        depth: 8 or 16: how many bits the network's pixels have; more than 8 in the file are written as 10.
    """

    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    frames: int
    pix_fmt: str
    depth: int
    tags: tuple[int, int, int, int]
    aspect: Fraction | None
    notes: tuple[str, ...] = ()


def _picture_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures; a cover is none."""
    covers = 0
    for stream in container.streams.video:
        if not stream.disposition & _av().stream.Disposition.attached_pic:
            return stream
        covers += 1
    raise ProbatumError(f"{path}: holds no video" + (", only a cover picture" if covers else ""))


def _opened(path: Path) -> Any:
    av = _av()
    try:
        return av.open(str(path))
    except av.error.FileNotFoundError:
        raise ProbatumError(f"{path}: no such file") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ProbatumError(f"{path}: not a video that can be read ({error.strerror or error})") from None  # type: ignore[union-attr]


def probe(path: Path) -> Clip:
    """Size, rate and colour of a file's video.

    Raises:
        ProbatumError: unreadable, or without video. MissingExtra: av is not installed.
    """
    with _opened(path) as container:
        stream = _picture_stream(container, path)
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        base = stream.time_base or 1 / rate
        count = stream.frames or int((stream.duration or 0) * base * rate)
        form = context.format
        if not context.width or not context.height or form is None:
            raise ProbatumError(f"{path}: the video has no size or no kind of pixels that is known")
        bits = max((c.bits for c in form.components), default=8)
        notes = []
        if stream.guessed_rate and stream.average_rate and abs(stream.guessed_rate / stream.average_rate - 1) > 0.05:
            notes.append("warning: the frame rate varies; times are kept")
        if any(c.is_alpha for c in form.components):
            notes.append("warning: transparency is left out")
        tags = tuple(int(getattr(context, name) or 0) for name in ("color_primaries", "color_trc", "colorspace", "color_range"))
        if tags[2] == 0:  # RGB, which is written as 601 in the usual range
            tags = (*tags[:2], 6, 1)
        return Clip(
            context.width, context.height, Fraction(rate), Fraction(base), count, form.name, 8 if bits <= 8 else 16, tags,  # type: ignore[arg-type]
            stream.sample_aspect_ratio, tuple(notes),
        )  # fmt: skip


class _Frames(Protocol):
    """An enlarger of frames (H, W, 3), uint8 or uint16, in order; what goes in comes out, maybe later."""

    def push(self, pixels: np.ndarray) -> list[np.ndarray]: ...
    def finish(self) -> list[np.ndarray]: ...
    def state(self) -> Any: ...
    def resume(self, state: Any) -> None: ...


class _OneByOne:
    """Each frame by itself, with a net of pictures."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.upscaler = upscaler

    def push(self, pixels: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate(list(self.upscaler.rows(media.Picture(pixels, None, None, None, "png"))))]

    def finish(self) -> list[np.ndarray]:
        return []

    def state(self) -> None: ...

    def resume(self, state: None) -> None: ...


class _Together:
    """Frames in their order, with a net of video; it starts anew at cuts."""

    def __init__(self, upscaler: Upscaler, size: tuple[int, int]) -> None:
        self.stream = VideoStream(upscaler.net, size=size, cuts=True)  # type: ignore[arg-type]
        self.device, self.peak, self.kind = upscaler.device, 255.0, np.uint8

    @torch.inference_mode()
    def push(self, pixels: np.ndarray) -> list[np.ndarray]:
        if pixels.dtype == np.uint16:
            self.peak, self.kind = 65535.0, np.uint16  # type: ignore[assignment]
        x = torch.from_numpy(pixels.astype(np.float32)).to(self.device).permute(2, 0, 1)[None] / self.peak
        return [self._pixels(y) for y in self.stream.push(x)]

    @torch.inference_mode()
    def finish(self) -> list[np.ndarray]:
        return [self._pixels(y) for y in self.stream.finish()]

    def _pixels(self, y: torch.Tensor) -> np.ndarray:
        return y[0].mul(self.peak).round_().clamp_(0, self.peak).permute(1, 2, 0).cpu().numpy().astype(self.kind)

    def state(self) -> Any:
        return {**self.stream.state(), "peak": self.peak}

    def resume(self, state: Any) -> None:
        if state["peak"] > 255:
            self.peak, self.kind = 65535.0, np.uint16  # type: ignore[assignment]
        place = {key: [_moved(value, self.device) for value in state[key]] for key in ("recent", "waiting")}
        self.stream.resume({**state, **place})


def _moved(value: Any, device: str) -> Any:
    """Tensors, or tuples of them, on another device."""
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return None if value is None else value.to(device)


@dataclass
class Lost:
    """What decoding showed: what was lost, and what only frames tell."""

    packets: int = 0
    flawed: list[int] = field(default_factory=list)  # frames that the decoder patched up
    stopped: str | None = None
    interlaced: bool = False
    rotation: int = 0  # what a player turns the video by

    def notes(self, frames: int) -> list[str]:
        notes = []
        if self.packets:
            notes.append(f"warning: {self.packets} damaged frame(s) left out, the frames before them are shown longer")
        if self.flawed:
            shown = ", ".join(map(str, self.flawed[:5])) + (", ..." if len(self.flawed) > 5 else "")
            notes.append(f"warning: {len(self.flawed)} frame(s) were damaged and are patched up (number {shown})")
        if self.stopped:
            notes.append(f"warning: the file ends in the middle ({self.stopped}): {frames} frames are kept")
        if self.interlaced:
            notes.append("warning: the video is interlaced; deinterlace it before enlarging")
        return notes


def _packets(packets: Iterator[Any], stopped: Callable[[str], object]) -> Iterator[Any]:
    """Packets until the file ends; one that ends in the middle is told, in FFmpeg's words."""
    try:
        yield from packets
    except _av().error.FFmpegError as error:
        stopped(error.strerror or str(error))


def _matrix(clip: Clip) -> int:
    return clip.tags[2] if clip.tags[2] in MATRICES else 5


def decoded(path: Path, clip: Clip, lost: Lost) -> Iterator[tuple[np.ndarray, int]]:
    """(pixels, time) of each frame; damaged ones are counted and passed over."""
    av = _av()
    number, last = 0, -1
    step = max(1, round(1 / (clip.rate * clip.time_base)))
    with _opened(path) as container:
        stream = _picture_stream(container, path)
        stream.thread_type = "AUTO"

        def stopped(why: str) -> None:
            lost.stopped = why

        for packet in _packets(container.demux(stream), stopped):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                lost.packets += 1
                continue
            for frame in frames:
                if (frame.width, frame.height) != (clip.width, clip.height):
                    raise ProbatumError(
                        f"{path}: frame {number} is {frame.width} x {frame.height} after {clip.width} x {clip.height}; cut the file there first"
                    )
                if frame.is_corrupt:
                    lost.flawed.append(number)
                lost.interlaced |= bool(frame.interlaced_frame)
                lost.rotation = frame.rotation
                time_ = frame.pts if frame.pts is not None else last + step
                time_ = max(time_, last + 1) if number else time_  # encoders want times that rise
                kind = "rgb24" if clip.depth == 8 else "rgb48le"
                pixels = frame.reformat(
                    format=kind, src_colorspace=_matrix(clip), src_color_range=2 if clip.tags[3] == 2 or frame.color_range == 2 else 1,
                    dst_color_range=2,
                ).to_ndarray()  # fmt: skip
                yield pixels, time_
                number, last = number + 1, time_


def _ahead(frames: Iterator[Any]) -> Iterator[Any]:
    """The same, made by a thread that is at most AHEAD items further."""
    queue: Queue[tuple[str, Any]] = Queue(AHEAD)
    stop = Event()

    def put(kind: str, value: Any = None) -> None:
        while not stop.is_set():
            try:
                return queue.put((kind, value), timeout=0.2)
            except Full:
                continue

    def work() -> None:
        try:
            for item in frames:
                put("item", item)
                if stop.is_set():
                    return
            put("end")
        except BaseException as error:
            put("error", error)

    thread = Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, value = queue.get(timeout=5)
            except Empty:
                if not thread.is_alive():
                    raise ProbatumError("decoding ended without a word") from None
                continue
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


class _Segment:
    """One run of encoded frames in a file of its own, in NUT, which holds any time base."""

    def __init__(self, path: Path, clip: Clip, size: tuple[int, int], codec: str, aspect: Fraction | None) -> None:
        av = _av()
        self.path, self.clip, self.count = path, clip, 0
        self.partial = path.with_suffix(".part")
        self.container = av.open(str(self.partial), "w", format="nut")
        self.stream = self.container.add_stream(codec, rate=clip.rate, options=dict(ENCODERS[codec]))
        context = self.stream.codec_context
        context.height, context.width = size
        even = size[0] % 2 == 0 and size[1] % 2 == 0
        deep = "10le" if clip.depth == 16 else ""
        context.pix_fmt = ("yuv420p" if even else "yuv444p") + deep  # colour is halved only where sides can be
        context.time_base = clip.time_base
        context.flags |= av.codec.context.Flags.global_header
        if aspect:
            context.sample_aspect_ratio = aspect
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = clip.tags

    def add(self, pixels: np.ndarray, time_: int) -> None:
        av = _av()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24" if self.clip.depth == 8 else "rgb48le")
        frame = frame.reformat(
            format=self.stream.codec_context.pix_fmt, dst_colorspace=_matrix(self.clip), src_color_range=2,
            dst_color_range=2 if self.clip.tags[3] == 2 else 1,
        )  # fmt: skip
        frame.pts, frame.time_base = time_, self.clip.time_base
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()
        self.partial.replace(self.path)

    def abandon(self) -> None:
        self.container.close()
        self.partial.unlink(missing_ok=True)


def _aspect(clip: Clip, size: tuple[int, int]) -> Fraction | None:
    """The shape of a pixel, so that the picture is shown in the shape it was."""
    own = clip.aspect or Fraction(1)
    new = own * Fraction(size[0], clip.height) / Fraction(size[1], clip.width)
    near = abs(new / own - 1) < 0.005  # rounding of the size, not two factors
    return clip.aspect if near else new.limit_denominator(1000)


def enlarge_video(
    upscaler: Upscaler,
    source: Path,
    target: Path,
    *,
    key: str = "",
    segment: int = SEGMENT,
    advance: Callable[[int], None] | None = None,
    made: Callable[[Path], None] | None = None,
) -> tuple[tuple[int, int], int, list[str]]:
    """Enlarge the video of `source` into `target`, whose ending says the container; ((width, height), frames, notes).

    Args:
        key: what the result depends on beside the source; segments of another key are thrown away.
        segment: frames of a segment. `advance`: told the input pixels of each finished frame. `made`: told the whole file before it is renamed.
    Raises:
        ProbatumError: no video, no frame that can be decoded, frames that change their size, a container that is not written.
    """
    clip = probe(source)
    form = FORMS.get(target.suffix.lower())
    if form is None:
        raise ProbatumError(f"-o {target}: videos are written as {', '.join(FORMS)}, got {target.suffix or 'no ending'}")
    if min(clip.height, clip.width) < 4:
        raise ProbatumError(f"{source}: frames must be 4 pixels or more a side, they are {clip.width} x {clip.height}")
    size = target_size(clip.height, clip.width, upscaler.scale)
    enlarger: _Frames = _Together(upscaler, size) if upscaler.video else _OneByOne(upscaler)
    codec = "libvpx-vp9" if form == "webm" else "libx264"
    place = target.with_name(f".{target.name}.probatum-segments")
    whole_key = json.dumps([key, str(size), codec, segment])
    parts, state = _begun(place, whole_key)
    skip, times = 0, []
    if state:  # its frames are decoded again, which is quick, and not enlarged again
        skip, times = state["consumed"], list(state["times"])
        enlarger.resume(state["net"])
    consumed, done = 0, sum(part["frames"] for part in parts)
    if advance:
        advance(done * clip.width * clip.height)
    aspect = _aspect(clip, size)
    current: _Segment | None = None

    def give(pixels: np.ndarray) -> None:
        nonlocal current, done
        if current is None:
            current = _Segment(place / f"{len(parts):06d}.nut", clip, size, codec, aspect)
        current.add(pixels, times.pop(0))
        done += 1
        if advance:
            advance(clip.width * clip.height)

    lost = Lost()
    try:
        for pixels, time_ in _ahead(decoded(source, clip, lost)):
            consumed += 1
            if consumed <= skip:
                continue
            times.append(time_)
            for out in enlarger.push(pixels):
                give(out)
            if current and current.count >= segment:
                current.close()
                parts.append({"file": current.path.name, "frames": current.count})
                current = None
                _keep(place, whole_key, parts, {"consumed": consumed, "times": times, "net": enlarger.state()})
        for out in enlarger.finish():
            give(out)
        if current:
            current.close()
            parts.append({"file": current.path.name, "frames": current.count})
            current = None
    except BaseException:
        if current:
            current.abandon()
        raise
    if not parts:
        shutil.rmtree(place, ignore_errors=True)
        raise ProbatumError(f"{source}: no frame of the video can be decoded" + (f" ({lost.stopped})" if lost.stopped else ""))
    notes = [*clip.notes, *lost.notes(done)]
    if size[0] % 2 or size[1] % 2:
        notes.append(f"{size[1]} x {size[0]} pixels are an odd number: colour is written at full size (4:4:4), which some players do not show")
    whole = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        notes += _join(source, [place / part["file"] for part in parts], whole, form, lost.rotation)
        with open(whole, "rb+") as file:
            os.fsync(file.fileno())
        if made:
            made(whole)
        whole.replace(target)
    except BaseException:
        whole.unlink(missing_ok=True)
        raise
    shutil.rmtree(place, ignore_errors=True)
    return (size[1], size[0]), done, notes


def _begun(place: Path, key: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(finished segments, state) of a stopped run of the same key; anything else there is removed."""
    try:
        state = torch.load(place / "state.pt", map_location="cpu", weights_only=True)
        if state["key"] == key and all((place / part["file"]).is_file() for part in state["parts"]):
            return state["parts"], state
    except Exception:  # none, torn, or not ours: begin again
        pass
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return [], None


def _keep(place: Path, key: str, parts: list[dict[str, Any]], state: dict[str, Any]) -> None:
    with whole(place / "state.pt") as partial:
        torch.save({"key": key, "parts": list(parts), **state}, partial)


def _join(source: Path, segments: list[Path], target: Path, form: str, rotation: int = 0) -> list[str]:
    """Put the segments and the source's other streams into one file; what did not fit, in words."""
    av = _av()
    notes: list[str] = []
    with _opened(source) as original, av.open(str(target), "w", format=form) as out:
        main = _picture_stream(original, source)
        with av.open(str(segments[0])) as first:
            pictures = out.add_stream_from_template(first.streams.video[0])
        pictures.metadata.update({k: v for k, v in main.metadata.items() if k in ("language", "title")})
        if rotation:
            pictures.set_display_rotation(rotation)
        copies = {}
        for stream in original.streams:
            if stream.index == main.index:
                continue
            name = stream.codec_context.name if stream.codec_context is not None else "unknown"
            what = f"{stream.type} stream {stream.index} ({name})"
            if stream.type not in ("audio", "subtitle", "attachment"):
                notes.append(f"warning: {what} is left out")
                continue
            try:
                if stream.type != "attachment" and name not in out.supported_codecs:
                    raise ValueError
                copies[stream.index] = out.add_stream_from_template(stream)
                copies[stream.index].metadata.update(stream.metadata)
            except (av.error.FFmpegError, ValueError, KeyError):
                notes.append(f"warning: {what} does not fit into {form} and is left out; .mkv holds it")
        out.metadata.update({k: v for k, v in original.metadata.items() if k not in ("major_brand", "minor_version", "compatible_brands", "encoder")})
        try:
            out.set_chapters(original.chapters())
        except (av.error.FFmpegError, AttributeError, ValueError):
            pass

        def enlarged() -> Iterator[tuple[Fraction, int, Any, Any]]:
            for path in segments:
                with av.open(str(path)) as part:
                    for packet in part.demux(part.streams.video[0]):
                        if packet.pts is not None:
                            packet.dts = packet.pts  # no frame is out of order, and NUT does not know it where frames are missing
                            yield packet.dts * packet.time_base, 0, packet, pictures

        def others() -> Iterator[tuple[Fraction, int, Any, Any]]:
            chosen = [s for s in original.streams if s.index in copies and s.type != "attachment"]
            if not chosen:
                return
            packets = _packets(original.demux(chosen), lambda why: notes.append(f"warning: sound and subtitles end early ({why})"))
            for packet in packets:
                if packet.dts is not None:
                    yield packet.dts * packet.time_base, 1, packet, copies[packet.stream.index]

        for _, _, packet, stream in heapq.merge(enlarged(), others(), key=lambda item: item[:2]):
            packet.stream = stream
            out.mux(packet)
    return notes


def plan(inputs: list[Path], out: Path) -> tuple[list[Job], bool]:
    """(jobs, single): one video and an OUT that ends like one is that file; otherwise OUT is a folder, and what we do not write becomes .mkv.

    Raises:
        ProbatumError: no such input, pictures among them, two inputs for one output.
    """
    for given in inputs:
        if not given.is_file():
            raise ProbatumError(f"{given}: no such file")
        if not is_video(given):
            raise ProbatumError(f"{given} is not a video: enlarge pictures and videos apart")
    single = len(inputs) == 1 and out.suffix.lower() in ENDINGS and not out.is_dir()
    if single and out.suffix.lower() not in FORMS:
        raise ProbatumError(f"-o {out}: videos are written as {', '.join(FORMS)}, got {out.suffix}")
    if not single and out.exists() and not out.is_dir():
        raise ProbatumError(f"-o {out} is a file, and several results need a folder")
    jobs: dict[Path, Job] = {}
    for given in inputs:
        target = out if single else out / (given.name if given.suffix.lower() in FORMS else f"{given.stem}.mkv")
        if target in jobs and jobs[target].source != given:
            raise ProbatumError(f"{jobs[target].source} and {given} would both become {target}; enlarge them into different folders")
        try:
            clip = probe(given)
            jobs[target] = Job(given, target, clip.width * clip.height * max(1, clip.frames))
        except MissingExtra:
            raise
        except ProbatumError as error:
            jobs[target] = Job(given, target, error=str(error))
    return list(jobs.values()), single


def run(upscaler: Upscaler, jobs: list[Job], *, out: Path | None, overwrite: bool = False, watch: Watch | None = None) -> list[Result]:
    """Enlarge the videos of a plan; one that fails is reported and the others go on. `out`: the folder with the ledger, None for one file."""

    def one(job: Job, ledger: Ledger | None, watch: Watch) -> Result:
        if job.error:
            raise ProbatumError(job.error)
        made = [sha256_of(job.source), upscaler.digest, upscaler.scale, "video"]
        key = hashlib.sha256(json.dumps(made).encode()).hexdigest()
        state = None
        if job.target.exists():
            if job.target.samefile(job.source):
                raise ProbatumError(f"the result would replace the video {job.target} itself; choose another -o")
            state = ledger.state(job.target) if ledger else None
            if state is None and not overwrite:
                raise ProbatumError(f"{job.target} exists and was not made by this command; --overwrite replaces it")
        if state == key and not overwrite:
            return Result(str(job.source), str(job.target), "kept")
        job.target.parent.mkdir(parents=True, exist_ok=True)
        note_it = partial(ledger.add, job.target, key=key) if ledger else None
        size, frames, notes = enlarge_video(upscaler, job.source, job.target, key=key, advance=watch.advance, made=note_it)
        return Result(str(job.source), str(job.target), "done", size=size, notes=(f"{frames} frames", *notes))

    return each(jobs, out, watch, one)
