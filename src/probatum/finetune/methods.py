"""The ways to fine-tune that the command and the comparison offer: one entry a method, each a function from a model to a `Tuner`.

Methods of two families stand here side by side (backpropagation in all its economies, and forward passes alone), so this is where
`finetune` imports `zeroth`. The table itself loads nothing heavy.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probatum.errors import ProbatumError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from peft import PeftModel
    from torch import Tensor, nn

    from probatum.zeroth.suffix import FrozenPrefix

__all__ = ["METHODS", "Method", "Setting", "Tuner", "method_named"]


@dataclass(frozen=True)
class Setting:
    """What a run fixes for a method: lr and eps of None take the method's own."""

    lr: float | None = None
    eps: float | None = None
    steps: int = 500
    seed: int = 0
    head: Sequence[str] = ()
    """Patterns of parameter names that are tuned besides what the method tunes: a new head."""
    samples: Sequence[Any] = ()
    """What `loss` takes, a text each: methods that choose weights by their gradient (senszoq) look at these first."""
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None


@dataclass
class Tuner:
    """A model prepared for a method, and how to make a step.

    `step(closure)` calls the closure, which computes the loss of one batch, as often as the method needs, and gives the loss.
    """

    model: "nn.Module"
    optimizer: Any
    step: "Callable[[Callable[[], Tensor]], Any]"
    finish: "Callable[[], object] | None" = None
    """Makes the plain model again that can be saved (factors merged); None: it is that already."""
    adapter: "Callable[[Path], object] | None" = None
    """Writes what was tuned, and nothing of the base, into a folder."""
    prefix: "FrozenPrefix | None" = None
    """What is frozen below the tuned layers, run once a text."""
    held: Callable[[], bool] | None = None
    """Whether the rate must stay as it is for now (in the middle of a cycle)."""
    _base: list[float] = field(default_factory=list)

    def scale_lr(self, factor: float) -> None:
        """Set every group to `factor` times the rate that it started with."""
        if self.held and self.held():
            return
        groups = self.optimizer.param_groups
        self._base = self._base or [group["lr"] for group in groups]
        for group, lr in zip(groups, self._base, strict=True):
            group["lr"] = lr * factor

    def seen(self, texts: "Sequence[str]", mask: "Tensor") -> "AbstractContextManager[None]":
        """Around the steps on a batch of these texts, whose real tokens `mask` (B, T) marks."""
        return nullcontext() if self.prefix is None else self.prefix.of(texts, mask)

    def weights(self) -> "dict[str, Tensor]":
        """What is tuned, by name."""
        tuned = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.model.named_parameters() if id(p) in tuned}

    @property
    def tuned(self) -> int:
        """How many numbers are tuned."""
        return sum(p.numel() for p in self.weights().values())


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        forwards: what a step costs, in forward passes of a batch (a backward pass counts as two).
        grid: three learning rates for small encoders, the middle one the default; for a model of a billion weights take a tenth.
        forms: what can be kept of a run, the usual first: "model" (a checkpoint), "adapter" (what was tuned), or "log" (what rebuilds it
            from the base).
        attach: (model as it starts, setting, folder) gives the model as it was with the adapter of that folder, where there is that form.
    """

    name: str
    about: str
    paper: str | None
    forwards: float
    grid: tuple[float, float, float]
    prepare: "Callable[[nn.Module, Setting, float], Tuner]"
    forms: tuple[str, ...] = ("model",)
    attach: "Callable[[nn.Module, Setting, Path], nn.Module] | None" = None

    def tuner(self, model: "nn.Module", setting: Setting) -> Tuner:
        """Prepare a model (in place) and its optimizer."""
        return self.prepare(model, setting, self.grid[1] if setting.lr is None else setting.lr)


def _first_order(model: "nn.Module", optimizer: "torch.optim.Optimizer", **more: Any) -> Tuner:
    def step(closure: "Callable[[], Tensor]") -> "Tensor":
        optimizer.zero_grad(set_to_none=True)
        loss = closure()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Tuner(model, optimizer, step, **more)


def _trainable(model: "nn.Module") -> "list[nn.Parameter]":
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _adamw(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    import torch

    return _first_order(model, torch.optim.AdamW(_trainable(model), lr=lr, weight_decay=0.01))


def _with_lora(model: "nn.Module", setting: Setting, modules: "list[str] | None" = None) -> "tuple[PeftModel, Callable[[], nn.Module]]":
    """Rank-8 factors inside the model, where it stands; everything else but the head frozen. Gives peft's model, and what takes the
    factors out again, merged. modules: where; None takes query and value of every layer."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    from probatum.nn.select import select

    owner, name, inner = _language_model(model)
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, about a name in transformers
        torch.manual_seed(setting.seed)
        try:
            wrapped = get_peft_model(inner, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=modules))  # type: ignore[arg-type]
        except ValueError as error:
            raise ProbatumError(f"peft cannot put LoRA into {type(inner).__name__}: {error}") from error
    setattr(owner, name, wrapped)
    model.requires_grad_(False)
    for _, parameter in select(model, ["*lora_*", *(_inside(pattern, name) for pattern in setting.head)], trainable_only=False):
        parameter.requires_grad_(True)

    def merged() -> "nn.Module":
        setattr(owner, name, wrapped.merge_and_unload())  # type: ignore[operator]
        return model

    return wrapped, merged  # type: ignore[return-value]


def _save_lora(model: "nn.Module", wrapped: "PeftModel", setting: Setting, folder: "Path") -> None:
    """As peft saves and opens it, and the head beside."""
    from safetensors.torch import save_file

    wrapped.save_pretrained(str(folder))
    head = {name: tensor.detach() for name, tensor in _head(model, setting)}
    if head:
        save_file(head, folder / "tuned_head.safetensors")


def _attach_lora(model: "nn.Module", setting: Setting, folder: "Path", modules: "list[str] | None" = None) -> "nn.Module":
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    wrapped, merged = _with_lora(model, setting, modules)
    set_peft_model_state_dict(wrapped, load_file(folder / "adapter_model.safetensors"))
    head = _head(model, setting)
    if head:
        saved = load_file(folder / "tuned_head.safetensors")
        with torch.no_grad():
            for name, tensor in head:
                tensor.copy_(saved[name])
    return merged()


def _head(model: "nn.Module", setting: Setting) -> "list[tuple[str, Tensor]]":
    """The head's parameters, inside a model that peft wrapped."""
    from probatum.nn.select import select

    if not setting.head:
        return []
    name = _language_model(model)[1]
    return select(model, [_inside(pattern, name) for pattern in setting.head], trainable_only=False)


def _language_model(model: "nn.Module") -> "tuple[nn.Module, str, nn.Module]":
    """(owner, attribute, module) of the transformers model inside a classifier."""
    for name, child in model.named_children():
        if hasattr(child, "config"):
            return model, name, child
    raise ProbatumError(f"LoRA needs a transformers model inside, {type(model).__name__} has none")


def _inside(pattern: str, name: str) -> str:
    """A pattern of names for the model before peft wrapped the part called `name`, as a pattern for after."""
    return pattern.replace(f"{name}.", f"{name}.base_model.model.", 1) if pattern.startswith(f"{name}.") else pattern


def _lora(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    import torch

    wrapped, merged = _with_lora(model, setting)
    return _first_order(
        model, torch.optim.AdamW(_trainable(model), lr=lr), finish=merged, adapter=lambda folder: _save_lora(model, wrapped, setting, folder)
    )


def _mezo(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import MeZO

    optimizer = MeZO(model.named_parameters(), lr=lr, eps=setting.eps or 1e-3, seed=setting.seed, model=model)
    return Tuner(model, optimizer, optimizer.step)


def _mezo_lora(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import MeZO

    wrapped, merged = _with_lora(model, setting)
    optimizer = MeZO(model.named_parameters(), lr=lr, eps=setting.eps or 1e-2, seed=setting.seed, exclude=(), model=model)
    return Tuner(model, optimizer, optimizer.step, merged, lambda folder: _save_lora(model, wrapped, setting, folder))


def _last_layer(model: "nn.Module") -> "tuple[str, list[Tensor]]":
    """Name of the last layer of the model's stack, and what stands before it."""
    from probatum.nn.groups import layer_groups

    groups = layer_groups(model)
    blocks = [i for i, group in enumerate(groups) if group.name.rpartition(".")[2].isdigit()]
    if not blocks:
        raise ProbatumError(f"lora_last and mezo_last tune the last of a stack of layers, {type(model).__name__} has no stack")
    return groups[blocks[-1]].name, [tensor for group in groups[: blocks[-1]] for tensor in group.tensors]


def _freeze_below_last(model: "nn.Module") -> "FrozenPrefix | None":
    """Leave the last layer of the model's stack and what follows it; what stands before is frozen and run once a text."""
    from probatum.zeroth.suffix import FrozenPrefix

    last, before = _last_layer(model)
    for tensor in before:
        tensor.requires_grad_(False)
    return FrozenPrefix(model, last) if int(last.rpartition(".")[2]) else None


def _lora_last(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    """Rank-8 factors on every linear map of the last layer; what stands before is frozen and run once a text."""
    import torch

    prefix = _freeze_below_last(model)
    wrapped, merged = _with_lora(model, setting, _linears_of_last(model))
    return _first_order(
        model, torch.optim.AdamW(_trainable(model), lr=lr), finish=merged, adapter=lambda folder: _save_lora(model, wrapped, setting, folder),
        prefix=prefix,
    )  # fmt: skip


def _attach_lora_last(model: "nn.Module", setting: Setting, folder: "Path") -> "nn.Module":
    return _attach_lora(model, setting, folder, _linears_of_last(model))


def _linears_of_last(model: "nn.Module") -> list[str]:
    """As peft names them: inside the transformers model."""
    from torch import nn

    last, name = _last_layer(model)[0], _language_model(model)[1]
    return [
        path.removeprefix(f"{name}.") for path, module in model.named_modules() if isinstance(module, nn.Linear) and path.startswith(f"{last}.")
    ]


def _mezo_last(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import MeZO

    prefix = _freeze_below_last(model)
    optimizer = MeZO(model.named_parameters(), lr=lr, eps=setting.eps or 1e-3, seed=setting.seed, model=model)
    return Tuner(model, optimizer, optimizer.step, prefix=prefix)


def _sparse_mezo(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import SparseMeZO

    optimizer = SparseMeZO(model.named_parameters(), lr, 0.75, setting.eps or 1e-3, seed=setting.seed, model=model)
    return Tuner(model, optimizer, optimizer.step)


def _senszoq(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    """The weights are those with the largest squared gradient on the samples that are given, which are texts of the task."""
    from probatum.zeroth import SensZOQ, choose, merge_adapter, save_adapter, sensitivity, split

    if setting.loss is None or not setting.samples:
        raise ProbatumError("senszoq chooses weights by their gradient: samples and loss must be given")
    scores = sensitivity(model, setting.samples, setting.loss, exclude=("*norm*", "*Norm*", "*embed*", "*lm_head*", *setting.head))
    fraction = max(1e-3, 1 / min(score.numel() for score in scores.values()))  # one weight of the smallest matrix at least
    split(model, choose(scores, fraction), also=setting.head)
    optimizer = SensZOQ(model.named_parameters(), lr, setting.eps or 1e-2, seed=setting.seed)
    return Tuner(
        model, optimizer, optimizer.step, lambda: merge_adapter(model), lambda folder: save_adapter(model, folder / "adapter.safetensors")
    )


def _attach_senszoq(model: "nn.Module", setting: Setting, folder: "Path") -> "nn.Module":
    from probatum.zeroth import load_adapter, merge_adapter

    return merge_adapter(load_adapter(model, folder / "adapter.safetensors"))


def _adazeta(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import AdaZeta, QuerySchedule, add_adapters

    add_adapters(model, also=setting.head)
    optimizer = AdaZeta(
        model.named_parameters(), lr, setting.eps or 1e-3, QuerySchedule.power(end=QUERIES, epochs=EPOCHS, most=QUERIES),
        steps_per_epoch=max(1, setting.steps // EPOCHS), seed=setting.seed, exclude=(),
    )  # fmt: skip
    return Tuner(model, optimizer, optimizer.step)


def _hift(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    import torch

    from probatum.finetune.hift import HiFT

    host = all(parameter.device.type == "cpu" for parameter in _trainable(model))  # where memory off the device is the same memory
    optimizer = HiFT(model, torch.optim.AdamW(_trainable(model), lr=lr), state="disk" if host else "cpu")
    tuner = _first_order(model, optimizer)
    tuner.finish, tuner.held = optimizer.release, lambda: optimizer.steps % optimizer.cycle != 0
    return tuner


QUERIES, EPOCHS = 4, 10  # of adazeta's schedule here; the paper's ends at 20 and is cut at 15, over 160 epochs
BOTH = ("model", "log")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("adamw", "backpropagation through all weights", None, 3, (2e-5, 1e-4, 5e-4), _adamw),
        Method("lora", "backpropagation, rank-8 factors on query and value, and the head", None, 3, (3e-4, 1e-3, 3e-3), _lora,
               ("model", "adapter"), _attach_lora),
        Method("lora_last", "backpropagation through the last layer alone, rank-8 factors on all its maps, those before it once a text", None, 3,
               (3e-4, 1e-3, 3e-3), _lora_last, ("model", "adapter"), _attach_lora_last),
        Method("hift", "backpropagation through all weights, one layer a step", "hift", 2, (4e-5, 2e-4, 1e-3), _hift),
        Method("mezo", "two forward passes a step, all weights but embeddings", "mezo", 2, (1e-4, 3e-4, 1e-3), _mezo, BOTH),
        Method("mezo_last", "two forward passes a step from the last layer on, those before it once a text", "mezo", 2, (3e-4, 1e-3, 3e-3),
               _mezo_last, BOTH),
        Method("mezo_lora", "two forward passes a step, the same factors and the head", "mezo", 2, (3e-3, 1e-2, 3e-2), _mezo_lora,
               ("model", "adapter", "log"), _attach_lora),
        Method("sparse_mezo", "two forward passes a step, the smallest quarter of each matrix", "sparse_mezo", 2, (3e-4, 1e-3, 3e-3),
               _sparse_mezo, BOTH),
        Method("senszoq", "two forward passes a step, the 0.1 % of largest gradient, the rest in 4 bits", "senszoq", 2, (1e-2, 3e-2, 1e-1),
               _senszoq, ("model", "adapter"), _attach_senszoq),
        Method("adazeta", "one to four pairs of forward passes a step, tensor-train adapters", "adazeta", 3.8, (1e-3, 3e-3, 1e-2), _adazeta,
               ("log",)),
    )
}  # fmt: skip


def method_named(name: str, of: Iterable[str] = METHODS) -> Method:
    """The method of this name.

    Raises:
        ProbatumError: no such method, with the nearest.
    """
    if name not in METHODS:
        raise ProbatumError(f"method must be one of {', '.join(of)}, got {name!r}; {did_you_mean(name, of)}".rstrip("; "))
    return METHODS[name]
