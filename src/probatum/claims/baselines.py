"""What several claims and comparisons compare against: linear probe, zero-shot head, AdamW, LoRA; and small networks they start from.

Everything is imported inside the functions, so that listing claims loads nothing heavy.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

__all__ = ["adamw", "best_on", "digit_net", "label_head", "linear_probe", "lora", "pretrain", "sentence_classifier"]


def best_on(grid: Sequence[Any], fit: Callable[[Any], Any], score: Callable[[Any], float]) -> tuple[Any, Any]:
    """(setting, fitted) of the grid with the highest validation score; the first of equals."""
    fitted = [(setting, fit(setting)) for setting in grid]
    return max(fitted, key=lambda pair: score(pair[1]))


def linear_probe(x: "np.ndarray", y: "np.ndarray", strength: float) -> Any:
    """Logistic regression on fixed features; `strength` is scikit-learn's C (larger: less regularised)."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=5000).fit(x, y)


def label_head(sentences: "Tensor", scale: float = 20.0) -> "nn.Linear":
    """A linear head whose rows are the embeddings of label sentences: logits = scale x cosine, the zero-shot classifier.

    `sentences`: (C, H), normalised.
    """
    import torch

    head = torch.nn.Linear(sentences.shape[1], sentences.shape[0], bias=False)
    head.weight.data.copy_(scale * sentences)
    return head


def adamw(
    parameters: Sequence["Tensor"], loss: Callable[[], "Tensor"], steps: int, lr: float, weight_decay: float = 0.0
) -> None:
    """AdamW on `loss` (drawn anew at each call), linear warm-up over a tenth and linear decay to 0."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def sentence_classifier(encoder: "nn.Module", head: "nn.Module") -> "nn.Module":
    """tokens -> logits (B, C): the encoder's output, mean-pooled and normalised, under a linear head; in evaluation mode."""
    import torch

    from probatum.data.encoder import mean_pool

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, head

        def forward(self, inputs: "dict[str, Tensor]") -> "Tensor":
            hidden = self.encoder(**inputs).last_hidden_state
            return self.head(torch.nn.functional.normalize(mean_pool(hidden, inputs["attention_mask"]), dim=-1))

    return Classifier().eval()


def lora(model: "nn.Module", rank: int = 8, alpha: int = 16) -> "nn.Module":
    """peft's LoRA on the projections it knows for this architecture (query and value), at MeZO's rank and alpha."""
    from probatum.zeroth.mezo import prepare

    return prepare(model, "lora", rank=rank, alpha=alpha)[0]


def digit_net() -> "nn.Sequential":
    """MLP 196-128-128-10: 43,018 weights."""
    from torch import nn

    return nn.Sequential(nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def pretrain(x: "np.ndarray", y: "np.ndarray", generator: "torch.Generator", steps: int = 1500) -> "nn.Sequential":
    """A digit net trained with Adam (lr 1e-3, batches of 64), initial weights drawn from `generator` as torch draws them."""
    import math

    import torch

    net = digit_net()
    with torch.no_grad():
        for layer in net[::2]:  # type: ignore[attr-defined]
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    if not steps:
        return net
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return net
