"""FuseMax: what a cascade of extended Einsums must cost, and running it in the fewest passes (arXiv 2406.10491).

A kernel written as a cascade of extended Einsums shows by its dependences alone how often any implementation must go over a
rank, hence what must be buffered or read again. Attention needs 3, 2 or 1 passes; the 1-pass cascade is FlashAttention's.
Use it to find out why a kernel cannot be fused, to rewrite it until it can, and to run it in blocks with masks of your own.

>>> attention_as_written = Cascade.named("attention-3pass")
>>> attention_as_written.passes("m").count, Cascade.named("attention-1pass").passes("m1", "m0").count
(3, 1)
>>> norm = Cascade('''
... do: MU[b]  = X[b,d]/D
...     VAR[b] = square(X[b,d] - MU[b])/D
...     Y[b,d] = (X[b,d] - MU[b])*rsqrt(VAR[b] + 0.00001)
... ''')
>>> norm.passes("d").count, [f.name for f in norm.footprints("d") if f.needs == "fibre"]
(3, ['X'])
>>> import torch
>>> x = torch.randn(5, 7)
>>> y = norm.run({"X": x})["Y"]
>>> bool(torch.allclose(y, torch.nn.functional.layer_norm(x, (7,)), atol=1e-6))
True
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from probatum.algebra.cascade_graph import Graph, build
from probatum.algebra.cascade_library import TAXONOMY
from probatum.algebra.cascade_machine import Cost, Machine, cost_of
from probatum.algebra.cascade_passes import Footprint, Passes, default_family, footprints_of, operations_of, passes_of
from probatum.algebra.cascade_syntax import Condition, Reference, Statement, parse_filter, show, variables
from probatum.algebra.fusemax_model import design, headline, published
from probatum.errors import ProbatumError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["TAXONOMY", "Cascade", "Machine", "attention", "design", "headline", "published"]

Plan = Literal["auto", "reference", "blocked"]


class Cascade:
    """A cascade of extended Einsums: parsed and checked once, analysed without running, run on tensors.

    Args:
        text: the cascade in the notation of `probatum.algebra.cascade_syntax`.
    Attributes:
        text: as given. graph: statements, roles, ranks. inputs, outputs: names of tensors.
    Raises:
        ProbatumError: with line and column: syntax, a left index missing on the right, unknown ranks, ranks that do not fit, a cycle
            without an iterative rank.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ProbatumError(f"text must be a string in the notation of cascades, got {type(text).__name__}")
        self.text = text
        self.graph: Graph = build(text)

    @classmethod
    def named(cls, name: str) -> "Cascade":
        """A cascade of the `TAXONOMY`."""
        if name not in TAXONOMY:
            raise ProbatumError(f"unknown cascade {name!r}: {did_you_mean(name, TAXONOMY)}")
        return cls(TAXONOMY[name])

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.graph.outputs

    @property
    def family(self) -> tuple[str, ...]:
        """The rank family meant where none is named: of the iterative rank, else the one that needs most passes."""
        return default_family(self.graph)

    def passes(self, *family: str) -> Passes:
        """Passes over a rank family, as passes("m") or passes("m1", "m0"); without arguments over `family`."""
        return passes_of(self.graph, family or self.family)

    def footprints(self, *family: str, extents: Mapping[str, int] | None = None) -> list[Footprint]:
        """What each tensor needs: a whole fibre, a tile, a carried state, or nothing but its current element."""
        return footprints_of(self.graph, family or self.family, self.graph.solve(extents or {}))

    def operations(self, extents: Mapping[str, int]) -> Counter[str]:
        """Operations by kind ("+", "*", "/", "exp", "max", ...) under extents as {"M": 1024, ...}."""
        return sum(operations_of(self.graph, self.graph.solve(extents)), Counter())

    def cost(self, machine: Machine | str, extents: Mapping[str, int], *family: str) -> Cost:
        """Time, traffic and energy on a machine: the longer of its compute and its memory traffic (see `Machine`)."""
        found = machine if isinstance(machine, Machine) else Machine.load(machine)
        return cost_of(self.graph, found, self.graph.solve(extents), family or self.family)

    def where(self, tensor: str, condition: str) -> "Cascade":
        """This cascade with a filter on every read of a tensor: a mask.

        Args:
            tensor: its name, as "BQK".
            condition: over the indices of its left side, as "m1*M0+m0 <= p" (causal) or "m < L[b]" (lengths).
        """
        parsed = parse_filter(condition)
        own = self.graph.indices_of(tensor) if tensor in {r.name for s in self.graph.statements for r in s.reads} else None
        if own is None:
            read = {r.name for s in self.graph.statements for r in s.reads}
            raise ProbatumError(f"tensor {tensor!r} is not read in this cascade: {did_you_mean(tensor, read)}")
        allowed = {v for index in own for v in index.variables}
        for c in parsed:
            for v in (*variables(c.left), *variables(c.right)):
                if v not in allowed:
                    raise ProbatumError(f"condition {condition!r}: unknown rank {v!r}, {tensor} has {', '.join(sorted(allowed))}")
        return Cascade(_write(self.graph, tensor, parsed))

    def plan(self, plan: Plan = "auto") -> str:
        """Which executor runs and why, in one line."""
        _, why = self._choose(plan)
        return why

    def _choose(self, plan: Plan) -> tuple[str, str]:
        if plan not in ("auto", "reference", "blocked"):
            raise ProbatumError(f"plan must be auto, reference or blocked, got {plan!r}")
        graph = self.graph
        passes = self.passes() if graph.variables else None
        rank = "{" + ", ".join(passes.family) + "}" if passes else "{}"
        if graph.iterative is None:
            count = passes.count if passes else 0
            reason = f"no iterative rank to walk; {count} pass{'es' if count != 1 else ''} over {rank}"
            if passes and passes.count > 1:
                reason += f", since {_culprit(graph, passes)}"
        elif passes and passes.count > 1:
            reason = f"{passes.count} passes over {rank}: {_culprit(graph, passes)}"
        elif stray := [
            s.target.name for s, role in zip(graph.statements, graph.roles, strict=True) if role == "after" and _spans(graph, s)
        ]:
            reason = f"{stray[0]} reads all steps after the last one"
        else:
            if plan == "reference":
                return "reference", f"reference, as asked for (1 pass over {rank}: blocked could run)"
            return "blocked", f"blocked: 1 pass over {rank}, walked along {graph.iterative}; state {', '.join(graph.carried)}"
        if plan == "blocked":
            raise ProbatumError(f"plan='blocked' needs a cascade of one pass with an iterative rank: {reason}")
        return "reference", f"reference: {reason}"

    def run(
        self,
        inputs: Mapping[str, "Tensor"],
        extents: Mapping[str, int] | None = None,
        *,
        plan: Plan = "auto",
        outputs: Sequence[str] | None = None,
        tile: Mapping[str, int] | None = None,
    ) -> dict[str, "Tensor"]:
        """Run on tensors of one device; differentiable.

        Args:
            inputs: name -> tensor with one axis an index, in the order of the text.
            extents: of ranks that no input shows, as {"M0": 512}; they stand above the text's own `extents:`.
            plan: "reference" makes every tensor whole; "blocked" keeps one step and the carried state, and needs one pass and an
                iterative rank; "auto" takes blocked where it can.
            outputs: tensors to return; default those that nothing reads. A carried tensor comes with all steps from "reference",
                with the last one from "blocked".
            tile: rank -> size for "blocked", of ranks that all outputs have and nothing reduces; default: so that a step's largest
                tensor has about 2^20 entries.
        Returns:
            name -> tensor, axes in the order of the left side.
        Raises:
            ProbatumError: a missing or unknown input; extents that disagree (both tensors are named) or do not divide; blocked
                execution of a cascade of more passes (the tensor that forces the pass is named).
        """
        import torch

        from probatum.algebra import cascade_execution as execution

        missing = [name for name in self.inputs if name not in inputs]
        unknown = [name for name in inputs if name not in self.inputs]
        if missing or unknown:
            near = f": {did_you_mean(unknown[0], self.inputs)}" if unknown else ""
            raise ProbatumError(f"inputs must be {', '.join(self.inputs)}; missing {missing}, unknown {unknown}{near}")
        for name, value in inputs.items():
            if not isinstance(value, torch.Tensor):
                raise ProbatumError(f"input {name} must be a torch tensor, got {type(value).__name__}")
        chosen, _ = self._choose(plan)
        known = self.graph.solve(extents or {}, {name: tuple(value.shape) for name, value in inputs.items()})
        absent = [v.upper() for v in self.graph.variables if v.upper() not in known]
        if absent:
            raise ProbatumError(f"the extents {', '.join(absent)} follow from no input: give extents={{{absent[0]!r}: ...}}")
        made = [s.target.name for s in self.graph.statements]
        wanted = tuple(outputs) if outputs is not None else self.outputs
        for name in wanted:
            if name not in made:
                raise ProbatumError(f"outputs: {name!r} is not made here: {did_you_mean(name, made)}")
        ordered = {name: inputs[name] for name in self.inputs}
        if chosen == "blocked":
            late = {s.target.name for s, role in zip(self.graph.statements, self.graph.roles, strict=True) if role == "after"}
            other = [name for name in wanted if name not in late and name not in self.graph.carried]
            if (other or not wanted) and plan == "blocked":
                raise ProbatumError(f"outputs: blocked keeps no step's {other[0]}; take plan='reference'")
            history = [n for n in wanted if n in self.graph.carried and outputs is None]
            if not other and not history:
                free = execution.tileable(self.graph)
                sizes = dict(tile) if tile is not None else execution.default_tile(self.graph, known)
                for v, size in sizes.items():
                    if v not in free:
                        raise ProbatumError(f"tile: {v!r} cannot be cut, only {', '.join(free) or 'nothing'} can")
                    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                        raise ProbatumError(f"tile[{v!r}] must be an integer of at least 1, got {size!r}")
                return execution.run_blocked(self.graph, ordered, known, wanted, sizes)
            if history and plan == "blocked":
                raise ProbatumError(f"{history[0]} is wanted with all its steps: name it in outputs= for the last one, or plan='reference'")
        return execution.run_reference(self.graph, ordered, known, wanted)

    def triton(self, extents: Mapping[str, int], *, block: int = 128, name: str = "cascade_kernel") -> str:
        """Source of a Triton kernel and its launcher for a one-pass cascade.

        Args:
            extents: at least those of ranks that are neither tiled nor a grid axis, as {"E": 64, "F": 64, "M0": 64}.
            block: size of a program's tile of the outer rank, a power of two.
            name: of the kernel; the launcher is `launch_` + name.
        """
        from probatum.algebra.cascade_triton import generate

        self._choose("blocked")
        return generate(self.graph, self.graph.solve(extents), block, name)

    def picture(self, figure: "Figure", *family: str) -> None:
        """Draw the dependence graph into a matplotlib figure: a row a pass, boundaries between them."""
        from probatum.algebra.cascade_picture import draw

        draw(self.graph, self.passes(*family), figure)

    def lines(self, *family: str) -> str:
        """The same picture as text: a block a pass."""
        from probatum.algebra.cascade_picture import as_text

        return as_text(self.graph, self.passes(*family))

    def __str__(self) -> str:
        return _write(self.graph)

    def __repr__(self) -> str:
        return f"Cascade({len(self.graph.statements)} statements, {', '.join(self.inputs)} -> {', '.join(self.outputs)})"


def _spans(graph: Graph, statement: Statement) -> bool:
    """Whether a statement after the iteration needs the values of all steps."""
    return any(graph.iterative in index.variables for ref in statement.reads for index in ref.indices)


def _culprit(graph: Graph, passes: Passes) -> str:
    """Which tensor makes the last pass necessary."""
    for statement, number, full in zip(graph.statements, passes.of_statement, passes.full, strict=True):
        if not full or number < 2:
            continue
        for ref in statement.reads:
            inside = {v.rstrip("_") for index in ref.indices for v in index.variables} & set(passes.family)
            if not inside and ref.name in passes.made_in and passes.made_in[ref.name] == number - 1:
                return f"{statement.target.name} needs {ref.name}, which is complete only after pass {number - 1}"
    return "a tensor is read again"


def _write(graph: Graph, tensor: str | None = None, filters: tuple[Condition, ...] = ()) -> str:
    """The text of a graph, with a filter added to every read of a tensor."""

    def visit(node: Any) -> Any:
        if isinstance(node, Reference):
            return replace(node, filters=node.filters + _renamed(node)) if node.name == tensor else node
        return replace(node, arguments=tuple(map(visit, node.arguments))) if hasattr(node, "arguments") else node

    def _renamed(ref: Reference) -> tuple[Condition, ...]:
        same = [i.plain for i in ref.indices] == [i.plain for i in graph.indices_of(ref.name)]
        if not same:
            raise ProbatumError(f"tensor {ref.name} is read as {ref}: write the filter into the text yourself")
        return filters

    blocks = []
    if graph.equations:
        blocks.append("extents: " + ", ".join(f"{name} = {show(value)}" for name, value in graph.equations))
    for title, initial in (("init:", True), ("do:", False)):
        rows = [str(replace(s, expression=visit(s.expression))) for s in graph.statements if s.initial is initial]
        if rows:
            blocks.append(title + "\n" + "\n".join(f"  {row}" for row in rows))
    if graph.until is not None:
        blocks.append(f"until {graph.until}")
    return "\n".join(blocks) + "\n"


@functools.lru_cache(maxsize=64)
def _attention(causal: bool, window: int | None, lengths: bool, bias: str | None, softcap: float | None) -> Cascade:
    text = TAXONOMY["attention-gqa-1pass"]
    score = "Q[b,g,r,p,e]*BK[b,g,m1,m0,e]/sqrt(E)"
    extra = ""
    if softcap is not None or bias is not None:
        value = "RAW[b,g,r,p,m1,m0]"
        if softcap is not None:
            value = f"{softcap!r}*tanh({value}/{softcap!r})"
        if bias == "alibi":
            value += " - SLOPE[g,r]*abs(p + SHIFT - m1*M0 - m0)"
        elif bias == "tensor":
            value += " + BIAS[b,g,r,p,m1*M0+m0]"
        extra = f"      RAW[b,g,r,p,m1,m0] = {score}\n"
        text = text.replace(f"BQK[b,g,r,p,m1,m0]  = {score}", f"BQK[b,g,r,p,m1,m0]  = {value}")
        text = text.replace("do:  ", f"do:\n{extra}  ")
    found = Cascade(text)
    conditions = ["m1*M0+m0 < LENGTH[b]" if lengths else "m1*M0+m0 < KEYS"]
    if causal:
        conditions.append("m1*M0+m0 <= p + SHIFT")
    if window is not None:
        conditions.append(f"p + SHIFT - m1*M0 - m0 < {window}")
        if not causal:
            conditions.append(f"m1*M0 + m0 - p - SHIFT < {window}")
    return found.where("BQK", " and ".join(conditions))


def attention(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    *,
    causal: bool = False,
    window: int | None = None,
    lengths: "Tensor | None" = None,
    alibi: "Tensor | None" = None,
    bias: "Tensor | None" = None,
    softcap: float | None = None,
    splits: int = 1,
    block: int = 256,
) -> "Tensor":
    """Attention by the 1-pass cascade: no (P, M) matrix is ever made, forward or backward, whatever the mask.

    It is plain torch, for masks that fused kernels lack and for reading; where `scaled_dot_product_attention` has a kernel for your case
    that is faster. A query without any key gives 0, there nan.

    Args:
        query: (B, H, P, E), floating. key: (B, G, M, E), value: (B, G, M, F): G divides H (grouped queries).
        causal: query p sees keys up to p + M - P, so that the last query sees all.
        window: keys nearer than this many positions; both sides unless causal.
        lengths: (B,) integers, keys of each sequence.
        alibi: (H,) slopes; the score loses slope * distance.
        bias: (B, H, P, M), added to the score.
        softcap: c gives c tanh(score / c), before the bias.
        splits: the keys are cut in so many parts, each runs by itself, and the carried states (maximum, sum, weighted sum) are folded as
            elements of the softmax monoid: the split-K of decoding.
        block: keys of a step (M0); the last step is padded and filtered.
    Returns:
        (B, H, P, F).
    Raises:
        ProbatumError: shapes that do not fit, alibi together with bias, splits or block below 1.
    """
    import torch

    from probatum.algebra.monoids import SOFTMAX, fold

    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not (query.ndim == key.ndim == value.ndim == 4 and query.is_floating_point()):
        raise ProbatumError(f"query, key and value must be floating of 4 axes (B, H, N, E), got {shapes}")
    (b, h, p, e), (_, g, m, _) = query.shape, key.shape
    if key.shape[0] != b or value.shape[:3] != key.shape[:3] or key.shape[3] != e or h % g or not m:
        raise ProbatumError(f"key (B, G, M, E) and value (B, G, M, F) must fit query (B, H, P, E) with H a multiple of G, got {shapes}")
    if alibi is not None and bias is not None:
        raise ProbatumError("give alibi or bias, not both: add the slopes to the bias")
    for name, given in (("splits", splits), ("block", block), ("window", window)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ProbatumError(f"{name} must be an integer of at least 1, got {given!r}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ProbatumError(f"softcap must be positive and finite, got {softcap!r}")
    for name, tensor, wanted in (("lengths", lengths, (b,)), ("alibi", alibi, (h,)), ("bias", bias, (b, h, p, m))):
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ProbatumError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")
    block = min(block, m)
    steps = -(-m // block)
    splits = min(splits, steps)
    cascade = _attention(
        causal, window, lengths is not None, "alibi" if alibi is not None else "tensor" if bias is not None else None, softcap
    )
    padding = steps * block - m
    if padding:
        key, value = (torch.nn.functional.pad(t, (0, 0, 0, padding)) for t in (key, value))
        bias = None if bias is None else torch.nn.functional.pad(bias, (0, padding))
    r = h // g
    parts = []
    for part in range(splits):
        first, last = part * steps // splits * block, (part + 1) * steps // splits * block
        number = functools.partial(torch.tensor, device=query.device)
        inputs = {"Q": query.reshape(b, g, r, p, e), "K": key[:, :, first:last], "V": value[:, :, first:last]}
        inputs |= {"SHIFT": number(m - p - first)} if causal or window is not None or alibi is not None else {}
        inputs |= {"LENGTH": lengths - first} if lengths is not None else {"KEYS": number(m - first)}
        inputs |= {"SLOPE": alibi.reshape(g, r)} if alibi is not None else {}
        inputs |= {"BIAS": bias[..., first:last].reshape(b, g, r, p, last - first)} if bias is not None else {}
        results = ("RM", "RD", "RNV") if splits > 1 else ("AV",)
        parts.append(cascade.run(inputs, {"M0": block}, plan="blocked", outputs=results))
    if splits == 1:
        return parts[0]["AV"].reshape(b, h, p, -1)
    states = tuple(torch.stack([part[name] for part in parts]) for name in ("RM", "RD", "RNV"))
    _, total, weighted = fold(SOFTMAX, states)
    return (weighted / torch.where(total == 0, math.inf, total)[..., None]).reshape(b, h, p, -1)
