"""ZO-AE-DS: surrogate gradients, query counts, storing, resuming, certificates, and its bad input."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum import ProbatumError
from probatum.metrics.attack import pgd_l2
from probatum.zeroth import BlackBox, Defence, certified_accuracy, plan_queries, robustify, train_autoencoder
from probatum.zeroth.networks import AutoEncoder, Denoiser

SHAPE = (1, 4, 4)


def defence(seed=0, latent=5, **options):
    torch.manual_seed(seed)
    auto = AutoEncoder(SHAPE, latent, width=12) if latent else None
    return Defence(Denoiser(1, width=4, depth=3), auto, **{"sigma": 0.25, **options})


def box(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).requires_grad_(False)


IMAGES = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
CONTRACT = {"Defence": lambda: (defence(), IMAGES[:5])}


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(estimator, black_box=None, seed=0, **options):
    net = defence(seed)
    done = robustify(net, black_box or box(), IMAGES, **{"steps": 3, "batch": 8, "lr": 1e-2, "estimator": estimator, **options})
    return net, done


# The gradient.


@pytest.mark.parametrize("query", ["latent", "image"])
def test_with_small_mu_the_training_is_that_of_backpropagation(query):
    """One step of central differences in float64 moves every weight as backpropagation does."""
    ends = []
    for estimator in ("FO", "CGE"):
        net, start = defence(query=query).double(), weights(defence().double())
        robustify(net, box().double(), IMAGES.double(), estimator=estimator, mu=1e-4, steps=1, batch=8, lr=1e-2, weight_decay=0.0)
        ends.append(weights(net))
    assert not torch.equal(ends[0], start)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)  # Adam's first step is lr times the sign, softened by 1e-8


def test_one_step_of_the_gradient_itself():
    from probatum.zeroth.functions import cge, zo_backward

    net, f = defence().double().eval(), box().double()
    x, y = IMAGES[:6].double(), torch.arange(6) % 3

    def loss(points):
        return F.cross_entropy(f(net.back(points.flatten(0, 1))), y.repeat(len(points)), reduction="none").view(len(points), -1)

    r = net.front(x)
    zo_backward(r, cge(loss, r.detach(), mu=1e-4).gradient)
    queried = [p.grad.clone() for p in net.auto.encoder.parameters()]
    net.zero_grad()
    F.cross_entropy(f(net(x)), y).backward()
    for a, p in zip(queried, net.auto.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-6, atol=1e-9)


def test_with_an_identity_auto_encoder_it_is_zo_ds_bit_for_bit():
    class Same(nn.Module):
        encoder, decoder = nn.Identity(), nn.Identity()

        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Identity(), nn.Identity()

    for estimator in ("RGE", "CGE"):
        ends = []
        for auto in (None, Same()):
            torch.manual_seed(0)
            net = Defence(Denoiser(1, width=4, depth=3), auto, sigma=0.25)
            done = robustify(net, box(), IMAGES, estimator=estimator, q=4, steps=3, batch=8)
            ends.append((weights(net.denoiser), done["losses"], done["rows"]))
        assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize(("train", "moved"), [("whole", "de"), ("part", "d"), ("whole_plus", "deg")])
def test_what_is_trained(train, moved):
    query = "image" if train == "whole_plus" else "latent"
    before, net = defence(query=query), defence(query=query)
    robustify(net, box(), IMAGES, estimator="CGE", steps=2, batch=8, train=train)
    for letter, part in (("d", "denoiser"), ("e", "auto.encoder"), ("g", "auto.decoder")):
        same = torch.equal(weights(before.get_submodule(part)), weights(net.get_submodule(part)))
        assert same != (letter in moved), part
    assert not net.training


def test_the_noise_of_an_image_is_shared_by_all_its_queries():
    seen = []

    def f(x):
        seen.append(x.clone())
        return x.flatten(1)[:, :3]

    robustify(defence(), f, IMAGES, targets=torch.zeros(40, dtype=torch.long), estimator="RGE", q=3, mu=1e-3, steps=1, batch=4)
    base, moved = seen[0], seen[1].view(3, 4, *SHAPE)
    torch.testing.assert_close(moved, base.expand(3, *base.shape), rtol=0, atol=5e-3)


# Queries.


def test_rows_are_counted_as_planned_and_as_the_box_counts_them():
    for estimator, q, each in (("RGE", 7, 8), ("CGE", 7, 10)):
        counted = BlackBox(box())
        net, done = trained(estimator, counted, q=q)
        plan = plan_queries(net, IMAGES, estimator=estimator, q=q, steps=3, batch=8)
        assert plan.rows_a_step == 8 * each and done["rows"] == 3 * 8 * each
        assert counted.rows == plan.rows == done["rows"] + done["label_rows"] and done["label_rows"] == 40
    timed = plan_queries(net, IMAGES, steps=3, batch=8, black_box=counted)
    assert timed.seconds > 0 and "hours" in str(timed) and "hours" not in str(plan)


def test_an_endpoint_is_trained_against_and_receives_what_is_counted():
    f, received = box(), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            received.append(len(rows))
            body = json.dumps({"outputs": f(torch.tensor(rows)).tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        remote = BlackBox(f"http://127.0.0.1:{server.server_port}/", rows=50, canary=IMAGES[:2])
        net, _ = trained("CGE", remote)
        remote.check()
        found = net.certify(remote, IMAGES[:1], n0=5, n=60)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert remote.rows == sum(received) == 6 + 40 + 3 * 80 + 65 and max(received) <= 50 and len(found) == 1
    local, _ = trained("CGE", BlackBox(f))
    torch.testing.assert_close(weights(net), weights(local), rtol=0, atol=1e-6)


def test_a_budget_stops_training():
    with pytest.raises(ProbatumError, match="budget of 150 queries is spent"):
        trained("CGE", BlackBox(box(), budget=150))


def test_trials_bound_a_call():
    sizes, f = [], box()
    a, _ = trained("CGE", lambda x: sizes.append(len(x)) or f(x), trials=2, targets=torch.zeros(40, dtype=torch.long))
    b, _ = trained("CGE", targets=torch.zeros(40, dtype=torch.long))
    assert max(sizes) == 2 * 2 * 8
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-4)


@pytest.mark.parametrize("estimator", ["FO", "RGE", "CGE"])
def test_labels_that_are_given_are_used_by_every_estimator(estimator):
    own, _ = trained(estimator)
    given, done = trained(estimator, targets=torch.arange(40) % 3)
    same, _ = trained(estimator, targets=box()(IMAGES).argmax(1))
    assert not torch.equal(weights(own), weights(given)) and torch.equal(weights(own), weights(same)) and done["label_rows"] == 0


def test_probabilities_are_scores_too():
    f = box()
    a, _ = trained("CGE")
    b, _ = trained("CGE", lambda x: f(x).softmax(1), outputs="probabilities")
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=2e-3)


def test_training_goes_on_after_a_kill_as_if_nothing_had_happened(tmp_path):
    whole, want = trained("RGE", q=3, steps=6)
    calls = []

    def killed(done, loss):
        calls.append(done)
        if done == 5:
            raise KeyboardInterrupt

    path = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        trained("RGE", q=3, steps=6, store=path, every=2, progress=killed)
    calls.clear()
    again, got = trained("RGE", q=3, steps=6, store=path, every=2, progress=lambda done, loss: calls.append(done), seed=0)
    assert calls == [5, 6] and got["losses"] == want["losses"] and got["rows"] == want["rows"]
    assert torch.equal(weights(whole), weights(again)) and [p.name for p in tmp_path.iterdir()] == ["training.pt"]
    with pytest.raises(ProbatumError, match="its q is 3, here 4"):
        trained("RGE", q=4, steps=6, store=path)
    path.write_bytes(b"nothing")
    with pytest.raises(ProbatumError, match="is no training of a defence"):
        trained("RGE", q=3, steps=6, store=path)


# Reconstruction.


def test_a_reconstructor_is_defended_against_noise_and_attack():
    """A black box that measures an image by 8 numbers and rebuilds it by least squares; the defence lowers its error under noise."""
    torch.manual_seed(0)
    prototypes = torch.rand(6, 16)
    images = (torch.rand(300, 6).softmax(1).pow(3) @ prototypes).clamp(0, 1).view(-1, *SHAPE)
    measure = torch.randn(16, 8)
    rebuild = torch.linalg.lstsq(images.flatten(1) @ measure, images.flatten(1)).solution

    def f(x):
        return (x.flatten(1) @ measure @ rebuild).view(-1, *SHAPE)

    auto = train_autoencoder(images, AutoEncoder(SHAPE, 6, width=32), steps=300)
    net = Defence(Denoiser(1, width=4, depth=3), auto, sigma=0.3)
    done = robustify(net, BlackBox(f), images, estimator="CGE", task="reconstruction", steps=150, batch=32, lr=3e-3)
    noisy = images + 0.3 * torch.randn(images.shape)

    def error(answer, x):
        return (answer(x) - images).square().flatten(1).mean(1)

    assert done["label_rows"] == 0 and done["losses"][-1] < 0.5 * done["losses"][0]
    front = net.deployed(f)
    assert float(error(front, noisy).mean()) < 0.5 * float(error(f, noisy).mean())
    net.eval().requires_grad_(False)
    moved = [pgd_l2(lambda x, g=g: error(g, x), images, 0.5, steps=10) for g in (f, lambda x: f(net(x)))]
    assert all(float((m - images).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-5 for m in moved)
    assert float(error(f, moved[0]).mean()) > float(error(f, images).mean())
    assert float(error(front, moved[1]).mean()) < float(error(f, moved[0]).mean())


# One object.


@pytest.mark.parametrize("options", [{}, {"latent": 0}, {"query": "image"}])
def test_a_stored_defence_is_the_same_defence(options, tmp_path):
    net = defence(**options)
    robustify(net, box(), IMAGES, estimator="RGE", q=2, steps=2, batch=8)
    net.save(tmp_path / "front.safetensors")
    again = Defence.load(tmp_path / "front.safetensors")
    assert (again.method, again.sigma, again.query) == (net.method, 0.25, net.query)
    assert net.method == {"latent": "DS", "query": "DS + AE"}.get(next(iter(options), ""), "AE-DS")
    assert torch.equal(net(IMAGES), again(IMAGES)) and [p.name for p in tmp_path.iterdir()] == ["front.safetensors"]
    a, b = (d.certify(box(), IMAGES[:3], n0=10, n=100) for d in (net, again))
    assert a == b


def test_own_modules_are_given_to_load(tmp_path):
    net = Defence(nn.Conv2d(1, 1, 3, padding=1), sigma=0.5)
    net.save(tmp_path / "own.safetensors")
    with pytest.raises(ProbatumError, match="needs its denoiser"):
        Defence.load(tmp_path / "own.safetensors")
    again = Defence.load(tmp_path / "own.safetensors", denoiser=nn.Conv2d(1, 1, 3, padding=1))
    assert torch.equal(weights(again), weights(net))
    with pytest.raises(ProbatumError, match="do not fit"):
        Defence.load(tmp_path / "own.safetensors", denoiser=nn.Conv2d(1, 2, 3))
    with pytest.raises(ProbatumError, match="is DS and has no auto-encoder"):
        Defence.load(tmp_path / "own.safetensors", denoiser=nn.Conv2d(1, 1, 3, padding=1), auto=AutoEncoder(SHAPE, 2))
    with pytest.raises(ProbatumError, match="cannot read"):
        Defence.load(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ProbatumError, match="holds no defence"):
        Defence.load(tmp_path / "other.safetensors")

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Flatten(), nn.Unflatten(1, SHAPE)

    Defence(Denoiser(1, 4, 3), Own(), sigma=0.5).save(tmp_path / "auto.safetensors")
    with pytest.raises(ProbatumError, match=r"is AE-DS: give its auto-encoder"):
        Defence.load(tmp_path / "auto.safetensors")


def test_certificates_are_of_the_whole_pipeline_and_remember_its_weights(tmp_path):
    net = defence()
    whole = net.certify(box(), IMAGES[:4], n0=10, n=100, store=tmp_path / "table.json")
    assert net.training  # as it was
    other = defence(seed=3)
    with pytest.raises(ProbatumError, match="belongs to another run: its name"):
        other.certify(box(), IMAGES[:4], n0=10, n=100, store=tmp_path / "table.json")
    assert 0 <= certified_accuracy(whole, box()(IMAGES[:4]).argmax(1), 0.1) <= 1
    with pytest.raises(ProbatumError, match=r"n = 100 certifies at most r = 0\.37"):
        certified_accuracy(whole, [0] * 4, 0.5, sigma=net.sigma)
    with pytest.raises(ProbatumError, match=r"sigma is the defence's own"):
        net.certify(box(), IMAGES[:4], sigma=1.0)


def test_the_auto_encoder_learns_and_its_latent_is_signed():
    auto = AutoEncoder(SHAPE, 8, width=32)
    before = float(F.mse_loss(auto(IMAGES), IMAGES).detach())
    train_autoencoder(IMAGES, auto, steps=200)
    assert float(F.mse_loss(auto(IMAGES), IMAGES).detach()) < 0.7 * before and bool((auto.encoder(IMAGES) < 0).any())
    conv = AutoEncoder((3, 8, 12), 10, width=4, kind="conv")
    assert conv.encoder(torch.rand(2, 3, 8, 12)).shape == (2, 10) and conv(torch.rand(2, 3, 8, 12)).shape == (2, 3, 8, 12)


def test_a_new_denoiser_is_the_identity():
    assert torch.equal(Denoiser(1, 4, 5)(IMAGES), IMAGES)


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "SPSA"}, "estimator must be one of FO, RGE, CGE"),
        ({"task": "regression"}, "task must be one of"),
        ({"outputs": "labels"}, "outputs must be one of"),
        ({"train": "all"}, "train must be one of"),
        ({"train": "whole_plus"}, "query='image'"),
        ({"steps": 0}, "steps must be an integer"),
        ({"batch": 0}, "batch must be an integer"),
        ({"estimator": "FO", "black_box": BlackBox(lambda x: x)}, "can be differentiated"),
        ({"mu": 0.0}, "mu must be positive"),
        ({"images": 3 * IMAGES}, r"in 0\.\.1, the range of the auto-encoder, got 0.0\d+ to 3"),
        ({"images": torch.rand(4, 1, 5, 5)}, r"made for images \[1, 4, 4\], got \[1, 5, 5\]"),
        ({"images": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)}, "images must be floating"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, "one an image, got 3 for 40"),
        ({"black_box": lambda x: x.flatten(1).argmax(1)}, "labels alone have no slope"),
        ({"black_box": lambda x: x.flatten(1)[:, :3].round()}, "differences are exactly zero.* raise mu"),
        ({"black_box": lambda x: x.flatten(1)[:, :3] / 0}, "not finite"),
        ({"task": "reconstruction", "black_box": lambda x: x.flatten(1)[:, :3]}, "answer images like the targets"),
    ],
)
def test_bad_training(options, message):
    arguments = {"black_box": box(), "images": IMAGES, "steps": 2, "batch": 8, **options}
    black_box, images = arguments.pop("black_box"), arguments.pop("images")
    with pytest.raises(ProbatumError, match=message):
        robustify(defence(), black_box, images, **arguments)


def test_bad_defences():
    with pytest.raises(ProbatumError, match="needs an auto-encoder, whose decoder"):
        robustify(defence(latent=0), box(), IMAGES, train="whole_plus")
    with pytest.raises(ProbatumError, match="sigma must be positive"):
        defence(sigma=0.0)
    with pytest.raises(ProbatumError, match=r"latent must be from 1 to 15, fewer than the 16 inputs, got 16"):
        AutoEncoder(SHAPE, 16)
    with pytest.raises(ProbatumError, match="without encoder"):
        Defence(Denoiser(1, 4, 3), nn.Linear(2, 2), sigma=0.5)
    with pytest.raises(ProbatumError, match="query must be"):
        Defence(Denoiser(1, 4, 3), sigma=0.5, query="latent")
    with pytest.raises(ProbatumError, match="multiples of 4"):
        AutoEncoder((1, 6, 6), 3, kind="conv")
    with pytest.raises(ProbatumError, match="'mlp' or 'conv'"):
        AutoEncoder(SHAPE, 3, kind="vit")
    with pytest.raises(ProbatumError, match="depth 2 or more"):
        Denoiser(1, 4, 1)
    with pytest.raises(ProbatumError, match="radius must be positive"):
        pgd_l2(lambda x: x.sum(1), torch.zeros(1, 2), 0.0)
