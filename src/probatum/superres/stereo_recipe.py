"""Training NAFSSR on pairs of your own: `python -m probatum.superres.stereo_recipe --data FOLDER --out FOLDER`.

Every photograph of the folder becomes pairs by known horizontal warps; NAME_left.png and NAME_right.png (or any other ending) are taken as
real pairs. Stops and goes on: started again, it continues from its last checkpoint, and at the end it writes the weights.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.superres import weights
from probatum.superres.fitting import Fit
from probatum.superres.nafssr import NAFSSR, PRESETS
from probatum.superres.patches import Photo, photos_in
from probatum.superres.recipes import kept_at, say
from probatum.superres.stereo import StereoPatches, random_disparity, synthetic_pair

__all__ = ["main", "pairs_of"]


def pairs_of(photos: list[Photo], *, each: int = 2, most: float = 0.08, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Real pairs (names that end in _left and _right), and `each` synthetic ones of every other photograph.

    Args:
        most: largest disparity of a synthetic pair as a share of the width.
    """
    by_name = {photo.name.rpartition(".")[0] or photo.name: photo.pixels for photo in photos}
    pairs = []
    for name, pixels in by_name.items():
        if name.endswith("_left") and f"{name.removesuffix('_left')}_right" in by_name:
            pairs.append((pixels, by_name[f"{name.removesuffix('_left')}_right"]))
        elif not (name.endswith("_right") and f"{name.removesuffix('_right')}_left" in by_name):
            height, width = pixels.shape[1:]
            for _ in range(each):
                pairs.append(synthetic_pair(pixels, random_disparity(height, width, least=1, most=1 + most * width, generator=generator)))
    return pairs


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m probatum.superres.stereo_recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, and of pairs NAME_left.*, NAME_right.*")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the weights")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="T")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--columns", type=int, default=90)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--layer-scale", type=float, default=0.0, help="0 as published; 0.1 for short trainings")
    parser.add_argument("--synthetic", type=int, default=2, help="pairs made of each photograph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(args.seed)
    pairs = pairs_of(photos_in(args.data), each=args.synthetic, generator=generator)
    batches = StereoPatches(
        pairs, args.scale, size=(args.rows, args.columns), batch=args.batch, generator=generator, device=args.device
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        net = NAFSSR.preset(args.preset, args.scale, layer_scale=args.layer_scale, generator=generator)
    run = Fit(net.to(args.device), batches, steps=args.steps, lr=args.lr, betas=(0.9, 0.9), warm_up=0, loss=F.mse_loss)
    path = args.out / "nafssr.pt"
    if path.is_file():
        run.load(path)
    say(f"{len(pairs)} pairs, step {run.step} of {args.steps}")
    weights.save(run.advance(watch=kept_at(path, "nafssr")).result().cpu(), args.out / "nafssr.safetensors")
    say(f"weights in {args.out / 'nafssr.safetensors'}")


if __name__ == "__main__":
    try:
        main()
    except ProbatumError as error:
        raise SystemExit(f"error: {error}") from None
