"""Fine-tuning a folder's checkpoint on a file of texts: resumed, saved, opened again; and what is refused."""

import dataclasses
import json

import pytest
import torch

from probatum import ProbatumError
from probatum.data.texts import read_labelled
from probatum.finetune.classify import TextClassifier
from probatum.finetune.job import Job, Watch, open_finetuned, run, split
from probatum.finetune.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
LOGGED = [name for name, method in METHODS.items() if {"model", "log"} <= set(method.forms)]
ADAPTED = [name for name, method in METHODS.items() if "adapter" in method.forms]
SAVED = [name for name, method in METHODS.items() if "model" in method.forms]


@pytest.fixture
def job(own):
    return Job(str(own / "model"), steps=8, batch=8, length=16)


@pytest.fixture
def texts(own):
    return read_labelled(own / "data.csv")


class Stop(Watch):
    """Ctrl-C after some steps."""

    def __init__(self, after):
        self.after = after

    def step(self, step, loss):
        if step + 1 == self.after:
            raise KeyboardInterrupt


def logits(network, texts):
    with torch.no_grad():
        return network(network.batch([row.text for row in texts]))


def accuracy(network, job, texts):
    """On what this job holds out."""
    held = split(texts, job)[1]
    return (network.predict([row.text for row in held]) == torch.tensor([network.classes.index(row.label) for row in held])).double().mean()


@pytest.mark.parametrize("method", ADAPTED)
def test_an_adapter_holds_what_was_tuned_and_nothing_of_the_base(own, job, texts, tmp_path, method):
    job = dataclasses.replace(job, method=method, lr=0.05)
    run(dataclasses.replace(job, save="adapter"), texts, tmp_path / "adapter")
    run(dataclasses.replace(job, save="model"), texts, tmp_path / "model")
    one, other = open_finetuned(tmp_path / "adapter"), open_finetuned(tmp_path / "model")
    torch.testing.assert_close(logits(one, texts[:5]), logits(other, texts[:5]), atol=1e-6, rtol=0)
    before = TextClassifier(job.model, one.classes, length=job.length)
    assert (logits(before, texts[:5]) - logits(one, texts[:5])).abs().max() > 1e-3
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    assert not list((tmp_path / "adapter").glob("model.safetensors"))


def test_the_logits_of_the_words_are_those_of_the_whole_head(own, texts):
    words = {f"colour {i}": name for i, name in enumerate(("red", "green", "blue"))}
    network = TextClassifier(own / "decoder", sorted(words), words=words, length=16)
    tokens = network.batch([row.text for row in texts[:6]])
    assert network._narrow
    whole = network.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[:, -1, network.answers]
    torch.testing.assert_close(network(tokens), whole)


def test_a_lora_adapter_opens_with_peft_alone(own, texts, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    words = {f"colour {i}": name for i, name in enumerate(("red", "green", "blue"))}
    job = Job(str(own / "decoder"), "lora", 4, 8, 16, lr=0.05, words=words, save="adapter")
    run(job, texts, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(own / "decoder")
    again, ours = PeftModel.from_pretrained(base, tmp_path), open_finetuned(tmp_path)
    tokens = ours.batch([row.text for row in texts[:4]])
    torch.testing.assert_close(again(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[:, -1, ours.answers], ours(tokens))


@pytest.mark.parametrize("method", SAVED)
def test_what_is_saved_answers_as_what_was_trained(own, job, texts, tmp_path, method):
    job = dataclasses.replace(job, method=method)
    outcome = run(job, texts, tmp_path)
    assert len(outcome.losses) == 8 and outcome.held_out == 12 and outcome.trained_on == 48 and outcome.tuned > 0
    again = open_finetuned(tmp_path)
    assert accuracy(again, job, texts) == outcome.after
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()  # what any user of transformers does
    with torch.no_grad():
        tokens = again.batch([row.text for row in texts[:5]])
        assert torch.allclose(plain(**tokens).logits, again(tokens))
    assert plain.config.id2label == {0: "colour 0", 1: "colour 1", 2: "colour 2"}
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_equals_unbroken(job, texts, tmp_path, method):
    job = dataclasses.replace(job, method=method)
    run(job, texts, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job, texts, tmp_path / "broken", watch=Stop(3))
    assert not (tmp_path / "broken" / "finetune.json").exists()
    outcome = run(job, texts, tmp_path / "broken")
    assert len(outcome.losses) == 8
    one, other = open_finetuned(tmp_path / "whole"), open_finetuned(tmp_path / "broken")
    # what a frozen prefix keeps of a text depends on its first company, in the last bit
    same = torch.equal if method != "mezo_last" else lambda p, q: torch.allclose(p, q, atol=1e-5)
    assert all(same(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", LOGGED)
def test_a_log_of_kilobytes_is_the_model(job, texts, tmp_path, method):
    job = dataclasses.replace(job, method=method)
    run(job, texts, tmp_path / "model")
    run(dataclasses.replace(job, save="log"), texts, tmp_path / "log")
    assert sum(path.stat().st_size for path in (tmp_path / "log").iterdir()) < 16_000
    assert not (tmp_path / "log" / "model.safetensors").exists()
    one, other = open_finetuned(tmp_path / "model"), open_finetuned(tmp_path / "log")
    assert torch.equal(logits(one, texts), logits(other, texts))


def test_a_new_head_starts_as_logistic_regression(own, texts):
    network = TextClassifier(own / "model", ["colour 0", "colour 1", "colour 2"], length=16)
    labels = [network.classes.index(row.label) for row in texts]
    with torch.no_grad():
        pooled = network.model.bert(**network.batch([row.text for row in texts])).pooler_output
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(pooled.double().numpy(), labels)
    network.fit_head([row.text for row in texts], labels)
    wanted = torch.from_numpy(fitted.decision_function(pooled.double().numpy())).float()
    assert torch.allclose(logits(network, texts), wanted, atol=1e-3)
    kept = TextClassifier(own / "model", ["a", "b"], length=16)
    kept.fit_head([row.text for row in texts], [i % 2 for i in range(len(texts))])
    assert torch.allclose(kept.model.classifier.weight[0], -kept.model.classifier.weight[1])  # one row of scikit-learn, shared out


@pytest.mark.parametrize("method", ["adamw", "mezo", "mezo_last", "mezo_lora"])
def test_a_language_model_answers_with_words(own, texts, tmp_path, method):
    words = {"colour 0": "red", "colour 1": "green", "colour 2": "blue"}
    job = Job(str(own / "decoder"), method, steps=4, batch=8, length=16, words=words, template="{text} thing")
    outcome = run(job, texts, tmp_path)
    network = TextClassifier(own / "decoder", list(words), words=words, template="{text} thing", length=16)
    tokens = network.batch([texts[0].text, texts[1].text + " number number"])
    with torch.no_grad():
        alone = network(network.batch([texts[0].text]))
        assert torch.allclose(network(tokens)[:1], alone, atol=1e-5)  # padding changes nothing
        every = network.model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).logits
        assert torch.allclose(network(tokens), every[:, -1, network.answers], atol=1e-6)
    assert len(outcome.losses) == 4 and open_finetuned(tmp_path).words == words


def test_finished_work_is_not_done_again_and_not_overwritten(job, texts, tmp_path):
    first = run(job, texts, tmp_path)
    assert run(job, texts, tmp_path).kept
    with pytest.raises(ProbatumError, match="another finished fine-tuning"):
        run(dataclasses.replace(job, seed=1), texts, tmp_path)
    assert json.loads((tmp_path / "finetune.json").read_text())["outcome"]["after"] == first.after
    again = run(dataclasses.replace(job, seed=1), texts, tmp_path, overwrite=True)
    assert not again.kept


def test_what_is_refused(own, job, texts, tmp_path):
    cases = [
        ({"method": "mezzo"}, "method must be one of .*did you mean mezo"),
        ({"steps": 0}, "steps must be an integer of 1 or more, got 0"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"hold_out": 1.0}, "hold_out must lie between 0 and 1"),
        ({"method": "adazeta", "save": "model"}, "save must be log for method adazeta"),
        ({"method": "adamw", "save": "log"}, "save must be model for method adamw, got 'log'"),
        ({"words": {"colour 0": "red"}, "model": str(own / "decoder")}, "words has none for the class 'colour 1'"),
        ({"model": str(tmp_path / "none")}, "a model is a folder"),
    ]
    for i, (change, message) in enumerate(cases):
        with pytest.raises(ProbatumError, match=message):
            run(dataclasses.replace(job, **change), texts, tmp_path / str(i))
        assert not (tmp_path / str(i) / "finetune.json").exists()
    with pytest.raises(ProbatumError, match="--device nowhere cannot be used here"):
        run(job, texts, tmp_path / "device", device="nowhere")
    with pytest.raises(ProbatumError, match="two classes or more, got 1"):
        run(job, [row for row in texts if row.label == "colour 0"], tmp_path)
    with pytest.raises(ProbatumError, match="has one text"):
        run(job, [*texts, type(texts[0])("alone", "colour 9")], tmp_path / "one")
    with pytest.raises(ProbatumError, match="template must contain"):
        TextClassifier(own / "decoder", ["a", "b"], words={"a": "red", "b": "blue"}, template="no text")
    with pytest.raises(ProbatumError, match="different tokens"):
        TextClassifier(own / "decoder", ["a", "b"], words={"a": "red", "b": "red"})


def test_a_folder_in_use_a_damaged_state_and_other_settings(job, texts, tmp_path):
    import fcntl
    import os

    (tmp_path / "busy").mkdir()
    handle = os.open(tmp_path / "busy", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ProbatumError, match="another fine-tuning is writing"):
        run(job, texts, tmp_path / "busy")
    os.close(handle)
    with pytest.raises(KeyboardInterrupt):
        run(job, texts, tmp_path / "torn", watch=Stop(2))
    with pytest.raises(ProbatumError, match="unfinished run with other settings"):
        run(dataclasses.replace(job, batch=4), texts, tmp_path / "torn")
    (tmp_path / "torn" / ".unfinished" / "state.pt").write_bytes(b"torn")
    with pytest.raises(ProbatumError, match="is damaged"):
        run(job, texts, tmp_path / "torn")
    assert run(job, texts, tmp_path / "torn", overwrite=True).losses
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    with pytest.raises(ProbatumError, match="a model that this command did not make"):
        run(job, texts, tmp_path / "theirs")


def test_a_checkpoint_with_a_head_of_other_classes(job, texts, tmp_path):
    run(job, texts, tmp_path / "tuned")
    again = dataclasses.replace(job, model=str(tmp_path / "tuned"), seed=2)
    assert run(again, texts, tmp_path / "again").before == accuracy(open_finetuned(tmp_path / "tuned"), again, texts)  # its head is kept
    other = [type(row)(row.text, row.label.replace("colour", "hue")) for row in texts]
    with pytest.raises(ProbatumError, match=r"the checkpoint's head answers colour 0.* and the data has hue 0"):
        run(dataclasses.replace(job, model=str(tmp_path / "tuned")), other, tmp_path / "third")


def test_command(own, tmp_path):
    from typer.testing import CliRunner

    from probatum.cli import app

    runner = CliRunner()
    options = ["--model", str(own / "model"), "--data", str(own / "data.csv"), "-o", str(tmp_path / "out"), "--steps", "3", "--batch", "8"]
    done = runner.invoke(app(), ["finetune", *options, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["method"] == "mezo" and len(document["losses"]) == 3 and document["peak_memory"] > 1e7
    assert "finished before" in runner.invoke(app(), ["finetune", *options]).stdout
    listed = json.loads(runner.invoke(app(), ["finetune", *options, "--method", "list", "--json"]).stdout)
    assert [row["method"] for row in listed] == list(METHODS)
    wrong = runner.invoke(app(), ["finetune", *options, "--words", "a"])
    assert wrong.exit_code != 0
