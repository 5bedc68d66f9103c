"""generalized_convolution and fusemax beside their peers and limits: ratios in one run, alternating rounds, medians with spread.

    OMP_NUM_THREADS=1 python benchmarks/algebra.py [--only NAME] [--rounds N] [--json]

A ratio is peer / ours of the same round, so above 1 ours is faster; its spread is the quartiles over rounds. "MB" is the peak of what
Python and numpy allocate in one untimed call (memory inside C++ libraries is not seen). A missing peer is a named skip.
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np

from probatum.algebra.generalized_convolution import BOOL, INT, MINPLUS, NAT, PROB, RAT, Dense, Series, polynomial, power_series, regex

__all__ = ["main", "rows"]

Arms = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """One arm of one benchmark; `ratio` is its time over ours, with quartiles."""

    benchmark: str
    arm: str
    seconds: float
    ratio: float
    low: float
    high: float
    megabytes: float
    note: str = ""


def alternate(name: str, arms: Arms, rounds: int, note: str = "", floor: float = 0.02) -> Iterator[Row]:
    """Time arms in alternating order; the first is ours. A segment repeats a call until it lasts `floor` seconds."""
    repeats = {}
    for arm, call in arms.items():
        for _ in range(3):
            start = time.perf_counter()
            call()
            last = time.perf_counter() - start
        repeats[arm] = max(1, math.ceil(floor / max(last, 1e-9)))
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    order = random.Random(0)
    for _ in range(rounds):
        names = list(arms)
        order.shuffle(names)
        for arm in names:
            call, n = arms[arm], repeats[arm]
            start = time.perf_counter()
            for _ in range(n):
                call()
            times[arm].append((time.perf_counter() - start) / n)
    ours = times[next(iter(arms))]
    for arm, call in arms.items():
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        ratios = sorted(x / y for x, y in zip(times[arm], ours, strict=True))
        low, high = (statistics.quantiles(ratios, n=4)[i] for i in (0, 2))
        yield Row(name, arm, statistics.median(times[arm]), statistics.median(ratios), low, high, peak, note)


def peer(name: str) -> Any:
    """The module, or None after naming the skip."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"skip: {name} is not installed")
        return None


def counting(rounds: int) -> Iterator[Row]:
    """Exact count of a*a* on a^100, one word at a time; pynini in its log semiring (float32, not exact)."""
    word = "a" * 100
    series = regex("a*a*", NAT)
    machine, automaton = series.machine(), series.data.automaton
    assert machine.weight(word) == 101
    arms: Arms = {
        "ours, compiled": lambda: machine.weight(word),
        "ours, dictionaries": lambda: automaton.run(automaton.class_numbers(word)),
    }
    if pynini := peer("pynini"):
        a = pynini.accep("a", arc_type="log")
        fst = (pynini.closure(a) + pynini.closure(a)).rmepsilon()

        def theirs() -> float:
            lattice = pynini.compose(pynini.accep(word, arc_type="log"), fst)
            return math.exp(-float(pynini.shortestdistance(lattice, reverse=True)[lattice.start()]))

        assert abs(theirs() - 101) < 0.1
        arms["pynini"] = theirs
    yield from alternate("count a*a* on a^100", arms, rounds, "target: pynini at least 5")


def scoring(rounds: int) -> Iterator[Row]:
    """Cheapest weight of 200 words under a weighted pattern, ours in one call, pynini word by word in the tropical semiring."""
    rng = random.Random(0)
    words = ["".join(rng.choices("ab", k=60)) for _ in range(200)]
    series = regex("(((?=1.5)a|(?=0.25)b)(?:ab)*)*", MINPLUS)
    arms: Arms = {"ours": lambda: series.weights(words)}
    if pynini := peer("pynini"):
        step = pynini.union(pynini.accep("a", weight=1.5), pynini.accep("b", weight=0.25))
        fst = pynini.closure(step + pynini.closure(pynini.accep("ab"))).rmepsilon()

        def theirs() -> list[float]:
            found = []
            for word in words:
                lattice = pynini.compose(word, fst)
                found.append(float(pynini.shortestdistance(lattice, reverse=True)[lattice.start()]))
            return found

        assert np.allclose(theirs(), series.weights(words))
        arms["pynini"] = theirs
    yield from alternate("min-plus weight of 200 words", arms, rounds, "target: pynini at least 5")


def yes_or_no(rounds: int) -> Iterator[Row]:
    """[a-z]*fish[a-z]* on 10 MB without a match: every byte is read."""
    rng = np.random.default_rng(0)
    text = bytes(rng.integers(97, 123, 10_000_000, dtype=np.uint8)).replace(b"fish", b"dish")
    pattern = "[a-z]*fish[a-z]*"
    table = regex(pattern, BOOL)
    plain = text.decode()
    assert not table[text]
    arms: Arms = {"ours": lambda: table[text]}
    for name in ("re2", "re", "regex"):
        if (module := peer(name)) is not None:
            compiled = module.compile(pattern)
            arms[name] = lambda compiled=compiled: compiled.fullmatch(plain)  # type: ignore[misc]
            assert arms[name]() is None
    yield from alternate("yes or no, 10 MB", arms, max(3, rounds // 2), "target: re2 at least 1/3")


def growth(rounds: int) -> Iterator[Row]:
    """(a*)*b on a^n: ours at n, 2n and 4n, re at n = 16, 18, 20 (it doubles with each letter)."""
    import re

    series, compiled = regex("(a*)*b", BOOL), re.compile("(a*)*b")
    arms: Arms = {f"ours, n = {n}": lambda n=n: series["a" * n] for n in (100_000, 200_000, 400_000)}  # type: ignore[misc]
    yield from alternate("(a*)*b on a^n, ours", arms, rounds, "linear: 1, 2, 4")
    arms = {f"re, n = {n}": lambda n=n: compiled.fullmatch("a" * n) for n in (14, 16, 18)}  # type: ignore[misc]
    yield from alternate("(a*)*b on a^n, re", arms, max(3, rounds // 2), "exponential: 1, 4, 16")


def polynomials(rounds: int) -> Iterator[Row]:
    """(x+y+z)^20 . (x+y+z+1)^20 over the integers."""
    p, q = polynomial("(x+y+z)^20"), polynomial("(x+y+z+1)^20", names="xyz")
    arms: Arms = {"ours": lambda: p * q}
    if sympy := peer("sympy"):
        _, x, y, z = sympy.ring("x,y,z", sympy.ZZ)
        u, v = (x + y + z) ** 20, (x + y + z + 1) ** 20
        arms["sympy ring"] = lambda: u * v
        assert len(u * v) == sum(1 for _ in (p * q).items())
    yield from alternate("polynomial product, 231 x 1771 terms", arms, max(3, rounds // 2))


def dense_polynomials(rounds: int) -> Iterator[Row]:
    """Integer polynomials of degree 2000 with 30-digit coefficients, exact."""
    rng = random.Random(0)
    a, b = ([rng.randrange(10**30) for _ in range(2001)] for _ in range(2))
    f, g = (Series.of(Dense(1), INT, x) for x in (a, b))
    u, v = (polynomial(x) for x in (a, b))
    arms: Arms = {
        "ours, Dense": lambda: f * g,  # to Python integers and back each time
        "ours, Monomials": lambda: u * v,
        "numpy convolve, objects": lambda: np.convolve(f.data, g.data),
    }
    if sympy := peer("sympy"):
        x = sympy.symbols("x")
        p, q = (sympy.Poly.from_list(c[::-1], x, domain=sympy.ZZ) for c in (a, b))
        arms["sympy Poly"] = lambda: p * q
    yield from alternate("exact product, degree 2000", arms, max(3, rounds // 3))


def series_products(rounds: int) -> Iterator[Row]:
    """200 coefficients of exp(x) / (1 - x) over the rationals, lazily, beside sympy's truncated ring series."""
    n = 200
    from fractions import Fraction

    inverse = [Fraction(1, math.factorial(i)) for i in range(n)]

    def ours() -> list[Fraction]:
        exp, ones = power_series(inverse.__getitem__, RAT), power_series(lambda i: 1, RAT)
        return (exp * ones).coefficients(n)

    arms: Arms = {"ours": ours}
    if sympy := peer("sympy"):
        from sympy.polys.ring_series import rs_mul

        ring, x = sympy.ring("x", sympy.QQ)
        u = sum((sympy.QQ(1, math.factorial(i)) * x**i for i in range(n)), ring.zero)
        v = sum((x**i for i in range(n)), ring.zero)
        arms["sympy rs_mul"] = lambda: rs_mul(u, v, x, n)
        assert str(ours()[n - 1]) == str(rs_mul(u, v, x, n).coeff(x ** (n - 1)))
    yield from alternate("power series product, 200 terms", arms, max(3, rounds // 2))


def min_plus(rounds: int) -> Iterator[Row]:
    """Min-plus product of two arrays of 4000, any and convex."""
    rng = np.random.default_rng(0)
    a, b = rng.random(4000), rng.random(4000)

    def rows_of_numpy() -> np.ndarray:
        out = np.full(7999, np.inf)
        for i in range(4000):
            np.minimum(out[i : i + 4000], a[i] + b, out=out[i : i + 4000])
        return out

    f, g = (Series.of(Dense(1), MINPLUS, x) for x in (a, b))
    assert ((f * g).data == rows_of_numpy()).all()
    bowl = Series.of(Dense(1), MINPLUS, np.cumsum(np.sort(rng.integers(-100, 100, 4000))))
    arms: Arms = {"ours": lambda: f * g, "numpy, row by row": rows_of_numpy, "ours, one operand convex": lambda: bowl * g}
    yield from alternate("min-plus product, 4000 x 4000", arms, rounds)


def long_words(rounds: int) -> Iterator[Row]:
    """10^6 characters through a weighted automaton of 50 states, float64, beside torch on the same characters as a batch of 100 words."""
    rng = random.Random(0)
    body = "|".join(f"(?={rng.random():.3f})" + "".join(rng.choices("abcd", k=7)) for _ in range(8))
    series = regex(f"({body}|(?=0.2)[a-d])*", PROB)
    machine = series.machine()
    words = ["".join(rng.choices("abcd", k=10_000)) for _ in range(100)]
    arms: Arms = {f"ours, {machine.states} states": lambda: machine.weigh(words)}
    if (torch := peer("torch")) is not None:
        torch.set_num_threads(1)
        data, lengths = machine.batch(words)
        tensor, sizes = torch.tensor(data), torch.tensor(lengths)
        dense = torch.tensor(machine.dense())
        start, final = torch.tensor(machine.initial), torch.tensor(machine.final)

        def theirs() -> Any:
            vector = start.expand(len(words), -1)
            for t in range(tensor.shape[1]):
                vector = torch.bmm(vector[:, None], dense[tensor[:, t]])[:, 0]
            return vector @ final

        arms["torch, batched dense"] = theirs
        assert sizes.min() == 10_000
    yield from alternate("10^6 characters, weighted", arms, 3, "no target")


def fusemax(rounds: int) -> Iterator[Row]:
    """Attention by cascades of 1 and 3 passes, eager and fused, and the 24-point sweep; MB is the peak of torch's allocations in a call."""
    from dataclasses import replace

    from probatum.algebra import Cascade, design, headline

    if (torch := peer("torch")) is None:
        return
    from probatum.evidence.meters import memory

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 2048, 64, generator=generator) for _ in range(3))
    inputs = {"Q": q, "K": k, "V": v}
    cascades = {passes: Cascade.named(f"attention-{passes}") for passes in ("1pass", "2pass", "3pass")}
    fused = torch.nn.functional.scaled_dot_product_attention
    arms: Arms = {
        "ours, 1 pass, blocked": lambda: cascades["1pass"].run(inputs),
        "ours, 2 passes": lambda: cascades["2pass"].run(inputs),
        "ours, 3 passes": lambda: cascades["3pass"].run(inputs),
        "torch, eager": lambda: (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v,
        "torch, sdpa": lambda: fused(q, k, v),
    }
    flops = 4 * 4 * 2048**2 * 64
    note = f"{flops / 1e9:.1f} GFLOP of products"
    for row in alternate("attention, 4 heads, 2048 x 2048, width 64", arms, max(3, rounds // 3), note):
        assert torch.allclose(_only(arms[row.arm]()), fused(q, k, v), atol=1e-5)
        with memory() as peak:
            arms[row.arm]()
        yield replace(row, megabytes=peak.allocated / 1e6)
    product = torch.randn(2048, 64, generator=generator), torch.randn(64, 2048, generator=generator)
    arms = {
        "products alone": lambda: [product[0] @ product[1] for _ in range(8)],  # as many multiplications, nothing else: the limit
    }
    yield from alternate("limit of the above: its matrix products", arms, max(3, rounds // 3))
    designs = ("unfused", "flat", "cascade", "architecture", "binding", "linear-flat", "linear-fusemax")
    arms = {"ours": lambda: [design(name) for name in designs], "with means": lambda: headline()}
    yield from alternate("24-point sweep of 7 designs", arms, rounds, "the artifact states about 9 hours")


def _only(result: Any) -> Any:
    return next(iter(result.values())) if isinstance(result, dict) else result


BENCHMARKS: dict[str, Callable[[int], Iterator[Row]]] = {
    "counting": counting,
    "scoring": scoring,
    "yes_or_no": yes_or_no,
    "growth": growth,
    "polynomials": polynomials,
    "dense_polynomials": dense_polynomials,
    "series_products": series_products,
    "min_plus": min_plus,
    "long_words": long_words,
    "fusemax": fusemax,
}


def rows(only: str | None = None, rounds: int = 9) -> Iterator[Row]:
    """Rows of all benchmarks, or of one."""
    for name, benchmark in BENCHMARKS.items():
        if only in (None, name):
            yield from benchmark(rounds)


def versions() -> str:
    found = []
    for name in ("numpy", "numba", "python-flint", "scipy", "torch", "google-re2", "regex", "pynini", "sympy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return f"python {platform.python_version()}, " + ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.json:
        print(json.dumps({"versions": versions(), "rows": [asdict(row) for row in rows(options.only, options.rounds)]}))
        return
    print(versions())
    last = None
    for row in rows(options.only, options.rounds):
        if row.benchmark != last:
            last = row.benchmark
            print(f"\n{last}" + (f"  ({row.note})" if row.note else ""))
        print(f"  {row.arm:<28} {row.seconds * 1e3:11.4f} ms   x {row.ratio:9.3f} [{row.low:.3f}, {row.high:.3f}] {row.megabytes:9.2f} MB")


if __name__ == "__main__":
    main()
