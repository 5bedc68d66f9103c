"""The packaged encoder, and folders that are no model."""

import json

import pytest
import torch

from probatum import ProbatumError
from probatum.data import find_dataset
from probatum.data.encoder import encode, encoder_folder, load_classifier, load_encoder, mean_pool, open_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


def test_counts_are_the_published_ones(encoder):
    model, _ = encoder
    assert sum(p.numel() for p in model.parameters()) == 22_713_216 and not model.training
    assert model.embeddings.word_embeddings.weight.numel() + 512 * 384 + 2 * 384 + 2 * 384 == 11_918_592
    assert find_dataset("minilm").load is load_encoder


def test_a_classifier_and_its_lora_factors():
    from probatum.zeroth import prepare

    state = torch.get_rng_state()
    model, _ = load_classifier(2)
    assert torch.equal(state, torch.get_rng_state())
    named = list(model.named_parameters())
    assert sum(p.numel() for _, p in named) == 22_713_986 and len(named) == 105
    _, optimizer = prepare(model, "lora", lr=1e-4)
    assert sum(t.numel() for t in optimizer._tensors) == 6 * 2 * 8 * (384 + 384) == 73_728


def test_neighbours_in_meaning_are_neighbours(encoder):
    e = encode(*encoder, ["A man is eating food.", "Someone eats a meal.", "The sky is blue today."], batch=2)
    assert e.shape == (3, 384) and torch.allclose(e.norm(dim=1), torch.ones(3))
    assert e[0] @ e[1] > 0.6 > 0.3 > e[0] @ e[2]


def test_padding_and_batches_do_not_change_an_embedding(encoder):
    texts = ["short", "a much longer text with quite a few more words in it", "mid size text"]
    alone = torch.cat([encode(*encoder, [text]) for text in texts])
    torch.testing.assert_close(encode(*encoder, texts), alone, rtol=0, atol=2e-6)


def test_mean_over_real_tokens():
    hidden, mask = torch.arange(12.0).view(1, 4, 3), torch.tensor([[1, 1, 0, 0]])
    assert mean_pool(hidden, mask).tolist() == [[1.5, 2.5, 3.5]]


def test_a_folder_of_ones_own_opens(tmp_path, encoder):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    small = BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12))
    small.save_pretrained(tmp_path)
    encoder[1].save_pretrained(tmp_path)
    model, tokenizer = open_model(tmp_path)
    assert encode(model, tokenizer, ["one", "two"]).shape == (2, 12)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ProbatumError, match="cannot be opened as a model"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["config.json", "pytorch_model.bin"],
            r"holds its weights as a pickle \(pytorch_model\.bin\), which can run code",
        ),
        (["config.json"], r"has no \*\.safetensors"),
        (["model.safetensors"], r"has no config\.json"),
        (["config.json", "model.safetensors"], "cannot be opened as a model"),
    ],
)
def test_folders_that_are_refused(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text(json.dumps({}), "utf-8")
    with pytest.raises(ProbatumError, match=said):
        open_model(tmp_path)


def test_no_folder():
    with pytest.raises(ProbatumError, match="a model is a folder with"):
        open_model("/nowhere/at/all")
    assert encoder_folder().is_dir()
