"""Every built paper of the catalog, held to the contract by enumeration."""

import subprocess
import sys

import pytest
from battery import checks, floor

from probatum.catalog import catalog

BUILT = [paper for paper in catalog().values() if paper.state == "built"]
CHECKS = {paper.id: dict(checks(paper)) for paper in BUILT}
CASES = [pytest.param(paper, name, id=f"{paper}-{name}") for paper, found in CHECKS.items() for name in found]


@pytest.mark.parametrize(("paper", "name"), CASES)
def test_contract(paper, name):
    CHECKS[paper][name]()


@pytest.mark.parametrize("paper", BUILT, ids=lambda paper: paper.id)
def test_no_fewer_checks_than_its_forms_demand(paper):
    count = len(CHECKS[paper.id])
    print(f"{paper.id}: {count} checks")
    assert count >= floor(paper)


def test_a_planned_paper_claims_nothing():
    for paper in catalog().values():
        assert paper.state == "built" or not paper.claims, f"{paper.id} lists claims but exports nothing"


def test_exemptions_give_a_reason():
    for paper in catalog().values():
        for check, reason in paper.exempt:
            assert len(reason) > 20, f"{paper.id}: why is it exempt from {check}?"


def test_claim_modules_import_without_torch():
    modules = [paper.claims_module for paper in BUILT]
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'peft', 'sklearn', 'skimage'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_a_full_record_was_not_expected_to_be_inconclusive():
    """A committed full claim whose half-width exceeds its distance to the bound could not have decided."""
    from probatum.evidence import store

    root = store.committed_records()
    for record in store.load_records(root) if root else ():
        if record["budget"] == "full" and record["kind"] == "claim" and record["verdict"] != "inconclusive":
            for condition in record["conditions"]:
                if condition["half_width"] is not None and condition["verdict"] != "inconclusive":
                    assert condition["half_width"] <= condition["distance"], record["_path"]
