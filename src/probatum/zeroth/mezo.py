"""MeZO: fine-tune with forward passes alone (Malladi et al. 2023, arXiv 2305.17333).

The loss is evaluated at theta + eps z and theta - eps z; their difference times z is a gradient estimate, and z is drawn again from its
seed instead of being stored, so that training takes the memory of inference. It works because a pretrained network's loss is locally of
low rank. For models too large to differentiate and for objectives without a gradient (accuracy, F1); where backpropagation fits it is
better: it costs three forwards and gives the whole gradient.

>>> import torch
>>> net = torch.nn.Linear(3, 2)
>>> x, y = torch.randn(8, 3), torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
>>> optimizer = MeZO(net.named_parameters(), lr=0.05, seed=1)
>>> losses = [float(optimizer.step(lambda: torch.nn.functional.cross_entropy(net(x), y))) for _ in range(200)]
>>> losses[-1] < losses[0]
True
>>> len(optimizer.log)
200
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.zeroth.log import Log, merge, replay
from probatum.zeroth.optimizer import ZerothOrder

if TYPE_CHECKING:
    from probatum.zeroth.trainer import MeZOTrainer

__all__ = ["Log", "MeZO", "MeZOTrainer", "error_rate", "merge", "prepare", "replay", "word_error"]

# Learning rate and eps of the paper's code for models of 350 M parameters (README of medium_models, mezo.sh).
PUBLISHED = {"full": (1e-6, 1e-3), "layers": (1e-6, 1e-3), "lora": (1e-4, 1e-3), "prefix": (1e-2, 1e-1)}


class MeZO(ZerothOrder):
    """The paper's optimizer: theta -= lr p z with p = (l(theta + eps z) - l(theta - eps z)) / (2 eps), z ~ N(0, I).

    `step(closure)` calls the closure 2 n times without gradients, in the order + and - of each direction, and returns the mean loss.
    Three passes over the weights a step (the paper's code: four). Arguments, state, log and errors as `ZerothOrder`:

    >>> import inspect
    >>> list(inspect.signature(MeZO).parameters)[:4]
    ['params', 'lr', 'eps', 'n']
    """


def prepare(
    model: nn.Module,
    mode: Literal["full", "layers", "lora", "prefix"] = "full",
    *,
    layers: Sequence[str] = (),
    also: Sequence[str] = (),
    rank: int = 8,
    alpha: int = 16,
    tokens: int = 5,
    lr: float | None = None,
    eps: float | None = None,
    **options: Any,
) -> tuple[nn.Module, MeZO]:
    """A model in one of the paper's modes, with an optimizer for what that mode tunes.

    Args:
        model: for "lora" and "prefix" a transformers model.
        mode: "full" (all weights but embeddings), "layers" (those named), "lora" (peft, on the query and value projections that peft
            knows for this architecture) or "prefix" (keys and values before every attention).
        layers: patterns of parameter names, as ("*encoder.layer.5.*",), for "layers".
        also: patterns of parameters to tune besides, in "lora" and "prefix": a new classification head.
        rank, alpha: of LoRA. tokens: length of the prefix.
        lr, eps: default the paper's for the mode; small encoders want a larger lr, see `MeZO.lr_hint`.
        options: further arguments of MeZO.
    Returns:
        The model (a peft model for "lora") and the optimizer.
    Raises:
        ProbatumError: an unknown mode, patterns that match nothing, a model that the mode does not fit.
    """
    if mode not in PUBLISHED:
        raise ProbatumError(f"mode must be one of {', '.join(PUBLISHED)}, got {mode!r}")
    if bool(layers) != (mode == "layers"):
        raise ProbatumError(f"layers goes with mode 'layers', got mode={mode!r}, layers={list(layers)}")
    if also and mode in ("full", "layers"):
        raise ProbatumError(f"also goes with modes 'lora' and 'prefix'; in mode {mode!r} use include and exclude")
    default_lr, default_eps = PUBLISHED[mode]
    setting: dict[str, Any] = {"lr": lr or default_lr, "eps": eps or default_eps, "model": model, **options}
    if mode == "layers":
        setting["include"] = tuple(layers)
    elif mode == "lora":
        from peft import LoraConfig, get_peft_model

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft's, about a name in transformers
                model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0))
        except ValueError as error:
            raise ProbatumError(f"peft cannot put LoRA into {type(model).__name__}: {error}") from error
        setting["model"] = model
    elif mode == "prefix":
        from probatum.zeroth.prefix import add_prefix

        add_prefix(model, tokens)
    if also:
        from probatum.nn.select import select

        for _, tensor in select(model, also, trainable_only=False):
            tensor.requires_grad_(True)
    return model, MeZO(model.named_parameters(), **setting)


def error_rate(logits: Tensor, labels: Tensor) -> float:
    """1 - accuracy of a batch: an objective without a gradient. (B, C) logits, (B,) labels; eps must be large enough to flip some."""
    return 1 - float((logits.argmax(-1) == labels).float().mean())


def word_error(texts: Sequence[str], truths: Sequence[str]) -> float:
    """1 - mean F1 of words in common between generated and true texts (the paper's objective for SQuAD).

    >>> word_error(["in the year 1066"], ["1066"])
    0.6
    """
    if len(texts) != len(truths) or not texts:
        raise ProbatumError(f"texts and truths must be equally many and not none, got {len(texts)} and {len(truths)}")
    total = 0.0
    for text, truth in zip(texts, truths, strict=True):
        said, true = text.lower().split(), truth.lower().split()
        common = sum((Counter(said) & Counter(true)).values())
        total += 2 * common / (len(said) + len(true)) if said or true else 1.0
    return 1 - total / len(texts)


def __getattr__(name: str) -> Any:
    if name == "MeZOTrainer":  # transformers is only loaded by who wants it
        from probatum.zeroth.trainer import MeZOTrainer

        return MeZOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
