"""The ways to fine-tune that the command and the comparison offer: one entry a method, each a function from a model to a `Tuner`.

Methods of two families stand here side by side (backpropagation in all its economies, and forward passes alone), so this is where
`finetune` imports `zeroth`. The table itself loads nothing heavy.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probatum.errors import ProbatumError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

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


@dataclass
class Tuner:
    """A model prepared for a method, and how to make a step.

    `step(closure)` calls the closure, which computes the loss of one batch, as often as the method needs, and gives the loss.
    """

    model: "nn.Module"
    optimizer: Any
    step: "Callable[[Callable[[], Tensor]], Any]"
    log: bool = False
    """Whether `optimizer.log` rebuilds the run from the starting weights."""
    finish: "Callable[[], nn.Module] | None" = None
    """Makes the plain model again that can be saved (factors merged); None: it is that already."""
    _base: list[float] = field(default_factory=list)

    def scale_lr(self, factor: float) -> None:
        """Set every group to `factor` times the rate that it started with."""
        groups = self.optimizer.param_groups
        self._base = self._base or [group["lr"] for group in groups]
        for group, lr in zip(groups, self._base, strict=True):
            group["lr"] = lr * factor

    @property
    def tuned(self) -> int:
        """How many numbers are tuned."""
        return sum(p.numel() for p in {id(p): p for group in self.optimizer.param_groups for p in group["params"]}.values())


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        forwards: what a step costs, in forward passes of a batch (a backward pass counts as two).
        grid: three learning rates for small encoders, the middle one the default; for a model of a billion weights take a tenth.
    """

    name: str
    about: str
    paper: str | None
    forwards: float
    grid: tuple[float, float, float]
    prepare: "Callable[[nn.Module, Setting, float], Tuner]"

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


def _with_lora(model: "nn.Module", setting: Setting) -> "Callable[[], nn.Module]":
    """Rank-8 factors inside the model, where it stands; everything else but the head frozen. Gives what takes them out again, merged."""
    import torch
    from peft import LoraConfig, get_peft_model

    from probatum.nn.select import select

    owner, name, inner = _language_model(model)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(setting.seed)
        try:
            wrapped = get_peft_model(inner, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0))  # type: ignore[arg-type]
        except ValueError as error:
            raise ProbatumError(f"peft cannot put LoRA into {type(inner).__name__}: {error}") from error
    setattr(owner, name, wrapped)
    model.requires_grad_(False)
    for _, parameter in select(model, ["*lora_*", *(_inside(pattern, name) for pattern in setting.head)], trainable_only=False):
        parameter.requires_grad_(True)

    def merged() -> "nn.Module":
        setattr(owner, name, wrapped.merge_and_unload())  # type: ignore[operator]
        return model

    return merged


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

    merged = _with_lora(model, setting)
    return _first_order(model, torch.optim.AdamW(_trainable(model), lr=lr), finish=merged)


def _mezo(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import MeZO

    optimizer = MeZO(model.named_parameters(), lr=lr, eps=setting.eps or 1e-3, seed=setting.seed, model=model)
    return Tuner(model, optimizer, optimizer.step, log=True)


def _mezo_lora(model: "nn.Module", setting: Setting, lr: float) -> Tuner:
    from probatum.zeroth import MeZO

    merged = _with_lora(model, setting)
    optimizer = MeZO(model.named_parameters(), lr=lr, eps=setting.eps or 1e-2, seed=setting.seed, exclude=(), model=model)
    return Tuner(model, optimizer, optimizer.step, log=True, finish=merged)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("adamw", "backpropagation through all weights", None, 3, (2e-5, 1e-4, 5e-4), _adamw),
        Method("lora", "backpropagation, rank-8 factors on query and value, and the head", None, 3, (3e-4, 1e-3, 3e-3), _lora),
        Method("mezo", "two forward passes a step, all weights but embeddings", "mezo", 2, (1e-4, 3e-4, 1e-3), _mezo),
        Method("mezo_lora", "two forward passes a step, the same factors and the head", "mezo", 2, (3e-3, 1e-2, 3e-2), _mezo_lora),
    )
}


def method_named(name: str, of: Iterable[str] = METHODS) -> Method:
    """The method of this name.

    Raises:
        ProbatumError: no such method, with the nearest.
    """
    if name not in METHODS:
        raise ProbatumError(f"method must be one of {', '.join(of)}, got {name!r}; {did_you_mean(name, of)}".rstrip("; "))
    return METHODS[name]
