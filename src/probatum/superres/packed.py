"""Files of quantised networks: weights as they are computed with, a byte or half a byte each, the rest as floats.

A safetensors file whose header has the net's configuration. A convolution's weights are `NAME.weight.levels`, int8 from -q to q, or for 4
bits and fewer two in a byte (the first in the low half, 8 added), with `NAME.weight.step`.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.files import whole

__all__ = ["load_packed", "official", "pack", "packed_bytes", "save_packed", "unpack"]


def pack(levels: Tensor) -> Tensor:
    """int8 of -8..7, any shape -> uint8, two in a byte; an odd last one is filled up."""
    flat = (levels.flatten() + 8).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(flat.numel() % 2)])
    return flat[::2] | (flat[1::2] << 4)


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The other way."""
    flat = torch.stack([packed & 15, packed >> 4], 1).flatten()[: math.prod(shape)]
    return flat.to(torch.int8).sub_(8).view(shape)


def packed_bytes(net: nn.Module) -> int:
    """Bytes of the numbers in a packed file: weights by their bits, all else that is trained but the alphas as float32.

    The frozen mean shift and the header are not counted, as in published ratios.
    """
    from probatum.superres.pams import quantised_convolutions

    inside = {id(conv.weight): conv.bits for _, conv in quantised_convolutions(net)}
    bits = 0
    for name, p in net.named_parameters():
        if p.requires_grad and not name.endswith("alpha"):
            bits += p.numel() * (inside.get(id(p)) or 32)
    return bits // 8


def save_packed(net: nn.Module, path: str | Path) -> Path:
    """Write a quantised net; `load_packed` gives the same output bit for bit.

    Raises:
        ProbatumError: a net that is not quantised or not calibrated, or has more than 8 bits.
    """
    from safetensors.torch import save_file

    from probatum.superres.pams import quantised_convolutions, quantisers

    path = Path(path)
    note: dict[str, Any] | None = getattr(net, "quantisation", None)
    if note is None or not hasattr(net, "config"):
        raise ProbatumError("this net is not quantised: quantise(net, bits) first (weights.save writes float nets)")
    if note["bits"] > 8:
        raise ProbatumError(f"a packed file holds 2 to 8 bits, this net has {note['bits']}")
    if not any(quantiser.calibrated for quantiser in quantisers(net)):
        raise ProbatumError("this net is not calibrated: calibrate(net, batches) first")
    inside = {f"{name}.weight": conv for name, conv in quantised_convolutions(net)}
    state: dict[str, Tensor] = {}
    for name, value in [*net.named_parameters(), *((n, b) for n, b in net.named_buffers() if n in net.state_dict())]:
        if name in inside:
            levels = inside[name].levels().cpu()
            state[f"{name}.levels"] = pack(levels) if note["bits"] <= 4 else levels.contiguous()
            state[f"{name}.step"] = inside[name].step().cpu().float()
        else:
            state[name] = value.detach().cpu().float().contiguous()
    with whole(path) as partial:
        save_file(state, str(partial), metadata={"probatum": json.dumps({**net.config(), "pams": note})})  # type: ignore[operator]
    return path


def load_packed(path: str | Path, *, device: str = "cpu") -> nn.Module:
    """The net of a packed file, in evaluation mode; training it goes on from the rounded weights."""
    from probatum.superres import weights

    state, config = weights.read(Path(path))
    if not config or "pams" not in config:
        raise ProbatumError(f"{Path(path).name} is no packed file of a quantised net (save_packed writes them)")
    return assemble(state, config, device=device)


def assemble(state: dict[str, Tensor], config: dict[str, Any], *, device: str = "cpu") -> nn.Module:
    """The net of what a packed file holds."""
    from probatum.superres import weights
    from probatum.superres.pams import quantise, quantised_convolutions, quantisers

    note = dict(config["pams"])
    net = quantise(weights.build({k: v for k, v in config.items() if k != "pams"}), **note)
    inside = {f"{name}.weight": conv for name, conv in quantised_convolutions(net)}
    missing = None
    with torch.no_grad():
        for name, target in [*net.named_parameters(), *net.named_buffers()]:
            if name in inside:
                levels, step = state.get(f"{name}.levels"), state.get(f"{name}.step")
                if levels is None or step is None:
                    missing = name
                    break
                levels = unpack(levels, tuple(target.shape)) if note["bits"] <= 4 else levels
                inside[name].fixed = step
                target.copy_(levels.float() * step)
            elif name in state:
                target.copy_(state[name])
            elif name in net.state_dict():
                missing = name
                break
    if missing:
        raise ProbatumError(f"the packed file lacks {missing}: it was cut, or written for another net")
    for quantiser in quantisers(net):
        quantiser.calibrated = float(quantiser.alpha.detach()) != 10.0
    return net.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def official(state: dict[str, Tensor], config: dict[str, Any], bits: int | None) -> nn.Module:
    """The net of a state dict that the authors' PAMS code saved: floats that are rounded as it runs, and first convolutions of blocks that
    see unquantised input.

    Their files hold each middle quantiser under two names and the last maximum of every quantiser beside its alpha; alphas are of shape ()
    or (1,), by when they were saved.
    """
    from probatum.superres import weights
    from probatum.superres.pams import quantise

    if bits is None:
        raise ProbatumError("a PAMS file of the authors does not say its bits: weights.load(path, bits=8), or 4")
    # before quantising, a block's second convolution has another place: the net is built quantised, then filled
    net = quantise(weights.build(config), bits, quantise_first="release")
    given = {name: value.view(1) if name.endswith(".alpha") else value for name, value in state.items() if not name.endswith(".max_val")}
    own = net.state_dict()
    missing, extra = [k for k in own if k not in given], [k for k in given if k not in own]
    if missing or extra or any(own[k].shape != given[k].shape for k in own):
        raise ProbatumError(
            f"this looks like a PAMS file of {config['model'].upper()} and does not fit: missing {missing[0] if missing else 'nothing'}, "
            f"unexpected {extra[0] if extra else 'nothing'}, or shapes differ"
        )
    net.load_state_dict(given)
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
