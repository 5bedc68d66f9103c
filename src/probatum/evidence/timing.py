"""Timing several arms against each other inside one process (evidence of kind timing is repeated over fresh processes)."""

import math
import random
from collections.abc import Callable
from time import perf_counter
from typing import Any

from probatum.evidence.meters import _synchronise

__all__ = ["time_arms"]

WARM_UP = 3


def time_arms(
    make: Callable[..., dict[str, Callable[[], Any]]],
    args: tuple[Any, ...],
    rounds: int,
    seed: int,
    least: float = 0.02,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Seconds a call of each arm, one entry a round.

    A round runs every arm once, in a random order; the next round has the reverse order, so that of any two arms each is first equally
    often. A timed segment lasts at least `least` seconds, by calling the arm in an inner loop, as often in all arms unless one is so
    much slower that a single call lasts as long.
    """
    arms = make(*args)
    single = {}
    for name, function in arms.items():
        for _ in range(WARM_UP):
            _synchronise(device)
            begun = perf_counter()
            function()
            _synchronise(device)
            single[name] = perf_counter() - begun
            if single[name] > 20 * least:
                break
    # Calls of a loop: enough for the fastest arm; a slower one is called less often when that already takes a second.
    fastest = max(1, math.ceil(least / max(min(single.values()), 1e-9)))
    loops = {name: max(1, min(fastest, math.ceil(max(least, 0.25) / max(seconds, 1e-9)))) for name, seconds in single.items()}
    order = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in arms}
    sequence = list(arms)
    for index in range(rounds):
        if index % 2:
            sequence.reverse()
        else:
            order.shuffle(sequence)
        for name in sequence:
            function, count = arms[name], loops[name]
            _synchronise(device)
            begun = perf_counter()
            for _ in range(count):
                function()
            _synchronise(device)
            taken[name].append((perf_counter() - begun) / count)
    return taken
