"""Which bandit for lists, chains and logs."""

from probatum.evidence import Arm, ComparisonRun, Metric, comparison

ARMS = [
    Arm("random", "no learning"),
    Arm("epsilon-greedy", "linear estimate, 5 % random lists"),
    Arm("CUCB", "counts without contexts"),
    Arm("Thompson", "CascadeLinTS, v = .5"),
    Arm("C3-UCB", "position discount .9"),
    Arm("C2-UCB-T", "upper confidence, alpha = 1", "c2mab_t"),
    Arm("VAC2-UCB", "weighted by variance, alpha = 1", "c2mab_t"),
]


def make(arm: str, d: int, m: int, k: int, seed: int):  # type: ignore[no-untyped-def]
    """A fresh policy of this arm for m base arms with contexts of length d."""
    from probatum import bandits

    oracle = bandits.TopK(k)
    return {
        "random": lambda: bandits.Policy(bandits.Ridge(d), bandits.epsilon_greedy(1.0), bandits.ones, oracle, seed=seed),
        "epsilon-greedy": lambda: bandits.Policy(bandits.Ridge(d), bandits.epsilon_greedy(0.05), bandits.ones, oracle, seed=seed),
        "CUCB": lambda: bandits.CUCB(m, oracle, seed=seed),
        "Thompson": lambda: bandits.CascadeTS(d, oracle, seed=seed),
        "C3-UCB": lambda: bandits.C3UCB(d, oracle, seed=seed),
        "C2-UCB-T": lambda: bandits.C2UCBT(d, oracle),
        "VAC2-UCB": lambda: bandits.VAC2UCB(d, oracle),
    }[arm]()


@comparison(
    "bandits", title="Which bandit for lists, chains and logs",
    says="Reward as a share of the best lists' over six simulated cascades, or by replay of your own log, at no tuning.",
    arms=ARMS,
    metrics=[Metric("share", "share of the best reward", "", "higher"), Metric("seconds", "time a round", "s", "lower"),
             Metric("error", "standard error"), Metric("matched", "rounds it rests on")],
    seeds={"smoke": 1, "quick": 3, "full": 10},
    takes={"data": "a CSV of one shown item a row: item, reward, optionally propensity and features x1, x2, ..."},
)  # fmt: skip
def bandits(run: ComparisonRun, arm: str) -> None:
    """Simulated: disjunctive and conjunctive cascades with theta in three ranges (m = 40, d = 8, lists of 4), 1,500 rounds, items are the
    environments. A log: rejection replay, one item a round; the share is then the estimated reward itself."""
    import time

    import numpy as np

    from probatum import bandits

    if run.data:
        log = bandits.read_log(run.data)
        m, d = log.contexts.shape[-2:]
        begun = time.perf_counter()
        found = bandits.replay(make(arm, d, m, 1, run.seed), log)
        run.record(arm, seconds=(time.perf_counter() - begun) / len(log.chosen), unit="s")
        run.record(arm, share=found.value if found.matched else 0.0, error=found.error if found.matched else 0.0, matched=found.matched)
        return
    rounds, shares, seconds = 50 if run.smoke else 1500, [], []
    places = [(bandits.Disjunctive(), lo, hi) for lo, hi in ((0.0, 0.05), (0.0, 0.3), (0.2, 0.6))]
    places += [(bandits.Conjunctive(), lo, hi) for lo, hi in ((0.5, 1.0), (0.8, 1.0), (0.95, 1.0))]
    for number, (trigger, low, high) in enumerate(run.progress(places)):
        theta = np.random.default_rng(1000 * run.seed + number).uniform(low, high, 8)
        place = bandits.Environment(theta, bandits.linear_contexts(40, 8), trigger, bandits.TopK(4))
        begun = time.perf_counter()
        regret, _ = bandits.simulate(make(arm, 8, 40, 4, run.seed), place, rounds, run.seed)
        seconds.append((time.perf_counter() - begun) / rounds)
        best = sum(trigger.reward(place.oracle(mu, mu), mu) for _, mu, _ in place.rounds(rounds, run.seed))
        shares.append(1 - float(regret.sum()) / best)
    run.record(arm, share=shares)
    run.record(arm, seconds=float(np.median(seconds)), unit="s")
    run.record(arm, matched=rounds)
