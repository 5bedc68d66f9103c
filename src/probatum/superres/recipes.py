"""How the weights that we ship were trained: `python -m probatum.superres.recipes RECIPE --data FOLDER --out FOLDER`.

`tiles` cuts training tiles from a folder of photographs. Ours came from two Debian packages, lomiri-wallpapers-16.04
and mate-backgrounds (`apt download`, `dpkg-deb -x`).
`claim` trains the nets of the claim `carn:quality`, CARN and the plain residual net of equal cost, five seeds each:
first the rate of each arm from one grid on held-out photographs, then all runs in turns, so that none is favoured by a
stop. `upscale` trains the full-size net of the command `upscale`. Both stop and go on: started again, they continue
from their last checkpoints. `export` writes half-precision weights and their .json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from probatum.errors import ProbatumError
from probatum.superres import weights
from probatum.superres.fitting import Fit, validate
from probatum.superres.patches import ENDINGS, Patches, Photo, photos_in, split

__all__ = ["ARMS", "GRID", "claim_fit", "kept_at", "main", "say"]

SEEDS = 5
GRID = (5e-4, 1e-3, 2e-3, 4e-3)
ARMS: dict[str, dict[str, Any]] = {
    "carn": {"model": "carn", "scale": 2, "width": 32, "skip": True},
    "plain": {"model": "plain", "scale": 2, "width": 32, "blocks": 10, "skip": True},
}
FULL: dict[str, dict[str, Any]] = {
    "carn": {"model": "carn", "scale": [2, 3, 4], "width": 64, "skip": True},
    "carn_small": {"model": "carn", "scale": [2, 3, 4], "width": 32, "skip": True},
    "carn_m": {"model": "carn_m", "scale": [2, 3, 4], "width": 64, "groups": 4, "skip": True},
}


def seeded(
    config: dict[str, Any], photos: list[Photo], seed: int, *, size: int, batch: int, device: str, **options: Any
) -> Fit:
    """A run from its seed: weights at the start and draws depend on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = weights.build(config)
    generator = torch.Generator().manual_seed(1_000 + seed)
    scales = config["scale"] if isinstance(config["scale"], list) else [config["scale"]]
    patches = Patches(photos, scales, size=size, batch=batch, generator=generator, device=device)
    return Fit(net.to(device), patches, **options)


def claim_fit(arm: str, photos: list[Photo], seed: int, steps: int, lr: float, device: str = "cpu") -> Fit:
    """A run of the claim: width 32, x2, 8 crops of 24 x 24 pixels a step, L1, Adam, cosine."""
    return seeded(ARMS[arm], photos, seed, size=24, batch=8, device=device, steps=steps, lr=lr)


def choose_rates(train: list[Photo], held: list[Photo], steps: int, out: Path, device: str) -> dict[str, float]:
    """Each arm's rate: the best of GRID by PSNR on held-out photographs after `steps` steps of a seed that no net of
    the claim has."""
    path = out / "rates.json"
    done: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    for arm in ARMS:
        for lr in GRID:
            if str(lr) not in done.setdefault(arm, {}):
                net = claim_fit(arm, train, 99, steps, lr, device).advance().result()
                done[arm][str(lr)] = fmean(validate(net, held[::2], 2))
                say(f"{arm} lr {lr}: {done[arm][str(lr)]:.3f} dB on held-out tiles after {steps} steps")
                path.write_text(json.dumps(done, indent=1))
    return {arm: float(max(rates, key=lambda lr: rates[lr])) for arm, rates in done.items()}


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def kept_at(path: Path, name: str, every: float = 120) -> Callable[[Fit], None]:
    """What to call after each step: saves the run, and says how far it is, every two minutes and at its end."""
    saved = time.monotonic()

    def watch(run: Fit) -> None:
        nonlocal saved
        if time.monotonic() - saved > every or run.step == run.steps:
            run.save(path)
            saved = time.monotonic()
            say(f"{name} step {run.step}/{run.steps} loss {fmean(run.losses[-200:]):.5f} {run.seconds:.0f} s")

    return watch


def train_claim(args: argparse.Namespace) -> None:
    train, held = split(photos_in(args.data))
    rates = choose_rates(train, held, args.grid_steps, args.out, args.device)
    say(f"rates {rates}; {len(train)} training tiles, {len(held)} held out")
    runs: dict[str, Fit] = {}
    for seed in range(SEEDS):
        for arm in ARMS:
            run = claim_fit(arm, train, seed, args.steps, rates[arm], args.device)
            path = args.out / f"{arm}_{seed}.pt"
            runs[path.stem] = run.load(path) if path.is_file() else run
    while any(run.step < args.steps for run in runs.values()):
        for name, run in runs.items():
            # the same step in all runs before any goes on: a stop leaves them level
            if run.step < args.steps and run.step == min(other.step for other in runs.values()):
                run.advance(args.turn)
                run.save(args.out / f"{name}.pt")
                say(
                    f"{name} step {run.step}/{args.steps} "
                    f"loss {fmean(run.losses[-args.turn :]):.5f} {run.seconds:.0f} s"
                )
    base = fmean(validate(None, held, 2))
    for name, run in runs.items():
        net = run.result()
        describe(name, net, run, args, held, base, rates[name.partition("_")[0]])
    say("done")


def train_full(args: argparse.Namespace) -> None:
    train, held = split(photos_in(args.data))
    run = seeded(
        FULL[args.model],
        train,
        args.seed,
        size=args.size,
        batch=args.batch,
        device=args.device,
        steps=args.steps,
        lr=args.lr,
        schedule=args.schedule,
        average=0.999,
    )
    path = args.out / f"{args.model}.pt"
    if path.is_file():
        run.load(path)
        say(f"going on from step {run.step}")
    elif args.start:
        say(f"starting from {args.start.name}: {warm_start(run, args.start)} tensors")
    keep = kept_at(path, args.model)

    def watch(run: Fit) -> None:
        keep(run)
        if run.step % args.validate == 0:
            net = run.result()
            scores = {
                s: fmean(validate(net, held[::4], s)) - fmean(validate(None, held[::4], s)) for s in run.patches.pairs
            }
            say("over bicubic on held-out tiles: " + ", ".join(f"x{s} {gain:+.3f} dB" for s, gain in scores.items()))

    run.advance(watch=watch)
    say("done")


@torch.no_grad()
def warm_start(run: Fit, path: Path) -> int:
    """Take over what a net of one scale has learned: its trunk, and its head for every shuffle by the same factor."""
    state, taken = weights.load(path).state_dict(), 0
    own = run.net.state_dict()
    for name, value in own.items():
        # the head for x4 is the head for x2 twice
        for source in (
            name,
            name.replace("up2.", "up."),
            name.replace("up4.body.0", "up.body.0"),
            name.replace("up4.body.3", "up.body.0"),
        ):
            if source in state and state[source].shape == value.shape:
                value.copy_(state[source])
                taken += 1
                break
    for average, weight in zip(run.average, run.weights, strict=True):
        average.copy_(weight)
    return taken


def describe(
    name: str, net: torch.nn.Module, run: Fit, args: argparse.Namespace, held: list[Photo], base: float, lr: float
) -> None:
    """Write a claim net and what made it."""
    weights.save(net, args.out / f"{name}.safetensors")
    scores = validate(net, held, 2)
    note = {
        "config": ARMS[name.partition("_")[0]],
        "seed": int(name.rpartition("_")[2]),
        "steps": run.step,
        "steps_asked_by_the_protocol": 30_000,
        "batch": 8,
        "patch": 24,
        "lr": lr,
        "lr_grid": list(GRID),
        "schedule": "cosine, 50 steps of warm-up",
        "loss": "L1",
        "optimizer": "Adam (0.9, 0.99), gradient norm at most 1",
        "degradation": "matlab bicubic",
        "training_seconds": round(run.seconds),
        "training_data": data_note(args.data),
        "held_out_psnr_y": round(fmean(scores), 3),
        "held_out_bicubic_psnr_y": round(base, 3),
        "command": f"python -m probatum.superres.recipes claim --data FOLDER --out FOLDER --steps {run.step}",
    }
    (args.out / f"{name}.json").write_text(json.dumps(note, indent=1) + "\n")
    say(f"{name}: {fmean(scores):.3f} dB on held-out tiles, bicubic {base:.3f}")


def data_note(folder: Path) -> str:
    photos = photos_in(folder)
    count = len({photo.photograph for photo in photos})
    pixels = sum(photo.pixels[0].numel() for photo in photos) / 1e6
    size = f"{len(photos)} tiles of {count} photographs, {pixels:.1f} megapixels"
    return f"{size}, every sixth photograph held out ({Path(folder).name})"


def export_full(args: argparse.Namespace) -> None:
    """Half-precision weights of the last checkpoint, with their gains on held-out photographs."""
    train, held = split(photos_in(args.data))
    config = FULL[args.model]
    run = seeded(config, train[:1], args.seed, size=24, batch=1, device="cpu", steps=1, lr=args.lr, average=0.999)
    run.load(args.out / f"{args.model}.pt")
    net = run.result()
    gains = {s: [fmean(validate(net, held, s)), fmean(validate(None, held, s))] for s in config["scale"]}
    name = args.name or args.model
    weights.save(net, args.to / f"{name}.safetensors")
    note = {
        "config": config,
        "seed": args.seed,
        "start": args.start.stem if args.start else None,
        "steps": run.step,
        "batch": args.batch,
        "patch": args.size,
        "lr": args.lr,
        "schedule": args.schedule,
        "average": 0.999,
        "loss": "L1",
        "optimizer": "Adam (0.9, 0.99), gradient norm at most 1",
        "degradation": "matlab bicubic",
        "training_seconds": round(run.seconds),
        "training_data": data_note(args.data),
        "held_out_psnr_y": {f"x{s}": {"net": round(a, 3), "bicubic": round(b, 3)} for s, (a, b) in gains.items()},
        "command": f"python -m probatum.superres.recipes upscale --model {args.model} --data FOLDER --out FOLDER "
        f"--steps {run.step}",
    }
    (args.to / f"{name}.json").write_text(json.dumps(note, indent=1) + "\n")
    say(
        f"{args.model} after {run.step} steps: "
        + ", ".join(f"x{s} {a:.3f} dB, bicubic {b:.3f}" for s, (a, b) in gains.items())
    )


def cut_tiles(args: argparse.Namespace) -> None:
    """256 x 256 tiles of photographs, halved with a box filter first, which takes most traces of JPEG away; flat tiles
    are left out."""
    from PIL import Image

    rows: list[list] = []
    for path in sorted(p for p in args.data.rglob("*") if p.suffix.lower() in ENDINGS):
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB").reduce(2)))
        for y in range(0, pixels.shape[0] - 255, 256):
            for x in range(0, pixels.shape[1] - 255, 256):
                tile = pixels[y : y + 256, x : x + 256]
                if tile.float().std() > 20:
                    name = f"{len(rows):04d}"
                    Image.fromarray(tile.numpy()).save(args.out / f"{name}.png")
                    rows.append([name, path.name, y, x])
    if not rows:
        raise ProbatumError(f"{args.data}: no photograph of 512 pixels or more with anything to see")
    (args.out / "index.json").write_text(json.dumps(rows))
    say(f"{len(rows)} tiles of {len({row[1] for row in rows})} photographs in {args.out}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m probatum.superres.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", choices=["claim", "upscale", "export", "tiles"])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs or tiles")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--to", type=Path, help="export: folder of the weights (default: --out)")
    parser.add_argument(
        "--start", type=Path, help="upscale: weights of a net of one scale to begin from (export: to name)"
    )
    parser.add_argument("--name", help="export: name of the weights, if not the model's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--grid-steps", type=int, default=300, help="claim: steps of each trial of a rate")
    parser.add_argument("--turn", type=int, default=250, help="claim: steps of a net before the next one's turn")
    parser.add_argument("--model", choices=sorted(FULL), default="carn", help="upscale, export")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=24, help="upscale: side of a crop in low-resolution pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--schedule", choices=["constant", "cosine"], default="constant")
    parser.add_argument("--validate", type=int, default=1000, help="upscale: steps between validations")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    args.to = args.to or args.out
    {"claim": train_claim, "upscale": train_full, "export": export_full, "tiles": cut_tiles}[args.recipe](args)


if __name__ == "__main__":
    try:
        main()
    except ProbatumError as error:
        raise SystemExit(f"error: {error}") from None
