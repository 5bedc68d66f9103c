"""What all tests share: real fixtures beyond the packages, one thread a process, nothing from a hub."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A run started in the background ignores Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real data beyond what packages ship; tests that need it are skipped, and counted, without it."""
    place = os.environ.get("PROBATUM_FIXTURES")
    if not place or not Path(place).is_dir():
        pytest.skip("PROBATUM_FIXTURES does not name the folder of extra data")
    return Path(place)
