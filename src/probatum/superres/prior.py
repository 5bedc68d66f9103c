"""What a frame is like at each place, as maps beside it: five stages of VGG16, or local contrast and slope that need no weights."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = ["FixedPrior", "VGGPrior"]

# the convolutions of each stage: (index in torchvision's vgg16().features, channels in, channels out)
STAGES = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)


class FixedPrior(nn.Module):
    """Standard deviation and slopes of the luma in windows of five sizes: 15 maps, no weights.

    It takes VGG's place where its weights (138 M parameters, not to be had as a package) are not there: texture as local contrast, structure
    as slope, at sizes that double as VGG's stages do. It knows no objects.
    """

    channels = 15
    sizes = (3, 5, 9, 17, 33)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..1 -> (N, 15, H, W)."""
        y = (x.float() * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
        maps = []
        for size in self.sizes:
            both = F.avg_pool2d(torch.cat([y, y * y], 1), size, 1, size // 2, count_include_pad=False)
            mean, square = both[:, :1], both[:, 1:]
            padded = F.pad(mean, (1, 1, 1, 1), mode="replicate")
            across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
            down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
            maps += [(square - mean * mean).clamp_min(0).add(1e-6).sqrt(), across, down]
        return torch.cat(maps, 1).to(x.dtype)


class _L2Pool(nn.Module):
    """Halves each side: the root of the weighted mean of squares, weights of Hann's window, as DISTS has it."""

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        window = torch.tensor([0.5, 1.0, 0.5])
        window = window[:, None] * window
        self.register_buffer("filter", (window / window.sum()).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return (F.conv2d(x * x, self.filter, stride=2, padding=1, groups=len(self.filter)) + 1e-12).sqrt()


class VGGPrior(nn.Module):
    """The last map of each of VGG16's five stages at the size of the frame: 1,472 maps; frozen.

    Starts with random weights: `load` takes torchvision's (`vgg16-397923af.pth`), and files of the authors hold them.
    """

    channels = 1472
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for number, convolutions in enumerate(STAGES, 1):
            stage = nn.Sequential()
            if number > 1:
                stage.add_module(str(convolutions[0][0] - 1), _L2Pool(convolutions[0][1]))
            for index, inputs, outputs in convolutions:
                stage.add_module(str(index), nn.Conv2d(inputs, outputs, 3, padding=1))
                stage.add_module(str(index + 1), nn.ReLU())
            self.add_module(f"stage{number}", stage)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def load(self, path: str | Path) -> "VGGPrior":
        """Take the weights of a file with torchvision's names (features.0.weight, ...)."""
        if not Path(path).is_file():
            raise ProbatumError(f"{path}: no such file of VGG16's weights; prior='fixed' needs none")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            own = {f"stage{n}.{i}.{kind}": state[f"features.{i}.{kind}"]
                   for n, stage in enumerate(STAGES, 1) for i, *_ in stage for kind in ("weight", "bias")}  # fmt: skip
            self.load_state_dict(own, strict=False)
        except Exception as error:
            raise ProbatumError(f"{path} does not hold torchvision's VGG16: {str(error).splitlines()[0]}") from None
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..1 -> (N, 1472, H, W)."""
        maps, y = [], (x - self.mean) / self.std
        for number in range(1, 6):
            y = getattr(self, f"stage{number}")(y)
            maps.append(y if number == 1 else F.interpolate(y, size=x.shape[2:], mode="bilinear"))
        return torch.cat(maps, 1)
