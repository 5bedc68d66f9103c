"""What all tests share: real fixtures beyond the packages, one thread a process, nothing from a hub."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real data beyond what packages ship; tests that need it are skipped, and counted, without it."""
    place = os.environ.get("PROBATUM_FIXTURES")
    if not place or not Path(place).is_dir():
        pytest.skip("PROBATUM_FIXTURES does not name the folder of extra data")
    return Path(place)
