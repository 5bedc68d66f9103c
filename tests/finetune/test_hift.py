"""HiFT against the optimizer it wraps, the published bytes of LLaMA-7B, and unbroken runs."""

import copy
import os

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.finetune import CycleLR, HiFT, HiFTCallback, measure, predict
from probatum.finetune.hift import by_cycle
from probatum.nn.groups import layer_groups

CONTRACT = {"HiFT": lambda model: HiFT(model, torch.optim.AdamW(model.parameters(), lr=1e-2))}

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


class Net(nn.Module):
    """Table, three equal blocks, head: five layers."""

    def __init__(self, padding=None):
        super().__init__()
        self.table = nn.Embedding(11, 4, padding_idx=padding)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        h = self.table(ids)
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return self.head(h.mean(1))


def setting(**options):
    torch.manual_seed(0)
    model = Net(**options)
    ids, y = torch.randint(11, (40, 6)), torch.randint(3, (40,))

    def loss(model, rows=slice(0, 8)):
        return nn.functional.cross_entropy(model(ids[rows]), y[rows])

    return model, loss


def train(optimizer, model, loss, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss(model, slice(step % 5 * 8, step % 5 * 8 + 8)).backward()
        optimizer.step()


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def changed(model, before):
    return {name for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True) if not torch.equal(p, q)}


# The rotation.


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_group_is_the_optimizer_itself_bit_for_bit(kind):
    (one, loss), (two, _) = setting(), setting()
    train(OPTIMIZERS[kind](one.parameters()), one, loss, 12)
    train(HiFT(two, OPTIMIZERS[kind], m=5), two, loss, 12)
    assert same(one, two)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("order", ["down2up", "up2down", "random"])
def test_only_the_active_group_moves_and_each_once_a_cycle(kind, order):
    model, loss = setting()
    optimizer = HiFT(model, OPTIMIZERS[kind](list(model.parameters())), order=order, seed=3)
    seen = []
    for _ in range(2 * optimizer.cycle):
        before, active = copy.deepcopy(model), optimizer.active
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(active.names)
        train(optimizer, model, loss, 1)
        assert changed(model, before) == set(active.names)
        seen.append(active.name)
    names = ["table", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert seen[:5] == seen[5:] and set(seen) == set(names)
    if order != "random":
        assert seen[:5] == (names if order == "down2up" else names[::-1])
    else:
        assert seen[:5] not in (names, names[::-1])


def test_stale_gradients_and_zeros_move_nothing():
    model, loss = setting()
    optimizer = HiFT(model, OPTIMIZERS["momentum"])
    train(optimizer, model, loss, 7)
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # of no one's backward
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is None for p in model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before, active = copy.deepcopy(model), set(optimizer.active.names)
    optimizer.step()
    assert changed(model, before) <= active


def test_a_cycle_of_tiny_steps_is_one_step_of_all_to_first_order():
    (one, loss), (two, _) = setting(), setting()
    start = copy.deepcopy(one)
    tiny = lambda p: torch.optim.SGD(p, lr=1e-4)  # noqa: E731
    full, groups = tiny(one.parameters()), HiFT(two, tiny)
    full.zero_grad()
    loss(one).backward()
    full.step()
    for _ in range(groups.cycle):
        groups.zero_grad()
        loss(two).backward()
        groups.step()
    for p, q, s in zip(one.parameters(), two.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close((q - s), (p - s), rtol=2e-2, atol=2e-7)


def test_accumulated_micro_batches_are_one_batch_of_their_union():
    (one, loss), (two, _) = (setting(), setting())
    adam = lambda p: torch.optim.AdamW(p, lr=1e-2)  # noqa: E731
    a, b = HiFT(one.double(), adam), HiFT(two.double(), adam)
    for _ in range(7):
        a.zero_grad()
        loss(one, slice(0, 24)).backward()
        a.step()
        b.zero_grad()
        for at in (0, 8, 16):
            (loss(two, slice(at, at + 8)) / 3).backward()
        b.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_a_closure_is_called_once_with_gradients():
    model, loss = setting()
    optimizer, calls = HiFT(model, OPTIMIZERS["adamw"]), []

    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        calls.append(float(value.detach()))
        return value.detach()

    with torch.no_grad():
        assert float(optimizer.step(closure)) == calls[0] and len(calls) == 1


def test_the_bottom_group_of_a_stack_costs_what_the_paper_says():
    """Input gradients from the group upward, and one group's weight gradients: about half of a full backward."""
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(6)))
    counted = []
    for active in range(6):
        for i, layer in enumerate(model):
            layer.requires_grad_(i == active)
        x, graph = torch.randn(3, 4), 0
        todo, seen = [model(x).sum().grad_fn], set()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            graph += node.name() in ("MmBackward0", "AddmmBackward0")
            todo += [n for n, _ in node.next_functions]
        counted.append(graph)
    assert counted == [6, 5, 4, 3, 2, 1]


def test_release_gives_everything_back():
    model, loss = setting()
    optimizer = HiFT(model, OPTIMIZERS["adamw"], state="disk", sparse_embeddings=True)
    train(optimizer, model, loss, 7)
    optimizer.release()
    assert all(p.requires_grad for p in model.parameters()) and len(optimizer.inner.state) == len(list(model.parameters()))
    train(optimizer.inner, model, loss, 2)
    with pytest.raises(ProbatumError, match="was released"):
        optimizer.step()


def test_a_second_wrapper_takes_over():
    model, _ = setting()
    first = HiFT(model, OPTIMIZERS["sgd"])
    second = HiFT(model, OPTIMIZERS["sgd"])
    assert second.cycle == 5
    with pytest.raises(ProbatumError, match="was released"):
        first.step()


def test_a_copy_of_a_model_in_training_and_one_whose_wrapper_is_gone():
    model, loss = setting()
    optimizer = HiFT(model, OPTIMIZERS["sgd"])
    train(optimizer, model, loss, 2)
    assert HiFT(copy.deepcopy(model), OPTIMIZERS["sgd"]).cycle == 5
    del optimizer
    assert all(p.requires_grad for p in model.parameters())


# Where the state waits.


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["momentum", "adamw", "adagrad", "rmsprop"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_state_changes_no_bit(kind, place, sparse, tmp_path):
    (one, loss), (two, _) = setting(), setting()
    folder = {"folder": tmp_path / "state"} if place == "disk" else {}
    here = HiFT(one, OPTIMIZERS[kind], sparse_embeddings=sparse)
    away = HiFT(two, OPTIMIZERS[kind], state=place, sparse_embeddings=sparse, **folder)
    train(here, one, loss, 14)
    train(away, two, loss, 14)
    assert same(one, two) and not away.inner.state
    if place == "disk":
        names = sorted(p.name for p in (tmp_path / "state").iterdir())
        assert names == [f"group-{i}.safetensors" for i in range(5) if i or not sparse]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
@pytest.mark.parametrize("order", ["up2down", "random"])
def test_a_run_resumed_in_mid_cycle_is_the_unbroken_run(place, order, sparse, tmp_path):
    model, loss = setting()

    def make(net):
        return HiFT(net, OPTIMIZERS["adamw"], order=order, state=place, sparse_embeddings=sparse)

    optimizer = make(model)
    train(optimizer, model, loss, 8)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "point.pt")
    train(optimizer, model, loss, 9, first=8)
    other = setting()[0]
    resumed = make(other)
    train(resumed, other, loss, 2)  # what it had before is forgotten
    weights, state = torch.load(tmp_path / "point.pt", weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.steps == 8
    train(resumed, other, loss, 9, first=8)
    assert same(model, other)


def test_a_full_disk_keeps_the_old_state(tmp_path, monkeypatch):
    import safetensors.torch

    model, loss = setting()
    optimizer = HiFT(model, OPTIMIZERS["adamw"], state="disk", folder=tmp_path)
    train(optimizer, model, loss, 5)
    held = (tmp_path / "group-0.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ProbatumError, match=r"the state of group 0 cannot be written .*No space left.* what it held before is kept"):
        train(optimizer, model, loss, 1)
    assert (tmp_path / "group-0.safetensors").read_bytes() == held and len(list(tmp_path.iterdir())) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ProbatumError, match="cannot be written to"):
        HiFT(Net(), OPTIMIZERS["sgd"], state="disk", folder=tmp_path / "below")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbatumError, match=r"folder='.*file' cannot be written to"):
        HiFT(Net(), OPTIMIZERS["sgd"], state="disk", folder=tmp_path / "file")


# Rows of tables.


@pytest.mark.parametrize("padding", [None, 3])
def test_sparse_rows_under_sgd_are_the_dense_table(padding):
    (one, loss), (two, _) = setting(padding=padding), setting(padding=padding)
    train(HiFT(one, OPTIMIZERS["sgd"]), one, loss, 15)
    train(HiFT(two, OPTIMIZERS["sgd"], sparse_embeddings=True), two, loss, 15)
    assert same(one, two)


def test_sparse_rows_under_adam_are_dense_where_touched_every_time_and_still_elsewhere():
    one, two = setting()[0].double(), setting()[0].double()
    start = copy.deepcopy(two)
    ids = [torch.tensor([[1, 2, 5]]), torch.tensor([[2, 2, 5], [5, 1, 1]]), torch.tensor([[5, 1, 2]])]
    adam = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)  # noqa: E731
    for net, sparse in ((one, False), (two, True)):
        optimizer = HiFT(net, adam, groups=["*"], sparse_embeddings=sparse)
        for step in range(3):
            optimizer.zero_grad()
            net(ids[step]).logsumexp(1).sum().backward()
            optimizer.step()
    always, never = [1, 2, 5], [0, 3, 4, 6, 7, 8, 9, 10]
    torch.testing.assert_close(one.table.weight[always], two.table.weight[always], rtol=1e-12, atol=0)
    assert torch.equal(two.table.weight[never], start.table.weight[never])
    assert not torch.equal(one.table.weight[never], start.table.weight[never])  # decay moves them where dense


def test_rows_of_several_forwards_are_joined():
    (one, loss), (two, _) = setting(), setting()
    a, b = HiFT(one, OPTIMIZERS["sgd"]), HiFT(two, OPTIMIZERS["sgd"], sparse_embeddings=True)
    for _ in range(5):
        for net, optimizer in ((one, a), (two, b)):
            optimizer.zero_grad()
            for at in (0, 8):
                loss(net, slice(at, at + 8)).backward()
            optimizer.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_evaluation_without_gradients_leaves_nothing():
    model, loss = setting()
    optimizer = HiFT(model, OPTIMIZERS["sgd"], sparse_embeddings=True)
    with torch.no_grad():
        loss(model)
    assert optimizer._tables["table.weight"]._looked == []


# Bytes.


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def sgdm(parameters):
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


@pytest.mark.parametrize(("make", "state"), [(adamw, 2), (sgdm, 1)])
def test_measured_bytes_are_the_predicted_ones(make, state):
    model, loss = setting()
    full = predict(model, make)
    assert full == measure(model, make(model.parameters()), lambda: loss(model)).__class__(
        **{**vars(measure(model, make(model.parameters()), lambda: loss(model))), "saved": 0}
    )
    optimizer = HiFT(model, make, state="disk")
    predicted = predict(model, make, groups=optimizer.groups)
    largest = max(group.bytes for group in optimizer.groups)
    assert predicted.gradient == largest and predicted.state == state * largest
    measured = measure(model, optimizer, lambda: loss(model), steps=2 * optimizer.cycle)
    for name in ("frozen", "trainable", "gradient", "state"):
        assert getattr(measured, name) == getattr(predicted, name), name
    assert measured.off == full.state  # between steps all of it waits


def test_measured_rows_are_the_predicted_ones():
    model, loss = setting()
    optimizer = HiFT(model, adamw, groups=["table.*", "blocks.*", "head.*"], state="disk", sparse_embeddings=True)
    seen = []
    model.table.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0].unique())))
    measured = measure(model, optimizer, lambda: loss(model), steps=3)
    predicted = predict(model, adamw, groups=optimizer.groups, rows={"table.weight": seen[0]})
    assert (measured.gradient, measured.state) == (predicted.gradient, predicted.state)
    assert predicted.gradient == 4 * max(4 * seen[0], 3 * 20, 15)


def test_published_bytes_of_llama_7b():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1))
    blocks = layer_groups(model)[1:2]
    found = predict(model, adamw, groups=blocks)
    assert blocks[0].numel == 202_383_360
    assert round(found.gradient / 2**20, 2) == 772.03 and round(found.state / 2**20, 2) == 1544.06
    whole = predict(model, adamw)
    rest = 31 * blocks[0].numel
    # The table counts from 6,738.42 M, rounded.
    assert (whole.gradient + 4 * rest) / 2**20 == pytest.approx(25705.04, abs=0.03)
    assert (whole.state + 8 * rest) / 2**20 == pytest.approx(51410.08, abs=0.06)


def test_bytes_of_three_blocks_of_minilm():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536)
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    groups = layer_groups(model)
    assert predict(model, adamw).tuning == 12 * (11_918_592 + 3 * 1_774_464)
    assert predict(model, adamw, groups=groups).tuning == 12 * 11_918_592
    assert round(predict(model, adamw, groups=groups[1:]).tuning / 2**20, 1) == 20.3


# Schedules and Trainer.


def test_the_rate_is_constant_inside_a_cycle_and_moves_after_it():
    model, loss = setting()
    optimizer = HiFT(model, torch.optim.SGD(model.parameters(), lr=0.8))
    schedule = CycleLR(optimizer, lambda step: 1 - step / 16, total=12)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        train(optimizer, model, loss, 1)
        schedule.step()
    assert rates == [0.8 * (1 - s / 16) for s in [2] * 5 + [7] * 5 + [11] * 2]
    assert optimizer.cycles(12) == 3


def test_schedules_of_one_group_and_of_the_reference():
    plain = lambda step: 1 - step / 7  # noqa: E731
    assert [by_cycle(plain, 1, 7)(s) for s in range(7)] == [plain(s) for s in range(7)]
    slow = by_cycle(plain, 3, 7, reference=True)
    assert [slow(s) for s in range(7)] == [plain(0)] * 3 + [plain(1)] * 3 + [plain(2)]


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.ids = torch.randint(50, (48, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": int(self.ids[i, 0] > 25)}


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                   max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )  # fmt: skip


def trainer(folder, net, callback, optimizer=None, **more):
    from transformers import Trainer, TrainingArguments

    setting = {"max_steps": 10, "save_steps": 6, "per_device_train_batch_size": 4, "lr_scheduler_type": "linear", "warmup_steps": 2, **more}
    arguments = TrainingArguments(output_dir=str(folder), learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True, **setting)
    return Trainer(net, arguments, train_dataset=Rows(), callbacks=[callback], optimizers=(optimizer, None))


quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory.*:UserWarning", "ignore::DeprecationWarning")


@quiet
@pytest.mark.parametrize("own", [False, True])
def test_trainer_rotates_and_resumes_in_mid_cycle(tmp_path, own):
    def make(net):
        if own:
            decayed = torch.optim.AdamW(net.parameters(), lr=1e-2)
            return HiFTCallback(), HiFT(net, decayed, state="disk", order="up2down")
        return HiFTCallback(state="disk", order="up2down"), None

    net = bert()
    group_of = {name: group.name for group in layer_groups(net) for name in group.names}
    callback, optimizer = make(net)
    moved, before = [], copy.deepcopy(net)
    whole = trainer(tmp_path / "a", net, callback, optimizer, gradient_accumulation_steps=2)

    class Watch(type(callback).__mro__[1]):
        def on_optimizer_step(self, args, state, control, **found):
            moved.append({group_of[name] for name in changed(net, before)})
            before.load_state_dict(net.state_dict())

    rates = []
    whole.add_callback(Watch())
    net.register_forward_hook(lambda *_: rates.append(whole.lr_scheduler.get_last_lr()[0]))
    whole.train()
    assert callback.hift.cycle == 4 and callback.hift.steps == 10
    assert moved == [{name} for name in (list(dict.fromkeys(group_of.values()))[::-1] * 3)[:10]]
    assert len(rates) == 20 and [len(set(rates[i : i + 8])) for i in (0, 8)] == [1, 1] and rates[0] > 0
    again = bert()
    callback, optimizer = make(again)
    resumed = trainer(tmp_path / "b", again, callback, optimizer, gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert same(again, net) and all(p.requires_grad for p in net.parameters())


@quiet
def test_trainer_with_one_group_is_trainer_alone(tmp_path):
    from transformers import TrainerCallback

    one, two = bert(), bert()
    trainer(tmp_path / "a", one, TrainerCallback()).train()
    trainer(tmp_path / "b", two, HiFTCallback(m=4)).train()
    assert same(one, two)


@quiet
def test_trainer_refusals(tmp_path):
    net = bert()
    made = trainer(tmp_path, net, HiFTCallback(m=2), HiFT(net, adamw))
    with pytest.raises(ProbatumError, match=r"a HiFT already, so \['m'\] would have no effect"):
        made.train()
    net = bert()
    made = trainer(tmp_path, net, HiFTCallback(), torch.optim.SGD(net.parameters(), lr=0.1))
    made.lr_scheduler = torch.optim.lr_scheduler.StepLR(made.optimizer, 1)
    with pytest.raises(ProbatumError, match="is no function of the step"):
        made.train()


# Bad input.


def tied():
    model = Net()
    model.head = nn.Linear(4, 11, bias=False)
    model.head.weight = model.table.weight
    return model


def wrapped():
    class DistributedDataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Net()

    return DistributedDataParallel()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Net, {"groups": ["table.*", "head.*"]}, "groups leave out 6 trainable parameters: blocks.0.weight"),
        (Net, {"groups": ["*", "table.*"]}, r"groups\[0\] and groups\[1\] both hold table.weight"),
        (tied, {"groups": [["table.*", "blocks.*"], "head.*"]}, r"both hold head.weight \(tied to table.weight\)"),
        (Net, {"m": 6}, "m must be at most 5, the number of layers, got 6"),
        (Net, {"order": "bottom2up"}, "order must be one of down2up, up2down, random, got 'bottom2up'"),
        (Net, {"state": "nvme"}, "state must be one of device, cpu, disk, got 'nvme'"),
        (Net, {"folder": "x"}, "folder goes with state='disk'"),
        (lambda: Net().requires_grad_(False), {}, "Net has no trainable parameter"),
        (tied, {"sparse_embeddings": True}, r"table.weight is tied to head \(Linear\), which uses all its rows"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), {"sparse_embeddings": True}, "Sequential has no trainable nn.Embedding"),
        (lambda: Net().half(), {}, "table.weight is float16 without a float32 master copy"),
        (wrapped, {}, "the model is wrapped by DistributedDataParallel"),
        (Net, {"optimizer": torch.optim.LBFGS}, "LBFGS keeps one state over all parameters"),
        (Net, {"optimizer": lambda p: adamw(p[1:])}, "the optimizer lacks 1 trainable parameters of the model, table.weight first"),
        (Net, {"optimizer": lambda p: adamw([*p, nn.Parameter(torch.ones(1))])}, "has 1 trainable parameters that are not of the model"),
    ],
)
def test_bad_input(make, options, message):
    model = make()
    wanted = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ProbatumError, match=message):
        HiFT(model, options.pop("optimizer", adamw), **options)
    assert [p.requires_grad for p in model.parameters()] == wanted


def test_resuming_with_other_groups_or_order_is_refused():
    model, _ = setting()
    state = HiFT(model, adamw).state_dict()
    for options, message in (
        ({"m": 2}, r"the state has 5 groups, this HiFT 3, and they differ from groups\[0\] on"),
        ({"order": "up2down"}, r"in another order \(\[0, 1, 2, 3, 4\]\)"),
    ):
        with pytest.raises(ProbatumError, match=message):
            HiFT(model, adamw, **options).load_state_dict(state)
    with pytest.raises(ProbatumError, match="this state is not of HiFT"):
        HiFT(model, adamw).load_state_dict(adamw(model.parameters()).state_dict())


def test_bfloat16_is_told():
    with pytest.warns(UserWarning, match="updates below 1/256 of a weight round away"):
        HiFT(Net().bfloat16(), adamw)


def test_an_optimizer_with_a_state_of_its_own_is_refused():
    class Shared(torch.optim.SGD):
        def step(self, closure=None):
            self.state["all"] = {"count": 1}
            return super().step(closure)

    model, loss = setting()
    optimizer = HiFT(model, lambda p: Shared(p, lr=0.1))
    with pytest.raises(ProbatumError, match="Shared keeps a state that belongs to no single parameter"):
        train(optimizer, model, loss, 1)
