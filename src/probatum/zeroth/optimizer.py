"""A `torch.optim.Optimizer` that never differentiates: `step(closure)` calls the closure twice a direction and moves along it."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.nn.select import select
from probatum.zeroth.estimate import loss_value, spsa_pair
from probatum.zeroth.log import Log, apply_updates, float32, new_head
from probatum.zeroth.masks import Bits, Fixed, MaskRule, flat, rule_of
from probatum.zeroth.noise import Kind, Noise
from probatum.zeroth.rows import UsedRows
from probatum.zeroth.rule import Rule
from probatum.zeroth.scratch import Scratch
from probatum.zeroth.weights import DIGITS, EXACT, Exact, Weights

if TYPE_CHECKING:
    from probatum.zeroth.distributed import Spread

__all__ = ["LearningRate", "ZerothOrder", "packed_mask"]

QUIET = 20  # steps after which what never changed anything is told
WARM = 8  # pairs before a running mean of p^2 means anything
MEMORY = 0.99
HINTS = 1 << 32  # queries of `lr_hint` stand beyond those of any step


@dataclass(frozen=True)
class LearningRate:
    """What a few pairs say about the loss: `lr` = 1 / trace(H), the largest expected gain a step (H: Hessian of the smoothed loss).

    `trace` and its standard error, `gradient`: root mean square of p, an estimate of |g|. A run with noisy batches wants less.
    """

    lr: float
    trace: float
    standard_error: float
    gradient: float


class ZerothOrder(torch.optim.Optimizer):
    """Descent along random directions, from loss values alone; the base of the family's optimizers.

    Subclasses override `queries(step)` (the directions of a step), and `masks()` or `mask(name, tensor)` (where z is 0).

    Args:
        params: `model.named_parameters()`, or groups of such; names decide the order, which decides z.
        lr: step size, above 0. About a tenth to a hundredth of Adam's where all weights move; see `lr_hint`.
        eps: length of the perturbation, above 0.
        n: directions a step, averaged; each costs two forwards.
        noise: "gaussian", or "rademacher" (signs: as good here, cheaper, and its log replays on any device).
        exact: how a step is undone (see `weights.py`): "lattice", "scratch" (needs `model`), "copy" or "off"; None takes "lattice" for float32
            from lr 1e-5 up, "off" below (updates would round to nothing), and "scratch" for half precision.
        seed: of all directions.
        weight_decay: theta -= lr weight_decay theta, of tensors with two or more dimensions.
        clip: cut |p| at that many times its running root mean square; None does not. p is heavy-tailed, and long runs collapse without.
        rows: "used" moves only those rows of embedding tables that a batch looks up (needs `model`).
        include, exclude: shell patterns of parameter names. Embeddings are left out by default: most of their rows cannot matter.
        model: lets the optimizer hook modules and warn of dropout.
        threads: threads that draw noise; default torch's. No bit depends on it.
    Raises:
        ProbatumError: see the messages; nothing is changed then.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float,
        eps: float = 1e-3,
        n: int = 1,
        *,
        noise: Kind = "gaussian",
        exact: Exact | None = None,
        seed: int = 0,
        weight_decay: float = 0.0,
        clip: float | None = 2.0,
        rows: Literal["all", "used"] = "all",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = ("*embed*",),
        model: nn.Module | None = None,
        threads: int | None = None,
    ) -> None:
        _positive("lr", lr)
        _positive("eps", eps)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ProbatumError(f"n must be an integer of 1 or more, got {n!r}")
        if clip is not None:
            _positive("clip", clip)
        if not (isinstance(weight_decay, (int, float)) and 0 <= weight_decay < math.inf):
            raise ProbatumError(f"weight_decay must be 0 or more, got {weight_decay!r}")
        if rows not in ("all", "used") or (rows == "used" and model is None):
            raise ProbatumError(
                f"rows must be 'all', or 'used' with model=, got {rows!r}{'' if model else ' without model='}"
            )
        if exact is not None and exact not in EXACT:
            raise ProbatumError(f"exact must be one of {', '.join(EXACT)}, got {exact!r}")
        self.noise = Noise(seed, noise, threads=threads)
        self.eps, self.n, self.clip, self.model = float(eps), n, clip, model
        groups = _named_groups(params, include, () if rows == "used" else exclude)
        super().__init__(groups, {"lr": float(lr), "weight_decay": float(weight_decay)})
        pairs = [
            (name, p, g)
            for g, group in enumerate(self.param_groups)
            for name, p in zip(group["param_names"], group["params"], strict=True)
        ]
        pairs.sort(key=lambda pair: pair[0])
        self._names, self._tensors, self._groups = [p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs]
        _check_tensors(self._names, self._tensors)
        exact = exact or self._default_exact(min(group["lr"] for group in self.param_groups))
        self._check_exact(exact)
        tables = {}
        if rows == "used":
            assert model is not None
            if exact in ("scratch", "copy"):
                raise ProbatumError(f"rows='used' moves rows in place and exact={exact!r} never does: take one of them")
            lookups = {
                id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
            }
            tables = {i: p for i, p in enumerate(self._tensors) if id(p) in lookups}
        self._weights = Weights(
            self._names, self._tensors, self.noise, self.eps, exact, rows=UsedRows(model, tables) if tables else None
        )
        self._scratch = Scratch(model, self._weights) if exact == "scratch" and model is not None else None
        self._log: Log | None = None
        self._rule: Rule | None = None
        self._mean_square = self._weight = 0.0
        self._skipped = self._flat = self._flat_ever = 0
        self._calm: float | None = None
        self._told: set[str] = set()
        self._made = False
        self.spread: Spread | None = None  # set by `distribute`

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, only before the first step: z is addressed by a tensor's place among all."""
        if hasattr(self, "_weights"):
            raise ProbatumError(
                "a group cannot be added to a zeroth-order optimizer: make a new one over all parameters"
            )
        # Without its decorator, which imports torch's compiler: seconds and a hundred megabytes for nothing.
        plain = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.Optimizer.add_param_group)
        plain(self, param_group)

    @property
    def exact(self) -> str:
        """How steps are undone: "lattice", "scratch", "copy" or "off"."""
        return self._weights.exact

    @property
    def steps(self) -> int:
        """Steps made, skipped ones included."""
        return 0 if self._log is None else len(self._log)

    @property
    def log(self) -> Log:
        """The run so far; `log.save(path)` and `replay(model, path)`.

        Raises:
            ProbatumError: before the first step.
        """
        if self._log is None:
            raise ProbatumError("there is no log before the first step")
        return self._log

    @property
    def flat_share(self) -> float:
        """Share of steps in which both losses were equal, so that nothing moved: large for accuracies with a small eps."""
        return self._flat_ever / max(1, self.steps)

    def queries(self, step: int) -> list[int]:
        """The directions of a step, by number; equal numbers are equal directions."""
        return list(range(self.n))

    def _directions(self) -> list[int]:
        """The columns of the log."""
        return self.queries(0)

    def _row(self, slopes: list[float]) -> list[float]:
        """A step's slopes as its row of the log, whose mean over all columns is applied."""
        return slopes

    def mask(self, name: str, tensor: Tensor) -> Tensor | None:
        """Where z may differ from 0 (bool, same shape); None: everywhere. Asked before the first step."""
        return None

    def masks(self) -> MaskRule | None:
        """The masks of every step. Asked before the first step, when the weights stand on their lattice; here what `mask` says, fixed."""
        found = {i: self.mask(name, t) for i, (name, t) in enumerate(zip(self._names, self._tensors, strict=True))}
        fixed = {i: packed_mask(self._names[i], self._tensors[i], mask) for i, mask in found.items() if mask is not None}
        return Fixed(fixed) if fixed else None

    def rule(self) -> dict[str, Any] | None:
        """The optimizer of torch.optim that takes slope times z as its gradient ("name", "options"); None: the plain step. Needs exact
        "copy", since what it writes lies on no lattice."""
        return None

    @property
    def active_share(self) -> float:
        """Share of the weights that the masks of the last step let move."""
        return self._weights.active / max(1, sum(t.numel() for t in self._tensors))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """One step.

        Args:
            closure: computes the loss of one batch: a tensor or a number, of any objective; called twice a direction.
        Returns:
            The mean of the losses at the perturbed weights, a 0-d float64 tensor. A loss that is not finite skips the step.
        """
        if (
            closure is None and self._made
        ):  # a trainer that made the step within its own and now calls step() as it always does
            self._made = False
            return torch.tensor(math.nan, dtype=torch.float64)
        if closure is None:
            raise ProbatumError(
                "step() needs a closure that computes the loss. GradScaler, gradient accumulation and Hugging Face's Trainer call it "
                "without one after backward(): leave those out, or use MeZOTrainer"
            )
        rates = self._rates()
        log = self._begin() if self._log is None else self._log
        step, weights = len(log), self._weights
        found, rows = [], []
        queries = self.queries(step)
        weights.choose(step, alone=len(queries) == 1 and not any(log.head["weight_decay"]))
        for query in self.spread.share(step, queries, self.noise.seed) if self.spread else queries:
            weights.begin(step, query)
            found.append(spsa_pair(closure, weights, self._scratch, {t.device for t in self._tensors[:1]}))
            if weights.rows:
                rows.append(weights.rows.used())
            if weights.offset and len(queries) > 1:
                weights.move(-weights.offset)
        if self.spread:
            found = self.spread.exchange(self, found, queries)
        slopes = self._row([float32(self._cut(pair.slope)) for pair in found])
        apply_updates([weights] * len(slopes), step, log.head, slopes, rates, rows, standing=weights.offset, rule=self._rule)
        log.add(slopes, rates, rows)
        self._watch(slopes, rates, step)
        return torch.scalar_tensor(sum(pair.mean for pair in found) / len(found), dtype=torch.float64)

    @torch.no_grad()
    def lr_hint(self, closure: Callable[[], Any], pairs: int = 16) -> LearningRate:
        """A learning rate for these weights and this batch, from 2 `pairs` + 1 calls of the closure; theta is left as it was.

        The curvature along z, (l+ + l- - 2 l) / eps^2, has mean trace(H), and a step of 1 / trace(H) gains most.

        Raises:
            ProbatumError: the trace is not above its own standard error: flat or concave here, or eps too small for the rounding
                of the loss.
        """
        squares, curves = self.probe(closure, pairs)
        trace = math.fsum(curves) / pairs
        error = math.sqrt(math.fsum((c - trace) ** 2 for c in curves) / (pairs - 1) / pairs)
        if not trace > error:
            raise ProbatumError(
                f"no hint: trace(H) is {trace:.3g} with standard error {error:.2g} from {pairs} pairs; take more pairs, a larger eps "
                f"than {self.eps:g}, or a larger batch"
            )
        return LearningRate(1 / trace, trace, error, math.sqrt(math.fsum(squares) / pairs))

    @torch.no_grad()
    def probe(self, closure: Callable[[], Any], pairs: int) -> tuple[list[float], list[float]]:
        """p^2 and the curvature (l+ + l- - 2 l) / eps^2 along `pairs` directions that no step uses; theta is left as it was."""
        if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 2:
            raise ProbatumError(f"pairs must be an integer of 2 or more, got {pairs!r}")
        if self._log is None:
            self._begin()
        weights, devices = self._weights, {t.device for t in self._tensors[:1]}
        weights.choose(self.steps)
        state = torch.get_rng_state()
        here = loss_value(closure())
        squares, curves = [], []
        for k in range(pairs):
            torch.set_rng_state(state)
            weights.begin(self.steps, HINTS + k)
            pair = spsa_pair(closure, weights, self._scratch, devices)
            if weights.offset:
                weights.move(-weights.offset)
            squares.append(pair.slope**2)
            curves.append((pair.plus + pair.minus - 2 * here) / self.eps**2)
        return squares, curves

    # State.

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the log so far and what clipping and the lattice remember."""
        found = super().state_dict()
        log = self._log
        found["zeroth"] = {
            "head": log.head if log is not None else None,
            "arrays": log.arrays() if log is not None else {},
            "clip": [self._mean_square, self._weight],
            "flat": [self._flat_ever, self._flat, self._skipped],
            "lattice": [list(self._weights.steps), list(self._weights.room)],
        }
        if self._rule is not None:
            found["zeroth"]["rule"] = self._rule.optimizer.state_dict()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model's weights are loaded by the model.

        Raises:
            ProbatumError: the state of another optimizer, or of other tensors.
        """
        if "zeroth" not in state_dict:
            raise ProbatumError("this state is not that of a zeroth-order optimizer")
        own = state_dict["zeroth"]
        if own["head"] is not None:
            theirs = [[row[0], list(row[1])] for row in own["head"]["tensors"]]
            ours = [[name, list(t.shape)] for name, t in zip(self._names, self._tensors, strict=True)]
            if theirs != ours:
                raise ProbatumError(
                    f"the state is of other tensors: {len(theirs)} from {theirs[0][0]} on, here {len(ours)} from {ours[0][0]} on"
                )
            setting = {"seeds": self.noise.seed, "noise": self.noise.kind, "eps": self.eps, "exact": self.exact}
            for key, value in setting.items():
                saved = own["head"][key][0] if key == "seeds" else own["head"][key]
                if saved != value:
                    raise ProbatumError(
                        f"the state was made with {key} {saved!r}, this optimizer has {value!r}: a run keeps its own"
                    )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "zeroth"})
        self._log = (
            Log.of(own["head"], {k: v.cpu() for k, v in own["arrays"].items()}) if own["head"] is not None else None
        )
        self._mean_square, self._weight = own["clip"]
        self._flat_ever, self._flat, self._skipped = own["flat"]
        self._weights.steps, self._weights.room = map(list, own["lattice"])
        if self._log is not None:
            self._weights.rule = rule_of(self._log.head.get("masks"), self._log.mask_arrays, self._tensors[0].device)
            if "rule" in self._log.head:
                self._rule = Rule(self._tensors, self._groups, self._log.head["rule"])
                self._rule.optimizer.load_state_dict(own["rule"])

    # Inside.

    def _rates(self) -> list[float]:
        for group in self.param_groups:
            if not 0 <= group["lr"] < math.inf:
                raise ProbatumError(f"lr must be 0 or more and finite, got {group['lr']!r}")
        return [float32(group["lr"]) for group in self.param_groups]

    def _begin(self) -> Log:
        """At the first step: take the fingerprint, then snap."""
        self._check_modes()
        decay = [
            self.param_groups[g]["weight_decay"] if t.ndim > 1 else 0.0
            for g, t in zip(self._groups, self._tensors, strict=True)
        ]
        tables = list(self._weights.rows.tables) if self._weights.rows else []
        named = list(zip(self._names, self._tensors, strict=True))
        head = new_head(named, self.noise, self._directions(), self.eps, self.exact, decay, self._groups, tables)
        if self.exact == "lattice":
            self._weights.snap()
        self._log = Log(head)
        self._weights.rule = rule = self.masks()
        if rule is not None:
            if tables:
                raise ProbatumError("rows='used' has its own choice of weights: it goes with no mask")
            self._log.keep_masks(rule)
        spec = self.rule()
        if spec is not None:
            self._rule = Rule(self._tensors, self._groups, spec)
            self._log.keep_rule(spec)
        return self._log

    def _cut(self, slope: float) -> float:
        """Clip against the running root mean square of what was applied."""
        if not math.isfinite(slope):
            return math.nan
        if self.clip is not None and self._weight and self._seen() >= WARM:
            limit = self.clip * math.sqrt(self._mean_square / self._weight)
            if limit:
                slope = max(-limit, min(limit, slope))
        self._mean_square = MEMORY * self._mean_square + (1 - MEMORY) * slope * slope
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        return slope

    def _seen(self) -> float:
        """How many pairs the running mean has seen."""
        return math.log1p(-self._weight) / math.log(MEMORY) + 0.5 if self._weight < 1 else math.inf

    def _watch(self, slopes: list[float], rates: list[float], step: int) -> None:
        if not all(map(math.isfinite, slopes)):
            self._skipped += 1
            if self._skipped >= QUIET:
                raise ProbatumError(
                    f"the loss was not finite in {QUIET} steps in a row; all were skipped and the weights are those before them: "
                    "look at the data and the model's dtype"
                )
            self._tell(
                "skip", f"step {step}: the loss is not finite, the step is skipped and the weights are as before it"
            )
            return
        self._skipped = 0
        flat = not any(slopes)
        self._flat_ever += flat
        self._flat = self._flat + 1 if flat else 0
        if self._flat == QUIET:
            self._tell(
                "flat", f"both losses were equal in {QUIET} steps in a row, so nothing moved: eps={self.eps:g} is too small to change "
                "the loss (or the closure does not use the tuned weights)"
            )  # fmt: skip
        if step == QUIET and any(slopes) and all(rates):
            size = math.sqrt(self._mean_square / self._weight)
            lost = self._weights.lost([rates[g] * size for g in self._groups])
            if lost > (0.05 if self.exact == "lattice" else 0.5):
                self._tell(
                    "lost", f"{lost:.0%} of the weights do not move: the update rounds to nothing at lr={rates[0]:g}; "
                    + ("take exact='off' or 'scratch'" if self.exact == "lattice" else "tune in float32")
                )  # fmt: skip
        square = self._mean_square / self._weight
        if step == 200:
            self._calm = square
        if self._calm and square > 10 * self._calm:
            self._tell(
                "wild",
                f"step {step}: the mean square of p has grown tenfold since step 200, which precedes divergence: lower lr",
            )

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(text, stacklevel=4)

    def _default_exact(self, lr: float) -> Exact:
        if all(t.dtype in DIGITS for t in self._tensors):
            return "lattice" if lr >= 1e-5 else "off"
        if self.model is None:
            raise ProbatumError(
                "half precision cannot be perturbed in place and restored (in 2,000 steps its weights drift by 17 %): give model= for "
                "exact='scratch', tune in float32, or ask for exact='off'"
            )
        return "scratch"

    def _check_exact(self, exact: Exact) -> None:
        low = next(
            ((name, t.dtype) for name, t in zip(self._names, self._tensors, strict=True) if t.dtype not in DIGITS), None
        )
        if exact == "lattice" and low:
            raise ProbatumError(
                f"exact='lattice' needs float32 or float64, {low[0]} is {low[1]}: take 'scratch' with model="
            )
        if exact == "scratch" and self.model is None:
            raise ProbatumError("exact='scratch' runs the model's modules on copies of their weights: give model=")
        if exact == "off" and low:
            drift = "17 %" if low[1] == torch.bfloat16 else "2 %"
            self_told = f"{low[0]} is {low[1]}: perturbing it in place moves the weights by {drift} in 2,000 steps without any training"
            warnings.warn(self_told + "; exact='scratch' with model= does not", stacklevel=3)

    def _check_modes(self) -> None:
        for name, module in self.model.named_modules() if self.model is not None else ():
            if not module.training:
                continue
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                raise ProbatumError(
                    f"{name or 'the model'} is a batch norm in training mode: its statistics would change in every forward pass, so the "
                    "two losses differ by more than the perturbation; call model.eval()"
                )
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                text = f"{name or 'the model'} drops out: both passes of a pair drop the same units, but model.eval() gives less noise"
                if "dropout" not in self._told:
                    self._tell("dropout", text)


def packed_mask(name: str, tensor: Tensor, mask: Tensor) -> Bits:
    """A mask of the tensor's shape in the order of its memory."""
    if mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise ProbatumError(f"the mask of {name} must be boolean of shape {list(tensor.shape)}, got {mask.dtype} {list(mask.shape)}")
    return Bits.of(flat(torch.empty_like(tensor, dtype=torch.bool).copy_(mask), name))


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ProbatumError(f"{name} must be above 0 and finite, got {value!r}")


def _named_groups(params: Any, include: Sequence[str], exclude: Sequence[str]) -> list[dict[str, Any]]:
    """Groups of selected (name, tensor) pairs; a tensor stands in one group, once."""
    given = list(params)
    if not given:
        raise ProbatumError("params is empty: pass model.named_parameters()")
    groups = given if isinstance(given[0], dict) else [{"params": given}]
    seen: dict[int, str] = {}
    for group in groups:
        pairs = list(group["params"])
        if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
            raise ProbatumError(
                "params must be model.named_parameters(): names decide the order of the tensors, and so z"
            )
        for name, tensor in pairs:
            if id(tensor) in seen:
                raise ProbatumError(
                    f"{name} stands in two places (also as {seen[id(tensor)]}): it would be perturbed twice"
                )
            seen[id(tensor)] = name
    chosen = {
        id(tensor) for _, tensor in select([pair for group in groups for pair in group["params"]], include, exclude)
    }
    kept = [{**group, "params": [pair for pair in group["params"] if id(pair[1]) in chosen]} for group in groups]
    return [group for group in kept if group["params"]]


def _check_tensors(names: list[str], tensors: list[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.is_floating_point():
            raise ProbatumError(
                f"{name} is {tensor.dtype}: integer and quantised weights cannot be perturbed; see senszoq"
            )
        if tensor.is_meta:
            raise ProbatumError(f"{name} is on the meta device and holds no numbers: load the model first")
    if len({tensor.device.type for tensor in tensors}) > 1:
        raise ProbatumError("tensors are on several kinds of devices; z differs between them")
