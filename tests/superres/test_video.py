"""Video files: what comes out is what the net makes of what went in, and nothing else of the file is lost."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.superres import CARN, video, weights
from probatum.superres.st_avsr import STAVSR
from probatum.superres.upscaling import Upscaler, upscale_array
from probatum.superres.video import enlarge_video, plan, probe, run

av = pytest.importorskip("av", reason="av is not installed (extra video)")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    carn, video_net = CARN((2, 3), width=8, skip=True), STAVSR(width=8, blocks=1, groups=2)
    torch.nn.init.normal_(carn.exit.weight, std=0.01)
    torch.nn.init.normal_(video_net.upsample.imnets[2].weight, std=1e-3)
    torch.nn.init.zeros_(video_net.upsample.imnets[2].bias)
    for name, net in (("carn", carn), ("video", video_net)):
        weights.save(net, place / f"{name}.safetensors", half=False)
    return {name: str(place / f"{name}.safetensors") for name in ("carn", "video")}


def moving(count=9, height=24, width=32):
    """A square that moves over a slope of colours."""
    frames = []
    for t in range(count):
        y, x = np.mgrid[:height, :width]
        frame = np.stack([40 + 4 * x, 60 + 3 * y, np.full_like(x, 90)], 2).clip(0, 255).astype(np.uint8)
        frame[6:14, 3 + 2 * t : 11 + 2 * t] = (200, 180, 40)
        frames.append(frame)
    return frames


def write(path, frames, *, codec="libx264", rate=Fraction(30000, 1001), times=None, tags=None, sound=False, words=False, options=None, turn=0):
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "a square"
        stream = out.add_stream(codec, rate=rate, options=options or ({"crf": "4"} if codec == "libx264" else {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = {"libx264": "yuv420p", "png": "rgb24"}[codec]
        stream.codec_context.time_base = Fraction(1, 30000)
        if tags:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        if turn:
            stream.set_display_rotation(turn)
        audio = out.add_stream("aac", rate=44100) if sound else None
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if codec == "libx264":
                frame = frame.reformat(format="yuv420p", dst_colorspace=tags[2] if tags else 5, dst_color_range=tags[3] if tags else 1)
            frame.pts, frame.time_base = (times[i] if times else i * 1001), Fraction(1, 30000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio:
            wave = (0.2 * np.sin(np.arange(13312) / 9)).astype(np.float32)[None]
            for start in range(0, wave.shape[1], 1024):
                part = av.AudioFrame.from_ndarray(wave[:, start : start + 1024], format="fltp", layout="mono")
                part.sample_rate, part.pts = 44100, start
                out.mux(audio.encode(part))
            out.mux(audio.encode())
    return path


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        matrix = stream.codec_context.colorspace if stream.codec_context.colorspace in (1, 5, 6) else 5
        return [(f.reformat(format="rgb24", src_colorspace=matrix).to_ndarray(), f.pts * stream.time_base) for f in container.decode(stream)]


def luma(pixels):
    """Colour is halved in the file."""
    return pixels @ np.array([0.2126, 0.7152, 0.0722])


def sounds(path):
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.dts is not None]


@pytest.mark.parametrize(("name", "scale", "size"), [("carn", 2, (64, 48)), ("video", "2.5,2", (64, 60)), ("video", 1.5, (48, 36))])
def test_frames_times_sound_and_tags_are_kept(models, tmp_path, name, scale, size):
    source = write(tmp_path / "in.mp4", moving(), tags=(1, 1, 1, 1), sound=True)
    found, count, _ = enlarge_video(Upscaler(models[name], scale), source, tmp_path / "out.mp4")
    assert found == size and count == 9
    before, after = read(source), read(tmp_path / "out.mp4")
    assert [t for _, t in after] == [t for _, t in before]
    assert sounds(tmp_path / "out.mp4") == sounds(source)
    with av.open(str(tmp_path / "out.mp4")) as out:
        context = out.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        assert out.streams.video[0].average_rate == Fraction(30000, 1001) and out.metadata["title"] == "a square"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_pixels_are_the_nets(models, tmp_path):
    source = write(tmp_path / "in.mp4", moving(), tags=(1, 1, 1, 1))
    frames = [pixels for pixels, _ in read(source)]
    enlarge_video(Upscaler(models["carn"], 2), source, tmp_path / "carn.mkv")
    want = [upscale_array(Upscaler(models["carn"], 2), frame) for frame in frames]
    near = [np.abs(luma(a) - luma(b)).mean() for (a, _), b in zip(read(tmp_path / "carn.mkv"), want, strict=True)]
    assert max(near) < 2.5  # what the encoder changes
    enlarge_video(Upscaler(models["video"], 2), source, tmp_path / "video.mkv")
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        whole = (weights.load(models["video"])(x, 2)[0] * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert max(np.abs(luma(a) - luma(b)).mean() for (a, _), b in zip(read(tmp_path / "video.mkv"), whole, strict=True)) < 2.5


@pytest.mark.parametrize("tags", [(1, 1, 1, 1), (1, 1, 1, 2), (2, 2, 2, 1), (6, 6, 6, 1)])
def test_colours_survive_every_matrix_and_range(models, tmp_path, tags):
    flat = [np.full((16, 16, 3), (190, 70, 40), np.uint8)] * 4
    source = write(tmp_path / "in.mp4", flat, tags=tags)
    enlarge_video(Upscaler(models["video"], 2), source, tmp_path / "out.mp4")
    with av.open(str(source)) as a, av.open(str(tmp_path / "out.mp4")) as b:
        planes = [next(c.decode(video=0)).to_ndarray().reshape(-1) for c in (a, b)]
        assert probe(source).tags == probe(tmp_path / "out.mp4").tags
    assert abs(int(planes[0][0]) - int(np.median(planes[1][: 32 * 32]))) <= 3


def test_a_varying_rate_and_rotation_are_kept(models, tmp_path):
    times = [0, 1001, 2002, 6006, 7007, 12012]
    source = write(tmp_path / "in.mp4", moving(6), times=times, turn=90)
    enlarge_video(Upscaler(models["video"], 2), source, tmp_path / "out.mp4")
    assert [t for _, t in read(tmp_path / "out.mp4")] == [Fraction(t, 30000) for t in times]
    with av.open(str(source)) as a, av.open(str(tmp_path / "out.mp4")) as b:
        assert next(a.decode(video=0)).rotation == next(b.decode(video=0)).rotation != 0


def test_a_stopped_run_goes_on_and_gives_the_same(models, tmp_path):
    source, seen = write(tmp_path / "in.mp4", moving(11)), 0
    upscaler = Upscaler(models["video"], 2)
    enlarge_video(upscaler, source, tmp_path / "whole.mp4", segment=4)

    def stop(pixels):
        nonlocal seen
        seen += pixels
        if seen >= 7 * 24 * 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enlarge_video(upscaler, source, tmp_path / "out.mp4", segment=4, advance=stop)
    place = tmp_path / ".out.mp4.probatum-segments"
    assert not (tmp_path / "out.mp4").exists() and sorted(p.name for p in place.iterdir()) == ["000000.nut", "state.pt"]
    told = []
    assert enlarge_video(upscaler, source, tmp_path / "out.mp4", segment=4, advance=told.append)[1] == 11
    assert told[0] == 4 * 24 * 32 and sum(told) == 11 * 24 * 32  # the first segment was not made again
    for (a, s), (b, t) in zip(read(tmp_path / "whole.mp4"), read(tmp_path / "out.mp4"), strict=True):
        assert np.array_equal(a, b) and s == t
    assert not place.exists()
    with pytest.raises(KeyboardInterrupt):
        seen = 0
        enlarge_video(upscaler, source, tmp_path / "x.mp4", segment=4, advance=stop)
    again = []
    enlarge_video(upscaler, source, tmp_path / "x.mp4", segment=4, key="other", advance=again.append)
    assert again[0] == 0  # segments of another key are not taken


def test_a_damaged_frame_is_told_and_the_others_are_kept(models, tmp_path):
    frames = moving(8)
    source = write(tmp_path / "in.mov", frames, codec="png")
    data = bytearray(source.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 8] == b"\x89PNG\r\n\x1a\n"]
    data[starts[3] : starts[3] + 60] = bytes(60)
    source.write_bytes(data)
    _, count, notes = enlarge_video(Upscaler(models["video"], 2), source, tmp_path / "out.mp4")
    assert count == 7 and any("1 damaged frame" in note for note in notes)
    assert [t * 30000 for _, t in read(tmp_path / "out.mp4")] == [i * 1001 for i in range(8) if i != 3]


def test_a_file_cut_off_keeps_what_it_has(models, tmp_path):
    source = write(tmp_path / "in.mkv", moving(9), options={"crf": "4", "g": "1"})
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * 0.6)])
    count = enlarge_video(Upscaler(models["carn"], 2), source, tmp_path / "out.mkv")[1]
    assert 3 <= count <= 7


def test_what_a_container_does_not_hold_is_told(models, tmp_path):
    source = write(tmp_path / "in.mp4", moving(4), sound=True)
    size, _, notes = enlarge_video(Upscaler(models["video"], 1.3), source, tmp_path / "out.webm")
    assert size == (42, 31) and any("aac" in note and "left out" in note for note in notes)
    assert any("odd number" in note for note in notes)
    assert read(tmp_path / "out.webm")[0][0].shape == (31, 42, 3)


def test_videos_in_a_folder_are_kept_the_second_time(models, tmp_path):
    sources = [write(tmp_path / name, moving(3)) for name in ("a.mp4", "b.avi")]
    jobs, single = plan(sources, tmp_path / "large")
    assert not single and [j.target.name for j in jobs] == ["a.mp4", "b.mkv"]
    upscaler = Upscaler(models["video"], 2)
    assert [r.state for r in run(upscaler, jobs, out=tmp_path / "large")] == ["done", "done"]
    assert [r.state for r in run(upscaler, jobs, out=tmp_path / "large")] == ["kept", "kept"]
    jobs, single = plan(sources[:1], tmp_path / "one.mp4")
    (result,) = run(upscaler, jobs, out=None)
    assert single and result.state == "done" and result.size == (64, 48)
    (result,) = run(upscaler, jobs, out=None)
    assert result.state == "failed" and "--overwrite" in result.error


def test_the_command(models, tmp_path):
    from typer.testing import CliRunner

    from probatum.cli import app

    source = write(tmp_path / "in.mp4", moving(3))
    base = ["upscale", str(source), "-o", str(tmp_path / "out.mp4")]
    for model, more in (("video", ["--scale", "1.5"]), ("carn", ["--scale", "2", "--overwrite"])):
        done = CliRunner().invoke(app(), [*base, "--model", models[model], *more, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["files"][0]["state"] == "done"
    for model, more, text in (
        ("video", ["--scale", "nan"], "scale must be"), ("video", ["--scale", "0.5"], "scale must be"), ("carn", ["--scale", "2.5"], "heads for"),
        ("video", ["--layout", "sbs"], "--layout is for pictures"), ("video", ["--format", "png"], "--format is for pictures"),
    ):  # fmt: skip
        refused = CliRunner().invoke(app(), [*base, "--model", models[model], *more])
        assert isinstance(refused.exception, ProbatumError) and text in str(refused.exception)


def test_bad_input(models, tmp_path):
    upscaler = Upscaler(models["video"], 2)
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        audio = out.add_stream("aac", rate=44100)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        part.sample_rate = 44100
        out.mux(audio.encode(part))
        out.mux(audio.encode())
    (tmp_path / "text.mp4").write_text("no video")
    source = write(tmp_path / "in.mp4", moving(3))
    empty = write(tmp_path / "empty.mov", moving(3), codec="png")
    empty.write_bytes(empty.read_bytes().replace(b"\x89PNG\r\n\x1a\n", bytes(8)))
    for path, out, text in (
        ("sound.mp4", "a.mp4", "holds no video"), ("text.mp4", "a.mp4", "not a video"), ("none.mp4", "a.mp4", "no such file"),
        ("in.mp4", "a.gif", "videos are written as"), ("empty.mov", "a.mkv", "no size or no kind|no frame"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=text):
            enlarge_video(upscaler, tmp_path / path, tmp_path / out)
        assert not (tmp_path / out).exists()
    for scale in (math.nan, 0.9, "4x"):
        with pytest.raises(ProbatumError, match="scale must be"):
            Upscaler(models["video"], scale)
    with pytest.raises(ProbatumError, match="not single pictures"):
        upscale_array(upscaler, moving(1)[0])
    (tmp_path / "a.png").write_bytes(b"")
    for inputs, out, text in (
        ([source, tmp_path / "a.png"], "large", "apart"), ([source], "x.avi", "videos are written as"), ([tmp_path / "no.mp4"], "x", "no such"),
        ([source, source], "a.png", "is a file"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=text):
            plan(inputs, tmp_path / out)
    (result,) = run(upscaler, plan([source], source)[0], out=None)
    assert result.state == "failed" and "itself" in result.error
    assert video.is_video(source) and not video.is_video(tmp_path / "a.png")


def test_ten_bits_subtitles_and_chapters_are_kept(models, tmp_path):
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:00,100\nhello\n\n2\n00:00:00,100 --> 00:00:00,200\nagain\n\n", "utf-8")
    source = tmp_path / "in.mkv"
    with av.open(str(tmp_path / "words.srt")) as words, av.open(str(source), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p10le"
        text = out.add_stream_from_template(words.streams.subtitles[0])
        text.metadata["language"] = "eng"
        out.set_chapters([{"id": 1, "start": 0, "end": 100, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}])
        for pixels in moving(5):
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint16) * 257, format="rgb48le").reformat(format="yuv420p10le")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        for packet in words.demux():
            if packet.dts is not None:
                packet.stream = text
                out.mux(packet)
    _, count, notes = enlarge_video(Upscaler(models["video"], 2), source, tmp_path / "out.mkv")
    assert count == 5 and not notes
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert out.streams.video[0].codec_context.format.name == "yuv420p10le"
        assert out.streams.subtitles[0].language == "eng" and [c["metadata"]["title"] for c in out.chapters()] == ["one"]
        said = [bytes(p) for p in out.demux(out.streams.subtitles[0]) if p.size]
    assert said == [b"hello", b"again"]
    _, _, notes = enlarge_video(Upscaler(models["carn"], 2), source, tmp_path / "out.mp4")
    assert any("subtitle" in note and ".mkv holds it" in note for note in notes)
