"""The engine: resumes, spreads, judges by declared looks, stores whole or not at all."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_claims
import pytest

from probatum import ProbatumError
from probatum.evidence import store
from probatum.evidence.engine import Options, check


class Quiet:
    """A watch that keeps what it was told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *args: self.told.append((name, *args))


def run(claim, **options):
    (result,) = check([claim], Options(**options), Quiet())
    return result


def trace(home):
    path = home / "trace"
    return path.read_text("ascii").splitlines() if path.exists() else []


def test_a_clear_difference_holds_and_the_record_says_everything(own_home):
    result = run(made_claims.clear)
    assert result.verdict == "holds" and result.error is None
    record = result.record
    assert record["seeds"] == [0, 1, 2, 3, 4] and record["declared"] == 5
    assert len(record["measurements"]) == 5 * 2 * 2
    assert [c["verdict"] for c in record["conditions"]] == ["holds", "holds"]
    low, high = record["conditions"][0]["interval"]
    assert low < record["conditions"][0]["value"] < high
    assert record["code"]["hash"] and record["environment"]["cores"] >= 1 and record["paper_figure"] == "1.0 against 0.5"
    # one image of the first seed, one figure of all
    assert [f["name"] for f in record["figures"]] == ["pixels", "scores"]
    assert all(Path(p).read_bytes().startswith(b"\x89PNG") for p in result.figures)
    (stored,) = store.load_records(*(own_home / "home" / kind for kind in store.KINDS))
    assert stored["verdict"] == "holds" and stored["measurements"] == record["measurements"]


def test_values_depend_on_the_seed_alone(own_home):
    first = run(made_claims.clear, jobs=2).record["measurements"]
    again = run(made_claims.clear, jobs=1, fresh=True).record["measurements"]
    key = lambda row: (row["system"], row["metric"], row["seed"])  # noqa: E731
    assert sorted(first, key=key) == sorted(again, key=key)


@pytest.mark.parametrize(("name", "verdict"), [("wrong", "fails"), ("level", "inconclusive"), ("timed", "holds")])
def test_verdicts(name, verdict):
    assert run(getattr(made_claims, name)).verdict == verdict


def test_inconclusive_gives_advice():
    (condition,) = run(made_claims.level).record["conditions"]
    assert "seeds" in condition["advice"] and condition["interval"][0] < condition["bound"] < condition["interval"][1]


def test_finished_seeds_are_not_run_again(own_home):
    run(made_claims.clear)
    assert len(trace(own_home)) == 10
    assert run(made_claims.clear).verdict == "holds"
    assert len(trace(own_home)) == 10


@pytest.mark.parametrize(
    ("how", "text", "unavailable"),
    [
        ("raise", "the third seed broke", False), ("die", "ended with status 9", False), ("missing", "pip install", True),
        ("refuse", "size must be 3", False), ("extra", "extra made", True),
    ],
)  # fmt: skip
def test_a_crash_is_an_error_never_a_verdict_and_other_seeds_are_kept(own_home, monkeypatch, how, text, unavailable):
    monkeypatch.setenv("MADE_CRASH", how)
    result = run(made_claims.crash)
    assert result.verdict == "error" and text in result.error and result.unavailable is unavailable
    assert not list((own_home / "home").glob("records/*/*.json")) and not list((own_home / "home").glob("modified/*/*.json"))
    assert len(list((own_home / "home").glob("runs/*/*/*/seed-*.json"))) == 2
    monkeypatch.setenv("MADE_CRASH", "not")
    assert run(made_claims.crash).verdict == "holds"


def test_smoke_says_ran_and_stores_nothing(own_home):
    result = run(made_claims.clear, budget="smoke")
    assert result.verdict == "ran" and result.record["seeds"] == [0] and not result.record["conditions"]
    assert not list((own_home / "home").glob("r*/*/*"))


def test_the_ladder_is_declared_before_the_first_seed_and_ends_at_its_last_look():
    result = run(made_claims.level, until_decided=True)
    assert result.record["ladder"] == {"looks": [3, 6, 12], "look": 12, "extended": False}
    assert result.verdict == "inconclusive" and len(result.record["seeds"]) == 12


def test_a_decided_ladder_stops_at_the_look(own_home):
    result = run(made_claims.clear, until_decided=True)
    assert result.verdict == "holds" and len(result.record["seeds"]) == 5


def test_extending_after_looking_is_said(own_home):
    assert run(made_claims.level).verdict == "inconclusive"
    result = run(made_claims.level, until_decided=True)
    assert result.record["ladder"]["extended"] and any("extended after looking" in note for note in result.record["notes"])
    assert len([line for line in trace(own_home) if line.startswith("begin")]) == 12  # the first three were not run again


def test_another_number_of_seeds_is_labelled_and_below_the_minimum_refused(own_home):
    assert run(made_claims.clear, seeds=4).record["seeds"] == [0, 1, 2, 3]
    assert list((own_home / "home" / "labelled").glob("*/*.json"))
    with pytest.raises(ProbatumError, match=r"at least 3.*got 2"):
        run(made_claims.clear, seeds=2)


def test_fresh_after_looking_is_exploratory(own_home):
    run(made_claims.clear)
    again = run(made_claims.clear, fresh=True)
    assert again.record["exploratory"] and len(trace(own_home)) == 20
    assert list((own_home / "home" / "labelled").glob("*/*.json"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": "quik"}, "budget"), ({"jobs": 0}, "--jobs must be 1"), ({"device": "gpu"}, "--device must be"),
        ({"device": "cuda:x"}, "--device"), ({"seeds": 5, "until_decided": True}, "until-decided"),
    ],
)  # fmt: skip
def test_bad_options(options, text):
    with pytest.raises(ProbatumError, match=text):
        Options(**options)


def test_two_checks_of_one_paper_at_once(own_home):
    with store.lock("check-generalized_convolution"):
        code = "import made_claims\nfrom test_engine import run\nrun(made_claims.clear)"
        done = script(code, own_home)
    assert "another check of generalized_convolution is running" in done.stderr


def script(code, home, wait=True, **environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), **environment}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)
    if not wait:
        return process
    process.stderr_text = process.communicate(timeout=60)[1]
    return subprocess.CompletedProcess([], process.returncode, "", process.stderr_text)


RUN_CLEAR = "import made_claims\nfrom test_engine import run\nrun(made_claims.clear)"


def finished(home):
    return {int(p.stem.removeprefix("seed-")) for p in (home / "home").glob("runs/*/*/*/seed-*.json")}


def test_killed_at_random_points_it_resumes_without_redoing_finished_seeds(own_home):
    draw = random.Random(5)
    for _ in range(3):
        kept = finished(own_home)
        before = len(trace(own_home))
        process = script(RUN_CLEAR, own_home, wait=False, MADE_SLEEP="0.3")
        time.sleep(draw.uniform(1.0, 2.2))
        process.kill()
        process.communicate()
        begun = {int(line.split()[1]) for line in trace(own_home)[before:] if line.startswith("begin")}
        assert not begun & kept
    time.sleep(0.5)  # workers see the closed pipe and end
    kept = finished(own_home)
    before = len(trace(own_home))
    result = run(made_claims.clear)
    assert result.verdict == "holds" and not list((own_home / "home").rglob("*.partial"))
    begun = {int(line.split()[1]) for line in trace(own_home)[before:] if line.startswith("begin")}
    assert begun == {0, 1, 2, 3, 4} - kept


def test_workers_end_with_a_killed_parent(own_home):
    process = script(RUN_CLEAR, own_home, wait=False, MADE_SLEEP="30")
    deadline = time.time() + 20
    while not trace(own_home) and time.time() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.communicate()
    time.sleep(0.5)
    for child in children:
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_ctrl_c_ends_with_a_line_and_keeps_finished_seeds(own_home):
    code = (
        "import made_claims\nfrom probatum.cli.output import interruptible\nfrom test_engine import run\n"
        "with interruptible():\n    run(made_claims.clear)"
    )
    process = script(code, own_home, wait=False, MADE_SLEEP="3")
    deadline = time.time() + 20
    while not finished(own_home) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    assert finished(own_home)


def test_a_corrupt_seed_is_set_aside_and_run_again(own_home, capsys):
    run(made_claims.clear)
    (path,) = (own_home / "home").glob("runs/*/*/*/seed-3.json")
    path.write_text(path.read_text().replace('"value": 7.0', '"value": 8.0'))
    assert run(made_claims.clear).verdict == "holds"
    assert "damaged" in capsys.readouterr().err and list(path.parent.glob("seed-3.json.corrupt-*"))
    assert trace(own_home).count("begin 3") == 2 and trace(own_home).count("begin 2") == 1


def test_a_corrupt_record_is_set_aside(own_home):
    run(made_claims.clear)
    (path,) = [*(own_home / "home").glob("records/*/*.json"), *(own_home / "home").glob("modified/*/*.json")]
    path.write_text(path.read_text()[:-40])
    assert store.load_records(path.parents[1]) == []
    assert run(made_claims.clear).verdict == "holds" and json.loads(path.read_text())["verdict"] == "holds"


def test_an_artifact_is_made_once_and_a_corrupt_one_again(own_home):
    run(made_claims.stored, jobs=2)
    assert trace(own_home) == ["make 5"]
    (path,) = (own_home / "home" / "artifacts").rglob("number.txt")
    path.write_text("6")
    assert run(made_claims.stored, fresh=True).verdict == "holds"
    assert trace(own_home) == ["make 5", "make 5"] and list(path.parent.glob("*.corrupt-*"))


def test_a_full_disk_loses_nothing(own_home, monkeypatch):
    """A file-size limit in the process that writes: records and seeds that were finished stay whole."""
    code = (
        "import resource, signal, made_claims\nfrom test_engine import run\nfrom probatum import ProbatumError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nrun(made_claims.clear, seeds=3)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        "try:\n    run(made_claims.clear, seeds=4)\nexcept ProbatumError as error:\n    print(error, file=__import__('sys').stderr)"
    )
    done = script(code, own_home)
    assert "cannot write" in done.stderr and "is kept" in done.stderr and done.returncode == 0, done.stderr
    assert not list((own_home / "home").rglob("*.partial"))
    assert all(store.read_json(path) for path in (own_home / "home").rglob("*.json"))


def test_an_unwritable_home(own_home, monkeypatch):
    (own_home / "file").write_text("")
    monkeypatch.setenv("PROBATUM_HOME", str(own_home / "file" / "below"))
    with pytest.raises(ProbatumError, match=r"cannot make the folder .*PROBATUM_HOME"):
        run(made_claims.clear)


def test_keep_is_refused_from_a_modified_tree_and_for_labelled_runs(own_home, monkeypatch):
    with pytest.raises(ProbatumError, match="--keep"):
        run(made_claims.clear, seeds=4, keep=own_home / "kept")
    monkeypatch.setattr("probatum.evidence.code._state", lambda: ("0" * 40, "modified"))
    with pytest.raises(ProbatumError, match="clean"):
        run(made_claims.clear, keep=own_home / "kept")
    monkeypatch.setattr("probatum.evidence.code._state", lambda: ("0" * 40, "clean"))
    assert run(made_claims.clear, keep=own_home / "kept").verdict == "holds"
    (kept,) = store.load_records(own_home / "kept")
    assert kept["code"]["state"] == "clean" and kept["_path"].endswith("clear.quick.cpu.json")


def test_modified_and_clean_runs_are_kept_apart(own_home, monkeypatch):
    for state in ("modified", "clean"):
        monkeypatch.setattr("probatum.evidence.code._state", lambda state=state: (None, state))
        run(made_claims.wrong)
    assert len(list((own_home / "home" / "modified").glob("*/*.json"))) == 1
    assert len(list((own_home / "home" / "records").glob("*/*.json"))) == 1
    assert len(list((own_home / "home").glob("runs/*/*/*"))) == 2


def test_a_device_that_is_not_here(own_home):
    result = run(made_claims.clear, device="cuda")
    assert result.verdict == "error" and result.unavailable and "--device cuda" in result.error
