"""Training of super-resolution networks: Adam, warm-up and cosine (or constant) rate, L1, budget in steps; stops and
goes on exactly."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.files import whole
from probatum.metrics.fidelity import luma, psnr
from probatum.superres.degradation import crop_to_multiple, degrade
from probatum.superres.parts import bicubic
from probatum.superres.patches import Photo

__all__ = ["Batches", "Fit", "enlarge", "validate"]


class Batches(Protocol):
    """Where batches come from: `Patches` of photographs, `StereoPatches` of pairs."""

    generator: torch.Generator
    pairs: dict[int, list[tuple[Tensor, Tensor]]]

    def draw(self, scale: int) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def enlarge(net: nn.Module | None, low: Tensor, scale: int) -> Tensor:
    """(3, h, w) uint8 -> (3, scale h, scale w) uint8, rounded; `net` None is bicubic."""
    x = (low[None].float() / 255).contiguous(memory_format=torch.channels_last)
    y = bicubic(x, scale) if net is None else net(x, scale)
    return (y[0].float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def validate(net: nn.Module | None, photos: Sequence[Photo], scale: int) -> list[float]:
    """PSNR on luma of each photo, `scale` pixels cut off, low-resolution images by MATLAB's bicubic; `net` None is
    bicubic."""
    # a net in an ONNX file has no parameters
    device = next((p.device for p in net.parameters()), torch.device("cpu")) if net is not None else torch.device("cpu")
    scores = []
    for photo in photos:
        high = crop_to_multiple(photo.pixels, scale)
        got = enlarge(net, degrade(high, scale).to(device), scale).cpu()
        a, b = (luma(x.permute(1, 2, 0).numpy()) for x in (got, high))
        scores.append(psnr(a, b, crop=scale))
    return scores


class Fit:
    """One training run.

    Args:
        net: moved to channels-last memory. `patches`: where batches come from; its generator is part of the run's
            state.
        steps: the whole budget. `warm_up`: steps of linear rise of the rate.
        lr: peak rate of Adam. `betas`: its two decays.
        schedule: "cosine" falls to zero at `steps`; "constant" stays, so that a longer budget is the same run: take
            `average` then.
        average: decay of the moving average of weights that `result` returns; None returns the weights themselves.
        clip: largest gradient norm.
        loss: of (output, target); default L1.
        factor: of the rate, by a parameter's name.
    A batch is of one scale, drawn from those of the patches at each step.
    """

    def __init__(
        self,
        net: nn.Module,
        patches: Batches,
        *,
        steps: int,
        lr: float,
        warm_up: int = 50,
        clip: float = 1.0,
        schedule: Literal["cosine", "constant"] = "cosine",
        average: float | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        loss: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
        factor: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        if steps < 1 or not 0 < lr < math.inf:
            raise ProbatumError(f"steps must be 1 or more and lr positive, got {steps!r} and {lr!r}")
        if schedule not in ("cosine", "constant"):
            raise ProbatumError(f"schedule must be cosine or constant, got {schedule!r}")
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.patches, self.steps, self.lr, self.warm_up, self.clip = patches, steps, lr, warm_up, clip
        self.schedule, self.decay, self.loss = schedule, average, loss
        self.weights = [p for p in net.parameters() if p.requires_grad]
        groups: dict[float, list[nn.Parameter]] = {}
        for name, p in net.named_parameters():
            if p.requires_grad:
                groups.setdefault(factor(name), []).append(p)
        self.optimizer = torch.optim.Adam([{"params": group, "factor": f} for f, group in groups.items()], lr=lr, betas=betas, fused=True)
        self.average = [p.detach().clone() for p in self.weights] if average else []
        self.step, self.seconds, self.losses = 0, 0.0, []  # type: int, float, list[float]

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))) if self.schedule == "cosine" else 1.0
        return self.lr * rise * fall

    def advance(self, steps: int | None = None, *, watch: Callable[["Fit"], None] | None = None) -> "Fit":
        """Train `steps` more (default: to the end of the budget); `watch` is called after each."""
        scales = sorted(self.patches.pairs)
        end = self.steps if steps is None else min(self.steps, self.step + steps)
        self.net.train()
        while self.step < end:
            begun = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step) * group.get("factor", 1.0)  # a state saved before there were factors has none
            scale = scales[int(torch.randint(len(scales), (), generator=self.patches.generator))]
            low, high = self.patches.draw(scale)
            loss = self.loss(self.net(low, scale), high)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in self.weights if p.grad is not None], self.clip)
            self.optimizer.step()
            self.step += 1
            if self.decay:
                # a young average forgets faster, so that it is never dominated by the start
                weight = 1 - min(self.decay, self.step / (self.step + 10))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], weight)
            self.seconds += time.perf_counter() - begun
            self.losses.append(float(loss.detach()))
            if watch:
                watch(self)
        return self

    @torch.no_grad()
    def result(self) -> nn.Module:
        """A copy of the net with the weights to use (averaged where asked for), in evaluation mode."""
        import copy

        net = copy.deepcopy(self.net).eval()
        if self.decay:
            for target, source in zip((p for p in net.parameters() if p.requires_grad), self.average, strict=True):
                target.copy_(source)
        return net

    def save(self, path: Path) -> None:
        """Write everything that going on needs; a kill in mid-save leaves the file before."""
        state = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "generator": self.patches.generator.get_state(),
            "losses": torch.tensor(self.losses),
        }
        with whole(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> "Fit":
        """Go on from a saved state: bit for bit the same as if it had not stopped, at the same number of steps in
        all."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for target, source in zip(self.average, state["average"], strict=True):
                target.copy_(source)
        self.step, self.seconds, self.losses = state["step"], state["seconds"], np.asarray(state["losses"]).tolist()
        self.patches.generator.set_state(state["generator"])
        return self
