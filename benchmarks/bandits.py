"""Bandits: rounds a second of c2mab_t beside a plain numpy loop, and of its compiled loop beside both; ratios in one run.

    python benchmarks/bandits.py
"""

import statistics
import time

import numpy as np

from probatum.bandits import C2UCBT, VAC2UCB, Disjunctive, Environment, TopK, compiled_cascade, linear_contexts, simulate


def plain_numpy(contexts, theta, draws, k):
    """What a user would write: LinUCB scores, the k best, one rank-one inverse update an observed arm, an inverse a round."""
    rounds, _m, d = contexts.shape
    gram, b = np.eye(d), np.zeros(d)
    for t in range(rounds):
        inverse = np.linalg.inv(gram)
        x = contexts[t]
        scores = x @ (inverse @ b) + np.sqrt(np.einsum("md,de,me->m", x, inverse, x))
        for i in np.argsort(-scores)[:k]:
            success = draws[t, i] < x[i] @ theta
            gram += np.outer(x[i], x[i])
            b += success * x[i]
            if success:
                break


def c2mab_t(m: int = 1000, d: int = 20, k: int = 10, rounds: int = 200, repeats: int = 5) -> None:
    """Rounds of disjunctive cascades at m = 1,000, d = 20, K = 10."""
    theta = np.random.default_rng(0).uniform(0.0, 0.1, d)
    draw = linear_contexts(m, d)
    rng = np.random.default_rng(1)
    contexts = np.stack([draw(rng) for _ in range(rounds)])
    draws = rng.random((rounds, m))
    fixed = iter(())

    def next_contexts(_):
        return next(fixed)

    place = Environment(theta, next_contexts, Disjunctive(), TopK(k))

    def policy(make):
        nonlocal fixed
        fixed = iter(contexts)
        simulate(make(d, TopK(k)), place, rounds, 1)

    arms = {
        "plain numpy loop": lambda: plain_numpy(contexts, theta, draws, k),
        "C2-UCB-T policy": lambda: policy(C2UCBT),
        "VAC2-UCB policy": lambda: policy(VAC2UCB),
        "VAC2-UCB compiled": lambda: compiled_cascade(contexts, theta, draws, k=k, kind="disjunctive", weighted=True),
        "limit: scores alone": lambda: np.einsum("tmd,de,tme->tm", contexts, np.eye(d), contexts, optimize=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()
    for repeat in range(repeats):
        for name in list(arms) if repeat % 2 else reversed(arms):
            begun = time.perf_counter()
            arms[name]()
            taken[name].append((time.perf_counter() - begun) / rounds)
    base = taken["plain numpy loop"]
    print(f"c2mab_t: a round of m = {m}, d = {d}, K = {k}; median of {repeats}, one process, memory m d + d^2 floats")
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(base, seconds, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {name:<22} {statistics.median(seconds) * 1e6:9.0f} us   {statistics.median(ratios):6.2f} x plain ({spread})")
    try:
        from mabwiser.mab import MAB, LearningPolicy
    except ImportError:
        print("  mabwiser: skipped, not installed (pip install mabwiser)")
        return
    few = 10
    peer = MAB(list(range(m)), LearningPolicy.LinUCB(alpha=1.0))
    peer.fit([0] * m, [0.0] * m, np.zeros((m, d)))
    begun = time.perf_counter()
    for t in range(few):
        chosen = peer.predict(contexts[t, :1])
        peer.partial_fit([chosen], [0.0], contexts[t, :1])
    print(f"  mabwiser LinUCB, one arm of {m} a round: {(time.perf_counter() - begun) / few * 1e6:9.0f} us")


if __name__ == "__main__":
    c2mab_t()
