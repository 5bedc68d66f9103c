"""Which way to enlarge a photograph: `probatum compare superres`."""

from importlib.resources import files
from typing import TYPE_CHECKING

from probatum.evidence import Arm, ComparisonRun, Metric, comparison

if TYPE_CHECKING:
    import numpy as np

SCALE = 2
KEPT = {"smoke": 5, "quick": 50, "full": 500}  # photographs of a user's folder

NETWORKS = {
    "plain network": "quality_plain_{seed}",
    "CARN, same cost": "quality_carn_{seed}",
    "CARN": "carn",
    "CARN-M": "carn_m",
}
ARMS = [
    Arm("bicubic", "Pillow's bicubic"),
    Arm("Lanczos", "Pillow's Lanczos, the usual choice of image programs"),
    Arm("plain network", "EDSR's residual body, width 32, x2 alone, bicubic skip; trained as the arm below"),
    Arm("CARN, same cost", "width 32, x2 alone, multiply-adds and parameters within 4 % of the arm above", "carn"),
    Arm("CARN", "x2 x3 x4 in one net: what `upscale` uses by default", "carn"),
    Arm("CARN-M", "width 64, four groups, x2 x3 x4", "carn"),
]
# An arm whose weights we do not ship is left out.
_SHIPPED = {path.name for path in files("probatum").joinpath("weights", "superres").iterdir()}
ARMS = [
    arm for arm in ARMS if arm.name not in NETWORKS or f"{NETWORKS[arm.name].format(seed=0)}.safetensors" in _SHIPPED
]


@comparison(
    "superres",
    title="Enlarging photographs by 2",
    says="PSNR of photographs that were shrunk by MATLAB's bicubic and enlarged again, seconds and memory of that",
    arms=ARMS,
    metrics=[
        Metric("psnr", "PSNR on luma", "dB", "higher"),
        Metric("seconds", "time a megapixel out", "s", "lower"),
        Metric("memory", "peak memory", "B", "lower"), Metric("ssim", "SSIM on luma", "", "higher"),
    ],
    seeds={"smoke": 1, "quick": 1, "full": 5},
    takes={"data": "a folder of photographs (their central 1024 x 1024 at most)"},
)  # fmt: skip
def superres(run: ComparisonRun, arm: str) -> None:
    """Each photograph is cut to even sides, shrunk by 2, enlarged by the arm and compared on luma, 2 pixels cut off.
    Time is of all of them after one to warm up, on the threads that the run has; memory is what the process held at
    most beyond what it held before. Embedded data: sixteen photographs that packages carry, none trained on. Networks:
    `full` measures all five trainings of the two small ones; the other arms have one."""
    import time

    import torch

    from probatum.evidence.process import peak_memory, reset_peak_memory
    from probatum.metrics.fidelity import fidelity
    from probatum.superres.degradation import crop_to_multiple, degrade

    torch.set_num_threads(max(1, run.threads))
    names, originals = photos(run)
    enlarge = enlarger(arm, run.seed, run.device)
    pairs = []
    for pixels in originals:
        high = torch.from_numpy(pixels)
        planes = crop_to_multiple(high[None] if high.ndim == 2 else high.permute(2, 0, 1), SCALE)
        low = degrade(planes, SCALE)
        pairs.append(
            tuple((x[0] if high.ndim == 2 else x.permute(1, 2, 0)).contiguous().numpy() for x in (low, planes))
        )
    enlarge(pairs[0][0])
    reset_peak_memory()
    before = peak_memory()
    scores, seconds, pixels_out = [], 0.0, 0
    for _, (low, high) in run.progress(zip(names, pairs, strict=True), total=len(pairs), label=arm):
        begun = time.perf_counter()
        got = enlarge(low)
        seconds += time.perf_counter() - begun
        pixels_out += got.shape[0] * got.shape[1]
        scores.append(fidelity(got, high, crop=SCALE))
    run.record(arm, unit="B", memory=max(0, peak_memory() - before))
    run.record(arm, unit="s", seconds=seconds / (pixels_out / 1e6))
    run.record(arm, unit="dB", psnr=[score.psnr for score in scores])
    run.record(arm, ssim=[score.ssim for score in scores])


def photos(run: ComparisonRun) -> "tuple[list[str], list[np.ndarray]]":
    """Names and pixels, from the user's folder or from the packages."""
    if run.data is None:
        from probatum.data.photos import photographs

        found = photographs(limit=64 if run.smoke else 384)
        if run.smoke:
            found = dict(list(found.items())[:5])
        return list(found), list(found.values())
    from probatum.errors import ProbatumError
    from probatum.superres import media, upscaling

    jobs, _, _ = upscaling.plan([run.data], "/nowhere")
    names, arrays = [], []
    for job in jobs[: KEPT[run.budget]]:
        try:
            picture = media.read(job.source)
        except ProbatumError as error:
            run.note(f"left out: {error}")
            continue
        if picture.depth != 8 or min(picture.colour.shape[:2]) < 32:
            run.note(f"left out: {job.source.name} (16-bit, or under 32 pixels)")
            continue
        top, left = (max(0, (n - 1024) // 2) for n in picture.colour.shape[:2])
        names.append(job.source.name)
        arrays.append(picture.colour[top : top + 1024, left : left + 1024])
    if len(jobs) > KEPT[run.budget]:
        run.note(f"the first {KEPT[run.budget]} of {len(jobs)} photographs; --budget full takes {KEPT['full']}")
    if not arrays:
        raise ProbatumError(f"{run.data}: no photograph that can be measured")
    return names, arrays


def enlarger(arm: str, seed: int, device: str):
    """Function from a small image (H, W[, 3]) uint8 to the large one."""
    if arm in ("bicubic", "Lanczos"):
        import numpy as np
        from PIL import Image

        method = Image.Resampling.BICUBIC if arm == "bicubic" else Image.Resampling.LANCZOS
        return lambda low: np.asarray(Image.fromarray(low).resize((low.shape[1] * SCALE, low.shape[0] * SCALE), method))
    from probatum.superres.upscaling import Upscaler, upscale_array

    upscaler = Upscaler(NETWORKS[arm].format(seed=seed), SCALE, device=device)
    return lambda low: upscale_array(upscaler, low)
