"""carn: enlarging by tiles beside the same network in plain eager code, and a 12-megapixel photograph in bounded
memory. nafssr: stereo attention by rows beside the matrix of scores, and pairs in strips. pams: one net as floats, with rounded floats, and
as integers. cfsr: merged beside as trained. tcsr: neighbourhood attention beside copies of windows and masked full attention. st_avsr:
kernels of any factor in strips of rows beside all at once.

    OMP_NUM_THREADS=1 python benchmarks/superres.py [--only NAME] [--megapixels N] [--rounds N] [--json]

`whole`: x4 of one photograph, by `upscale` and by one eager call of the network on the whole image (memory as torch
makes it, no tiles); every run is a fresh process, the arms alternate, a ratio is eager / ours of one round: above 1
ours is faster. `photo12`: a photograph of 12 megapixels to PNG at x4, as the command does it; by default its first two
strips, because memory is flat after them (`--strips 0` takes all). Memory is what the process held at most beyond what
it held before the picture was read. `scam`: nafssr's stereo attention between two views of 64 rows and 48 channels, by the score matrix
(B, H, W, W) as the authors compute it and by rows as heads of torch's fused attention, at growing widths; a ratio is matrix / ours.
`pair`: a stereo pair at x4 by a nafssr of four blocks of width 48 (random weights), whole and in strips, exact and with few rows around
them. `integers` (pams): the plain net of `carn:quality` and EDSR's
baseline (random weights: time and size are the same, PSNR means nothing) on part of a photograph at x2, by torch and by onnxruntime, as
floats, as rounded floats and as integers of 8 bits; file bytes beside; ratio is torch's float time / the arm's. The limit of 8 bits in a
byte's place of a float is 4 times the multiply-adds an instruction of AVX-512 VNNI, on the quantised convolutions alone.
`kernels`: st_avsr's upsampler (64 channels) of 90 x 160 features by 4 and by 3.5, by a table of the distinct kernels and strips of rows, and
by one kernel a target pixel and all rows at once, as the authors compute it; a ratio is all at once / ours.
Peers: super-image 0.2 and torchsr 1.0 hold CARN, but take weights from a hub only,
so there is nothing to time on this machine.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from probatum.evidence.process import isolated, peak_memory, reset_peak_memory

__all__ = ["main"]

GIB = 2**30


def picture(megapixels: float) -> np.ndarray:
    """A photograph of so many megapixels, 4 by 3: the retina enlarged by Lanczos."""
    from PIL import Image

    from probatum.data.photos import photograph

    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    return np.array(Image.fromarray(photograph("retina")).resize((height * 4 // 3, height), Image.Resampling.LANCZOS))


def model() -> str:
    """Weights of the full-size CARN: ours, or random ones where none are installed (time and memory are the same)."""
    from probatum.superres import CARN, weights

    if "carn" in weights.shipped_files():
        return "carn"
    path = Path(tempfile.gettempdir()) / "probatum_benchmark_carn.safetensors"
    weights.save(CARN(skip=True), path)
    return str(path)


def ours(name: str, megapixels: float) -> tuple[float, int]:
    """Seconds and extra bytes of `upscale_array`."""
    from probatum.superres.upscaling import Upscaler, upscale_array

    upscaler, pixels = Upscaler(name, 4), picture(megapixels)
    upscale_array(upscaler, pixels[:32, :32])
    reset_peak_memory()
    before, begun = peak_memory(), time.perf_counter()
    upscale_array(upscaler, pixels)
    return time.perf_counter() - begun, peak_memory() - before


def eager(name: str, megapixels: float) -> tuple[float, int]:
    """Seconds and extra bytes of the plain call that a user would write."""
    import torch

    from probatum.superres import weights

    net = weights.shipped(name) if name == "carn" else weights.load(name)
    pixels = picture(megapixels)

    def enlarge(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            y = net(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, 4)
        return (y[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()

    enlarge(pixels[:32, :32])
    reset_peak_memory()
    before, begun = peak_memory(), time.perf_counter()
    enlarge(pixels)
    return time.perf_counter() - begun, peak_memory() - before


def photo12(name: str, strips: int) -> tuple[float, int, int]:
    """Seconds, extra bytes and strips of a 12-megapixel JPEG to PNG, file to file."""
    from PIL import Image

    from probatum.superres import media
    from probatum.superres.upscaling import Upscaler

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.jpg"
        Image.fromarray(picture(12)).save(source, quality=92)
        upscaler = Upscaler(name, 4)
        reset_peak_memory()
        before, begun = peak_memory(), time.perf_counter()
        read = media.read(source)
        height, width = (4 * n for n in read.colour.shape[:2])
        sink = media.Sink(Path(folder) / "out.png", read, width, height, "png")
        count = 0
        for rows in islice(upscaler.rows(read), strips or None):
            sink.write(rows)
            count += 1
        held = peak_memory() - before
        sink.abandon()
        return time.perf_counter() - begun, held, count


def scam(form: str, width: int) -> tuple[float, int]:
    """Seconds and extra bytes of nafssr's SCAM between two views of 64 rows."""
    import torch

    from probatum.superres import SCAM

    torch.manual_seed(0)
    module = SCAM(48, layer_scale=0.1).eval()
    left, right = (torch.randn(1, 48, 64, width).contiguous(memory_format=torch.channels_last) for _ in range(2))

    def matrix() -> tuple[torch.Tensor, torch.Tensor]:
        q_l, q_r = (x.permute(0, 2, 3, 1) for x in module.scores_from(left, right))
        v_l, v_r = (x.permute(0, 2, 3, 1) for x in (module.l_proj2(left), module.r_proj2(right)))
        scores = q_l @ q_r.transpose(2, 3) * 48**-0.5
        to_left, to_right = scores.softmax(3) @ v_r, scores.transpose(2, 3).softmax(3) @ v_l
        return left + module.beta * to_left.permute(0, 3, 1, 2), right + module.gamma * to_right.permute(0, 3, 1, 2)

    with torch.no_grad():
        call = matrix if form == "matrix" else lambda: module(left, right)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(matrix(), module(left, right), strict=True)) if width <= 320 else call()
        reset_peak_memory()
        before, times = peak_memory(), []
        for _ in range(3):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
    return min(times), peak_memory() - before


def pair(height: int, width: int, tile: int, overlap: int | None) -> tuple[float, int, float]:
    """Seconds and extra bytes of a pair at x4, and what its strips differ by at seams, in 8-bit levels."""
    import torch

    from probatum.superres import NAFSSR
    from probatum.superres.tiling import strips

    torch.manual_seed(0)
    net = NAFSSR(4, blocks=4, layer_scale=0.1).eval().to(memory_format=torch.channels_last)
    views = torch.from_numpy(np.concatenate([picture(1)[:height, column : column + width] for column in (0, 8)], 2)).permute(2, 0, 1)
    seams: list[float] = []
    reset_peak_memory()
    before, begun = peak_memory(), time.perf_counter()
    for _ in strips(net, views, 4, tile=tile, overlap=net.rows if overlap is None else overlap, whole_rows=True, seams=seams):
        pass
    return time.perf_counter() - begun, peak_memory() - before, 255 * max(seams, default=0.0)


def stereo_rows(only: str | None, rounds: int, threads: int) -> list[dict]:
    """Results of `scam` and `pair`."""
    rows: list[dict] = []
    for width in (320, 640, 1280) if only in (None, "scam") else ():
        found: dict[str, list[tuple[float, int]]] = {"rows": [], "matrix": []}
        for round_ in range(rounds):
            for form in list(found) if round_ % 2 == 0 else reversed(list(found)):
                found[form].append(isolated(scam, form, width, threads=threads).value)
        for form, values in found.items():
            ratios = [b[0] / a[0] for a, b in zip(*found.values(), strict=True)] if form == "matrix" else [1.0]
            rows.append(_row(f"nafssr attention, 64 x {width}, 48 channels", form, values, ratios))
    for name, tile, overlap in (("whole", 400, 0), ("strips of 100, exact", 100, None), ("strips of 100, 23 rows around", 100, 23)):
        if only in (None, "pair"):
            seconds, held, level = isolated(pair, 400, 400, tile, overlap, threads=threads).value
            rows.append(_row(f"nafssr x4, 400 x 400 pair, seams {level:.3f}", name, [(seconds, held)], []))
    return rows


def cfsr(arm: str) -> tuple[float, int]:
    """Seconds and extra bytes of one picture of 160 x 120 pixels at x4."""
    import torch

    from probatum.superres import CARNM, CFSR

    torch.manual_seed(0)
    if arm == "PLKSR":
        from spandrel.architectures.PLKSR import PLKSR

        net = PLKSR(upscaling_factor=4).eval()
    else:
        net = CARNM(scale=4).eval() if arm == "CARN-M" else CFSR(4).eval()
    if arm.startswith("merged"):
        net = net.merged()
    order = torch.contiguous_format if arm.endswith("contiguous") else torch.channels_last
    net, x = net.to(memory_format=order), torch.rand(1, 3, 120, 160).contiguous(memory_format=order)
    with torch.inference_mode():
        net(x[..., :32, :32])
        reset_peak_memory()
        before, times = peak_memory(), []
        for _ in range(3):
            begun = time.perf_counter()
            net(x)
            times.append(time.perf_counter() - begun)
    return min(times), peak_memory() - before


def cfsr_rows(rounds: int, threads: int) -> list[dict]:
    """Results of `cfsr`; the arms alternate."""
    from importlib.util import find_spec

    found: dict[str, list[tuple[float, int]]] = {"merged": [], "as trained": [], "merged, contiguous": [], "CARN-M": []}
    if find_spec("spandrel"):
        found["PLKSR"] = []
    else:
        print("PLKSR is left out: spandrel is not installed")
    return _alternating("cfsr x4, 160 x 120", cfsr, found, rounds, threads)


def neighbourhood(arm: str) -> tuple[float, int]:
    """Seconds and extra bytes of one layer's forward and backward; what comes out is checked against ours on a small image."""
    import torch

    from probatum.nn.neighbourhood import neighbourhood_attention, window_start

    def windows(q, k, v, bias, kernel):
        height, width = q.shape[2:4]
        y, x = (window_start(n, kernel)[:, None] + torch.arange(kernel) for n in (height, width))
        keys, values = (t[:, :, y[:, None, :, None], x[None, :, None, :]] for t in (k, v))  # (N, heads, H, W, k, k, d)
        dy, dx = (t - torch.arange(len(t))[:, None] + kernel - 1 for t in (y, x))
        scores = torch.einsum("nhyxd,nhyxabd->nhyxab", q, keys) * q.shape[-1] ** -0.5 + bias[:, dy[:, None, :, None], dx[None, :, None, :]]
        return torch.einsum("nhyxab,nhyxabd->nhyxd", scores.flatten(4).softmax(4).view(scores.shape), values)

    def full(q, k, v, bias, kernel):
        height, width = q.shape[2:4]
        apart, inside = [], []
        for n in (height, width):
            start, at = window_start(n, kernel)[:, None], torch.arange(n)
            apart.append((at - at[:, None] + kernel - 1).clamp(0, 2 * kernel - 2))
            inside.append((at >= start) & (at < start + kernel))
        size = height * width
        place = (apart[0][:, None, :, None] * (2 * kernel - 1) + apart[1][None, :, None, :]).view(size, size)
        mask = (inside[0][:, None, :, None] & inside[1][None, :, None, :]).view(size, size)
        added = bias.flatten(1)[:, place].masked_fill(~mask, -torch.inf)
        y = torch.nn.functional.scaled_dot_product_attention(*(t.flatten(2, 3) for t in (q, k, v)), attn_mask=added)
        return y.unflatten(2, (height, width))

    call = {"tiles": neighbourhood_attention, "copies of windows": windows, "masked full attention": full}[arm]

    def step(side: int, kernel: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(1, side, side, 56, generator=g).view(1, side, side, 7, 8).permute(0, 3, 1, 2, 4).requires_grad_() for _ in "qkv"
        )
        bias = torch.randn(7, 2 * kernel - 1, 2 * kernel - 1, generator=g, requires_grad=True)
        begun = time.perf_counter()
        out = call(q, k, v, bias, kernel)
        out.square().sum().backward()
        taken.append(time.perf_counter() - begun)
        return torch.cat([out.flatten(), *(t.grad.flatten() for t in (q, k, v, bias))])

    taken: list[float] = []
    small = step(9, 5)
    own, call = call, neighbourhood_attention
    assert torch.allclose(small, step(9, 5), atol=1e-4)
    call = own
    reset_peak_memory()
    before = peak_memory()
    taken.clear()
    for _ in range(3):
        step(64, 13)
    return min(taken), peak_memory() - before


def _alternating(benchmark: str, function: Callable, found: dict[str, list[tuple[float, int]]], rounds: int, threads: int) -> list[dict]:
    """Rows of arms that are run in turns, each in a fresh process; ratios are to the first arm."""
    for round_ in range(rounds):
        for arm in list(found) if round_ % 2 == 0 else reversed(list(found)):
            found[arm].append(isolated(function, arm, threads=threads).value)
    first = next(iter(found.values()))
    return [_row(benchmark, arm, values, [b[0] / a[0] for a, b in zip(first, values, strict=True)]) for arm, values in found.items()]


def kernels(form: str, scale: float) -> tuple[float, int]:
    """Seconds and extra bytes of st_avsr's upsampler; kernels included, as for the first frame of a video."""
    import torch
    from torch.nn import functional as F

    from probatum.superres.arbitrary import ArbitraryUpsampler, KernelNet, kernels_for, target_size

    torch.manual_seed(0)
    net, up, u, x = KernelNet(64), ArbitraryUpsampler(64), torch.randn(1, 64, 90, 160), torch.rand(1, 3, 90, 160)
    size = target_size(90, 160, scale)
    reset_peak_memory()
    before, begun = peak_memory(), time.perf_counter()
    with torch.inference_mode():
        found = kernels_for(net, (90, 160), size)
        if form == "strips":
            up(u, found, x)
        else:
            place = torch.stack(torch.meshgrid(*((2 * torch.arange(n) + 1) / n - 1 for n in size), indexing="ij"), -1)[None].flip(-1)
            seen = F.grid_sample(F.unfold(u, 3, padding=1).view(1, -1, 90, 160), place, align_corners=False)
            every = net(found.y[0][found.y[1]], found.x[0][found.x[1]], found.cell).reshape(1, -1, *size)
            up.imnets(F.fold((seen * every).flatten(2), size, 3, padding=1)) + F.interpolate(x, size=size, mode="bilinear")
    return time.perf_counter() - begun, peak_memory() - before


def kernel_rows(rounds: int, threads: int) -> list[dict]:
    """Results of `kernels`."""
    rows: list[dict] = []
    for scale in (4.0, 3.5):
        found: dict[str, list[tuple[float, int]]] = {"strips": [], "all at once": []}
        for round_ in range(rounds):
            for form in list(found) if round_ % 2 == 0 else reversed(list(found)):
                found[form].append(isolated(kernels, form, scale, threads=threads).value)
        for form, values in found.items():
            ratios = [b[0] / a[0] for a, b in zip(*found.values(), strict=True)] if form != "strips" else [1.0]
            rows.append(_row(f"st_avsr upsampler, 90 x 160 by {scale:g}", form, values, ratios))
    return rows


def _row(benchmark: str, arm: str, values: list[tuple[float, int]], ratios: list[float]) -> dict:
    seconds = statistics.median(v[0] for v in values)
    return {"benchmark": benchmark, "arm": arm, "seconds": seconds, "extra_gib": max(v[1] for v in values) / GIB, "ratios": ratios}


ARMS = ("torch float", "torch rounded", "onnxruntime float", "onnxruntime int8")


def pams_net(name: str, bits: int | None):
    """The float net, or it calibrated at some bits."""
    import torch

    from probatum.data.photos import photograph
    from probatum.superres import EDSR, calibrate, quantise, weights

    if name == "plain, 10 blocks of 32":
        net = weights.shipped("quality_plain_0")
    else:
        torch.manual_seed(0)
        net = EDSR(2).eval()
    if bits is None:
        return net
    photo = torch.from_numpy(photograph("coffee")).permute(2, 0, 1)[None].float() / 255
    return calibrate(quantise(net, bits), [photo[..., :200, i : i + 200] for i in (0, 200, 400)], "max").eval()


def integers(name: str, folder: str, side: int, rounds: int) -> dict:
    """Seconds, PSNR and file bytes of each arm; a round runs all of them, in alternating order."""
    import torch

    from probatum.data.photos import photograph
    from probatum.superres import export_onnx, save_packed, weights
    from probatum.superres.degradation import crop_to_multiple, degrade
    from probatum.superres.fitting import enlarge, validate
    from probatum.superres.patches import Photo

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    place, plain, small = Path(folder), pams_net(name, None), pams_net(name, 8)
    nets = {
        ARMS[0]: plain, ARMS[1]: small, ARMS[2]: weights.load(export_onnx(plain, place / "float.onnx")),
        ARMS[3]: weights.load(export_onnx(small, place / "int8.onnx")),
    }  # fmt: skip
    weights.save(plain, place / "float.safetensors", half=False)
    files = {
        ARMS[0]: place / "float.safetensors", ARMS[1]: save_packed(small, place / "8.safetensors"),
        ARMS[2]: place / "float.onnx", ARMS[3]: place / "int8.onnx",
    }  # fmt: skip
    photo = Photo.of("astronaut", photograph("astronaut")[: 2 * side, : 2 * side])
    low = degrade(crop_to_multiple(photo.pixels, 2), 2)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for net in nets.values():
        enlarge(net, low, 2)
    for round_ in range(rounds):
        for arm in ARMS if round_ % 2 == 0 else reversed(ARMS):
            begun = time.perf_counter()
            enlarge(nets[arm], low, 2)
            seconds[arm].append(time.perf_counter() - begun)
    scores = {arm: validate(nets[arm], [photo], 2)[0] for arm in ARMS}
    four = save_packed(pams_net(name, 4), place / "4.safetensors").stat().st_size
    return {"seconds": seconds, "psnr": scores, "bytes": {a: f.stat().st_size for a, f in files.items()}, "four": four}


def integer_rows(args: argparse.Namespace, threads: int) -> list[dict]:
    """Rows of the benchmark `integers`; a missing onnxruntime is a named skip."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        print(f"skipped: integers (pams), no {', '.join(missing)}: pip install 'probatum[onnx]'")
        return []
    rows = []
    for name in ("plain, 10 blocks of 32", "EDSR baseline"):
        found = []
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                found.append(isolated(integers, name, folder, args.side, 5, threads=threads).value)
        for arm in ARMS:
            base = [statistics.median(f["seconds"][ARMS[0]]) for f in found]
            own = [statistics.median(f["seconds"][arm]) for f in found]
            rows.append(
                {
                    "benchmark": f"pams x2, {name}, {args.side} squared",
                    "arm": arm,
                    "seconds": statistics.median(own),
                    "ratios": [a / b for a, b in zip(base, own, strict=True)],
                    "psnr": found[0]["psnr"][arm],
                    "bytes": found[0]["bytes"][arm],
                    "bytes_4_bits": found[0]["four"],
                }
            )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["whole", "photo12", "scam", "pair", "integers", "cfsr", "neighbourhood", "kernels"])
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=192, help="integers: side of the small image")
    parser.add_argument("--strips", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    import torch

    threads = int(os.environ["OMP_NUM_THREADS"])
    name, rows = model(), []  # type: str, list[dict]
    if args.only in (None, "scam", "pair"):
        rows += stereo_rows(args.only, args.rounds, threads)
    if args.only in (None, "integers"):
        rows += integer_rows(args, threads)
    if args.only in (None, "cfsr"):
        rows += cfsr_rows(args.rounds, threads)
    if args.only in (None, "neighbourhood"):
        arms: dict[str, list[tuple[float, int]]] = {"tiles": [], "copies of windows": [], "masked full attention": []}
        rows += _alternating("tcsr attention, 64 x 64, k 13", neighbourhood, arms, args.rounds, threads)
    if args.only in (None, "kernels"):
        rows += kernel_rows(args.rounds, threads)
    if args.only in (None, "whole"):
        found: dict[str, list[tuple[float, int]]] = {"upscale, tiles": [], "eager, whole image": []}
        for round_ in range(args.rounds):
            order = [("upscale, tiles", ours), ("eager, whole image", eager)]
            for arm, function in order if round_ % 2 == 0 else reversed(order):
                found[arm].append(isolated(function, name, args.megapixels, threads=threads).value)
        ratios = [b[0] / a[0] for a, b in zip(*found.values(), strict=True)]
        for arm, values in found.items():
            rows.append(
                {
                    "benchmark": f"carn x4, {args.megapixels:g} megapixels",
                    "arm": arm,
                    "seconds": statistics.median(v[0] for v in values),
                    "extra_gib": max(v[1] for v in values) / GIB,
                    "ratios": ratios if arm != "upscale, tiles" else [1.0],
                }
            )
    if args.only in (None, "photo12"):
        seconds, held, count = isolated(photo12, name, args.strips, threads=threads).value
        rows.append(
            {
                "benchmark": "carn x4, 12 megapixels, JPEG to PNG",
                "arm": f"upscale, {count} strips",
                "seconds": seconds,
                "extra_gib": held / GIB,
                "ratios": [],
            }
        )
    head = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": threads,
        "load": os.getloadavg(),
    }
    if args.json:
        print(json.dumps({**head, "rows": rows}, indent=1))
        return
    print(" ".join(f"{key} {value}" for key, value in head.items()))
    for row in rows:
        ratios = row["ratios"]
        more = f"{row['extra_gib']:6.2f} GiB extra" if "extra_gib" in row else f"{row['psnr']:6.2f} dB {row['bytes']:>9,} B"
        spread = f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""
        print(f"{row['benchmark']:48} {row['arm']:28} {row['seconds']:8.3f} s {more}  {spread}")


if __name__ == "__main__":
    # children call functions by module name, and this file is no package
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    import superres

    superres.main()
