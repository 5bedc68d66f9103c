"""ONNX files of the family's networks, and running them with onnxruntime: floats, and for quantised nets convolutions of integers.

A quantised convolution is written as its integers: input rounded to 8-bit levels, int8 weights, int32 bias, which onnxruntime joins into
one kernel that multiplies bytes and adds in int32. Where bits are fewer than 8 the numbers are smaller; their storage is a byte.
"""

import json
import logging
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import MissingExtra, NotHere, ProbatumError
from probatum.files import whole
from probatum.superres.parts import SRModel, check_image, pick_scale

if TYPE_CHECKING:
    from probatum.superres.pams import ActQuantiser, QuantConv2d

__all__ = ["OnnxNet", "export_onnx", "no_int8"]

OPSET = 21
_writing_integers = False


def integers() -> bool:
    """Whether a net is being written with integers at this moment."""
    return _writing_integers


@contextmanager
def _integers(on: bool) -> Iterator[None]:
    global _writing_integers
    before, _writing_integers = _writing_integers, on
    try:
        yield
    finally:
        _writing_integers = before


def _op(name: str, inputs: list[Tensor], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(f"::{name}", inputs, dtype=dtype, shape=like.shape, version=OPSET)


def quantise_dequantise(x: Tensor, quantiser: "ActQuantiser") -> Tensor:
    """Floats -> levels in unsigned bytes (fastest beside int8 weights on x86) -> floats, as operators of ONNX."""
    # from zero where nothing is negative: onnxruntime then drops the ReLU before it
    zero, q, step = 0 if quantiser.positive else 128, quantiser.q, _constant(quantiser, "step")
    byte = [torch.tensor(n, dtype=torch.uint8) for n in (zero, max(0, zero - q), zero + q)]
    levels = _op("QuantizeLinear", [x, step, byte[0]], torch.uint8, x)
    levels = _op("Clip", [levels, byte[1], byte[2]], torch.uint8, x)  # bytes end at -128 and 127, the levels at -q and q
    return _op("DequantizeLinear", [levels, step, byte[0]], torch.float32, x)


def convolution(conv: "QuantConv2d", x: Tensor) -> Tensor:
    """A convolution with int8 weights; its bias is int32 where the step of its input is known."""
    levels = _constant(conv, "levels")
    weight = _op("DequantizeLinear", [levels, _constant(conv, "step"), torch.tensor(0, dtype=torch.int8)], torch.float32, levels)
    bias = conv.bias
    if hasattr(conv, "constant_bias"):
        whole, both = _constant(conv, "bias"), _constant(conv, "bias_step")
        bias = _op("DequantizeLinear", [whole, both, torch.tensor(0, dtype=torch.int32)], torch.float32, whole)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _constant(module: nn.Module, name: str) -> Tensor:
    return cast(Tensor, getattr(module, f"constant_{name}"))


@torch.no_grad()
def _freeze(net: nn.Module) -> None:
    """Compute what is to be written, so that it is numbers in the file and not operators that make them."""
    from probatum.superres.pams import quantised_convolutions, quantisers

    for quantiser in quantisers(net):
        quantiser.register_buffer("constant_step", quantiser.step().detach().view(()))
    for _, conv in quantised_convolutions(net):
        # fewer bits leave room in a byte: the same weights as multiples of a finer step, so that the bias is rounded less
        finer = 127 // conv.q
        step = (conv.step() / finer).view(())
        conv.register_buffer("constant_levels", conv.levels() * finer)
        conv.register_buffer("constant_step", step)
        source = conv.sources[0]
        if conv.bias is not None and source is not None:
            both = _constant(source, "step") * step
            conv.register_buffer("constant_bias_step", both)
            conv.register_buffer("constant_bias", (conv.bias / both).round().clamp(-(2**31), 2**31 - 1).to(torch.int32))


class _AtScale(nn.Module):
    def __init__(self, net: nn.Module, scale: int) -> None:
        super().__init__()
        self.net, self.at = net, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.at)


def export_onnx(net: nn.Module, path: str | Path, *, scale: int | None = None, check: bool = True) -> Path:
    """Write one scale of a net as ONNX: x (N, 3, H, W) floats in 0..1 -> (N, 3, scale H, scale W), N, H and W free.

    Args:
        net: any of the family. A quantised one of 8 bits or fewer is written with integer convolutions.
        path: ends with .onnx. `OnnxNet` runs it, and so does `probatum upscale --model`.
        scale: which head; may be left out where there is one.
        check: run both on a random picture of another size, and raise, leaving no file, if they differ: floats anywhere by more than 1e-4,
            integers by half a level in the mean.
    Raises:
        ProbatumError: another ending; more than 8 bits; outputs that differ.
        MissingExtra: onnx or onnxruntime are not installed.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ProbatumError(f"path must end with .onnx, got {path.name}")
    scale = pick_scale(cast(SRModel, net).scales, scale)
    note: dict[str, Any] | None = getattr(net, "quantisation", None)
    if note and note["bits"] > 8:
        raise ProbatumError(f"integers of an ONNX file have 8 bits or fewer, this net has {note['bits']}")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("writing ONNX needs onnx and onnxscript: pip install 'probatum[onnx]'") from None
    import copy

    from probatum.superres.tiling import bytes_per_pixel

    # in plain memory order: channels-last strides would be written as transpositions
    ghost = copy.deepcopy(net).cpu().float().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    held = bytes_per_pixel(ghost, scale)
    plain, multiple = copy.deepcopy(ghost), cast(SRModel, net).multiple
    if note:
        with torch.no_grad():
            plain(torch.zeros(1, 3, 2 * multiple, 2 * multiple), scale)  # raises if it is not calibrated
        _freeze(ghost)
    side = 4 * multiple
    example = torch.rand(2, 3, 3 * side, 4 * side, generator=torch.Generator().manual_seed(0))
    free = [torch.export.Dim(name) for name in ("batch", "height", "width")]
    if multiple > 1:
        free[1:] = [multiple * d for d in free[1:]]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with torch.no_grad(), _integers(note is not None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            shapes = ({0: free[0], 2: free[1], 3: free[2]},)
            program = torch.onnx.export(
                _AtScale(ghost, scale), (example,), dynamo=True, dynamic_shapes=shapes, opset_version=OPSET, verbose=False,
                input_names=["x"], output_names=["y"],
            )  # fmt: skip
        finally:
            logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    config = getattr(net, "config", None)
    label = {
        "scale": scale, "radius": net.radius, "multiple": multiple, "bytes_per_pixel": held,
        "integers": note is not None, "config": config() if config else None,
    }  # fmt: skip
    _slim(model)
    onnx.helper.set_model_props(model, {"probatum": json.dumps(label)})
    with whole(path) as partial:
        onnx.save(model, str(partial))
        if check:
            _compare(plain, partial, scale, example[:1, :, : 2 * side, : 3 * side])
    return path


def _slim(model: Any) -> None:
    """Drop what no node reads, such as the floats that integers stand for, and the exporter's notes on where each node comes from."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {y.name for y in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


def _compare(net: nn.Module, path: Path, scale: int, x: Tensor) -> None:
    ours = OnnxNet(path)
    if ours.integers and no_int8():
        return  # cannot be run here; it may be meant for another machine
    with torch.no_grad():
        a, b = net(x, scale), ours(x, scale)
    apart = float((a - b).abs().max())
    # where a number lies between two levels, rounding may fall the other way, and all later layers see it: integers are held to half a
    # level in the mean
    rms, note = float((a - b).square().mean()) ** 0.5, getattr(net, "quantisation", None)
    if not (apart < 1e-4 if note is None else rms < 0.5 / (2 ** (note["bits"] - 1) - 1)):
        raise ProbatumError(f"the ONNX file differs from the net by {apart:.3g}: it was not written")


def no_int8() -> str | None:
    """Why integer convolutions are not to be run on this machine; None where they are.

    x86 without VNNI adds products of bytes in 16 bits, which overflow: a picture with faults, not an error.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return None if torch.cpu._is_vnni_supported() else "this CPU tells of no VNNI"
    return None if "vnni" in flags else "this CPU has no VNNI instructions (avx512_vnni or avx_vnni)"


class OnnxNet(nn.Module):
    """A network in an ONNX file that `export_onnx` wrote, run by onnxruntime on the CPU; to the tiler and `upscale` a net like any other.

    Args:
        path: the file. `threads`: 0 takes torch's number.
    Raises:
        ProbatumError: a file that was not written here. NotHere: integers on a CPU whose kernels would overflow.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise ProbatumError(f"{path}: no such file of weights")
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("running ONNX files needs onnxruntime: pip install 'probatum[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            label = json.loads(self.session.get_modelmeta().custom_metadata_map["probatum"])
        except KeyError:
            raise ProbatumError(f"{path.name} was not written by export_onnx: it does not say its scale") from None
        except Exception as error:
            raise ProbatumError(f"{path.name} cannot be read as ONNX: {str(error).splitlines()[0]}") from None
        self.scales, self.radius, self.multiple = (label["scale"],), label["radius"], label["multiple"]
        self.bytes_per_pixel, self.integers, self._config = label["bytes_per_pixel"], label["integers"], label["config"]

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        check_image(x)
        pick_scale(self.scales, scale)
        if x.device.type != "cpu":
            raise NotHere(f"ONNX files are run on the CPU, got an image on {x.device}")
        if self.integers and (reason := no_int8()):
            raise NotHere(f"int8: {reason}; load the packed file or the float net instead (weights.load)")
        return torch.from_numpy(self.session.run(None, {"x": x.float().contiguous().numpy()})[0])

    def config(self) -> dict[str, Any]:
        """Configuration of the net that was written."""
        return dict(self._config or {})
