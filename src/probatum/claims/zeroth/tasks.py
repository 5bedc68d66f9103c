"""Text tasks of the zeroth-order claims: crowd-labelled tweets sorted three ways, before a small encoder with a head of label sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["TASKS", "Bench", "bench"]

# Task -> class -> (its label sentence, the crowd's labels that fall into it).
TASKS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "polarity": {"negative": ("it was terrible .", ("negative",)), "positive": ("it was great .", ("positive",))},
    "opinion": {
        "neutral": ("this is a neutral statement .", ("neutral",)),
        "opinion": ("this is a strong opinion .", ("negative", "positive")),
    },
    "three": {
        "negative": ("it was terrible .", ("negative",)),
        "neutral": ("it was okay .", ("neutral",)),
        "positive": ("it was great .", ("positive",)),
    },
}


@dataclass
class Bench:
    """The encoder under a head, and texts for it.

    `model(inputs)` gives logits: 20 times the cosine to the label sentences, the zero-shot classifier. `texts` are all that are labelled for
    this task, `classes` the names of its classes.
    """

    model: "nn.Module"
    tokenizer: Any
    classes: list[str]
    texts: "list[tuple[str, int]]"
    length: int = 48

    def draw(self, count: int, generator: "torch.Generator") -> "tuple[dict[str, Tensor], Tensor]":
        """`count` texts, equally many of each class (up to one), as padded tokens and labels."""
        return self.batch(self.balanced(count, generator))

    def balanced(self, count: int, generator: "torch.Generator") -> "list[tuple[str, int]]":
        """`count` texts, equally many of each class (up to one), in random order."""
        import torch

        order = torch.randperm(len(self.texts), generator=generator).tolist()
        left = [count // len(self.classes) + (c < count % len(self.classes)) for c in range(len(self.classes))]
        found = []
        for i in order:
            if left[self.texts[i][1]]:
                left[self.texts[i][1]] -= 1
                found.append(self.texts[i])
        return found

    def batch(self, texts: "Sequence[tuple[str, int]]") -> "tuple[dict[str, Tensor], Tensor]":
        import torch

        tokens = self.tokenizer([text for text, _ in texts], padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return dict(tokens), torch.tensor([label for _, label in texts])

    def loss(self, texts: "tuple[dict[str, Tensor], Tensor]") -> "Callable[[], Tensor]":
        """The loss of a batch, as a closure."""
        import torch

        return lambda: torch.nn.functional.cross_entropy(self.model(texts[0]), texts[1])

    def fit_head(self, texts: "Sequence[tuple[str, int]]", strength: float = 10.0) -> None:
        """Put a logistic regression on the frozen features of these texts in the head's place."""
        import torch

        from probatum.claims.baselines import linear_probe
        from probatum.finetune.classify import a_row_a_class

        probe = linear_probe(self.features([text for text, _ in texts]).numpy(), [label for _, label in texts], strength)  # type: ignore[arg-type]
        weight, bias = (part.float() for part in a_row_a_class(probe))
        head = torch.nn.Linear(weight.shape[1], len(weight))
        head.load_state_dict({"weight": weight, "bias": bias})
        self.model.head = head.requires_grad_(False)

    def features(self, texts: Sequence[str]) -> "Tensor":
        """Mean-pooled, normalised output of the encoder, (N, 384)."""
        from probatum.data.encoder import encode

        encoder: Any = self.model.encoder
        return encode(encoder, self.tokenizer, texts, length=self.length)


def bench(task: str, *, length: int = 48) -> Bench:
    """The encoder with the head of a task of TASKS; texts are cut at `length` tokens."""
    from probatum.claims.baselines import label_head, sentence_classifier
    from probatum.data.encoder import encode, load_encoder
    from probatum.data.texts import sentiments

    encoder, tokenizer = load_encoder()
    classes = TASKS[task]
    head = label_head(encode(encoder, tokenizer, [sentence for sentence, _ in classes.values()]))
    head.requires_grad_(False)

    of = {label: c for c, (_, labels) in enumerate(classes.values()) for label in labels}
    texts = [(row.text, of[row.label]) for row in sentiments() if row.label in of]
    return Bench(sentence_classifier(encoder, head), tokenizer, list(classes), texts, length)
