"""Weight files: ours (safetensors with the configuration in their header) and other people's (recognised by their
keys)."""

import json
import pickle
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import MissingExtra, ProbatumError, did_you_mean
from probatum.files import whole
from probatum.superres import carn, cfsr, edsr, nafssr, rdn, st_avsr, tcsr
from probatum.superres.residual import PlainResidual

__all__ = ["NETS", "build", "load", "read", "save", "shipped", "shipped_files"]

NETS: dict[str, Callable[..., nn.Module]] = {
    "carn": carn.CARN, "carn_m": carn.CARNM, "cfsr": cfsr.CFSR, "edsr": edsr.EDSR, "nafssr": nafssr.NAFSSR, "rdn": rdn.RDN,
    "plain": PlainResidual, "st_avsr": st_avsr.STAVSR, "tcsr": tcsr.TCSR,
}  # fmt: skip
OWN = (carn, cfsr, edsr, nafssr, rdn, st_avsr, tcsr)  # recognise the authors' files by their keys
WRAPPERS = ("params_ema", "params", "model_state_dict", "model", "state_dict")


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration: {"model": one of NETS, "scale": ..., other arguments}, with weights as at the
    start of training."""
    options = dict(config)
    name = options.pop("model", None)
    if name not in NETS:
        raise ProbatumError(f"model must be one of {', '.join(NETS)}, got {name!r}: {did_you_mean(str(name), NETS)}")
    scale = options.pop("scale")
    return NETS[name](scale[0] if isinstance(scale, list) and len(scale) == 1 else scale, **options)


def save(net: nn.Module, path: str | Path, *, half: bool = True) -> None:
    """Write weights (half precision by default) and configuration as safetensors; a kill in mid-save leaves nothing
    half written."""
    from safetensors.torch import save_file

    if hasattr(net, "quantisation"):
        raise ProbatumError("this net is quantised: save_packed writes it with its bits")
    kind = torch.float16 if half else torch.float32
    state = {name: value.detach().to("cpu", kind).contiguous() for name, value in net.state_dict().items()}
    with whole(Path(path)) as partial:
        save_file(state, str(partial), metadata={"probatum": json.dumps(net.config())})  # type: ignore[operator]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of a file by name, and the configuration that ours have in their header."""
    if not path.is_file():
        raise ProbatumError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), "pt") as file:
                note = (file.metadata() or {}).get("probatum")
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(note) if note else None  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise MissingExtra("reading weights needs safetensors: pip install 'probatum[superres]'") from None
    except pickle.UnpicklingError:
        raise ProbatumError(
            f"{path.name} holds more than tensors and is refused: a pickle can run code when it is read"
        ) from None
    except Exception as error:
        raise ProbatumError(f"{path.name} cannot be read as weights: {str(error).splitlines()[0]}") from None
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ProbatumError(f"{path.name} is not a state dict: expected names of tensors")
    return state, None


def load(path: str | Path, expect: str | None = None, *, device: str = "cpu", bits: int | None = None) -> nn.Module:
    """The network in a file, in evaluation mode: ours (packed and ONNX files too), or the authors' CARN, CARN-M, CFSR,
    EDSR, NAFSSR, PAMS, RDN and ST-AVSR, with or without wrappers and `module.`.

    Args:
        path: .safetensors, a pickle that holds only tensors, or .onnx from `export_onnx`.
        expect: a name of NETS that it must be; None takes what it is.
        bits: of an authors' PAMS file, which does not say them.
    Raises:
        ProbatumError: unreadable; not a network of ours; another one than expected (says which it looks like and the
            first key that is missing and unexpected).
    """
    path = Path(path)
    if path.suffix == ".onnx":
        if device != "cpu":
            raise ProbatumError(f"{path.name}: ONNX files are run on the CPU, got device {device!r}")
        from probatum.superres.exporting import OnnxNet

        return OnnxNet(path)
    state, config = read(path)
    if config and "pams" in config:
        from probatum.superres.packed import assemble

        return assemble(state, config, device=device)
    state = {name.removeprefix("module."): value.float() for name, value in state.items()}
    known = config or next((found for module in OWN if (found := module.looks_like(state))), None)
    if known and any(name.endswith(".alpha") for name in state):
        from probatum.superres.packed import official

        return official(state, known, bits).to(device)
    if known is None:
        raise ProbatumError(
            f"{path.name} is not a network that this reads ({', '.join(NETS)}); "
            f"its first key is {next(iter(state), None)!r}"
        )
    if known["model"] == "st_avsr":
        state = st_avsr.without_flow_net(state)
    variant = "CARN-M, group {}".format(known["groups"]) if known["model"] == "carn_m" else known["model"].upper()
    wanted = build(
        known
        if expect is None or known["model"] == expect
        else {
            "model": expect,
            "scale": known["scale"][:1] if expect in ("cfsr", "edsr", "nafssr", "rdn", "tcsr") else known["scale"],
            **({} if expect == "tcsr" else {"width": known["width"]}),  # heads must divide its width
        }
    )
    own = wanted.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or extra:
        raise ProbatumError(
            f"{path.name} does not fit {expect or known['model']}: missing {missing[0] if missing else 'nothing'}, "
            f"unexpected {extra[0] if extra else 'nothing'}; it looks like {variant}"
        )
    wrong = next((k for k in own if own[k].shape != state[k].shape), None)
    if wrong:
        raise ProbatumError(
            f"{path.name}: {wrong} is {tuple(state[wrong].shape)}, expected {tuple(own[wrong].shape)}; "
            f"it looks like {variant}"
        )
    wanted.load_state_dict(state)
    # the same numbers in the order of memory that convolutions are fast in
    return wanted.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def shipped_files() -> dict[str, Path]:
    """Name -> file of the weights that come with the package."""
    place = Path(str(files("probatum"))) / "weights" / "superres"
    return {path.stem: path for path in sorted(place.glob("*.safetensors"))}


def shipped(name: str, *, device: str = "cpu") -> nn.Module:
    """A network that we trained and ship, such as "carn"; an unknown name is told the nearest."""
    known = shipped_files()
    if name.startswith("tcsr") and name not in known:
        raise ProbatumError(f"no weights named {name!r} are shipped: the authors of TCSR published none; train one (see the card of tcsr)")
    if name not in known:
        raise ProbatumError(
            f"no weights named {name!r} are shipped: {did_you_mean(name, known) or 'see probatum show carn'}"
        )
    return load(known[name], device=device)
