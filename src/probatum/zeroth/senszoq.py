"""SensZOQ: tune one weight in a thousand by forward passes, and keep all others in 4 bits (Guo et al. 2024, arXiv 2406.02913).

The weights with the largest squared gradient on generic text carry much of the gradient of tasks that come later. They are chosen once
a model, stay in full precision and are tuned; the rest is quantised, so that tuning takes less memory than the model itself did. Use it
when the model fits only in 4 bits, or when many tasks shall share one base: a task is then a file of a few kilobytes.

>>> import torch
>>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
>>> x, y = torch.randn(40, 64), torch.randint(2, (40,))
>>> def loss(model, rows):
...     return torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
>>> chosen = choose(sensitivity(net, [[i] for i in range(40)], loss), 0.01)
>>> net = split(net, chosen)
>>> optimizer = SensZOQ(net.named_parameters(), lr=0.01)
>>> before = [float(optimizer.step(lambda: loss(net, slice(None)))) for _ in range(3)]
>>> sum(p.numel() for p in net.parameters() if p.requires_grad), net[0].base.bits_per_weight
(20, 4.25)
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.nn.fingerprint import Fingerprint
from probatum.nn.quantised import Clip, PackedEmbedding, PackedLinear, by_tiles
from probatum.nn.select import select
from probatum.zeroth.masks import Indices
from probatum.zeroth.optimizer import ZerothOrder

__all__ = ["SensZOQ", "SensitiveLinear", "choose", "load_adapter", "merge_adapter", "save_adapter", "sensitivity", "split"]

EXCLUDE = ("*norm*", "*embed*", "*lm_head*", "*classifier*", "*.score.*")
FORMAT = 1
KEY = "probatum.senszoq"


class SensitiveLinear(nn.Module):
    """A linear layer of a frozen base and a few tuned weights.

    `values` (K,), trained, stand at `positions` (int32, row-major in the (O, I) weight, increasing); whatever the base holds there does
    not count. The forward unpacks a few rows of the base, writes the values in and multiplies.
    """

    positions: Tensor

    def __init__(self, base: nn.Linear | PackedLinear, positions: Tensor, values: Tensor) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_buffer("positions", positions.to(torch.int32))
        self.values = nn.Parameter(values)

    def tile(self, begin: int, end: int) -> Tensor:
        """Rows begin to end with the tuned values in place."""
        base = self.base
        rows = base.tile(begin, end) if isinstance(base, PackedLinear) else torch.clone(base.weight[begin:end])
        positions: Tensor = self.positions
        values: Tensor = self.values
        if (begin, end) != (0, self.out_features):
            edges = torch.tensor([begin * self.in_features, end * self.in_features], dtype=torch.int32, device=positions.device)
            first, last = torch.searchsorted(positions, edges).tolist()
            positions, values = positions[first:last] - begin * self.in_features, values[first:last]
        rows.view(-1).index_copy_(0, positions.long(), values.to(rows.dtype))
        return rows

    def dense(self) -> Tensor:
        """The whole weight, (O, I)."""
        return self.tile(0, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return by_tiles(self.tile, x, self.base.bias, self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, tuned={len(self.values)}"


class SensZOQ(ZerothOrder):
    """MeZO on the few tuned weights of a model that `split` made: p = (l(S + eps z) - l(S - eps z)) / (2 eps), S -= lr p z.

    z is as small as S, so a step costs its two forwards. theta is kept beside S and put back after each pair (`exact="copy"`).

    Args:
        params: `model.named_parameters()` after `split`, which leaves gradients on for the tuned weights alone.
        lr: step size.
        eps: length of the perturbation. Ten times MeZO's: with 1e-3 on so few weights the two losses are often equal
            (`flat_share` says how often).
        rule: an optimizer class of torch.optim that takes p z as its gradient, as `torch.optim.SGD`; None: the plain step. It runs
            again in a replay.
        rule_options: its settings, as {"momentum": 0.9}, plain numbers; its learning rate is `lr`, which schedules may change.
        options: further arguments of `ZerothOrder`.
    Raises:
        ProbatumError: weights that are not split or are too many to keep twice, a rule that torch.optim lacks, and as `ZerothOrder`.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float,
        eps: float = 1e-2,
        n: int = 1,
        *,
        rule: "type[torch.optim.Optimizer] | None" = None,
        rule_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._spec: dict[str, Any] | None = None
        if rule is None:
            if rule_options:
                raise ProbatumError("rule_options go with rule=")
        else:
            name = getattr(rule, "__name__", "")
            if not isinstance(rule, type) or getattr(torch.optim, name, None) is not rule:
                raise ProbatumError(f"rule must be an optimizer class of torch.optim, got {rule!r}: a log keeps its name")
            if options.get("weight_decay"):
                raise ProbatumError("with rule= weight decay is one of its rule_options")
            if options.get("exact", "copy") != "copy":
                raise ProbatumError(f"rule= needs exact='copy', got {options['exact']!r}: what it writes lies on no lattice")
            self._spec = {"name": name, "options": json.loads(json.dumps(dict(rule_options or {})))}
        super().__init__(params, lr, eps, n, **{"exact": "copy", "exclude": (), **options})
        if self._spec is not None:
            from probatum.zeroth.rule import Rule

            Rule(self._tensors, self._groups, self._spec)  # its errors now

    def rule(self) -> dict[str, Any] | None:
        """Which rule takes the slopes."""
        return self._spec


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    score: Literal["fisher", "mean_grad"] = "fisher",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = EXCLUDE,
) -> dict[str, Tensor]:
    """How strongly the loss on generic text pulls at each weight; the one place that differentiates, once a base model.

    Args:
        model: in evaluation mode; nothing of it is changed.
        batches: what `loss` takes, 16 to 200 texts in all.
        loss: loss(model, batch) -> a number, or one a sample: (B,). Each number counts as one sample, so batches of one text give
            the per-sample scores.
        score: "fisher": sum of squared gradients, the empirical Fisher information that the paper names; "mean_grad": absolute value
            of the summed gradient, what its code ranks by.
        include, exclude: patterns of parameter names; of what is left the weights of linear layers are scored.
    Returns:
        By parameter name, float32, of the weight's shape.
    Raises:
        ProbatumError: no batch, no linear layer, a convolution or a stack of experts among what was asked for, gradients that are not
            finite (names the weight).
    """
    if score not in ("fisher", "mean_grad"):
        raise ProbatumError(f"score must be fisher or mean_grad, got {score!r}")
    named = _linear_weights(model, include, exclude)
    weights = [weight for _, weight in named]
    sums = {name: torch.zeros_like(weight, dtype=torch.float32, requires_grad=False) for name, weight in named}
    flags, count = [(p, p.requires_grad) for p in model.parameters()], 0
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                losses = loss(model, batch).reshape(-1)
                for k in range(len(losses)):
                    found = torch.autograd.grad(losses[k], weights, retain_graph=k + 1 < len(losses), allow_unused=True)
                    for (name, _), gradient in zip(named, found, strict=True):
                        if gradient is not None:
                            if not bool(torch.isfinite(gradient).all()):
                                raise ProbatumError(f"the gradient of {name} is not finite: score in float32, or leave this text out")
                            sums[name].addcmul_(gradient.float(), gradient.float()) if score == "fisher" else sums[name].add_(gradient)
                    count += 1
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
    if not count:
        raise ProbatumError("batches is empty: the scores need text, as probatum.data.text.verses() or probatum.data.texts.sentiments()")
    return sums if score == "fisher" else {name: total.abs_() for name, total in sums.items()}


def choose(scores: Mapping[str, Tensor], fraction: float = 1e-3, scope: Literal["tensor", "global"] = "tensor") -> Indices:
    """The floor(fraction n) weights of highest score, of each tensor (the paper's) or of all together.

    Raises:
        ProbatumError: fraction outside (0, 1], so small that no weight is chosen, or scores that are not finite.
    """
    return Indices.top(scores, fraction, scope)


def split(
    model: nn.Module,
    chosen: Indices,
    *,
    bits: Literal[4, 8, 16, 32] = 4,
    group: int = 64,
    clip: Clip = "absmax",
    embeddings: Literal[4, 8] | None = None,
    also: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Replace the linear layers that `chosen` names, in place: W = Q(W without the chosen) + S; everything else is frozen.

    Args:
        chosen: from `choose`, or `Indices.random`; layers of which nothing is chosen are quantised all the same.
        bits: of the frozen rest; 16 and 32 leave it as it is.
        group, clip: see `probatum.nn.quantised.quantise`; chosen weights do not count for a group's range.
        embeddings: bits of embedding tables that no other layer shares; None leaves them (as the paper does).
        also: patterns of parameters to tune besides, as a new classification head.
        dtype: of the tuned values.
    Returns:
        The model, with gradients on for S (and `also`) alone.
    Raises:
        ProbatumError: a model that is split already, indices of another model or orientation, patterns that match nothing. Nothing
            is changed then.
    """
    if bits not in (4, 8, 16, 32):
        raise ProbatumError(f"bits must be 4, 8, 16 or 32, got {bits!r}")
    if embeddings not in (None, 4, 8):
        raise ProbatumError(f"embeddings must be 4, 8 or None, got {embeddings!r}")
    layers = []
    for name, shape, part in zip(chosen.names, chosen.shapes, chosen.parts, strict=True):
        layers.append((name.removesuffix(".weight"), _layer(model, name, shape), part))
    tuned = select(model, also, trainable_only=False) if also else []
    within = [name for name, _ in tuned if any(name.startswith(f"{path}.") for path, _, _ in layers)]
    if within:
        raise ProbatumError(f"also names {within[0]}, which is of a layer that is split")
    fingerprint = Fingerprint.of((f"{path}.weight", layer.weight) for path, layer, _ in layers)
    packed = [
        (path, layer, part, layer if bits > 8 else PackedLinear.of(layer, bits, group, clip, part)) for path, layer, part in layers
    ]  # fmt: skip
    model.requires_grad_(False)
    for path, layer, part, base in packed:
        values = layer.weight.detach().view(-1)[part].to(dtype)
        _put(model, path, SensitiveLinear(base, part, values).train(layer.training))
    if embeddings is not None:
        for path, table in list(model.named_modules()):
            if isinstance(table, nn.Embedding) and not _shared(model, table):
                _put(model, path, PackedEmbedding.of(table, embeddings, group, clip))
    for _, tensor in tuned:
        tensor.requires_grad_(True)
    model._senszoq = {  # type: ignore[assignment]
        "bits": bits, "group": group, "clip": clip, "embeddings": embeddings, "also": [name for name, _ in tuned],
        "base": fingerprint.to_json(),
    }  # fmt: skip
    return model


def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """What was tuned, as one safetensors file: positions, values, what `also` named, and the fingerprint of the base.

    Raises:
        ProbatumError: a model that is not split, or a path that does not end in .safetensors.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ProbatumError(f"an adapter is a .safetensors file, got {path.name!r}")
    head, tensors = _head(model), {}
    for name, module in model.named_modules():
        if isinstance(module, SensitiveLinear):
            tensors[f"{name}.positions"] = module.positions.contiguous()
            tensors[f"{name}.values"] = module.values.detach().contiguous()
    for name in head["also"]:
        tensors[f"also.{name}"] = model.get_parameter(name).detach().contiguous()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, {KEY: json.dumps({**head, "format": FORMAT})})
    os.replace(partial, path)


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Give a model what a file has: the base itself is split first, a model that is split from that base takes the values over.

    Raises:
        ProbatumError: no adapter, another base (says which weight differs), or other positions than the model was split at.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ProbatumError(f"no such adapter: {path}") from None
    except (SafetensorError, OSError) as error:
        raise ProbatumError(f"{path} cannot be read as an adapter (truncated, or no safetensors file): {error}") from error
    if text is None:
        raise ProbatumError(f"{path} is a safetensors file, but no adapter of senszoq")
    head = json.loads(text)
    if head.get("format") != FORMAT:
        raise ProbatumError(f"{path} has format {head.get('format')!r}, this version reads {FORMAT}")
    wanted = Fingerprint.from_json(head["base"])
    names = [row[0] for row in wanted.rows]
    if not hasattr(model, "_senszoq"):
        here = dict(model.named_parameters())
        missing = [name for name in names if name not in here]
        if missing:
            raise ProbatumError(f"the adapter is of another model: this one has no {missing[0]} (and {len(missing) - 1} more)")
        _refuse(wanted.difference(Fingerprint.of((name, here[name]) for name in names)))
        parts = tuple(tensors[name.removesuffix("weight") + "positions"].long() for name in names)
        dtype = tensors[names[0].removesuffix("weight") + "values"].dtype
        options = {key: head[key] for key in ("bits", "group", "clip", "embeddings", "also")}
        split(model, Indices(tuple(names), tuple(row[1] for row in wanted.rows), parts), dtype=dtype, **options)
    else:
        own = _head(model)
        _refuse(wanted.difference(Fingerprint.from_json(own["base"])))
        for key in ("bits", "group", "clip", "embeddings", "also"):
            if own[key] != head[key]:
                raise ProbatumError(f"the adapter was tuned with {key}={head[key]!r}, this model is split with {own[key]!r}")
    modules = dict(model.named_modules())
    for name in names:
        module, positions = modules[name.removesuffix(".weight")], tensors[name.removesuffix("weight") + "positions"]
        if not isinstance(module, SensitiveLinear) or not torch.equal(module.positions.cpu(), positions):
            raise ProbatumError(f"the adapter has other positions in {name} than this model was split at")
    with torch.no_grad():
        for name in names:
            modules[name.removesuffix(".weight")].values.copy_(tensors[name.removesuffix("weight") + "values"])  # type: ignore[operator]
        for name in head["also"]:
            model.get_parameter(name).copy_(tensors[f"also.{name}"])
    return model


def merge_adapter(model: nn.Module) -> nn.Module:
    """Make plain `nn.Linear` layers again, in place, that compute the same; their weights are what was stored, unpacked.

    Raises:
        ProbatumError: a model that is not split.
    """
    _head(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, SensitiveLinear):
            bias, weight = module.base.bias, module.dense().detach()
            plain = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
            plain.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                plain.bias = bias
            _put(model, path, plain.train(module.training))
        elif isinstance(module, PackedEmbedding):
            _put(model, path, nn.Embedding.from_pretrained(module.dense().to(module.dtype)))
    del model._senszoq
    return model


def _linear_weights(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Weights of linear layers that the patterns leave; anything else of two dimensions and more is refused by name."""
    owners = {f"{path}.weight" if path else "weight": module for path, module in model.named_modules()}
    found = []
    for name, tensor in select(model, include, exclude, trainable_only=False):
        if not name.endswith("weight") or tensor.ndim < 2:
            if tensor.ndim > 2:
                raise ProbatumError(f"{name} has {tensor.ndim} dimensions (experts in one tensor?): exclude it, linear layers can be split")
            continue
        owner = owners.get(name)
        if type(owner) is not nn.Linear:
            raise ProbatumError(f"{name} belongs to {type(owner).__name__}: only nn.Linear can be split; exclude it or put a linear layer there")
        found.append((name, tensor))
    if any(isinstance(module, (SensitiveLinear, PackedLinear)) for module in model.modules()):
        raise ProbatumError("the model is quantised already: scores are taken of the base, before split()")
    if not found:
        raise ProbatumError(f"no linear layer is left by include={list(include)}, exclude={list(exclude)}")
    return found


def _layer(model: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Linear:
    path = name.removesuffix(".weight")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ProbatumError(f"the indices are of another model: this one has no {name}") from None
    if isinstance(module, (SensitiveLinear, PackedLinear)):
        raise ProbatumError(f"{path} is quantised already: split the base once, then load_adapter() changes the task")
    if type(module) is not nn.Linear:
        raise ProbatumError(f"{path} is {type(module).__name__}: only nn.Linear can be split")
    if tuple(module.weight.shape) != shape:
        turned = ": they are of the transposed weight" if tuple(module.weight.shape) == shape[::-1] else ""
        raise ProbatumError(f"the indices of {name} are of shape {list(shape)}, the weight is {list(module.weight.shape)}{turned}")
    if not math.prod(shape) < 1 << 31:
        raise ProbatumError(f"{name} has {math.prod(shape)} weights: positions are kept as int32")
    return module


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, own = path.rpartition(".")
    if not own:
        raise ProbatumError("the model itself is a linear layer: wrap it in nn.Sequential")
    setattr(model.get_submodule(parent), own, module)


def _shared(model: nn.Module, table: nn.Embedding) -> bool:
    return sum(p is table.weight for m in model.modules() for p in m.parameters(recurse=False)) > 1


def _head(model: nn.Module) -> dict[str, Any]:
    head = getattr(model, "_senszoq", None)
    if head is None:
        raise ProbatumError("the model is not split: call split(model, chosen) or load_adapter(model, path) first")
    return dict(head)  # type: ignore[arg-type]


def _refuse(different: str | None) -> None:
    if different:
        raise ProbatumError(f"the adapter was tuned on another base: {different}")
