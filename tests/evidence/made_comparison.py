"""A comparison that the tests run; workers import this module by name."""

import time

from made_claims import trace

from probatum.evidence import Arm, ComparisonRun, Metric, comparison


@comparison(
    "made", title="Made arms", says="three levels of quality",
    arms=[Arm("plain", "level 0"), Arm("good", "level 1, dear", "generalized_convolution"), Arm("cheap", "level 1, cheap"),
          Arm("broken", "cannot run")],
    metrics=[Metric("score", "score", "", "higher"), Metric("cost", "cost", "s", "lower")],
    seeds={"smoke": 1, "quick": 3, "full": 3}, takes={"data": "a folder of numbers"},
)  # fmt: skip
def made(run: ComparisonRun, arm: str) -> None:
    trace(f"{arm} {run.seed}")
    if arm == "broken":
        raise RuntimeError("no such luck")
    noise = run.rng.standard_normal(40)
    level = {"plain": 0.0, "good": 1.0, "cheap": 1.0}[arm]
    time.sleep(0.01)
    run.record(arm, score=(level + 0.1 * noise).tolist())
    run.record(arm, cost={"plain": 1, "good": 9, "cheap": 2}[arm], unit="s")
    if run.data:
        run.note(f"on {run.data}")
