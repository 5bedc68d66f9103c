"""Steps over 1, 2 and 3 processes are those of one, bit for bit, and nothing but losses travels."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from probatum import ProbatumError
from probatum.zeroth import Log, MeZO, distribute, replay

HERE = Path(__file__).parent
WORLD = 3


def load_worker():
    spec = importlib.util.spec_from_file_location("distributed_worker", HERE / "distributed_worker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "distributed_worker.py"), str(folder)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", ["mezo", "signs", "adazeta"])
def test_any_number_of_processes_gives_the_parameters_of_one(ranks, kind):
    model, optimizer, calls = worker.train(kind, 10)
    for size in range(1, WORLD + 1):
        found = [ranks[rank][kind, size] for rank in range(size)]
        assert all(equal(state, model.state_dict()) and equal(log, optimizer.log.arrays()) for state, log, *_ in found)
        assert sum(rank_calls for _, _, rank_calls, _ in found) == calls, "no direction is asked twice"


def test_only_losses_travel(ranks):
    for rank in range(WORLD):
        _, _, _, sent = ranks[rank]["mezo", WORLD]
        assert sent == 10 * 8 * (1 + 2 * 2)  # a checksum and two directions of the five a step


def test_the_log_of_any_process_replays(ranks):
    model, optimizer, _ = worker.train("adazeta", 10)
    start = worker.setting()[0]
    replay(start, Log.of(optimizer.log.head, ranks[2]["adazeta", 3][1]))
    assert equal(start.state_dict(), model.state_dict())


def test_dropout_depends_on_the_direction_and_not_on_the_process(ranks):
    first = ranks[0]["dropout", 1]
    for size in range(2, WORLD + 1):
        assert all(equal(ranks[rank]["dropout", size][0], first[0]) for rank in range(size))


def test_shares_of_the_batch_average_to_the_whole(ranks):
    model, _, calls = worker.train("mezo", 10)
    for size in range(1, WORLD + 1):
        found = [ranks[rank]["batch", size] for rank in range(size)]
        assert all(equal(state, found[0][0]) and equal(log, found[0][1]) for state, log, *_ in found)
        assert [rank_calls for _, _, rank_calls, _ in found] == [calls] * size
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[0][0][name], value, rtol=1e-3, atol=1e-3)


def test_idle_processes_are_told_and_other_weights_refused(ranks):
    assert all("2 of 3 processes never have a direction to try" in found["idle"][0] for found in ranks)
    assert all("process 1 has other weights" in found["refused"] for found in ranks)


def test_bad_input(tmp_path):
    model = worker.setting()[0]
    made = MeZO(model.named_parameters(), lr=1e-2)
    with pytest.raises(ProbatumError, match="there is no process group: start with torchrun"):
        distribute(made)
    with pytest.raises(ProbatumError, match="split must be one of queries, batch, got 'layers'"):
        distribute(made, "layers")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/place", rank=0, world_size=1)
    try:
        with pytest.raises(ProbatumError, match="exact='off' leaves rounding behind"):
            distribute(MeZO(model.named_parameters(), lr=1e-2, exact="off"))
        table = torch.nn.Sequential(torch.nn.Embedding(5, 3))
        with pytest.raises(ProbatumError, match="rows='used' would send row numbers"):
            distribute(MeZO(table.named_parameters(), lr=1e-2, rows="used", model=table))
    finally:
        torch.distributed.destroy_process_group()
