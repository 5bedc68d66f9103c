"""Files and folders: every kind of pixel, nothing written half, nothing done twice."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from probatum import ProbatumError
from probatum.superres import CARN, media, png, upscaling, weights
from probatum.superres.parts import bicubic
from probatum.superres.tiling import bytes_per_pixel, strips, tile_for
from probatum.superres.upscaling import Upscaler, plan, run, upscale_array


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small net with its skip and a little noise in its last convolution: near bicubic, and not equal to it."""
    torch.manual_seed(0)
    net = CARN((2, 3, 4), width=8, skip=True)
    torch.nn.init.normal_(net.exit.weight, std=0.01)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(net, path, half=False)
    return str(path)


def photo(height=40, width=53) -> np.ndarray:
    from probatum.data.photos import photograph

    return photograph("coffee")[100 : 100 + height, 100 : 100 + width]


def enlarge(model, source: Path, out: Path, **options) -> Image.Image:
    upscaler = Upscaler(model, options.pop("scale", 2), tile=options.pop("tile", "auto"))
    jobs, single, form = plan([source], out, options.pop("form", "auto"))
    (result,) = run(upscaler, jobs, out=None if single else out, form=form, **options)
    assert result.state == "done", result.error
    with Image.open(result.target) as image:
        image.load()
        return image


def test_a_file_equals_the_net_and_any_tile_gives_the_same_bytes(model, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    outs = [
        np.asarray(enlarge(model, tmp_path / "a.png", tmp_path / f"{tile}.png", tile=tile, scale=3))
        for tile in (16, 17, 1000)
    ]
    x = torch.from_numpy(photo()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        whole = (weights.load(model)(x, 3)[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    assert all(np.array_equal(out, whole) for out in outs)


def test_one_file_and_a_folder_give_the_same_bytes_in_the_same_tree(model, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(photo()).save(tmp_path / "in" / "deep" / "a.png")
    Image.fromarray(photo(30, 20)).save(tmp_path / "in" / "b.JPG")
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    results = run(Upscaler(model, 2), plan([tmp_path / "in"], tmp_path / "out")[0], out=tmp_path / "out")
    assert {r.state for r in results} == {"done"}
    enlarge(model, tmp_path / "in" / "deep" / "a.png", tmp_path / "single.png")
    assert (tmp_path / "out" / "deep" / "a.png").read_bytes() == (tmp_path / "single.png").read_bytes()
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert files == [upscaling.LEDGER, "b.JPG", "deep/a.png"]


def test_grey_stays_grey_and_equals_colour_of_equal_channels(model, tmp_path):
    grey = photo()[..., 0]
    Image.fromarray(grey).save(tmp_path / "g.png")
    got = enlarge(model, tmp_path / "g.png", tmp_path / "o.png")
    assert got.mode == "L" and got.size == (106, 80)
    x = torch.from_numpy(np.repeat(grey[None, None], 3, 1)).float() / 255
    with torch.no_grad():
        y = (weights.load(model)(x, 2)[0].mean(0) * 255).round().clamp(0, 255).byte().numpy()
    assert np.array_equal(np.asarray(got), y)


def test_16_bits_stay_16_bits_in_grey_and_colour(model, tmp_path):
    fine = (photo().astype(np.uint32) * 257 + np.arange(53)[None, :, None]).clip(0, 65535).astype(np.uint16)
    for pixels in (fine, fine[..., 0], fine[..., :2], np.dstack([fine, fine[..., 0]])):
        shaped = pixels if pixels.ndim == 3 else pixels[..., None]
        with (
            open(tmp_path / "a.png", "wb") as file,
            png.Writer(file, 53, 40, channels=shaped.shape[2], depth=16) as writer,
        ):
            writer.write(shaped)
        enlarge(model, tmp_path / "a.png", tmp_path / "o.png", overwrite=True)
        out = png.decode((tmp_path / "o.png").read_bytes()).pixels
        assert out.dtype == np.uint16 and out.shape == (80, 106, shaped.shape[2])
        assert len(np.unique(out % 257)) > 200, "the low byte holds more than a copy of the high one"
        eight = upscale_array(Upscaler(model, 2), (shaped[..., :1] // 257).astype(np.uint8))
        if shaped.shape[2] == 1:
            assert abs(out[..., 0] / 257 - eight).max() < 2


def test_a_16_bit_grey_tiff_stays_one(model, tmp_path):
    Image.fromarray(photo()[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.tif")
    got = enlarge(model, tmp_path / "a.tif", tmp_path / "o.tif")
    assert got.mode == "I;16" and np.asarray(got).max() > 255


def test_alpha_goes_apart_and_hidden_colours_do_not_bleed(model, tmp_path):
    rgba = np.zeros((24, 24, 4), np.uint8)
    rgba[:, 12:] = (200, 150, 100, 255)  # the hidden half is black
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = np.asarray(enlarge(model, tmp_path / "a.png", tmp_path / "o.png"))
    alpha = (
        bicubic(torch.from_numpy(rgba[..., 3].copy())[None, None].float(), 2)[0, 0].round().clamp(0, 255).byte().numpy()
    )
    assert np.array_equal(got[..., 3], alpha)
    seen = got[got[..., 3] > 0][:, :3].astype(int)
    assert abs(seen - (200, 150, 100)).max() < 30


def test_palette_cmyk_and_two_levels(model, tmp_path):
    image = Image.fromarray(photo())
    for name, source, mode in (
        ("p.png", image.quantize(16), "RGB"),
        ("t.gif", image.quantize(16), "RGB"),
        ("c.jpg", image.convert("CMYK"), "RGB"),
        ("one.png", image.convert("1"), "L"),
        ("la.png", image.convert("LA"), "LA"),
    ):
        source.save(tmp_path / name)
        got = enlarge(model, tmp_path / name, tmp_path / "o", overwrite=True)
        assert (got.mode, got.size) == (mode, (106, 80)), name
    transparent = image.quantize(16)
    transparent.info["transparency"] = 3
    transparent.save(tmp_path / "q.png", transparency=3)
    assert enlarge(model, tmp_path / "q.png", tmp_path / "o").mode == "RGBA"


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_as_pillow_does(turn, tmp_path):
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = turn, "Maker"
    image.save(tmp_path / "a.png", exif=exif)
    picture = media.read(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert np.array_equal(picture.colour, np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_profile_and_exif_are_kept_and_orientation_is_spent(model, tmp_path, ending):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "Maker", {0x9003: "2020:01:02 03:04:05", 0xA002: 53}
    Image.fromarray(photo()).save(tmp_path / f"a.{ending}", exif=exif.tobytes(), icc_profile=profile)
    got = enlarge(model, tmp_path / f"a.{ending}", tmp_path / f"o.{ending}")
    assert got.size == (80, 106) and got.info["icc_profile"] == profile
    with Image.open(tmp_path / f"o.{ending}") as stored:
        kept = stored.getexif()
        assert kept.get(0x0112, 1) == 1 and kept[0x010F] == "Maker"
        assert kept.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05" and 0xA002 not in kept.get_ifd(0x8769)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30), (3, 2000)])
def test_tiny_and_long_pictures(model, tmp_path, height, width):
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(tmp_path / "a.png")
    assert enlarge(model, tmp_path / "a.png", tmp_path / "o.png", tile=64).size == (2 * width, 2 * height)


def test_a_20000_pixel_side_is_refused_only_where_the_format_cannot_hold_it(model, tmp_path):
    Image.fromarray(np.full((1, 20_000), 90, np.uint8)).save(tmp_path / "a.png")
    upscaler = Upscaler(model, 4, tile=4096)
    jobs, _, form = plan([tmp_path / "a.png"], tmp_path / "o.jpg")
    (result,) = run(upscaler, jobs, out=None, form=form)
    assert (
        result.state == "failed" and "jpeg holds at most 65535 pixels a side and the result has 80000" in result.error
    )
    assert enlarge(model, tmp_path / "a.png", tmp_path / "o.png", scale=4, tile=4096).size == (80_000, 4)


def test_unreadable_files_are_one_line_each_and_the_others_go_on(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "PNG")
    Image.fromarray(photo()).save(folder / "z.png")
    (folder / "cut.png").write_bytes(buffer.getvalue()[:-700])
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.webp").touch()
    Image.fromarray(photo().astype(np.float32)[..., 0]).save(folder / "float.tif")
    frames = [Image.fromarray(photo() // k) for k in (1, 2)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    fine = io.BytesIO()
    with png.Writer(fine, 53, 40, channels=3, depth=16) as writer:
        writer.write(photo().astype(np.uint16) * 257)
    (folder / "cut16.png").write_bytes(fine.getvalue()[:-100])
    flipped = bytearray(fine.getvalue())
    flipped[-60] ^= 255
    (folder / "damaged16.png").write_bytes(flipped)
    results = {
        Path(r.source).name: r for r in run(Upscaler(model, 2), plan([folder], tmp_path / "o")[0], out=tmp_path / "o")
    }
    assert results["z.png"].state == "done"
    for name, words in {
        "cut.png": "truncated",
        "text.jpg": "not an image",
        "empty.webp": "not an image",
        "float.tif": "floating-point pixels",
        "moving.gif": "2 frames",
        "cut16.png": "truncated",
        "damaged16.png": "damaged",
    }.items():
        assert results[name].state == "failed" and words in results[name].error and name in results[name].error, (
            results[name]
        )
        assert "\n" not in results[name].error
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [upscaling.LEDGER, "z.png"]


def test_finished_files_are_kept_and_others_are_made_again(model, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "o"
    folder.mkdir()
    for name in "abc":
        Image.fromarray(photo(20, 20)).save(folder / f"{name}.png")

    def states(scale=2, **options):
        return [r.state for r in run(Upscaler(model, scale), plan([folder], out)[0], out=out, **options)]

    assert states() == ["done"] * 3 and states() == ["kept"] * 3
    Image.fromarray(photo(22, 20)).save(folder / "b.png")  # another picture under the same name
    (out / "c.png").unlink()
    assert states() == ["kept", "done", "done"]
    assert states(3) == ["done"] * 3, "another scale is another result"
    os.utime(out / "a.png")  # copied about: the content tells
    assert states(3) == ["kept"] * 3
    Image.fromarray(photo(5, 5)).save(out / "a.png")  # somebody else's
    results = run(Upscaler(model, 3), plan([folder], out)[0], out=out)
    assert results[0].state == "failed" and "was not made by this command; --overwrite replaces it" in results[0].error
    assert media.image_size(out / "a.png") == (5, 5)
    assert states(3, overwrite=True)[0] == "done"


def test_a_ledger_that_was_cut_off_is_read_and_a_planned_line_does_not_disown_a_file(tmp_path):
    target, partial = tmp_path / "a.png", tmp_path / "part"
    target.write_bytes(b"old")
    ledger = upscaling.Ledger(tmp_path)
    ledger.add(target, target, "first")
    partial.write_bytes(b"new one")
    ledger.add(target, partial, "second")  # killed before the rename
    with open(tmp_path / upscaling.LEDGER, "a") as file:
        file.write('{"file": "b.png", "key"')
    again = upscaling.Ledger(tmp_path)
    assert again.state(target) == "first"
    again.add(tmp_path / "c.png", partial, "third")
    partial.replace(tmp_path / "c.png")
    assert upscaling.Ledger(tmp_path).state(tmp_path / "c.png") == "third"


def test_the_input_is_never_replaced(model, tmp_path):
    Image.fromarray(photo(20, 20)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    (result,) = run(Upscaler(model, 2), plan([tmp_path], tmp_path)[0], out=tmp_path, overwrite=True)
    assert "would replace the picture" in result.error and (tmp_path / "a.png").read_bytes() == before
    (tmp_path / "out").mkdir()
    assert len(plan([tmp_path], tmp_path / "out")[0]) == 1


def test_plans_that_cannot_be_are_refused_before_work(model, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(photo(20, 20)).save(tmp_path / "in" / "a.png")
    Image.fromarray(photo(20, 20)).save(tmp_path / "in" / "a.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbatumError, match=r"would both become .*a\.webp"):
        plan([tmp_path / "in"], tmp_path / "o", "webp")
    with pytest.raises(ProbatumError, match="no such file or folder"):
        plan([tmp_path / "none"], tmp_path / "o")
    with pytest.raises(ProbatumError, match="no images in this folder"):
        plan([tmp_path / "empty"], tmp_path / "o")
    with pytest.raises(ProbatumError, match="contradict each other"):
        plan([tmp_path / "in" / "a.png"], tmp_path / "o.png", "webp")
    with pytest.raises(ProbatumError, match="is a file, and several results need a folder"):
        plan([tmp_path / "in"], tmp_path / "in" / "a.png")
    with pytest.raises(ProbatumError, match=r"--format must be auto, png, jpeg, webp, tiff, got 'gif'"):
        plan([tmp_path / "in"], tmp_path / "o", "gif")
    with pytest.raises(ProbatumError, match="heads for 2, 3, 4"):
        Upscaler(model, 5)
    with pytest.raises(ProbatumError, match="from 16 on, got 8"):
        Upscaler(model, 2, tile=8)
    with pytest.raises(ProbatumError, match="no weights named 'esrgan'"):
        Upscaler("esrgan", 2)


def test_formats_that_cannot_hold_the_picture_are_refused(model, tmp_path):
    Image.fromarray(np.dstack([photo(), photo()[..., 0]])).save(tmp_path / "a.png")
    jobs, _, form = plan([tmp_path / "a.png"], tmp_path / "o.jpg")
    (result,) = run(Upscaler(model, 2), jobs, out=None, form=form)
    assert "JPEG holds no transparency" in result.error and not (tmp_path / "o.jpg").exists()


def test_memory_that_runs_out_halves_the_tile_and_the_pixels_stay(model):
    net, image = weights.load(model), torch.from_numpy(photo(70, 50).copy()).permute(2, 0, 1)
    asked = []

    def run_out(x, scale):
        asked.append(x.shape[-2:])
        if x.shape[-1] * x.shape[-2] > 3000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return net(x, scale)

    got = torch.cat(list(strips(run_out, image, 2, tile=64, overlap=21)), 1)
    with torch.no_grad():
        whole = net(image[None].float() / 255, 2)[0]
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-5)
    assert max(h * w for h, w in asked) > 3000 and len(asked) > 2
    with pytest.raises(ProbatumError, match="not enough memory for a tile of 16"):
        list(strips(lambda x, s: (_ for _ in ()).throw(torch.OutOfMemoryError("no")), image, 2, tile=64, overlap=21))


def test_tile_follows_the_budget():
    net = CARN(width=64)
    assert bytes_per_pixel(net, 4) == 1.5 * 4 * (2 * 256 * 4), "second shuffle: input, output, half as much"
    side = tile_for(net, 4, 1 << 30)
    assert (side + 42) ** 2 * bytes_per_pixel(net, 4) <= 1 << 30 < (side + 43) ** 2 * bytes_per_pixel(net, 4)
    assert tile_for(net, 4, 1) == 16


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_is_what_others_read(channels, depth):
    """Our writer against Pillow (8 bits) and our reader against our writer (16 bits), on rows that favour each
    filter."""
    rng = np.random.default_rng(0)
    top = (1 << depth) - 1
    x = rng.integers(0, top + 1, (70, 31, channels)).astype(np.uint16 if depth == 16 else np.uint8)
    x[10:30] = (np.arange(31) * 7)[None, :, None]
    x[30:50] = np.arange(20)[:, None, None] * 11
    file = io.BytesIO()
    with png.Writer(file, 31, 70, channels=channels, depth=depth) as writer:
        writer.write(x[:13])
        writer.write(x[13:])
    if depth == 16:
        assert np.array_equal(png.decode(file.getvalue()).pixels, x)
    file.seek(0)
    with Image.open(file) as image:
        seen = np.asarray(image).reshape(70, 31, -1)
    # Pillow keeps 16 bits of grey alone, and the high byte of the rest
    expected = x if depth == 8 or channels == 1 else x >> 8
    if depth == 16 and channels == 2:
        seen = seen[..., [0, -1]]
    assert np.array_equal(seen, expected)


def test_png_of_other_writers_is_read():
    """16-bit files with every filter, packed by another library."""
    imageio = pytest.importorskip("imageio.v3")
    x = np.random.default_rng(0).integers(0, 65536, (23, 17)).astype(np.uint16)
    assert np.array_equal(png.decode(imageio.imwrite("<bytes>", x, extension=".png")).pixels[..., 0], x)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "probatum", "upscale", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}


def many(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(photo(60, 60)).save(folder / f"{i:02d}.png")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_folder_goes_on(model, tmp_path, how):
    many(tmp_path / "in", 16)
    arguments = (tmp_path / "in", "-o", tmp_path / "o", "--model", model, "--scale", 4, "--tile", 16)
    process = subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    limit = time.monotonic() + 60
    while len(list((tmp_path / "o").glob("*.png"))) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert (
            said.strip().splitlines()[-1]
            == "interrupted: what was finished is kept, and the same command goes on from there"
        )
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "o").glob("*.png")}
    assert 3 <= len(finished) < 16
    for name in finished:
        with Image.open(tmp_path / "o" / name) as image:
            image.load()
    results = run(Upscaler(model, 4, tile=16), plan([tmp_path / "in"], tmp_path / "o")[0], out=tmp_path / "o")
    states = {Path(r.target).name: r.state for r in results}
    assert set(states.values()) == {"kept", "done"}
    assert sum(state == "kept" for state in states.values()) >= len(finished) - 1
    assert all((tmp_path / "o" / n).stat().st_mtime_ns == t for n, t in finished.items() if states[n] == "kept")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        upscaling.LEDGER,
        *(f"{i:02d}.png" for i in range(16)),
    ]


def test_two_runs_into_one_folder(model, tmp_path):
    many(tmp_path / "in", 2)
    upscaler, jobs = Upscaler(model, 2), plan([tmp_path / "in"], tmp_path / "o")[0]

    class Second(upscaling.Watch):
        def begin(self, job):
            with pytest.raises(ProbatumError, match="another upscale is writing into"):
                run(upscaler, jobs, out=tmp_path / "o")

    assert [r.state for r in run(upscaler, jobs, out=tmp_path / "o", watch=Second())] == ["done", "done"]


def test_the_command_line_speaks(model, tmp_path):
    many(tmp_path / "in", 1)
    (tmp_path / "in" / "bad.png").write_text("no")
    done = subprocess.run(
        command(tmp_path / "in", "-o", tmp_path / "o", "--model", model, "--scale", 2, "--json"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        f"error: {tmp_path / 'in' / 'bad.png'}: not an image that can be read"
    ]
    summary = json.loads(done.stdout)
    assert [row["state"] for row in summary["files"]] == ["done", "failed"] and summary["files"][0]["size"] == [
        120,
        120,
    ]
