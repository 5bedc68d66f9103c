"""Logs: size, files, refusals, replay."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import Log, MeZO, merge, replay


def trained(steps=30, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    start, x, y = copy.deepcopy(model), torch.randn(11, 5), torch.randn(11, 3)
    optimizer = MeZO(model.named_parameters(), **{"lr": 1e-2, "model": model, **options})
    for step in range(steps):
        optimizer.param_groups[0]["lr"] *= 1 - step / 100
        optimizer.step(lambda: nn.functional.mse_loss(model(x), y))
    return model, start, optimizer.log


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("exact", ["lattice", "scratch", "off"])
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("n", [1, 2])
def test_replay_from_a_file_gives_the_same_bits(tmp_path, exact, noise, n):
    model, start, log = trained(exact=exact, noise=noise, n=n, weight_decay=0.1)
    log.save(tmp_path / "run.safetensors")
    replay(start, tmp_path / "run.safetensors")
    assert same(model, start)


def test_replay_stops_where_asked():
    model, start, log = trained(steps=10)
    part = copy.deepcopy(start)
    replay(part, log, steps=4)
    assert same(part, trained(steps=4)[0]) and not same(part, model)


def test_size_is_a_head_and_eight_bytes_a_step_or_four(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    sizes = {}
    for rates in ("constant", "falling"):
        for steps in (100, 1100):
            log = Log(dict(optimizer._begin().head))
            for step in range(steps):
                log.add([0.5], [1e-2 if rates == "constant" else 1e-2 / (step + 1)])
            log.save(tmp_path / "run.safetensors")
            sizes[rates, steps] = (tmp_path / "run.safetensors").stat().st_size
    assert abs(sizes["falling", 1100] - sizes["falling", 100] - 8000) <= 16
    assert abs(sizes["constant", 1100] - sizes["constant", 100] - 4000) <= 16
    assert sizes["falling", 100] < 2000


def test_round_trip(tmp_path):
    log = trained(n=2)[2]
    log.save(tmp_path / "run.safetensors")
    again = Log.load(tmp_path / "run.safetensors")
    assert again.head == log.head and again.slopes == log.slopes and again.rates == log.rates
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_another_model_is_refused_and_the_tensor_named():
    _, start, log = trained()
    other = copy.deepcopy(start)
    with torch.no_grad():
        other[2].weight[1, 1] += 1e-6
    untouched = copy.deepcopy(other)
    with pytest.raises(
        ProbatumError, match=r"starts from other weights than this model has: the values of 2\.weight differ"
    ):
        replay(other, log)
    assert same(other, untouched)
    with pytest.raises(ProbatumError, match=r"the log is of another model: this one has no 0\.bias"):
        replay(nn.ModuleDict({"a": nn.Linear(2, 2)}), log)
    with pytest.raises(ProbatumError, match=r"the shape of 0\.weight differs"):
        replay(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)), log)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block", 1024, "drawn in blocks of 1024, this version draws 16384"),
        ("device", "cuda", "Gaussian noise drawn on cuda cannot be repeated on cpu"),
    ],
)
def test_other_noise_is_refused(key, value, said):
    _, start, log = trained()
    log.head[key] = value
    with pytest.raises(ProbatumError, match=said):
        replay(start, log)


def test_sign_noise_replays_whatever_the_device():
    model, start, log = trained(noise="rademacher")
    log.head["device"] = "cuda"
    replay(start, log)
    assert same(model, start)


def test_files_that_are_no_log(tmp_path):
    _, start, log = trained()
    path = tmp_path / "run.safetensors"
    with pytest.raises(ProbatumError, match="no such log"):
        Log.load(path)
    log.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ProbatumError, match=r"cannot be read as a log \(truncated"):
        replay(start, path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ProbatumError, match="but no log of a zeroth-order run"):
        Log.load(path)
    with pytest.raises(ProbatumError, match=r"a log is a \.safetensors file, got 'run\.pkl'"):
        log.save(tmp_path / "run.pkl")
    with pytest.raises(ProbatumError, match="steps must be from 0 to 30"):
        replay(start, log, steps=31)


def test_missing_steps_and_formats(tmp_path):
    import json

    log = trained()[2]
    head = {**log.head, "steps": 31}
    path = tmp_path / "run.safetensors"
    save_file(log.arrays(), path, {"probatum.zeroth": json.dumps(head)})
    with pytest.raises(ProbatumError, match="lacks steps: its head says 31, it has 30"):
        Log.load(path)
    save_file(log.arrays(), path, {"probatum.zeroth": json.dumps({**head, "format": 9})})
    with pytest.raises(ProbatumError, match="has format 9, this version reads 1"):
        Log.load(path)


def test_no_log_before_the_first_step():
    with pytest.raises(ProbatumError, match="no log before the first step"):
        MeZO(nn.Linear(2, 2).named_parameters(), lr=1e-2).log  # noqa: B018


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 29}, "must have the same steps and learning rates: 29 and 30"),
        ({"exact": "off"}, "must agree in exact"),
        ({"lr": 2e-2}, "same steps and learning rates"),
    ],
)
def test_logs_that_do_not_belong_together(change, said):
    with pytest.raises(ProbatumError, match=said):
        merge(trained(seed=1, **change)[2], trained(seed=2)[2])


def test_a_merged_log_replays_the_same_from_a_file(tmp_path):
    start = trained()[1]
    log = merge(trained(seed=1)[2], trained(seed=2)[2])
    one, two = copy.deepcopy(start), copy.deepcopy(start)
    replay(one, log)
    log.save(tmp_path / "both.safetensors")
    replay(two, tmp_path / "both.safetensors")
    assert same(one, two) and not same(one, start)
    merge(log, trained(seed=3)[2])
