"""Prefix tuning: a few trained keys and values in front of every attention, nothing else changed (Li and Liang 2021, arXiv 2101.00190).

Works for every transformers model whose attention goes through `AttentionInterface`. As MeZO does it: no reparametrisation, and the
start are the keys and values that the model itself computes for random tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError

__all__ = ["add_prefix"]

NAME = "probatum_prefix"
_seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None


def add_prefix(model: nn.Module, tokens: int = 5, *, generator: torch.Generator | None = None) -> list[nn.Parameter]:
    """Freeze a transformers model and give each self-attention a trainable `prefix` (2, heads, tokens, head size).

    Args:
        tokens: length of the prefix.
        generator: draws the random tokens; None takes a fixed one, so that the start can be repeated.
    Returns:
        The prefixes, layer by layer; they are ordinary parameters and stand in the model's `state_dict`.
    Raises:
        ProbatumError: a model whose attention cannot be exchanged, or that has a prefix already.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: F401 (fails early without transformers)
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ProbatumError(f"tokens must be an integer of 1 or more, got {tokens!r}")
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise ProbatumError(f"mode 'prefix' needs a transformers model, got {type(model).__name__}")
    if any(isinstance(getattr(module, "prefix", None), nn.Parameter) for module in model.modules()):
        raise ProbatumError("the model has a prefix already")
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    before = config._attn_implementation
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    if config._attn_implementation != NAME:
        raise ProbatumError(
            f"{type(model).__name__} does not let its attention be exchanged (transformers' AttentionInterface)"
        )
    generator = generator or torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, tokens), generator=generator)
    global _seen
    _seen, training = [], model.training
    try:
        model.eval()
        with torch.no_grad():
            model(input_ids=ids.to(next(model.parameters()).device))
        found = _seen
    finally:
        _seen = None
        model.train(training)
    if not found:
        model.set_attn_implementation(before)  # type: ignore[operator]
        raise ProbatumError(f"no self-attention of {type(model).__name__} was found to put a prefix before")
    model.requires_grad_(False)
    for module, key, value in found:
        module.prefix = nn.Parameter(torch.cat([key, value]).clone())
    return [module.prefix for module, _, _ in found]  # type: ignore[misc]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    """Scaled dot-product attention over prefix and keys; (B, heads, T, head size)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if _seen is not None and query.shape[2] == key.shape[2]:
        _seen.append((module, key, value))
    prefix = getattr(module, "prefix", None)
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    m, asked, held = prefix.shape[2], query.shape[2], key.shape[2]
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if attention_mask is not None:
        seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
        attention_mask = torch.cat([seen((*attention_mask.shape[:-1], m)), attention_mask[..., :held]], dim=-1)
    elif causal and asked > 1:
        rows = torch.arange(asked, device=query.device).unsqueeze(1) + (held - asked)
        attention_mask = (torch.arange(-m, held, device=query.device) <= rows).view(1, 1, asked, held + m)
    batch = key.shape[0]
    key = torch.cat([prefix[:1].expand(batch, -1, -1, -1), key], dim=2)
    value = torch.cat([prefix[1:].expand(batch, -1, -1, -1), value], dim=2)
    options["is_causal"] = False
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
