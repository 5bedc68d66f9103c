"""`check --cluster`: the same record from a local Ray, and a lost worker's seed is run again."""

import os
import sys

import made_claims
import pytest
from test_engine import Quiet, run, trace

from probatum import ProbatumError
from probatum.evidence.engine import Options, check

pytest.importorskip("ray", reason="needs the extra cluster")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def ray_path():
    """Workers of a local Ray find this package and the made claims as the tests do."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def test_a_local_ray_gives_the_same_record_and_repeats_a_lost_seed(own_home, ray_path, monkeypatch):
    monkeypatch.setenv("MADE_LOSE", str(own_home / "lost"))
    here = run(made_claims.clear).record
    monkeypatch.setenv("PROBATUM_HOME", str(own_home / "other"))
    (result, other) = check([made_claims.clear, made_claims.lossy], Options(cluster="local"), Quiet())
    there = result.record
    assert there["verdict"] == "holds" and there["seeds"] == here["seeds"]

    def rows(record):
        return sorted((m["system"], m["metric"], m["seed"], m["value"]) for m in record["measurements"])

    assert rows(here) == rows(there)
    assert here["conditions"] == there["conditions"]
    # The worker of seed 1 died once, without a word; its seed was run again and nothing else was.
    assert other.verdict == "holds", other.error
    begun = [line for line in trace(own_home) if line.startswith("lossy")]
    assert begun.count("lossy 1") == 2 and begun.count("lossy 0") == 1


def test_a_cluster_that_is_not_there(own_home):
    import ray

    ray.shutdown()
    with pytest.raises(ProbatumError, match=r"--cluster '127\.0\.0\.1:9' cannot be reached"):
        check([made_claims.clear], Options(cluster="127.0.0.1:9"), Quiet())
