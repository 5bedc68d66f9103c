"""A model cut into stages whose outputs are kept, so that a forward pass can be taken up again behind any of them, many at once.

A `Sequential` is cut between its children, any other module where torch.fx can follow it; a branch that runs beside the stage at hand (a
skip connection) keeps the values of the first pass.

>>> stages = Stages(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
>>> first = stages.run(torch.rand(5, 3))
>>> again = first.resume(1, first.values[1].expand(7, 5, 4))     # seven passes, from the output of the first layer on
>>> again.shape, torch.allclose(again[3], first.output)
(torch.Size([7, 5, 2]), True)
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from probatum.errors import ProbatumError
from probatum.zeroth.perturb import HANDLERS, Channel, normalised

__all__ = ["Pass", "Place", "Stages"]

OUT_OF_PLACE: dict[Any, Callable] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, operator.itruediv: operator.truediv,
}  # fmt: skip

# What treats every channel alike and alone: only the channel that changed goes through. Batch norm is the exception that is known.
BY_CHANNEL: set[Any] = {
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Identity,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    torch.relu, torch.tanh, torch.sigmoid, F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d,
}  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = {op: 3 if "1d" in op.__name__ else 4 for op in BY_CHANNEL if "ool" in op.__name__}  # these also take a sample without a batch


@dataclass(frozen=True)
class Place:
    """Where a parameter acts: the stage, and the parameter's name in its module (None: the stage is the parameter itself)."""

    stage: int
    name: str | None


class Stages:
    """The stages of a model, numbered in the order they run.

    Args:
        model: its modules are used as they are, so that training goes on in it.
    Raises:
        ProbatumError: torch.fx cannot follow its control flow; it operates in place on what must be kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        graph = _trace(model)
        self.nodes = list(graph.nodes)
        self.number = {node: i for i, node in enumerate(self.nodes)}
        self.modules = {
            i: model.get_submodule(str(node.target)) for i, node in enumerate(self.nodes) if node.op == "call_module"
        }
        self._after: dict[int, list[int]] = {}
        self._last = self._last_uses()

    def places(self) -> dict[int, list[Place]]:
        """id of a parameter -> where it acts; more than one place if weights are tied or a module is called again."""
        found: dict[int, list[Place]] = {}
        for i, node in enumerate(self.nodes):
            if i in self.modules:
                for name, parameter in self.modules[i].named_parameters():
                    found.setdefault(id(parameter), []).append(Place(i, name))
            elif node.op == "get_attr" and isinstance(value := _attribute(self.model, str(node.target)), nn.Parameter):
                found.setdefault(id(value), []).append(Place(i, None))
        return found

    def after(self, stage: int) -> list[int]:
        """Stages whose values depend on this one's, in order."""
        if stage not in self._after:
            touched = {self.nodes[stage]}
            for node in self.nodes[stage + 1 :]:
                if touched & set(node.all_input_nodes):
                    touched.add(node)
            self._after[stage] = [i for i, node in enumerate(self.nodes) if node in touched and i != stage]
        return self._after[stage]

    def run(self, *inputs: Any) -> "Pass":
        """The first pass; what it draws from torch's generators is drawn alike in every pass taken up from it."""
        values: list[Any] = []
        states: dict[int, list[Tensor]] = {}
        given = iter(inputs)
        try:
            with torch.no_grad(), _not_in_place(self.model):
                state = _random_state(inputs)
                for i, node in enumerate(self.nodes):
                    if node.op == "placeholder":
                        values.append(next(given, *node.args))
                        continue
                    args, kwargs = self.arguments(i, values.__getitem__)
                    versions = [t._version for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                    values.append(self.call(i, args, kwargs))
                    if versions != [t._version for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]:
                        raise ProbatumError(
                            f"stage {node.name!r} ({node.target}) changes its input in place, which must be kept: use the form that "
                            "returns a new tensor"
                        )
                    now = _random_state(inputs)
                    if any(not torch.equal(a, b) for a, b in zip(state, now, strict=True)):
                        states[i], state = state, now
        except StopIteration:
            raise ProbatumError(f"the model takes more inputs than the {len(inputs)} that were given") from None
        return Pass(self, values, states)

    def arguments(self, i: int, value: Callable[[int], Any]) -> tuple[tuple, dict[str, Any]]:
        """What a stage is called with."""
        node = self.nodes[i]
        args = fx.map_arg(node.args, lambda n: value(self.number[n]))
        kwargs = fx.map_arg(node.kwargs, lambda n: value(self.number[n]))
        return tuple(args), {**kwargs, "inplace": False} if kwargs.get("inplace") else dict(kwargs)

    def call(self, i: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        node = self.nodes[i]
        if node.op == "call_module":
            return self.modules[i](*args, **kwargs)
        if node.op == "call_function":
            return OUT_OF_PLACE.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            return _attribute(self.model, str(node.target))
        return args[0]  # the output

    def _last_uses(self) -> list[list[int]]:
        """By stage: which values nobody needs after it."""
        last: dict[int, int] = {}
        for i, node in enumerate(self.nodes):
            for source in node.all_input_nodes:
                last[self.number[source]] = i
        return [[source for source, at in last.items() if at == i] for i in range(len(self.nodes))]


class Pass:
    """The values of every stage in a first pass, `values`; `output` is the last one."""

    def __init__(self, stages: Stages, values: list[Any], states: dict[int, list[Tensor]]) -> None:
        self.stages, self.values, self._states = stages, values, states

    @property
    def output(self) -> Any:
        return self.values[-1]

    def resume(self, stage: int, value: Any) -> Any:
        """The model's outputs (P, ...) for P values (P, ...) of one stage, or for a `Channel` of each; statistics of batch norm are each one's own and not kept.

        vmap makes P B rows of the P batches where an operation allows it, so this is a plain forward of a large batch.
        """
        with torch.no_grad(), _not_in_place(self.stages.model):
            while isinstance(value, Channel):
                step = self._by_channel(stage, value)
                stage, value = step or (stage, value.whole(self.values[stage]))
        after, last = self.stages.after(stage), self.stages._last

        def tail(value: Any) -> Any:
            known = {stage: value}
            for i in after:
                args, kwargs = self.stages.arguments(i, lambda n: known[n] if n in known else self.values[n])
                self.same_draws(i)
                known[i] = self.stages.call(i, args, kwargs)
                for source in last[i]:
                    known.pop(source, None)
                if i == after[-1]:
                    return known[i]
            return value

        with torch.no_grad(), _not_in_place(self.stages.model), frozen_statistics(self.stages.model):
            return vmap(tail, randomness="same")(value)

    def _by_channel(self, stage: int, value: Channel) -> tuple[int, Channel] | None:
        """One stage further with the changed channel alone; None where other channels would be needed."""
        users = list(self.stages.nodes[stage].users)
        if len(users) != 1 or users[0].all_input_nodes != [self.stages.nodes[stage]]:
            return None
        i, node, count = self.stages.number[users[0]], users[0], len(value.index)
        module = self.stages.modules.get(i)
        if type(module) in NORMS:
            part = normalised(module, value.part, value.index)  # type: ignore[arg-type]
            wide = (-1,) + (1,) * (part.ndim - 1)
            if module.weight is not None:  # type: ignore[union-attr]
                part = part * module.weight[value.index].view(wide) + module.bias[value.index].view(wide)  # type: ignore[union-attr,index]
            return i, Channel(part, value.index)
        kind = node.target if module is None else type(module)
        if kind not in BY_CHANNEL or POOLS.get(kind, value.part.ndim) != value.part.ndim:
            return None
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return None
        args, kwargs = self.stages.arguments(i, lambda _: value.part.flatten(0, 1).unsqueeze(1))
        part = self.stages.call(i, args, kwargs).squeeze(1)
        return i, Channel(part.view(count, -1, *part.shape[1:]), value.index)

    def same_draws(self, stage: int) -> None:
        """Set torch's generators to where they stood before this stage of the first pass, if it drew."""
        if stage in self._states:
            _set_random_state(self._states[stage])


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer(_opaque(model, root=True)).trace(model)
    except ProbatumError:
        raise
    except Exception as error:  # whatever the model's own code raises on symbolic values
        raise ProbatumError(
            f"{type(model).__name__} cannot be cut into stages ({error}); give an nn.Sequential of stages: nn.Sequential(model) makes it "
            "a single one, which is then run whole for every coordinate"
        ) from None


class _Tracer(fx.Tracer):
    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or type(m) in HANDLERS or super().is_leaf_module(m, module_qualified_name)


def _opaque(module: nn.Module, root: bool = False) -> set[nn.Module]:
    """Children of Sequentials that fx cannot follow: stages of their own."""
    if _Tracer(set()).is_leaf_module(module, "") and not isinstance(module, nn.Sequential):
        return set()
    try:
        _Tracer(set()).trace(module)
        return set()
    except Exception:
        if isinstance(module, nn.Sequential):
            return {leaf for child in module for leaf in _opaque(child)}
        return set() if root else {module}


def _attribute(model: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(model)


@contextmanager
def _not_in_place(model: nn.Module) -> Iterator[None]:
    changed = [m for m in model.modules() if getattr(m, "inplace", False) is True]
    for m in changed:
        m.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for m in changed:
            m.inplace = True  # type: ignore[assignment]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm in training mode goes on normalising by its batch, but its running statistics stay."""
    changed = [m for m in model.modules() if m.training and getattr(m, "track_running_stats", False) is True]
    for m in changed:
        m.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for m in changed:
            m.track_running_stats = True  # type: ignore[assignment]


def _random_state(inputs: tuple) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if any(isinstance(x, Tensor) and x.is_cuda for x in inputs):
        states.append(torch.cuda.get_rng_state())
    return states


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
