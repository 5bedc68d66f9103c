"""Files are whole or as they were, and a folder has one writer."""

import pytest

from probatum import ProbatumError
from probatum.files import alone, whole


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole(path) as partial:
        assert partial.suffix == ".txt" and partial.parent == tmp_path
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", ["float", "packed"])
def test_weights_are_whole_or_as_they_were(tmp_path, monkeypatch, form):
    import safetensors.torch
    import torch

    from probatum.superres import EDSR, calibrate, quantise, save_packed, weights

    net = EDSR(2, width=4, blocks=1)
    if form == "packed":
        net = calibrate(quantise(net, 8), [torch.rand(1, 3, 8, 8)])
    save, path = (weights.save if form == "float" else save_packed), tmp_path / "net.safetensors"
    save(net, path)
    before = path.read_bytes()

    def torn(tensors, file, metadata=None):
        with open(file, "wb") as out:
            out.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", torn)
    with pytest.raises(OSError, match="no space"):
        save(net, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_has_one_writer(tmp_path):
    place = tmp_path / "new" / "folder"
    with alone(place, "--out", "another run") as folder:
        assert folder.is_dir()
        with pytest.raises(ProbatumError, match=r"another run is writing into --out .*folder"), alone(place, "--out", "another run"):
            pass
    with alone(place, "--out", "another run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbatumError, match=r"--out .*file"), alone(tmp_path / "file", "--out", "another run"):
        pass
