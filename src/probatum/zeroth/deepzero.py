"""DeepZero: train a network from scratch with loss values alone (Chen et al. 2023, arXiv 2310.02025).

Coordinate-wise finite differences in place of random directions; of each layer only a random set of coordinates, drawn anew every few
steps; what stands before the perturbed layer is computed once. For a loss that comes from a simulator or a device and has no gradient,
and networks of up to some 10^5 weights; where autograd works it is thousands of times cheaper.

>>> import torch
>>> from torch.nn.functional import cross_entropy
>>> torch.manual_seed(0)  # doctest: +ELLIPSIS
<torch...>
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
>>> x, y = torch.randn(16, 4), torch.arange(16) % 3
>>> zo, optimizer = DeepZero(net, cross_entropy, sparsity=0.5), torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
>>> losses = []
>>> for _ in range(50):
...     optimizer.zero_grad()
...     losses.append(zo.backward(x, y))     # fills .grad
...     optimizer.step()
>>> losses[-1] < 0.7 * losses[0], zo.queries == 50 * (1 + 28 + 11)
(True, True)
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from probatum.errors import ProbatumError, did_you_mean
from probatum.nn.select import select
from probatum.zeroth.estimate import loss_value
from probatum.zeroth.functions import Function, rge
from probatum.zeroth.masks import SUBSET, subset
from probatum.zeroth.noise import Noise
from probatum.zeroth.perturb import Channel, copies, perturbed
from probatum.zeroth.spread import Workers
from probatum.zeroth.stages import Pass, Stages, frozen_statistics

__all__ = ["DeepZero", "Forecast", "grasp_ratios", "grasp_scores", "layer_ratios", "loss_of_weights"]

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Forecast:
    """What training will cost, measured on one chunk of each stage: coordinates and queries a step, seconds a step and in all."""

    coordinates: int
    queries: int
    seconds: float
    steps: int

    @property
    def total(self) -> float:
        return self.steps * self.seconds

    def __str__(self) -> str:
        return (
            f"{self.coordinates:,} coordinates, {self.queries:,} queries and {self.seconds:.3g} s a step: {self.total / 60:.1f} minutes "
            f"for {self.steps:,} steps"
        )


@dataclass(frozen=True)
class _Chunk:
    """Coordinates that are perturbed in one batch: of one stage, or of a tensor that acts in several places (`stage` None)."""

    stage: int | None
    parts: tuple[tuple[int, str | None, Tensor], ...]  # number of the tensor, its name in the stage, indices
    cost: float

    def __len__(self) -> int:
        return sum(len(indices) for _, _, indices in self.parts)


class DeepZero:
    """Fills `.grad` from loss values, for any `torch.optim` optimizer: call `backward` where `loss.backward()` would stand.

    Args:
        model: an `nn.Sequential`, or a module that torch.fx can cut into stages.
        loss: (output, target) -> one number. It is batched over perturbations with vmap where it allows that, else called once each.
        mu: how far a coordinate is moved: too far and curvature enters, too little and the loss's rounding does; bfloat16 wants about 1e-1.
        two_sided: central differences: error mu^2 in place of mu, twice the queries.
        sparsity: share of weights (tensors of two and more dimensions) that are left out of a step; biases and norms are always in.
        ratios: how the rest is divided among layers: "erk" (denser where a layer is small), "uniform", or tensor name -> share kept, as
            `layer_ratios` or `grasp_ratios` give it; then `sparsity` is not used.
        refresh: steps after which coordinates are drawn anew (the paper: 5 epochs).
        seed: of the coordinates.
        workers: processes among which the coordinates are divided; the weights move to shared memory and stay there, only (index, value)
            pairs travel, and the sum is that of one process bit for bit. "ranks": the ranks of torch.distributed, each of which must make
            the same calls.
        memory: bytes that the activations of one batch of perturbations may take.
        include, exclude: patterns of parameter names.
    Attributes:
        coordinates: tensor name -> indices of the step at hand. steps, queries: so far; a step asks for 1 + |S| losses, or 1 + 2 |S|.

    The first step of a mode also looks whether the loss is a function of weights and batch at all, and whether mu is lost in rounding.
    Both passes of a difference draw the same dropout; batch norm normalises each perturbation by its own batch and counts the base pass alone.

    Raises:
        ProbatumError: an argument out of range, ratios of another network, a model that cannot be cut, a loss that is no finite number or
            differs between two equal calls, mu that vanishes in the precision.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        mu: float = 1e-3,
        two_sided: bool = False,
        sparsity: float = 0.9,
        ratios: Literal["erk", "uniform"] | Mapping[str, float] = "erk",
        refresh: int = 100,
        seed: int = 0,
        workers: int | Literal["ranks"] = 1,
        memory: int = 64 << 20,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
    ) -> None:
        if not 0 < mu < math.inf:
            raise ProbatumError(f"mu must be positive and finite, got {mu!r}")
        for name, value in (("refresh", refresh), ("memory", memory), *((("workers", workers),) if workers != "ranks" else ())):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProbatumError(f"{name} must be an integer of 1 or more, got {value!r}")
        self.model, self.loss, self.mu, self.two_sided, self.memory = model, loss, mu, two_sided, memory
        self.named = select(model, include, exclude)
        masked = [(name, tensor) for name, tensor in self.named if tensor.ndim > 1]
        densities = _densities(masked, sparsity, ratios)
        self._kept = {**{name: tensor.numel() for name, tensor in self.named}, **_counts(masked, densities)}
        self.refresh, self.seed, self.steps, self.queries = refresh, seed, 0, 0
        self._noise = Noise(seed)
        self._epoch = -1
        self.coordinates: dict[str, Tensor] = {}
        self._stages: dict[tuple[bool, ...], Stages] = {}
        self._checked: set[tuple[bool, ...]] = set()
        self._vectorised: bool | None = None
        self._wide: bool | None = None
        self.workers = workers
        self._pool: Workers | None = None
        self._stages_now()
        self._draw()
        if isinstance(workers, int) and workers > 1:
            model.share_memory()
            options = {
                "mu": mu, "two_sided": two_sided, "sparsity": sparsity, "ratios": ratios if isinstance(ratios, str) else dict(ratios),
                "refresh": refresh, "seed": seed, "memory": memory, "include": tuple(include), "exclude": tuple(exclude),
            }  # fmt: skip
            self._pool = Workers(workers, _Replica, model, loss, options)

    def backward(self, inputs: Any, target: Any = None) -> float:
        """Add the estimated gradient of loss(model(inputs), target) to `.grad`, and return the loss.

        Args:
            inputs: the model's input, or a tuple of them. target: handed to the loss as it is.
        """
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self._draw()
        begun = torch.get_rng_state()
        first, base = self._first(inputs, target)
        ended = torch.get_rng_state()
        mode = self._mode()
        fresh = mode not in self._checked
        if fresh:
            self._is_a_function(inputs, target, first, base)
            self._checked.add(mode)
        chunks = self._chunks(first)
        values = self._all_values(chunks, first, inputs, target, begun)
        gradients = self._gradients(chunks, values, base)
        if fresh:
            self._not_lost(chunks, values, base, first, target)
        for (_, tensor), gradient in zip(self.named, gradients, strict=True):
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        torch.set_rng_state(ended)
        self.steps += 1
        self.queries += 1 + sum(map(len, chunks)) * (2 if self.two_sided else 1)
        return base

    def forecast(self, inputs: Any, target: Any = None, *, steps: int = 1) -> Forecast:
        """What `steps` steps on batches like this one will cost; nothing is changed."""
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        state = torch.get_rng_state()
        begun = time.perf_counter()
        with frozen_statistics(self.model):
            first, _ = self._first(inputs, target)
        chunks = self._chunks(first)
        seconds, wave = time.perf_counter() - begun, 0.0
        rate: dict[int | None, float] = {}
        for chunk in chunks:
            if chunk.stage not in rate:
                self._values(chunk, first, target)
                begun = time.perf_counter()
                self._values(chunk, first, target)
                rate[chunk.stage] = (time.perf_counter() - begun) / len(chunk)
            wave += rate[chunk.stage] * len(chunk)
        torch.set_rng_state(state)
        coordinates = sum(map(len, chunks))
        count = self._world()[1] if self.workers == "ranks" else int(self.workers)
        return Forecast(coordinates, 1 + coordinates * (2 if self.two_sided else 1), seconds + wave / count, steps)

    def state_dict(self) -> dict[str, Any]:
        """Enough to go on with the same coordinates: weights and optimizer have their own."""
        return {"steps": self.steps, "queries": self.queries, "seed": self.seed, "refresh": self.refresh, "kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, here in (("seed", self.seed), ("refresh", self.refresh), ("kept", self._kept)):
            if state[name] != here:
                raise ProbatumError(f"this state was saved with {name}={state[name]!r}, here it is {here!r}")
        self.steps, self.queries = state["steps"], state["queries"]
        self._draw()

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()

    def coordinates_at(self, step: int) -> dict[str, Tensor]:
        """Tensor name -> sorted indices that a step asks for: a pure function of seed and step."""
        draw = step // self.refresh
        return {
            name: subset(tensor.numel(), self._kept[name], self._noise.key(draw, SUBSET, i)) for i, (name, tensor) in enumerate(self.named)
        }

    def _draw(self) -> None:
        if self.steps // self.refresh != self._epoch:
            self._epoch = self.steps // self.refresh
            self.coordinates = self.coordinates_at(self.steps)

    def _mode(self) -> tuple[bool, ...]:
        return tuple(m.training for m in self.model.modules())

    def _stages_now(self) -> Stages:
        # fx writes `self.training` down as the constant it was.
        mode = self._mode()
        if mode not in self._stages:
            stages = self._stages[mode] = Stages(self.model)
            places = stages.places()
            for name, tensor in self.named:
                if id(tensor) not in places:
                    raise ProbatumError(f"{name} is not used in the forward pass: exclude it")
        return self._stages[mode]

    def _first(self, inputs: tuple, target: Any) -> tuple[Pass, float]:
        first = self._stages_now().run(*inputs)
        base = self._base(first.output, target)
        if not math.isfinite(base):
            raise ProbatumError(f"the loss is {base} at the weights as they are: there is nothing to differ from")
        return first, base

    def _base(self, output: Any, target: Any) -> float:
        """The loss in float64 where it takes that: a float32 loss of 2 is rounded to 2e-7, which mu magnifies."""
        with torch.no_grad():
            if self._wide is None:
                self._wide = False
                if isinstance(output, Tensor) and output.is_floating_point():
                    try:
                        found = loss_value(self.loss(output.double(), target))
                        self._wide = math.isclose(found, loss_value(self.loss(output, target)), rel_tol=1e-2, abs_tol=1e-3)
                    except Exception:  # float32 class weights, a simulator that wants its own type
                        pass
            return loss_value(self.loss(output.double() if self._wide else output, target))

    def _is_a_function(self, inputs: tuple, target: Any, first: Pass, base: float) -> None:
        """A second base pass, from the same random state, must find the same loss."""
        place = next(i for i, node in enumerate(first.stages.nodes) if node.op == "placeholder")
        given = first.values[place]
        if isinstance(given, Tensor):
            (again,) = self._losses(first.resume(place, given.unsqueeze(0)), target).tolist()
            if abs(again - base) > 1e-4 * max(1.0, abs(base)):
                raise ProbatumError(
                    f"two evaluations at the same weights and batch differ ({base:.6g} and {again:.6g}): a difference would be noise over "
                    "mu; fix the loss's own randomness or state during a step"
                )

    def _chunks(self, first: Pass) -> list[_Chunk]:
        """The coordinates of this step, by stage, in batches that keep to the memory."""
        stages = first.stages
        places = stages.places()
        by_stage: dict[int, list[tuple[int, str | None, Tensor]]] = {}
        alone: list[tuple[int | None, list[tuple[int, str | None, Tensor]]]] = []
        for number, (name, tensor) in enumerate(self.named):
            indices = self.coordinates[name].to(tensor.device)
            found = places[id(tensor)]
            if len(found) == 1:
                by_stage.setdefault(found[0].stage, []).append((number, found[0].name, indices))
            else:  # tied: one coordinate acts in two places
                alone.append((None, [(number, name, indices)]))
        chunks = []
        for stage, parts in [*sorted(by_stage.items()), *alone]:
            behind = range(len(stages.nodes)) if stage is None else [stage, *stages.after(stage)]
            sizes = [v.numel() * v.element_size() for i in behind if isinstance(v := first.values[i], Tensor)]
            largest = 4 * max(sizes) + (sum(t.numel() * t.element_size() for _, t in self.named) if stage is None else 0)
            limit = max(1, self.memory // largest)
            chunks += _split(stage, parts, limit, self._cost(first, behind))
        return chunks

    def _cost(self, first: Pass, behind: Iterable[int]) -> float:
        """Multiplications of one pass through these stages, about."""
        total = 0.0
        for i in behind:
            value = first.values[i]
            module = first.stages.modules.get(i)
            weight = getattr(module, "weight", None)
            inner = weight[0].numel() if isinstance(weight, Tensor) and weight.ndim > 1 else 1
            total += value.numel() * inner if isinstance(value, Tensor) else 0
        return total

    def _all_values(self, chunks: list[_Chunk], first: Pass, inputs: tuple, target: Any, begun: Tensor) -> list[Tensor]:
        """Losses of all chunks (1 or 2, P), whoever computes them."""
        if self._pool is not None:
            message = (inputs, target, self.steps, self._mode(), begun, len(self._pool.processes))
            answers = self._pool.ask(message)
        elif self.workers == "ranks":
            import torch.distributed as dist

            rank, count = self._world()
            answers = [None] * count
            dist.all_gather_object(answers, self._share(chunks, rank, count, first, target))
        else:
            return [self._values(chunk, first, target) for chunk in chunks]
        found = {number: values for answer in answers for number, values in answer.items()}
        return [torch.from_numpy(found[number]) for number in range(len(chunks))]

    def _world(self) -> tuple[int, int]:
        import torch.distributed as dist

        if not dist.is_initialized():
            raise ProbatumError("workers='ranks' needs torch.distributed: start with torchrun and call init_process_group first")
        return dist.get_rank(), dist.get_world_size()

    def _share(self, chunks: list[_Chunk], rank: int, count: int, first: Pass, target: Any) -> dict[int, Any]:
        """The chunks that fall to this worker, the dearest dealt out first, always to the least loaded."""
        load = [0.0] * count
        mine = []
        for number in sorted(range(len(chunks)), key=lambda number: -chunks[number].cost):
            lightest = load.index(min(load))
            load[lightest] += chunks[number].cost
            if lightest == rank:
                mine.append(number)
        return {number: self._values(chunks[number], first, target).cpu().numpy() for number in sorted(mine)}

    def _values(self, chunk: _Chunk, first: Pass, target: Any) -> Tensor:
        """Losses at theta + mu e_i, and in a second row at theta - mu e_i if two-sided: (1 or 2, P) float64."""
        sides = []
        for mu in (self.mu, -self.mu) if self.two_sided else (self.mu,):
            output = self._tied(chunk, mu, first) if chunk.stage is None else self._outputs(chunk, mu, first)
            sides.append(self._losses(output, target))
        return torch.stack(sides)

    def _outputs(self, chunk: _Chunk, mu: float, first: Pass) -> Any:
        stage, stages = chunk.stage, first.stages
        assert stage is not None
        moved: list[Any] = []
        with torch.no_grad(), frozen_statistics(self.model):
            for number, name, indices in chunk.parts:
                if name is None:
                    moved.append(copies(self.named[number][1], indices, mu))
                    continue
                args, kwargs = stages.arguments(stage, first.values.__getitem__)
                first.same_draws(stage)
                moved.append(perturbed(stages.modules[stage], name, indices, mu, args, kwargs, first.values[stage]))
        channels = [m for m in moved if isinstance(m, Channel)]
        if len(channels) == len(moved):
            return first.resume(stage, Channel(torch.cat([m.part for m in channels]), torch.cat([m.index for m in channels])))
        wholes = [m.whole(first.values[stage]) if isinstance(m, Channel) else m for m in moved]
        return first.resume(stage, wholes[0] if len(wholes) == 1 else torch.cat(wholes))

    def _tied(self, chunk: _Chunk, mu: float, first: Pass) -> Any:
        """The whole model on copies of one tensor."""
        ((number, name, indices),) = chunk.parts
        nodes = first.stages.nodes
        inputs = tuple(value for value, node in zip(first.values, nodes, strict=True) if node.op == "placeholder")
        if first._states:
            first.same_draws(min(first._states))
        with torch.no_grad(), frozen_statistics(self.model):
            weights = copies(self.named[number][1], indices, mu)
            return vmap(lambda w: functional_call(self.model, {str(name): w}, inputs), randomness="same")(weights)

    def _losses(self, outputs: Any, target: Any) -> Tensor:
        """Of outputs (P, ...): (P,) float64."""
        with torch.no_grad():
            outputs = outputs.double() if self._wide else outputs
            if self._vectorised is None:
                self._vectorised = self._takes_vmap(outputs, target)
            if self._vectorised:
                return vmap(self.loss, in_dims=(0, None))(outputs, target).double()
            return torch.tensor([loss_value(self.loss(output, target)) for output in outputs], dtype=torch.float64)

    def _takes_vmap(self, outputs: Any, target: Any) -> bool:
        plain = loss_value(self.loss(outputs[0], target))
        try:
            together = vmap(self.loss, in_dims=(0, None))(outputs[:1], target)
        except Exception:  # numpy, a simulator, a call of .item(): anything that is not torch all through
            return False
        return together.shape == (1,) and math.isclose(float(together[0]), plain, rel_tol=1e-4, abs_tol=1e-6)

    def _gradients(self, chunks: list[_Chunk], values: list[Tensor], base: float) -> list[Tensor]:
        gradients = [torch.zeros_like(tensor) for _, tensor in self.named]
        for chunk, sides in zip(chunks, values, strict=True):
            if not torch.isfinite(sides).all():
                raise ProbatumError(f"a perturbed loss is not finite: mu={self.mu:g} is too large, or the weights have diverged")
            slopes = (sides[0] - sides[1]) / (2 * self.mu) if self.two_sided else (sides[0] - base) / self.mu
            at = 0
            for number, _, indices in chunk.parts:
                flat = gradients[number].view(-1)
                flat[indices] = slopes[at : at + len(indices)].to(flat.device, flat.dtype)
                at += len(indices)
        return gradients

    def _not_lost(self, chunks: list[_Chunk], values: list[Tensor], base: float, first: Pass, target: Any) -> None:
        """Where most losses of a stage are one and the same: do some of them move at a much larger mu?"""
        for stage in dict.fromkeys(chunk.stage for chunk in chunks):
            mine = [(chunk, sides) for chunk, sides in zip(chunks, values, strict=True) if chunk.stage == stage]
            together = torch.cat([sides for _, sides in mine], dim=1)
            common = together[0].mode().values  # a batch of passes may round otherwise than the base pass
            tensor = self.named[mine[0][0].parts[0][0]][1]
            still = (together == common).all(0)
            near = abs(float(common) - base) <= 4 * torch.finfo(tensor.dtype).eps * abs(base)
            if not near or int(still.sum()) <= max(7, len(still) / 2):
                continue
            chunk, sides = max(mine, key=lambda pair: int((pair[1] == common).all(0).sum()))
            unmoved = (sides == common).all(0).nonzero().flatten()
            (some,) = _split(stage, _picked(chunk, unmoved[:: max(1, len(unmoved) // 8)]), len(chunk), chunk.cost)
            mu, self.mu = self.mu, max(100 * self.mu, 1e-2)
            try:
                larger = self._values(some, first, target)[0]
            finally:
                self.mu = mu
            if float((larger != common).double().mean()) > 0.5:
                name = self.named[chunk.parts[0][0]][0]
                least = math.sqrt(2 * torch.finfo(tensor.dtype).eps * max(abs(base), 1e-3))
                raise ProbatumError(
                    f"mu={self.mu:g}: the perturbation is lost in {str(tensor.dtype).removeprefix('torch.')} for {name}: {int(still.sum())} of "
                    f"{len(still)} losses do not change; take mu >= {least:.1g}"
                )


def layer_ratios(
    model: nn.Module, sparsity: float, how: Literal["erk", "uniform"] = "erk", *, include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
) -> dict[str, float]:  # fmt: skip
    """Share of each weight tensor (two and more dimensions) that is kept, so that 1 - sparsity of all are.

    "erk" (Erdos-Renyi kernels, Evci et al. 2020): in proportion to sum(shape) / product(shape), at most 1.
    """
    masked = [(name, tensor) for name, tensor in select(model, include, exclude) if tensor.ndim > 1]
    return _densities(masked, sparsity, how)


def grasp_ratios(
    model: nn.Module, loss: Loss, inputs: Any, target: Any, sparsity: float, *, keep: Literal["magnitude", "signed"] = "magnitude",
    **options: Any,
) -> dict[str, float]:  # fmt: skip
    """Share of each weight tensor among the best 1 - sparsity of all weights by `grasp_scores`; nothing else of the scores is used.

    Args:
        keep: "magnitude" keeps the largest |score|, as the authors' code; "signed" the lowest scores, whose loss would cost most
            gradient flow (GraSP, Wang et al. 2020).
        options: of `grasp_scores`.
    """
    if not 0 <= sparsity < 1:
        raise ProbatumError(f"sparsity must be in [0, 1), got {sparsity!r}")
    if keep not in ("magnitude", "signed"):
        raise ProbatumError(f"keep must be 'magnitude' or 'signed', got {keep!r}")
    scores = grasp_scores(model, loss, inputs, target, **options)
    every = torch.cat([s.flatten() for s in scores.values()])
    worth = every.abs() if keep == "magnitude" else -every
    best = torch.zeros(len(worth), dtype=torch.bool)
    best[worth.topk(round((1 - sparsity) * len(worth))).indices.cpu()] = True
    parts = best.split([s.numel() for s in scores.values()])
    return {name: float(part.double().mean()) for name, part in zip(scores, parts, strict=True)}


def grasp_scores(
    model: nn.Module, loss: Loss, inputs: Any, target: Any, *, q: int = 192, mu: float = 1e-3, seed: int = 0, trials: int = 16
) -> dict[str, Tensor]:
    """ZO-GraSP: s = -theta (g(theta + h g) - g(theta)) / h of every weight tensor, from loss values.

    Both estimates g use the same q Gaussian directions and central differences (4 q queries); h = 0.1 / |g|. The authors' code draws
    other directions for the second, scales them by mu and the estimate without the number of weights: its scores do not correlate with
    GraSP's.

    Args:
        trials: directions evaluated at once.
    """
    named = select(model)
    theta, f = loss_of_weights(model, loss, inputs, target)
    noise = Noise(seed)

    def estimate(point: Tensor) -> Tensor:
        return rge(f, point, q, mu, noise=noise, direction="gaussian", two_sided=True, trials=trials).gradient

    g = estimate(theta)
    h = 0.1 / float(g.norm())
    scores = (-theta * (estimate(theta + h * g) - g) / h)[0]
    parts = scores.split([tensor.numel() for _, tensor in named])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(named, parts, strict=True) if tensor.ndim > 1}


def loss_of_weights(model: nn.Module, loss: Loss, inputs: Any, target: Any) -> tuple[Tensor, Function]:
    """The trainable weights as one row (1, d), sorted by name, and the loss as a function of such rows (R, 1, d) -> (R, 1)."""
    named = select(model)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    sizes = [tensor.numel() for _, tensor in named]
    random = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training for m in model.modules())

    def one(row: Tensor) -> Tensor:
        weights = {name: part.view(t.shape) for (name, t), part in zip(named, row.split(sizes), strict=True)}
        return loss(functional_call(model, weights, inputs), target)

    def f(points: Tensor) -> Tensor:
        with torch.no_grad(), frozen_statistics(model), torch.random.fork_rng() if random else nullcontext():
            return vmap(one, randomness="same")(points[:, 0]).unsqueeze(1)

    return torch.cat([tensor.detach().reshape(-1) for _, tensor in named]).unsqueeze(0), f


class _Replica:
    """A worker's side: its own passes over the shared weights."""

    def __init__(self, model: nn.Module, loss: Loss, options: dict[str, Any]) -> None:
        self.zo = DeepZero(model, loss, **options)

    def __call__(self, number: int, message: tuple) -> dict[int, Any]:
        inputs, target, steps, mode, state, count = message
        for module, training in zip(self.zo.model.modules(), mode, strict=True):
            module.training = training
        self.zo.steps = steps
        self.zo._draw()
        torch.set_rng_state(state)
        with frozen_statistics(self.zo.model):
            first, _ = self.zo._first(inputs, target)
        return self.zo._share(self.zo._chunks(first), number, count, first, target)


def _densities(
    masked: list[tuple[str, Tensor]], sparsity: float, ratios: Literal["erk", "uniform"] | Mapping[str, float]
) -> dict[str, float]:
    if isinstance(ratios, Mapping):
        names = [name for name, _ in masked]
        strange = [name for name in ratios if name not in names] or [name for name in names if name not in ratios]
        if strange:
            near = did_you_mean(strange[0], names)
            where = "are of another network: it has no" if strange[0] in ratios else "lack"
            raise ProbatumError(f"ratios {where} {strange[0]!r}" + (f"; {near}" if near else ""))
        for name, share in ratios.items():
            if not 0 <= share <= 1:
                raise ProbatumError(f"ratios must be from 0 to 1, got {share!r} for {name}")
        return {name: float(ratios[name]) for name in names}
    if not 0 <= sparsity < 1:
        raise ProbatumError(f"sparsity must be in [0, 1), got {sparsity!r}")
    if ratios == "uniform":
        return {name: 1 - sparsity for name, _ in masked}
    if ratios != "erk":
        raise ProbatumError(f"ratios must be 'erk', 'uniform' or a mapping of names to shares, got {ratios!r}")
    left = (1 - sparsity) * sum(tensor.numel() for _, tensor in masked)
    raw = {name: sum(tensor.shape) / tensor.numel() for name, tensor in masked}
    sizes = {name: tensor.numel() for name, tensor in masked}
    open_, density = set(sizes), dict.fromkeys(sizes, 1.0)
    while open_:
        scale = (left - sum(sizes[name] for name in sizes if name not in open_)) / sum(raw[n] * sizes[n] for n in open_)
        full = {name for name in open_ if scale * raw[name] >= 1}
        if not full:
            density.update({name: scale * raw[name] for name in open_})
            break
        open_ -= full
    return density


def _counts(masked: list[tuple[str, Tensor]], densities: dict[str, float]) -> dict[str, int]:
    """Whole numbers whose sum is the total rounded: the largest remainders go up."""
    exact = {name: densities[name] * tensor.numel() for name, tensor in masked}
    counts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    missing = round(sum(exact.values())) - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: max(0, missing)]:
        counts[name] += 1
    return counts


def _split(stage: int | None, parts: list[tuple[int, str | None, Tensor]], limit: int, cost: float) -> list[_Chunk]:
    """Coordinates of one stage in chunks of at most `limit`; a chunk may hold several of its parameters."""
    chunks: list[_Chunk] = []
    now: list[tuple[int, str | None, Tensor]] = []
    filled = 0
    for number, name, indices in parts:
        while len(indices):
            take = indices[: limit - filled]
            now.append((number, name, take))
            filled, indices = filled + len(take), indices[len(take) :]
            if filled == limit:
                chunks.append(_Chunk(stage, tuple(now), cost * filled))
                now, filled = [], 0
    if now:
        chunks.append(_Chunk(stage, tuple(now), cost * filled))
    return chunks


def _picked(chunk: _Chunk, rows: Tensor) -> list[tuple[int, str | None, Tensor]]:
    """Some coordinates of a chunk, by their places in it."""
    parts, at = [], 0
    for number, name, indices in chunk.parts:
        some = rows[(rows >= at) & (rows < at + len(indices))] - at
        if len(some):
            parts.append((number, name, indices[some.to(indices.device)]))
        at += len(indices)
    return parts
