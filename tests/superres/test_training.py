"""Patches, fit and weight files."""

import json

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.superres import CARN, CARNM, recipes, weights
from probatum.superres.degradation import degrade
from probatum.superres.fitting import Fit, validate
from probatum.superres.patches import Patches, Photo, photos_in, split
from probatum.superres.residual import PlainResidual


def photos(count: int = 3, side: int = 48) -> list[Photo]:
    rng = np.random.default_rng(0)
    return [Photo.of(f"p{i}", rng.integers(0, 256, (side, side + 6, 3), dtype=np.uint8)) for i in range(count)]


def make(steps: int = 12, **options) -> Fit:
    torch.manual_seed(0)
    patches = Patches(photos(), [2, 3], size=6, batch=2, generator=torch.Generator().manual_seed(1))
    return Fit(CARNM((2, 3), width=8, skip=True), patches, steps=steps, lr=1e-3, warm_up=3, **options)


def test_patches_are_pairs():
    """A high-resolution patch that is shrunk is its low-resolution patch, away from borders: the flips and turns
    fit."""
    patches = Patches(photos(), [2], size=12, batch=16, generator=torch.Generator().manual_seed(0))
    low, high = patches.draw(2)
    assert (
        low.shape == (16, 3, 12, 12)
        and high.shape == (16, 3, 24, 24)
        and low.is_contiguous(memory_format=torch.channels_last)
    )
    again = degrade((high * 255).round().to(torch.uint8), 2).float() / 255
    assert (again - low)[..., 2:-2, 2:-2].abs().max() <= 1.5 / 255


def test_all_eight_positions_are_drawn():
    square = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    patches = Patches([Photo.of("x", square)], [2], size=2, batch=200, generator=torch.Generator().manual_seed(0))
    _, high = patches.draw(2)
    assert len({tuple(x[0].flatten().tolist()) for x in high}) == 8


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole = make(average=0.9).advance()
    first = make(average=0.9).advance(5)
    first.save(tmp_path / "x.pt")
    second = make(average=0.9).load(tmp_path / "x.pt").advance()
    assert second.step == 12 and second.losses == pytest.approx(whole.losses, abs=0)
    for a, b in zip(whole.result().parameters(), second.result().parameters(), strict=True):
        assert torch.equal(a, b)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pt"]


def test_rate_rises_and_falls():
    run = make(steps=100)
    assert (
        run.rate(0) == pytest.approx(1e-3 / 3, rel=1e-3) and run.rate(50) == pytest.approx(5e-4) and run.rate(100) == 0
    )
    assert make(steps=100, schedule="constant").rate(99) == 1e-3


def test_it_learns_what_bicubic_cannot():
    """A net with the skip, trained on one texture, ends above bicubic on another part of it."""
    y, x = np.mgrid[:96, :96]
    stripes = (127 + 120 * np.sign(np.sin(x * 0.9 + y * 0.37)))[..., None].repeat(3, 2).astype(np.uint8)
    train, held = Photo.of("a", stripes[:, :60]), Photo.of("b", stripes[:, 60:])
    torch.manual_seed(0)
    net = PlainResidual(2, width=8, blocks=2, skip=True)
    run = Fit(
        net,
        Patches([train], [2], size=12, batch=4, generator=torch.Generator().manual_seed(0)),
        steps=60,
        lr=4e-3,
        warm_up=5,
    )
    assert validate(run.advance().result(), [held], 2)[0] > validate(None, [held], 2)[0] + 0.5


def test_global_random_state_is_untouched():
    run = make()
    before = torch.get_rng_state()
    run.advance(2)
    assert torch.equal(before, torch.get_rng_state())
    recipes.claim_fit("carn", photos(), 3, 5, 1e-3)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_of_the_recipe_decide_everything():
    a, b, c = (recipes.claim_fit("plain", photos(2, 60), seed, 2, 1e-3).advance() for seed in (0, 0, 1))
    assert a.losses == b.losses and a.losses != c.losses


def test_split_keeps_photographs_whole(tmp_path):
    from PIL import Image

    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i:03d}.png")
    (tmp_path / "index.json").write_text(json.dumps([[f"{i:03d}", f"photo{i // 2}", 0, 0] for i in range(6)]))
    train, held = split(photos_in(tmp_path), every=3)
    assert [p.name for p in held] == ["004.png", "005.png"] and len(train) == 4
    with pytest.raises(ProbatumError, match="no folder with images"):
        photos_in(tmp_path / "none")
    with pytest.raises(ProbatumError, match="two photographs or more"):
        split(photos_in(tmp_path)[:2])


@pytest.mark.parametrize(
    "net",
    [CARN((2, 4), width=8, skip=True), CARNM(3, width=8, groups=2), PlainResidual(2, width=4, blocks=2, skip=True)],
)
def test_saved_and_loaded_is_the_same_net(net, tmp_path):
    path = tmp_path / "net.safetensors"
    weights.save(net, path)
    got = weights.load(path)
    assert got.config() == net.config() and not got.training
    for name, value in net.state_dict().items():
        assert torch.equal(got.state_dict()[name], value.half().float())


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"params_ema": s}, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}],
)
@pytest.mark.parametrize(
    "net", [CARN(2, width=8), CARN(3, width=8), CARN(4, width=8), CARNM((2, 3, 4), width=8, groups=2)]
)
def test_foreign_files_are_recognised_by_their_keys(net, wrap, tmp_path):
    torch.save(wrap(net.state_dict()), tmp_path / "x.pth")
    got = weights.load(tmp_path / "x.pth")
    assert got.config() == net.config()
    x = torch.rand(1, 3, 5, 6)
    # loaded nets are in channels-last memory, whose convolutions sum in another order
    torch.testing.assert_close(got(x, net.scales[0]), net(x, net.scales[0]), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_the_other_variant_is_told(tmp_path):
    torch.save(CARNM(width=8, groups=4).state_dict(), tmp_path / "m.pth")
    with pytest.raises(
        ProbatumError,
        match=r"missing b1.b2.body.0.weight, unexpected b1.b1.body.4.weight; it looks like CARN-M, group 4",
    ):
        weights.load(tmp_path / "m.pth", "carn")
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "o.pth")
    with pytest.raises(ProbatumError, match="not a network that this reads"):
        weights.load(tmp_path / "o.pth")


class Trap:
    def __reduce__(self):
        return (print, ("the file ran code",))


def test_files_that_are_no_weights_are_refused(tmp_path, capsys):
    torch.save({"net": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ProbatumError, match=r"trap\.pth holds more than tensors and is refused"):
        weights.load(tmp_path / "trap.pth")
    assert "ran code" not in capsys.readouterr().out
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ProbatumError, match=r"broken\.safetensors cannot be read as weights"):
        weights.load(tmp_path / "broken.safetensors")
    with pytest.raises(ProbatumError, match="no such file of weights"):
        weights.load(tmp_path / "none.pth")
    with pytest.raises(ProbatumError, match="no weights named 'cran'"):
        weights.shipped("cran")


def test_bad_settings_are_told():
    with pytest.raises(ProbatumError, match="no photograph has sides of 400 pixels"):
        Patches(photos(), [4], size=100, generator=torch.Generator())
    with pytest.raises(ProbatumError, match="steps must be 1 or more and lr positive, got 5 and -1"):
        Fit(CARN(2, width=8), Patches(photos(), [2], size=6, generator=torch.Generator()), steps=5, lr=-1)


def test_a_net_of_three_scales_begins_where_one_of_a_single_scale_ended(tmp_path):
    torch.manual_seed(0)
    single = CARN(2, width=8, skip=True)
    torch.nn.init.normal_(single.exit.weight, std=0.1)
    weights.save(single, tmp_path / "x2.safetensors", half=False)
    torch.manual_seed(1)
    patches = Patches(photos(), [2, 4], size=6, batch=2, generator=torch.Generator().manual_seed(1))
    run = Fit(CARN((2, 3, 4), width=8, skip=True), patches, steps=5, lr=1e-3, average=0.9)
    taken = recipes.warm_start(run, tmp_path / "x2.safetensors")
    assert taken == len(run.net.state_dict()) - 2, "all but the head for x3"
    x = torch.rand(1, 3, 7, 6)
    torch.testing.assert_close(run.result()(x, 2), single(x), rtol=1e-4, atol=1e-5)


def test_tiles_are_cut_from_photographs(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (600, 1100, 3), dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    recipes.main(["tiles", "--data", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    found = photos_in(tmp_path / "out")
    assert len(found) == 2 and found[0].pixels.shape == (3, 256, 256) and {p.photograph for p in found} == {"a.png"}
