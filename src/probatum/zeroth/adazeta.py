"""AdaZeta: zeroth-order fine-tuning of tensor-train adapters (Yang et al. 2024, arXiv 2406.18060).

Small bottleneck adapters whose two maps are tensor trains are put into a frozen model and tuned by forward passes; the number of random
directions that a step averages grows with the epoch, since averaging Q of them makes a step stable up to a Q times larger learning rate.
For fine-tunes of a few thousand numbers where several processes can share the directions; at equal forward passes on one
process, more directions a step are no gain (see the card).

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 3))
>>> x, y = torch.randn(30, 12), torch.randint(3, (30,))
>>> before = model(x)
>>> adapters = add_adapters(model, after=["0"], bottleneck=8)
>>> torch.equal(model(x), before), sum(p.numel() for p in model.parameters() if p.requires_grad)
(True, 550)
>>> optimizer = AdaZeta(model.named_parameters(), lr=1e-2, queries=QuerySchedule.power(end=20, epochs=40), steps_per_epoch=10)
>>> for step in range(20):
...     loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(model(x), y))
>>> optimizer.asked, len(optimizer.log)
(20, 20)
"""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError, did_you_mean
from probatum.nn.tensor_train import Contraction, TTLinear
from probatum.zeroth.distributed import distribute
from probatum.zeroth.noise import Kind
from probatum.zeroth.optimizer import ZerothOrder
from probatum.zeroth.schedules import QuerySchedule
from probatum.zeroth.weights import Exact

__all__ = ["AdaZeta", "QuerySchedule", "TTAdapter", "add_adapters", "distribute"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}
NAME = "tt_adapter"

# Where the adapters stand: (module patterns whose output, whose input is adapted). The first is the paper's, of LLaMA's MLP.
PLACES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("*.mlp.down_proj",), ("*.mlp.gate_proj", "*.mlp.up_proj")),
    (("*.attention.output.dense", "*layer.*.output.dense"), ()),  # BERT and its kin, as Houlsby et al. 2019
    (("*.h.*.attn.c_proj", "*.h.*.mlp.c_proj"), ()),  # GPT-2
    (("*.self_attn.out_proj", "*.fc2"), ()),  # OPT, BART
    (("*.mlp.down_proj",), ()),
)


class TTAdapter(nn.Module):
    """(..., width) -> (..., width): h + up(act(down(h))), both maps tensor trains, 0 at the start so that the model is unchanged.

    Args:
        width: of h.
        bottleneck: between the two maps; the paper's 64.
        rank: of the trains; the paper's 5.
        activation: "relu" (the paper's script), "tanh", "gelu", or None for a linear adapter, which can be merged.
        bias: on both maps. The reference has them: at width 4,096 they are 4,160 of an adapter's 6,360 numbers.
        shape: (factors of the width, of the bottleneck); default as balanced as they go.
        contraction: as `TTLinear`'s.
        generator: of the initial cores.
    Raises:
        ProbatumError: a width that does not factor, an activation that is not known, or as `TTLinear`.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int = 64,
        rank: int = 5,
        *,
        activation: Literal["relu", "tanh", "gelu"] | None = "relu",
        bias: bool = False,
        shape: tuple[Sequence[int], Sequence[int]] | None = None,
        contraction: Contraction = "auto",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if activation is not None and activation not in ACTIVATIONS:
            raise ProbatumError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        options: dict[str, Any] = {"bias": bias, "contraction": contraction, "generator": generator, "device": device}
        self.activation = activation
        self.down = TTLinear(width, bottleneck, rank, shape=shape, **options)
        self.up = TTLinear(bottleneck, width, rank, shape=shape and (shape[1], shape[0]), zero=True, **options)

    def forward(self, h: Tensor) -> Tensor:
        """Computed in the dtype of the cores (float32), added in that of h."""
        z = self.down(h.to(self.down.cores[0].dtype))
        if self.activation is not None:
            z = ACTIVATIONS[self.activation](z)
        return h + self.up(z).to(h.dtype)

    @torch.no_grad()
    def merge(self, linear: nn.Linear) -> nn.Linear:
        """A linear layer that does what `linear` and then this adapter did.

        Raises:
            ProbatumError: there is an activation between the maps, so that no matrix does the same.
        """
        if self.activation is not None:
            raise ProbatumError(
                f"activation={self.activation!r} stands between the maps, so the adapter is no matrix and cannot be merged; "
                "train it with activation=None for that"
            )
        d, u = self.down, self.up
        delta = (d.matrix() @ u.matrix()).t().to(linear.weight.dtype)  # (width, width)
        merged = nn.Linear(
            linear.in_features, linear.out_features, bias=True, device=linear.weight.device, dtype=linear.weight.dtype
        )
        merged.weight.copy_(linear.weight + delta @ linear.weight)
        shift = torch.zeros_like(merged.bias) if linear.bias is None else linear.bias + delta @ linear.bias
        if d.bias is not None and u.bias is not None:
            shift = shift + (d.bias @ u.matrix() + u.bias).to(shift.dtype)
        merged.bias.copy_(shift)
        return merged


def add_adapters(
    model: nn.Module,
    *,
    after: Iterable[str] | None = None,
    before: Iterable[str] = (),
    also: Iterable[str] = (),
    bottleneck: int = 64,
    rank: int = 5,
    generator: torch.Generator | None = None,
    **options: Any,
) -> list[TTAdapter]:
    """Freeze a model and put a tensor-train adapter at the modules named, as their child `tt_adapter`; the output is as before, bit for bit.

    Args:
        model: any; names and classes stay, `state_dict` gains the adapters.
        after, before: shell patterns of modules whose output, whose input is adapted ("*.mlp.down_proj"). Default by architecture: in
            LLaMA and its kin after `down_proj` and before `gate_proj` and `up_proj` of every block (the paper's three), in others
            after the output projections of attention and MLP.
        also: patterns of parameters to tune besides (a new classification head).
        bottleneck, rank, options: as `TTAdapter`'s.
        generator: default a fixed one, so that the start can be repeated.
    Returns:
        The adapters, in the order of the modules.
    Raises:
        ProbatumError: patterns that match no module, a module without a known width, adapters that are there already. Nothing is
            changed then.
    """
    modules = dict(model.named_modules())
    if any(name.endswith("." + NAME) for name in modules):
        raise ProbatumError("the model has tensor-train adapters already")
    if after is None and not before:
        found = next((p for p in PLACES if all(any(fnmatchcase(n, x) for n in modules) for x in [*p[0], *p[1]])), None)
        if found is None:
            raise ProbatumError(
                f"after must be given: the places for {type(model).__name__} are not known; name modules whose output is adapted, such "
                "as '*.mlp.down_proj'"
            )
        after, before = found
    places: dict[str, bool] = {}
    for patterns, inside in ((after or (), False), (before, True)):
        for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
            matched = [name for name in modules if fnmatchcase(name, pattern)]
            if not matched:
                near = did_you_mean(pattern.strip("*."), modules)
                raise ProbatumError(
                    f"{'before' if inside else 'after'}: {pattern!r} matches none of {len(modules)} modules{'; ' + near if near else ''}"
                )
            places.update(dict.fromkeys(matched, inside))
    generator = generator or torch.Generator().manual_seed(0)
    made = []
    for name in (name for name in modules if name in places):
        module, inside = modules[name], places[name]
        made.append(
            TTAdapter(_width(name, module, inside), bottleneck, rank, generator=generator, **options)
        )
    tuned = _matching(model, also)
    model.requires_grad_(False)
    for parameter in tuned:
        parameter.requires_grad_(True)
    for (name, adapter) in zip((name for name in modules if name in places), made, strict=True):
        module = modules[name]
        device = next(iter(module.parameters())).device
        setattr(module, NAME, adapter.to(device))
        if places[name]:
            module.register_forward_pre_hook(_adapt_input)
        else:
            module.register_forward_hook(_adapt_output)
    return made


class AdaZeta(ZerothOrder):
    """The paper's optimizer: MeZO's two-point step averaged over `queries(epoch)` directions, on few weights.

    Args:
        params, lr, eps, noise, seed, weight_decay, clip, include, exclude, model, threads: as `ZerothOrder`'s.
        queries: directions a step by epoch, or one number for all. Paper: `QuerySchedule.power(end=20, epochs=..., beta=0.85, most=15)`.
        steps_per_epoch: steps after which the schedule moves on.
        exact: "copy" (default) keeps the tuned weights aside and copies them back; or as `ZerothOrder`'s.
    Raises:
        ProbatumError: steps_per_epoch or queries below 1, or as `ZerothOrder`.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float,
        eps: float = 1e-3,
        queries: QuerySchedule | int = 1,
        *,
        steps_per_epoch: int = 1,
        noise: Kind = "gaussian",
        exact: Exact | None = "copy",
        seed: int = 0,
        weight_decay: float = 0.0,
        clip: float | None = 2.0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = ("*embed*",),
        model: nn.Module | None = None,
        threads: int | None = None,
    ) -> None:
        if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
            raise ProbatumError(f"steps_per_epoch must be an integer of 1 or more, got {steps_per_epoch!r}")
        if not isinstance(queries, QuerySchedule):
            queries = QuerySchedule.constant(queries)
        self.schedule, self.steps_per_epoch = queries, steps_per_epoch
        super().__init__(
            params, lr, eps, queries.most, noise=noise, exact=exact, seed=seed, weight_decay=weight_decay, clip=clip, include=include,
            exclude=exclude, model=model, threads=threads,
        )  # fmt: skip

    @property
    def asked(self) -> int:
        """Directions tried so far; each took two forwards."""
        return sum(len(self.queries(step)) for step in range(self.steps))

    def queries(self, step: int) -> list[int]:
        return list(range(self.schedule(step // self.steps_per_epoch)))

    def _directions(self) -> list[int]:
        return list(range(self.schedule.most))

    def _row(self, slopes: list[float]) -> list[float]:
        """The log is a table: a step with fewer directions fills its row with zeros, and the rest is scaled to the same mean."""
        from probatum.zeroth.log import float32

        scale = self.schedule.most / len(slopes)
        return [float32(slope * scale) for slope in slopes] + [0.0] * (self.schedule.most - len(slopes))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        head = state_dict.get("zeroth", {}).get("head")
        if head is not None and list(head["queries"]) != self._directions():
            raise ProbatumError(
                f"the state is of a schedule of up to {len(head['queries'])} directions, this optimizer has {self.schedule.most}"
            )
        super().load_state_dict(state_dict)


def _adapt_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(module, NAME)(inputs[0]), *inputs[1:])


def _adapt_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    adapter = getattr(module, NAME)
    return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)


def _width(name: str, module: nn.Module, inside: bool) -> int:
    """Features that go into or come out of a module."""
    width = getattr(module, "in_features" if inside else "out_features", None)
    if width is None and hasattr(module, "nf") and hasattr(module, "nx"):  # transformers' Conv1D
        width = module.nx if inside else module.nf
    if not isinstance(width, int):
        raise ProbatumError(
            f"{name} is a {type(module).__name__}, whose {'input' if inside else 'output'} width is not known: name linear layers"
        )
    return width


def _matching(model: nn.Module, patterns: Iterable[str]) -> list[Tensor]:
    from probatum.nn.select import select

    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    return [tensor for _, tensor in select(model, patterns, trainable_only=False)] if patterns else []
