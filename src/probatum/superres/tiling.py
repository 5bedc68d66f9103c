"""Enlarging big images piece by piece, with the same pixels as in one piece.

A tile is run with a border of the network's receptive radius, cut only by the image's own border, so that zero padding
falls where it falls for the whole image; the border is thrown away. Nothing is blended, because nothing differs (beyond
the rounding of a convolution, 1e-7).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from probatum.errors import NotHere, ProbatumError
from probatum.superres.parts import SRModel

__all__ = ["bytes_per_pixel", "strips", "tile_for", "tiled"]

SMALLEST = 16


def bytes_per_pixel(net: SRModel, scale: int) -> float:
    """Bytes that enlarging one input pixel holds at its peak, in float32; the weights are not counted.

    The largest (input + output) of a layer, found on the meta device, times 1.5 for buffers inside convolutions, which
    measurements here stay below.
    """
    import copy

    known = getattr(net, "bytes_per_pixel", None)  # of a net in an ONNX file, which has no layers to look at
    if known is not None:
        return float(known)
    assert isinstance(net, nn.Module)
    ghost, most, side = copy.deepcopy(net).to("meta", torch.float32), 0, 64

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal most
        held = sum(x.numel() for x in inputs if isinstance(x, Tensor)) + output.numel()
        most = max(most, held * 4)

    for layer in ghost.modules():
        if not list(layer.children()):
            layer.register_forward_hook(note)
    with torch.no_grad():
        ghost(torch.empty(1, 3 * getattr(net, "views", 1), side, side, device="meta"), scale)
    return 1.5 * most / side**2


def tile_for(net: SRModel, scale: int, budget: float) -> int:
    """Side of the square tile, its border not counted, that keeps memory below `budget` bytes; never below 16."""
    if net.radius is None:
        raise ProbatumError("this net sees the whole image: it cannot be tiled exactly")
    return max(SMALLEST, int((budget / bytes_per_pixel(net, scale)) ** 0.5) - 2 * net.radius)


@torch.inference_mode()
def strips(
    run: Callable[[Tensor, int], Tensor],
    image: Tensor,
    scale: int,
    *,
    tile: int,
    overlap: int,
    device: str | torch.device = "cpu",
    finish: Callable[[Tensor], Tensor] | None = None,
    whole_rows: bool = False,
    seams: list[float] | None = None,
) -> Iterator[Tensor]:
    """Enlarged horizontal strips of an image from top to bottom; neither it nor the result is ever on the device as a
    whole.

    Args:
        run: network or function of (N, C, h, w) floats in 0..1 and the scale.
        image: (C, H, W), uint8 or uint16 (scaled to 0..1) or floats in 0..1, on the CPU.
        tile: side of a tile's core in input pixels. `overlap`: border run with it; the receptive radius makes the
            result exact.
        finish: made of each enlarged tile (C', h, w) before it is put in its place, such as rounding to 8 bits.
        whole_rows: tiles are as wide as the image and `tile` rows high: for nets that look along whole rows.
        seams: with `whole_rows`, gets for each seam the largest difference between what its two strips make of the input rows beside it:
            0 up to rounding where the overlap is enough, a measure of the error where it is not.
    Yields:
        (C, scale h, scale W) on the CPU: floats, not clipped, or what `finish` makes.
    A tile that does not fit in memory is halved, down to 16 pixels, and the work goes on with the smaller size.
    """
    if tile < 1 or overlap < 0:
        raise ProbatumError(f"tile must be 1 or more and overlap 0 or more, got {tile!r} and {overlap!r}")
    peak = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(image.dtype, 1.0)
    height, width = image.shape[1:]
    top = 0
    above: Tensor | None = None  # the rows around `top`, as the strip before it sees them
    while top < height:
        bottom = min(height, top + tile)
        try:
            out = below = None
            for left in range(0, width, width if whole_rows else tile):
                right = width if whole_rows else min(width, left + tile)
                y0, y1 = max(0, top - overlap), min(height, bottom + overlap)
                x0, x1 = max(0, left - overlap), min(width, right + overlap)
                x = (
                    (image[None, :, y0:y1, x0:x1].to(torch.float32) / peak)
                    .to(device)
                    .contiguous(memory_format=torch.channels_last)
                )
                full = run(x, scale)[0]
                if seams is not None and whole_rows and overlap:
                    if above is not None:
                        seams.append(float((full[:, (top - 1 - y0) * scale : (top + 1 - y0) * scale] - above).abs().max()))
                    below = full[:, (bottom - 1 - y0) * scale : (bottom + 1 - y0) * scale].clone() if bottom < height else None
                y = full[:, (top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
                y = (finish(y) if finish else y).cpu()
                if out is None:
                    out = torch.empty(y.shape[0], (bottom - top) * scale, width * scale, dtype=y.dtype)
                out[..., left * scale : right * scale] = y
                del x, y, full
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if tile <= SMALLEST:
                raise NotHere(f"not enough memory for a tile of {tile} pixels on {device}") from None
            tile = max(SMALLEST, tile // 2)
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()
            continue
        assert out is not None
        yield out
        top, above = bottom, below


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def tiled(net: SRModel, x: Tensor, scale: int, *, tile: int, overlap: int | None = None) -> Tensor:
    """Enlarge (N, 3, H, W) floats by tiles; equal to `net(x, scale)` up to the rounding of a convolution.

    Args:
        tile: side of a tile's core. `overlap`: default the net's receptive radius, which is exact; less is faster and
            differs (CARN: by 1e-6 at 16, 1e-3 at 8).
    """
    if overlap is None:
        overlap = net.radius
    if overlap is None:
        raise ProbatumError("this net sees the whole image: give an overlap, and expect seams")
    device = x.device
    return torch.stack(
        [torch.cat(list(strips(net, image.cpu(), scale, tile=tile, overlap=overlap, device=device)), 1) for image in x]
    ).to(device)
