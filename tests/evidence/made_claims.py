"""Claims that the engine's tests run; workers import this module by name."""

import os
import time
from pathlib import Path

import numpy as np

from probatum.errors import MissingExtra, ProbatumError
from probatum.evidence import Run, above, claim, equal, exact, faster

PAPER = "generalized_convolution"
BUDGETS = {"quick": 5, "full": 6}


def trace(text: str) -> None:
    """A line in the file that the test named: what really ran, in every process."""
    path = os.environ.get("MADE_TRACE")
    if path:
        with open(path, "a", encoding="ascii") as file:
            file.write(text + "\n")


@claim(PAPER, "clear", version=1, says="a clear difference", source="made", reported="1.0 against 0.5", budgets=BUDGETS,
       holds_if=[above("score", "ours", "theirs", kind="paired"), exact("count", "ours", equals=7)])  # fmt: skip
def clear(run: Run, seed: int) -> None:
    """Normal noise around 1 and 0.5."""
    trace(f"begin {seed}")
    for system in run.progress(["ours", "theirs"]):
        level = 1.0 if system == "ours" else 0.5
        run.record(system, score=level + 0.05 * run.rng.standard_normal(), count=7)
    time.sleep(float(os.environ.get("MADE_SLEEP", "0")))
    run.image("pixels", np.zeros((4, 4)), "black")
    trace(f"end {seed}")


@clear.figures
def scores(run: Run) -> None:
    with run.figure("scores", "score of both arms") as figure:
        axes = figure.subplots()
        axes.plot(run.values("ours", "score"), label="ours")
        axes.plot(run.values("theirs", "score"), label="theirs")
        axes.legend()


@claim(PAPER, "level", version=1, says="no difference", source="made", budgets={"quick": 3, "full": 3},
       holds_if=[above("score", "ours", "theirs", kind="paired")])  # fmt: skip
def level(run: Run, seed: int) -> None:
    """Two arms of the same distribution: balanced by construction, so no look decides."""
    trace(f"begin {seed}")
    run.record("ours", score=(-1) ** seed * 1.0)
    run.record("theirs", score=0.0)


@claim(PAPER, "wrong", version=1, says="a difference the other way", source="made", budgets=BUDGETS,
       holds_if=[above("score", "ours", 2.0, kind="paired")])  # fmt: skip
def wrong(run: Run, seed: int) -> None:
    """Below the bound."""
    run.record("ours", score=1 + 0.01 * run.rng.standard_normal())


@claim(PAPER, "crash", version=1, says="crashes in seed 2", source="made", budgets=BUDGETS,
       holds_if=[above("score", "ours", 0.0, kind="paired")])  # fmt: skip
def crash(run: Run, seed: int) -> None:
    """Raises, dies, or lacks a package."""
    how = os.environ.get("MADE_CRASH", "raise")
    if seed == 2:
        if how == "raise":
            raise RuntimeError("the third seed broke")
        if how == "die":
            os._exit(9)
        if how == "missing":
            import a_package_that_is_not_there  # noqa: F401
        if how == "refuse":
            raise ProbatumError("size must be 3")
        if how == "extra":
            raise MissingExtra("needs the extra made")
    run.record("ours", score=1 + 0.01 * run.rng.standard_normal())


def make_arms(slow: int) -> dict:
    """Two loops, one `slow` times as long."""

    def loop(count: int):
        def go() -> int:
            return sum(range(count))

        return go

    return {"short": loop(2000), "long": loop(2000 * slow)}


@claim(PAPER, "timed", version=1, says="a shorter loop is faster", source="made", budgets={"quick": 3, "full": 3},
       holds_if=[faster("short", "long", by=2)])  # fmt: skip
def timed(run: Run, seed: int) -> None:
    """A loop four times as long."""
    run.time_arms(make_arms, 4)


def write_number(path: Path, number: int) -> None:
    trace(f"make {number}")
    path.write_text(str(number), "ascii")


@claim(PAPER, "stored", version=1, says="uses an artifact", source="made", budgets=BUDGETS,
       holds_if=[equal("score", "ours", "theirs")])  # fmt: skip
def stored(run: Run, seed: int) -> None:
    """Reads a number from a file that is made once."""
    run.record("ours", score=int(run.artifact("number.txt", write_number, number=5).read_text("ascii")))
    run.record("theirs", score=5)


@claim(PAPER, "lossy", version=1, says="loses a worker", source="made", budgets=BUDGETS,
       holds_if=[above("score", "ours", 0.0, kind="paired")])  # fmt: skip
def lossy(run: Run, seed: int) -> None:
    """The worker of seed 1 is killed the first time."""
    trace(f"lossy {seed}")
    marker = Path(os.environ["MADE_LOSE"])
    if seed == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    run.record("ours", score=1 + 0.01 * run.rng.standard_normal())
