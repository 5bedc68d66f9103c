import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers import made_claims by name


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Every test has its own data folder, and trace file of what ran."""
    monkeypatch.setenv("PROBATUM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("probatum.evidence.engine.calibrate", lambda: 1.0)
    monkeypatch.setenv("MADE_TRACE", str(tmp_path / "trace"))
    return tmp_path
