"""HiFT: full-parameter fine-tuning, one group of layers a step (Liu et al. 2024, arXiv 2401.15207).

A queue rotates through the layers of a model. Only the group at its head has gradients, and only its optimizer state need be on the
device; the learning rate moves when every group has had its turn. All weights are trained, by any `torch.optim` optimizer, at the
memory of the largest group. For models whose gradients and optimizer state do not fit; where they do, train all at once: a weight is
updated in one step of k.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
>>> x, y = torch.randn(16, 5), torch.randint(3, (16,))
>>> optimizer = HiFT(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
>>> [group.name for group in optimizer.groups]
['0', '2']
>>> for step in range(4):
...     optimizer.zero_grad()
...     torch.nn.functional.cross_entropy(model(x), y).backward()
...     optimizer.step()                                  # of the active group; then the next one's turn
>>> optimizer.cycle, optimizer.active.name
(2, '0')
"""

import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.finetune.ledger import Ledger, measure, predict
from probatum.finetune.offload import Offload, Place
from probatum.finetune.rows import Table
from probatum.nn.groups import Group, layer_groups

if TYPE_CHECKING:
    from probatum.finetune.callback import HiFTCallback

__all__ = ["CycleLR", "HiFT", "HiFTCallback", "Ledger", "by_cycle", "measure", "predict"]

MARK = "_probatum_hift_off"  # names of the parameters whose requires_grad is off only because it is not their turn
Order = Literal["down2up", "up2down", "random"]
_wrapped: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[HiFT]]" = weakref.WeakKeyDictionary()


class HiFT(torch.optim.Optimizer):
    """Any optimizer, used on one group of a model's parameters at a time.

    Parameters outside the active group have `requires_grad` off, so that backward computes nothing for them, and no gradient, so that
    neither momentum nor weight decay moves them. `step` (with or without a closure) ends the turn of a group; gradients accumulated
    over several backwards before it all belong to that group. `release` ends the rotation.

    Args:
        model: whose trainable parameters are tuned, all of them.
        optimizer: of all these parameters, or a function from a list of parameters to one. Any that keeps its state by parameter.
        groups: own groups as lists of name patterns, from the bottom up; default the model's layers (`layer_groups`).
        order: "down2up" (embeddings first, the paper's default), "up2down", or "random" (shuffled once).
        m: layers a group.
        state: where the state of inactive groups waits: "device", "cpu" (saves device memory on CUDA) or "disk" (saves host memory too).
        folder: for "disk"; default a temporary one.
        max_group_bytes: instead of m, groups of at most so many bytes of gradient: large layers are split, small ones joined.
        sparse_embeddings: gradient, state and update only for those rows of embedding tables that a batch looks up. With momentum or
            weight decay this differs from dense training in leaving all other rows alone (lazy Adam).
        seed: of the random order.
    Raises:
        ProbatumError: groups that miss or repeat a parameter, an optimizer that lacks one or has a state over all (L-BFGS), a model that
            is wrapped (DDP, FSDP) or trains in float16 (an update would round away), a tied table with sparse_embeddings.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        groups: Sequence[Iterable[str] | str] | None = None,
        order: Order = "down2up",
        m: int = 1,
        state: Place = "device",
        folder: str | os.PathLike[str] | None = None,
        max_group_bytes: int | None = None,
        sparse_embeddings: bool = False,
        seed: int = 0,
    ) -> None:
        if order not in get_args(Order):
            raise ProbatumError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
        _check_model(model)
        earlier = _wrapped.get(model)
        if earlier and (other := earlier()) is not None:
            other.release()
        for name in model.__dict__.pop(MARK, ()):  # a copy of a model that was being trained in groups
            model.get_parameter(name).requires_grad_(True)
        self.model = model
        self.groups: list[Group] = layer_groups(model, groups, m=m, max_bytes=max_group_bytes)
        trainable = {name: tensor for group in self.groups for name, tensor in group.parameters}
        _check_dtypes(trainable)
        made = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(list(trainable.values()))  # type: ignore[arg-type]
        _check_optimizer(made, trainable)
        self._offload = Offload(state, folder)
        self.inner = made
        self.steps = 0
        k = len(self.groups)
        ranks = {"down2up": range(k), "up2down": range(k - 1, -1, -1)}
        self.sequence = (
            torch.randperm(k, generator=torch.Generator().manual_seed(seed)).tolist() if order == "random" else list(ranks[order])
        )
        self.order = order
        self._names = {id(tensor): name for name, tensor in trainable.items()}
        self._tables = {t.name: t for t in Table.of(model, trainable, self._offload)} if sparse_embeddings else {}
        self._released = False
        _wrapped[model] = weakref.ref(self)
        self._finalizer = weakref.finalize(self, _thaw, model, list(self._tables.values()))
        self._put_away(range(k))
        self._switch()

    # What is asked of an optimizer, from the one inside: its groups and state are replaced when a state is loaded.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    def __repr__(self) -> str:
        return f"HiFT({len(self.groups)} groups, {self.order}, active={self.active.name!r}, {self.inner!r})"

    @property
    def cycle(self) -> int:
        """Steps until every group has had its turn: the paper's k."""
        return len(self.groups)

    @property
    def active(self) -> Group:
        """The group whose turn it is."""
        return self.groups[self.sequence[self.steps % self.cycle]]

    def cycles(self, steps: int) -> int:
        """Of so many steps, the last perhaps not whole."""
        return math.ceil(steps / self.cycle)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the active group, then turn to the next.

        Args:
            closure: clears gradients, computes the loss, calls backward and returns the loss; or None after a backward of one's own.
        Returns:
            The closure's loss, detached.
        """
        if self._released:
            raise ProbatumError("this HiFT was released (its model belongs to another one, or training has ended)")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            loss = loss.detach() if isinstance(loss, Tensor) else loss
        self._drop(inactive_only=True)
        turn = self.sequence[self.steps % self.cycle]
        self._bring(turn)
        swapped = self._swap_in(turn)
        try:
            self.inner.step()
        finally:
            self._swap_out(swapped)
        strange = [key for key in self.inner.state if not isinstance(key, Tensor)]
        if strange:
            raise ProbatumError(
                f"{type(self.inner).__name__} keeps a state that belongs to no single parameter ({type(strange[0]).__name__}): groups "
                "cannot take turns in it"
            )
        self._put_away([turn])
        self.steps += 1
        self._switch()
        return loss

    def advance(self) -> None:
        """Turn to the next group without an update."""
        self.steps += 1
        self._switch()

    def seek(self, steps: int) -> None:
        """Take the turn of the group that is active after so many steps."""
        if steps < 0:
            raise ProbatumError(f"steps must be 0 or more, got {steps}")
        self.steps = steps
        self._switch()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients. They are never left as zeros: momentum and weight decay would then move what is not trained."""
        self._drop(inactive_only=False)

    def release(self) -> None:
        """End the rotation: everything is trainable again, all state is back in the optimizer, hooks are gone."""
        if self._released:
            return
        self._released = True
        for i in range(self.cycle):
            self._bring(i)
        for table in self._tables.values():
            if table.state:
                self.inner.state[table.weight] = table.state
        self._finalizer()

    # State.

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, of all groups wherever they wait (read into memory), with the place in the cycle."""
        away = {name: state for i in range(self.cycle) for name, state in self._offload.peek(i).items()}
        away.update({name: table.state for name, table in self._tables.items() if table.state})
        tensors = {name: tensor for group in self.groups for name, tensor in group.parameters}
        brought = [tensors[name] for name in away if tensors[name] not in self.inner.state]
        for tensor in brought:
            self.inner.state[tensor] = away[self._names[id(tensor)]]
        found = self.inner.state_dict()
        for tensor in brought:
            del self.inner.state[tensor]
        found["hift"] = {"steps": self.steps, "sequence": list(self.sequence), "groups": [group.names for group in self.groups]}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in mid-cycle too; weights are loaded by the model.

        Raises:
            ProbatumError: a state of other groups or another order, or not of HiFT. Nothing is changed then.
        """
        if "hift" not in state_dict:
            raise ProbatumError("this state is not of HiFT: load it into the optimizer before it is wrapped")
        own = state_dict["hift"]
        ours = [group.names for group in self.groups]
        theirs = [list(names) for names in own["groups"]]
        if theirs != ours:
            where = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(ours), len(theirs)))
            raise ProbatumError(
                f"the state has {len(theirs)} groups, this HiFT {len(ours)}, and they differ from groups[{where}] on: resume with the same"
            )
        if list(own["sequence"]) != self.sequence:
            raise ProbatumError(f"the state was in another order ({own['sequence']}) than this HiFT ({self.sequence})")
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "hift"})
        self._offload.clear()
        for table in self._tables.values():
            table.state = {}
        self.steps = own["steps"]
        self._put_away(range(self.cycle))
        self._switch()

    def waiting_bytes(self) -> tuple[int, int]:
        """Optimizer state outside the optimizer: of tables that stand on the device, and what waits elsewhere."""
        whole = [v for t in self._tables.values() for v in t.state.values() if isinstance(v, Tensor) and v.ndim]
        tables = sum(v.numel() * v.element_size() for v in whole)
        return (tables, 0) if self._offload.place == "device" else (0, tables + self._offload.bytes())

    def row_gradient_bytes(self) -> int:
        """Gradients of table rows, which stand in no parameter's `.grad`."""
        return sum(table.gradient_bytes() for table in self._tables.values())

    # Inside.

    def _switch(self) -> None:
        """Make the parameters of the active group, and no others, want gradients."""
        active = {id(tensor) for tensor in self.active.tensors}
        off = self.model.__dict__[MARK] = []
        for group in self.groups:
            for name, tensor in group.parameters:
                table = self._tables.get(name)
                if table:
                    table.on = id(tensor) in active
                wanted = id(tensor) in active and table is None
                tensor.requires_grad_(wanted)
                if not wanted:
                    off.append(name)
        self._drop(inactive_only=True)
        self._offload.prefetch(self.sequence[self.steps % self.cycle], self._devices(self.active))

    def _drop(self, inactive_only: bool) -> None:
        active = {id(tensor) for tensor in self.active.tensors} if inactive_only else set()
        for group in self.groups:
            for name, tensor in group.parameters:
                if id(tensor) not in active:
                    tensor.grad = None
                    if name in self._tables:
                        self._tables[name].forget()

    def _devices(self, group: Group) -> dict[str, torch.device]:
        return {name: tensor.device for name, tensor in group.parameters}

    def _bring(self, i: int) -> None:
        """State of a group into the optimizer."""
        states = self._offload.take(i, self._devices(self.groups[i]))
        for name, tensor in self.groups[i].parameters:
            if name in states:
                self.inner.state[tensor] = states[name]

    def _put_away(self, which: Iterable[int]) -> None:
        """State of groups out of the optimizer, after a step or a load; what stands on the device may stay where it is."""
        for i in which:
            states = {}
            for name, tensor in self.groups[i].parameters:
                if self.inner.state.get(tensor):
                    if name in self._tables:
                        self._tables[name].adopt(self.inner.state.pop(tensor))
                    else:
                        states[name] = self.inner.state[tensor]
            if self._offload.place != "device" and states:
                self._offload.put(i, states)
                for name, tensor in self.groups[i].parameters:
                    if name in states:
                        del self.inner.state[tensor]

    def _swap_in(self, turn: int) -> list[tuple[Table, Tensor, nn.Parameter, list[Any], int]]:
        """Tables of the group out of the optimizer's parameters, their rows of the batch in."""
        swapped = []
        for name in self.groups[turn].names:
            table = self._tables.get(name)
            taken = table.rows() if table else None
            if table is None or taken is None:
                continue
            ids, proxy, state = taken
            for group in self.inner.param_groups:
                at = next((i for i, p in enumerate(group["params"]) if p is table.weight), None)
                if at is not None:
                    group["params"][at] = proxy
                    if state:
                        self.inner.state[proxy] = state
                    swapped.append((table, ids, proxy, group["params"], at))
        return swapped

    def _swap_out(self, swapped: list[tuple[Table, Tensor, nn.Parameter, list[Any], int]]) -> None:
        for table, ids, proxy, params, at in swapped:
            params[at] = table.weight
            table.write(ids, proxy, self.inner.state.pop(proxy, {}))


class CycleLR(torch.optim.lr_scheduler.LambdaLR):
    """A schedule of lr factors by step, held still within each cycle of HiFT's groups, so that all are trained at equal rates.

    Args:
        optimizer: a HiFT.
        factor: step -> factor of the initial lr, as `LambdaLR` takes it; written for `total` steps as without HiFT.
        total: steps of the run.
        reference: as the authors' code: the schedule moves one step a cycle, so that at its end it has come 1/k of the way.
    """

    def __init__(self, optimizer: HiFT, factor: Callable[[int], float], total: int, *, reference: bool = False) -> None:
        if not isinstance(optimizer, HiFT):
            raise ProbatumError(f"optimizer must be a HiFT, got {type(optimizer).__name__}")
        super().__init__(optimizer, by_cycle(factor, optimizer.cycle, total, reference=reference))


def by_cycle(
    factor: Callable[[int], float], cycle: int, total: int, *, reference: bool = False
) -> Callable[[int], float]:
    """A function of the step that is constant within cycles: each has the value of its middle step, the last at most that of the run's end.

    >>> [by_cycle(lambda step: 1 - step / 16, cycle=4, total=10)(step) for step in range(10)]
    [0.9375, 0.9375, 0.9375, 0.9375, 0.6875, 0.6875, 0.6875, 0.6875, 0.4375, 0.4375]
    """
    if cycle < 1 or total < 1:
        raise ProbatumError(f"cycle and total must be 1 or more, got {cycle} and {total}")
    if reference:
        return lambda step: factor(step // cycle)
    return lambda step: factor(min(step // cycle * cycle + (cycle - 1) // 2, total - 1))


def _thaw(model: nn.Module, tables: list[Table]) -> None:
    """When a HiFT ends, by `release` or by being given up: the model is as it was given."""
    for name in model.__dict__.pop(MARK, ()):
        model.get_parameter(name).requires_grad_(True)
    for table in tables:
        table.remove()


def _check_model(model: nn.Module) -> None:
    kinds = {cls.__name__ for cls in type(model).__mro__}
    wrapper = kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
    if wrapper or any(type(p).__name__ == "DTensor" for p in model.parameters()):
        raise ProbatumError(
            f"the model is wrapped by {next(iter(wrapper), 'FSDP')}, whose reducer was built for the parameters trainable then: wrap with "
            "HiFT first, and DDP with find_unused_parameters=True"
        )


def _check_dtypes(trainable: dict[str, Tensor]) -> None:
    half = next((name for name, tensor in trainable.items() if tensor.dtype == torch.float16), None)
    if half:
        raise ProbatumError(
            f"{half} is float16 without a float32 master copy: small updates would round away; keep float32 weights and use "
            "torch.autocast, or bfloat16"
        )
    if any(tensor.dtype == torch.bfloat16 for tensor in trainable.values()):
        warnings.warn("bfloat16 weights without float32 master copies: updates below 1/256 of a weight round away", stacklevel=3)


def _check_optimizer(optimizer: torch.optim.Optimizer, trainable: dict[str, Tensor]) -> None:
    if isinstance(optimizer, HiFT):
        raise ProbatumError("the optimizer is a HiFT already")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ProbatumError("LBFGS keeps one state over all parameters: groups cannot take turns in it; use one that keeps it by parameter")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, tensor in trainable.items() if id(tensor) not in held]
    if missing:
        raise ProbatumError(
            f"the optimizer lacks {len(missing)} trainable parameters of the model, {missing[0]} first: pass model.parameters(), or "
            "freeze them"
        )
    ours = {id(tensor) for tensor in trainable.values()}
    strange = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in ours and p.requires_grad]
    if strange:
        raise ProbatumError(f"the optimizer has {len(strange)} trainable parameters that are not of the model: make it of model.parameters()")


def __getattr__(name: str) -> Any:
    if name == "HiFTCallback":  # transformers is only loaded by who wants it
        from probatum.finetune.callback import HiFTCallback

        return HiFTCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
