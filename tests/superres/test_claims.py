"""What is shipped, and the comparison on a user's folder."""

import json

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.claims.superres import carn as claims
from probatum.claims.superres import comparison
from probatum.evidence import ComparisonRun
from probatum.metrics.fidelity import fidelity
from probatum.superres import weights
from probatum.superres.degradation import crop_to_multiple, degrade
from probatum.superres.fitting import validate
from probatum.superres.patches import Photo

SHIPPED = weights.shipped_files()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_tell_what_made_them_and_beat_bicubic(name):
    from probatum.data.photos import photograph

    note = json.loads(SHIPPED[name].with_suffix(".json").read_text("utf-8"))
    net = weights.shipped(name)
    assert (
        note["config"]["model"] == net.config()["model"]
        and note["steps"] > 0
        and note["command"]
        and note["training_data"]
    )
    assert all(torch.isfinite(p).all() for p in net.parameters())
    photo = [Photo.of("chelsea", photograph("chelsea")[100:220, 150:290])]
    for scale in net.scales:
        assert validate(net, photo, scale)[0] > validate(None, photo, scale)[0]


def test_every_net_of_the_claim_is_shipped_once():
    own = {name for name in SHIPPED if name.startswith("quality_")}
    assert own == {f"quality_{arm}_{seed}" for arm in ("carn", "plain") for seed in range(5)}
    digests = {SHIPPED[name].read_bytes() for name in own}
    assert len(digests) == 10
    assert sum(path.stat().st_size for path in SHIPPED.values()) < 12 << 20


def run_of(data, budget="quick") -> ComparisonRun:
    run = ComparisonRun("compare", "superres", budget, 0)
    run.data = None if data is None else str(data)
    return run


def test_the_comparison_measures_a_users_folder(tmp_path):
    from PIL import Image

    from probatum.data.photos import photograph

    pixels = {name: photograph(name)[100:181, 100:190] for name in ("coffee", "camera", "china")}
    for name, part in pixels.items():
        Image.fromarray(part).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("no")
    run = run_of(tmp_path)
    comparison.superres.measure(run, "Lanczos")
    (row,) = run.table.of("Lanczos", "psnr").values()
    for got, (_, part) in zip(row.samples, sorted(pixels.items()), strict=True):
        high = torch.from_numpy(part)
        planes = crop_to_multiple(high[None] if high.ndim == 2 else high.permute(2, 0, 1), 2)
        low = degrade(planes, 2).permute(1, 2, 0).squeeze().contiguous().numpy()
        again = Image.fromarray(low).resize((low.shape[1] * 2, low.shape[0] * 2), Image.Resampling.LANCZOS)
        assert got == pytest.approx(fidelity(np.asarray(again), planes.permute(1, 2, 0).squeeze().numpy(), crop=2).psnr)
    assert any("bad.png" in note for note in run.notes)
    assert {m for m in ("psnr", "ssim", "seconds", "memory") if run.table.of("Lanczos", m)} == {
        "psnr",
        "ssim",
        "seconds",
        "memory",
    }


def test_the_comparison_refuses_a_folder_without_photographs(tmp_path):
    (tmp_path / "bad.png").write_text("no")
    with pytest.raises(ProbatumError, match="no photograph that can be measured"):
        comparison.superres.measure(run_of(tmp_path), "bicubic")


def test_arms_without_weights_are_left_out():
    names = {arm.name for arm in comparison.ARMS}
    assert {"bicubic", "Lanczos"} <= names
    assert ("CARN-M" in names) == ("carn_m" in SHIPPED) and ("CARN" in names) == ("carn" in SHIPPED)


def test_full_says_what_it_trains_on(monkeypatch, tmp_path):
    monkeypatch.delenv("PROBATUM_FIXTURES", raising=False)
    monkeypatch.setenv("PROBATUM_PHOTOS", str(tmp_path / "none"))
    with pytest.raises(ProbatumError, match="set PROBATUM_PHOTOS to a folder"):
        claims.training_folder()
    monkeypatch.setenv("PROBATUM_PHOTOS", str(tmp_path))
    assert claims.training_folder() == tmp_path
