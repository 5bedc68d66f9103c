"""What an optimizer, a module and an estimator must do, whichever paper it comes from."""

import copy
import io
from collections.abc import Callable, Iterator

Checks = Iterator[tuple[str, Callable[[], None]]]


def optimizer(name: str, factory: Callable) -> Checks:
    import torch

    def setting():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
        x, y = torch.randn(11, 5), torch.randn(11, 3)

        def loss_of(model):
            return lambda: torch.nn.functional.mse_loss(model(x), y)

        return model, factory()(model), loss_of

    def step(optimizer, closure):
        import inspect

        def backward():
            optimizer.zero_grad()
            loss = closure()
            if loss.requires_grad:
                loss.backward()
            return loss

        assert "closure" in inspect.signature(optimizer.step).parameters
        return optimizer.step(backward)

    def step_changes_and_returns_a_loss():
        model, optimizer, loss_of = setting()
        before = [p.clone() for p in model.parameters()]
        loss = step(optimizer, loss_of(model))
        assert float(loss) > 0 and any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def state_dict_resumes_exactly():
        model, optimizer, loss_of = setting()
        for _ in range(3):
            step(optimizer, loss_of(model))
        other = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        resumed = factory()(other)
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        for _ in range(2):
            step(optimizer, loss_of(model))
            step(resumed, loss_of(other))
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)

    def is_reproducible():
        ends = []
        for _ in range(2):
            model, optimizer, loss_of = setting()
            for _ in range(2):
                step(optimizer, loss_of(model))
            ends.append([p.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))

    def leaves_frozen_parameters_alone():
        model, _, loss_of = setting()
        model[0].weight.requires_grad_(False)
        frozen = model[0].weight.clone()
        optimizer = factory()(model)
        step(optimizer, loss_of(model))
        assert torch.equal(model[0].weight, frozen)

    def global_random_state_is_untouched():
        model, optimizer, loss_of = setting()
        before = torch.get_rng_state()
        step(optimizer, loss_of(model))
        assert torch.equal(before, torch.get_rng_state())

    for check in (
        step_changes_and_returns_a_loss, state_dict_resumes_exactly, is_reproducible, leaves_frozen_parameters_alone,
        global_random_state_is_untouched,
    ):  # fmt: skip
        yield check.__name__, check


def module(name: str, factory: Callable) -> Checks:
    import torch

    def first(output):
        return output if isinstance(output, torch.Tensor) else next(iter(output.values() if isinstance(output, dict) else output))

    def built(dtype=None):
        torch.manual_seed(0)
        net, *inputs = factory()()
        if dtype is not None:
            net = net.to(dtype)
            inputs = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
        return net.eval(), inputs

    def forward_is_finite():
        net, inputs = built()
        assert torch.isfinite(first(net(*inputs))).all()

    def state_dict_round_trip():
        net, inputs = built()
        torch.manual_seed(1)
        other = factory()()[0].eval()
        missing = other.load_state_dict(net.state_dict(), strict=True)
        assert not missing.missing_keys
        assert torch.equal(first(net(*inputs)), first(other(*inputs)))

    def gradients_reach_every_trainable_parameter():
        net, inputs = built()
        net.train()
        first(net(*inputs)).square().sum().backward()
        without = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"no gradient for {without}"

    def bfloat16_stays_near():
        net, inputs = built()
        want = first(net(*inputs)).float()
        low, cast = built(torch.bfloat16)
        got = first(low(*cast))
        assert got.dtype in (torch.bfloat16, torch.float32)
        assert (got.float() - want).abs().max() <= 0.1 * want.abs().max() + 0.02

    def meta_device_builds():
        net, _ = built()
        assert all(p.is_meta for p in copy.deepcopy(net).to("meta").parameters())

    for check in (
        forward_is_finite, state_dict_round_trip, gradients_reach_every_trainable_parameter, bfloat16_stays_near, meta_device_builds,
    ):  # fmt: skip
        yield check.__name__, check


def estimator(name: str, factory: Callable) -> Checks:
    def clones_with_its_parameters():
        from sklearn.base import clone

        thing = factory()()
        assert clone(thing).get_params() == thing.get_params()

    def init_only_stores():
        thing = factory()()
        assert not [key for key in vars(thing) if key.endswith("_") and not key.startswith("_")]

    def set_params_round_trip():
        thing = factory()()
        assert thing.set_params(**thing.get_params()).get_params() == thing.get_params()

    for check in (clones_with_its_parameters, init_only_stores, set_params_round_trip):
        yield check.__name__, check


FORMS = {"optimizer": optimizer, "module": module, "estimator": estimator}
