"""The command line: what it prints, its exit statuses, its bad input, its start-up cost."""

import json
import os
import resource
import subprocess
import sys

import pytest


def probatum(*args, **environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-m", "probatum", *args], capture_output=True, text=True, env=env, timeout=300)


def test_list_has_74_papers(tmp_path):
    done = probatum("list", "--json", PROBATUM_HOME=str(tmp_path))
    rows = json.loads(done.stdout)
    assert len(rows) == 74 and done.returncode == 0
    assert all(set(row) == {"id", "family", "title", "arxiv", "state", "verdict", "claims"} for row in rows)
    assert len(json.loads(probatum("list", "--json", "--family", "zeroth").stdout)) == 6


def test_show_a_planned_and_a_built_paper():
    planned = json.loads(probatum("show", "zero_bubble", "--json").stdout)
    assert planned["state"] == "planned" and planned["card"] is None
    built = json.loads(probatum("show", "generalized_convolution", "--json").stdout)
    assert built["claims"] and built["claims"][0]["conditions"] and "## Evidence" in built["card"]
    assert "Use" in probatum("show", "generalized_convolution").stdout


def test_doctor_and_data():
    found = json.loads(probatum("doctor", "--json").stdout)
    assert found["cores"] >= 1 and "cpu" in found["devices"] and "generalized_convolution" in found["runs"]
    names = {row["name"] for row in json.loads(probatum("data", "list", "--json").stdout)}
    assert "world_english_bible" in names
    shown = json.loads(probatum("data", "show", "world_english_bible", "--json").stdout)
    assert shown["licence"] and len(shown["sha256"]) == 64


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["show", "mezoo"], 2, "did you mean mezo"),
        (["check", "generalised_convolution"], 2, "did you mean generalized_convolution"),
        (["check", "generalized_convolution:spead"], 2, "unknown claim 'spead' of generalized_convolution"),
        (["check", "fuyou"], 2, "planned"),
        (["check"], 2, "name papers, or give --family F, or --all"),
        (["check", "--all", "--family", "zeroth"], 2, "one of the three"),
        (["check", "--family", "zerot"], 2, "did you mean zeroth"),
        (["list", "--family", "visoin"], 2, "did you mean vision"),
        (["check", "generalized_convolution", "--budget", "fast"], 2, "smoke, quick, full"),
        (["check", "generalized_convolution", "--device", "gpu"], 2, "--device must be"),
        (["check", "generalized_convolution", "--jobs", "0"], 2, "--jobs must be 1"),
        (["check", "generalized_convolution", "--seeds", "1"], 2, "--seeds must be at least 3"),
        (["data", "show", "english_bible"], 2, "world_english_bible"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_bad_input_is_one_clear_line(args, status, text, tmp_path):
    done = probatum(*args, PROBATUM_HOME=str(tmp_path))
    assert done.returncode == status and text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_check_smoke_as_json(tmp_path):
    done = probatum("check", "generalized_convolution", "--budget", "smoke", "--json", PROBATUM_HOME=str(tmp_path))
    found = json.loads(done.stdout)
    assert done.returncode == 0 and set(found) == {"probatum", "budget", "results", "environment"}
    for result in found["results"]:
        assert set(result) == {
            "paper", "claim", "says", "verdict", "seconds", "seeds", "conditions", "measurements", "figures", "error",
        }  # fmt: skip
        assert result["verdict"] == "ran" and result["error"] is None
        assert all(set(row) == {"system", "metric", "unit", "seed", "value"} for row in result["measurements"])


def test_a_missing_device_ends_with_status_3(tmp_path):
    done = probatum("check", "generalized_convolution", "--budget", "smoke", "--device", "cuda:7", PROBATUM_HOME=str(tmp_path))
    assert done.returncode == 3 and "cuda:7" in done.stdout


def test_report_into_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    done = probatum("report", "--out", str(tmp_path / "file" / "site"), PROBATUM_HOME=str(tmp_path / "home"))
    assert done.returncode == 2 and "Traceback" not in done.stderr and "site" in done.stderr


def test_start_up_loads_nothing_heavy():
    """Import and list under 0.3 s of CPU more than `python -c pass`, the better of three each."""

    def cpu(*code):
        best = float("inf")
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return best

    base = cpu("-c", "pass")
    # A slow machine, or a busy moment of one: rich alone takes .105 s where the limits were set.
    slower = max(1.0, cpu("-c", "import rich.table, rich.console") / 0.105)
    assert cpu("-c", "import probatum") - base < 0.1 * slower
    assert cpu("-m", "probatum", "list") - base < 0.3 * slower
    code = (
        "import sys, probatum.cli\nsys.argv = ['probatum', 'list', '--json']\n"
        "try:\n    probatum.cli.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr.strip() == "[]"
