"""Classifying texts with a pretrained checkpoint: a head, or the words of a language model that name the classes.

A head that the checkpoint lacks starts as logistic regression on what it will see, so that every method, first order or zeroth, starts
where the frozen model stands and not at chance. With words, a language model answers with its own last token (as MeZO's prompts do),
which is a zero-shot start; only the logits of the words are computed, at the last token.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probatum.data.encoder import model_folder, open_model
from probatum.errors import ProbatumError

__all__ = ["TextClassifier", "a_row_a_class"]

HEADS = ("classifier", "score")  # what transformers calls a new head


class TextClassifier(nn.Module):
    """A checkpoint, its tokenizer, and logits over classes.

    Args:
        folder: a Hugging Face folder with safetensors weights and a tokenizer, or the name of a packaged model (`model_folder`).
        classes: names of the classes, in the order of the logits.
        words: class -> the word that stands for it; None takes a classification head.
        template: what stands before the word, with {text}; for `words` alone.
        length: tokens a text is cut at.
    Raises:
        ProbatumError: as `open_model`; a head of other classes than these; words that begin with the same token.
    """

    def __init__(
        self, folder: str | os.PathLike[str], classes: Sequence[str], *, words: Mapping[str, str] | None = None,
        template: str = "{text} It was", length: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.template, self.length = list(classes), template, length
        self.new_head: list[str] = []
        self.words = dict(words) if words else None
        if self.words is None:
            self._open_head(model_folder(folder))
        else:
            if "{text}" not in template:
                raise ProbatumError(f"template must contain {{text}}, got {template!r}")
            self.model, self.tokenizer = open_model(folder, "AutoModelForCausalLM")
            self.tokenizer.padding_side = "left"  # the last position is the answer's in every row
            self.answers = self._answers(self.words)
            self._narrow = self._body_and_head()
        self.eval()

    def _open_head(self, folder: Path) -> None:
        from transformers import AutoConfig

        named = dict(enumerate(self.classes))
        had: dict[int, str] = {}
        if (folder / "config.json").is_file():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            if any("ForSequenceClassification" in kind for kind in config.architectures or ()):
                had = {int(i): name for i, name in config.id2label.items()}
                if sorted(had.values()) != sorted(self.classes):
                    raise ProbatumError(
                        f"the checkpoint's head answers {', '.join(had.values())} and the data has {', '.join(self.classes)}: "
                        "take the checkpoint without its head, or data with these labels"
                    )
                named, self.classes = had, [had[i] for i in sorted(had)]
        self.model, self.tokenizer = open_model(
            folder, "AutoModelForSequenceClassification", num_labels=len(self.classes), id2label=named,
            label2id={name: i for i, name in named.items()},
        )  # fmt: skip
        self.model.config.pad_token_id = self.tokenizer.pad_token_id  # type: ignore[union-attr]
        if not had:
            self.new_head = [name for name, _ in self.named_parameters() if name.split(".")[1] in HEADS]

    def _answers(self, words: Mapping[str, str]) -> list[int]:
        missing = [name for name in self.classes if name not in words]
        if missing:
            raise ProbatumError(f"words has none for the class {missing[0]!r}; it has {', '.join(words)}")
        first = [self.tokenizer.encode(" " + words[name], add_special_tokens=False)[0] for name in self.classes]
        if len(set(first)) < len(first):
            raise ProbatumError(f"words must begin with different tokens, got {', '.join(words[name] for name in self.classes)}")
        return first

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts as padded tokens, on the model's device."""
        some = [self.template.format(text=text) for text in texts] if self.words else list(texts)
        if self.words and self.tokenizer.truncation_side == "right":
            self.tokenizer.truncation_side = "left"  # the question stands at the end
        tokens = self.tokenizer(some, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return {name: value.to(next(self.parameters()).device) for name, value in tokens.items()}

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens of B texts -> logits (B, classes)."""
        if self.words is None:
            return self.model(**tokens).logits
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        if self._narrow:
            body, head = self._narrow
            return linear(body(**tokens).last_hidden_state[:, -1], head.weight[self.answers], None if head.bias is None else head.bias[self.answers])
        return self.model(**tokens, logits_to_keep=1).logits[:, -1, self.answers]

    @torch.no_grad()
    def _body_and_head(self) -> list[Any]:
        """The model without its head, and the head, where the logits are no more than their product; else nothing.

        A head of 262,144 words is read whole from memory at each pass, which costs as much as three of Gemma's layers. In a list, so that they
        are not registered twice.
        """
        body, head = self.model.base_model, self.model.get_output_embeddings()  # type: ignore[operator]
        tokens = {name: value for name, value in self.batch(["a"]).items() if name in ("input_ids", "attention_mask")}
        whole = self.model(**tokens, logits_to_keep=1).logits[:, -1]
        if body is self.model or not isinstance(head, nn.Linear):
            return []
        own = head(body(**tokens).last_hidden_state[:, -1])  # type: ignore[operator]
        return [body, head] if torch.allclose(own, whole, atol=1e-4, rtol=1e-4) else []

    @torch.no_grad()
    def predict(self, texts: Sequence[str], batch: int = 32) -> Tensor:
        """(N,) indices of classes; texts of a length are answered together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), dtype=torch.long)
        for at in range(0, len(order), batch):
            some = order[at : at + batch]
            found[some] = self(self.batch([texts[i] for i in some])).argmax(-1).cpu()
        return found

    @torch.no_grad()
    def fit_head(self, texts: Sequence[str], labels: Sequence[int], strength: float = 1.0, batch: int = 32) -> None:
        """Start a new head as logistic regression on its own input (nothing is done where the checkpoint had a head, or with words).

        Args:
            labels: indices into `classes`. strength: scikit-learn's C.
        """
        layer = self._last_linear() if self.new_head else None
        if layer is None:
            return
        from sklearn.linear_model import LogisticRegression

        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().float().cpu()))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows = []
        try:
            for at in range(0, len(order), batch):
                some = order[at : at + batch]
                tokens = self.batch([texts[i] for i in some])
                self(tokens)
                rows.append(_pooled(seen.pop(), tokens.get("attention_mask")))
        finally:
            handle.remove()
        x, y = torch.cat(rows).double().numpy(), [labels[i] for i in order]
        if len(set(y)) < len(self.classes):
            raise ProbatumError(f"the training texts must have all classes, {', '.join(self.classes)}; {len(set(y))} occur")
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(x, y)
        weight, bias = a_row_a_class(fitted)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)

    def _last_linear(self) -> nn.Linear | None:
        found = [
            module for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == len(self.classes) and f"{name}.weight" in self.new_head
        ]  # fmt: skip
        return found[-1] if found else None


def a_row_a_class(fitted: Any) -> tuple[Tensor, Tensor]:
    """Weight (C, H) and bias (C,) of a scikit-learn logistic regression, which has one row alone for two classes."""
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    return (weight, bias) if len(weight) > 1 else (torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2)


def _pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    """What the head reads of each text: (B, H) as it is; of (B, T, H) the last real token, as transformers' decoders do."""
    if x.ndim == 2:
        return x
    if mask is None:
        return x[:, -1]
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1).cpu()
    return x[torch.arange(len(x)), last]
