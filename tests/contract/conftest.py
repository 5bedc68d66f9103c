import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """Checks and card examples write into a folder of their own."""
    monkeypatch.setenv("PROBATUM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
