"""FuseMax's evaluation in closed form: five attention designs and the linear layers, 4 models x 6 lengths, in microseconds.

The paper runs Timeloop for hours; its loop nests are regular, so that traffic and cycles have closed forms, which equal the
artifact's published points (`published`). Latency is the longer of compute and memory. Energy of the on-chip L3 buffer is not
published and is fitted (see `design`).

>>> fusemax, flat = design("binding"), design("flat")
>>> round(float(fusemax["latency"][0]) * 1e3, 4), round(float(flat["latency"][0]) * 1e3, 4)      # BERT, 1K tokens, ms
(2.0131, 13.3861)
>>> round(headline()["attention speedup over flat"]["arithmetic"], 2)
6.72

Source: FuseMax sections V and VI, figures 6 to 11; artifact commit f543beb.
"""

import csv
from functools import cache
from importlib.resources import files

import numpy as np

from probatum.errors import ProbatumError, did_you_mean

__all__ = ["DESIGNS", "LENGTHS", "MODELS", "design", "headline", "published"]

Table = dict[str, np.ndarray]

MODELS = {"BERT": (12, 768, 64, 3072), "TrXL": (16, 1024, 64, 4096), "T5": (8, 512, 64, 2048), "XLM": (16, 2048, 128, 8192)}
LENGTHS = {"1K": 1 << 10, "4K": 1 << 12, "16K": 1 << 14, "64K": 1 << 16, "256K": 1 << 18, "1M": 1 << 20}
DESIGNS = ("unfused", "flat", "cascade", "architecture", "binding", "linear-flat", "linear-fusemax")

CLOCK, BANDWIDTH, BATCH, WORD, SIDE = 940e6, 400 * 2.0**30, 64, 2, 256
CELLS = SIDE * SIDE
# pJ an operation, from the artifact's energy reference tables; L3 is fitted: pJ a row access (FuseMax), a score (FLAT).
MACC, ADD, MAX, DIVIDE, EXP, DRAM = 17.1645, 8.3395, 0.028036, 36.251153, 94.6475, 249.6 / 8
L3_FUSEMAX, L3_FLAT = 12_500.0, 700.0


@cache
def _points() -> dict[str, np.ndarray]:
    """H, D, E, S, N of the 24 points, models slowest."""
    rows = np.array([(*MODELS[m], n) for m in MODELS for n in LENGTHS.values()], dtype=np.float64)
    return dict(zip("HDESN", rows.T, strict=True))


def _read(name: str) -> list[dict[str, str]]:
    text = files("probatum.algebra").joinpath(name).read_text("utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def _published() -> dict[str, Table]:
    rows = _read("fusemax_published.csv")
    order = [(m, n) for m in MODELS for n in LENGTHS]
    found = {}
    for name in DESIGNS:
        own = {(r["model"], r["length"]): r for r in rows if r["design"] == name}
        columns = [c for c in ("traffic", "latency", "energy", "util_2d", "util_1d") if own[order[0]][c]]
        found[name] = {c: np.array([float(own[key][c]) for key in order]) for c in columns}
    return found


def _name(name: str) -> str:
    if name not in DESIGNS:
        raise ProbatumError(f"unknown design {name!r}: {did_you_mean(name, DESIGNS)}")
    return name


def published(name: str) -> Table:
    """The artifact's own points of a design, as `design` gives them.

    Args:
        name: one of unfused, flat, cascade, architecture, binding (attention), linear-flat, linear-fusemax.
    Returns:
        "traffic" (bytes), "latency" (s), "energy" (pJ), and for attention "util_2d", "util_1d": arrays (24,), four models (BERT, TrXL,
        T5, XLM) times six lengths (1K to 1M), lengths fastest.
    """
    return {column: values.copy() for column, values in _published()[_name(name)].items()}


def design(name: str) -> Table:
    """The 24 points of a design from its closed form.

    Args:
        name: as in `published`; "binding" is FuseMax, "flat" its baseline.
    Returns:
        "traffic" (bytes), "latency" (s), "compute" (s), "memory" (s); "util_2d" for fused attention; "energy" (pJ) for binding,
        architecture and flat, where L3 is fitted: within 0.4 % (FuseMax) and 4.3 % (FLAT) of every published point. Linear layers have
        "least_traffic" in place of "traffic": every operand once, to which the artifact's mapper adds re-reads. "unfused" is within
        0.4 %, all else equal to rounding.
    Raises:
        ProbatumError: unknown name.
    """
    _name(name)
    p = _points()
    n, e, bh = p["N"], p["E"], BATCH * p["H"]
    x = bh * n * n  # scores
    tiles = x / CELLS
    if name.startswith("linear"):
        return _linear(p)
    if name == "unfused":
        return _unfused(bh, n, e, x, tiles)
    if name == "flat":
        traffic = _flat_traffic(bh, n, e, x)
        cycles, useful = np.maximum(2 * e * tiles, 4 * x / SIDE), 2 * e * tiles
        energy = x * (2 * e * MACC + MAX + EXP + 2 * ADD + DIVIDE) + traffic * DRAM + L3_FLAT * x
    elif name == "cascade":
        per = 256 + 1 + 2 + 1 + e + 512 + 256 + 1 + e + 256 * e / n
        cycles, useful = tiles * np.maximum(2 * e, per), 2 * e * tiles
        traffic, energy = _streamed(bh, n, e, 2 * e + 2 + 512), None
    else:
        if name == "binding":
            per = np.maximum(e + 1, 1 + e + 256 * e / n) + 1 + 8 + e
        else:
            per = np.maximum(e + 1, 1 + 256 * e / n) + 256 + 1 + 8 + 2 * e
        cycles, useful = tiles * per, tiles * (2 * e + 9)
        traffic = _streamed(bh, n, e, 2 * e + 2)
        energy = x * (2 * e * MACC + MAX + 6 * MACC + 2 * ADD)
        energy = energy + x / SIDE * (MAX + 7 * MACC + ADD + e * MACC + ADD + e * ADD) + bh * n * e * DIVIDE
        energy = energy + traffic * DRAM + L3_FUSEMAX * 6 * e * tiles
    table = _table(cycles / CLOCK, traffic)
    table["util_2d"] = useful / CLOCK / table["latency"]
    if energy is not None:
        table["energy"] = energy
    return table


def _table(compute: np.ndarray, traffic: np.ndarray) -> Table:
    memory = traffic / BANDWIDTH
    return {"traffic": traffic, "latency": np.maximum(compute, memory), "compute": compute, "memory": memory}


def _streamed(bh: np.ndarray, n: np.ndarray, e: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Bytes of the 1-pass designs: Q and AV once, K and V once a tile of queries; P1 queries x 256 fit into 16 MiB of L3."""
    tiles = n / SIDE
    fits = np.floor((16 * 2**20 - 1024 * e) / (512 * rows))
    largest = np.minimum(tiles, 2.0 ** np.floor(np.log2(fits)))  # N / 256 is a power of two, so are its divisors
    return 2 * bh * n * (2 * e + 2 * e * tiles / largest)


def _flat_traffic(bh: np.ndarray, n: np.ndarray, e: np.ndarray, x: np.ndarray) -> np.ndarray:
    """FLAT's bytes from its mapping table; s is the spilled share, b the words of one of Q, K, V, AV."""
    rows = _read("fusemax_flat_mappings.csv")
    own = {(r["model"], r["length"]): r for r in rows}
    found = []
    for k, key in enumerate((m, length) for m in MODELS for length in LENGTHS):
        r = own[key]
        s, b, t1 = float(r["spilled"]), bh[k] * n[k] * e[k], n[k] / SIDE
        p2 = n[k] / float(r["p1"]) if r["granularity"] == "row" else 1.0
        still = r["qk_stationary"] == "output"
        arrays = {"q": b * t1, "k": b * t1 if still else b * p2, "v": b * t1 if r["av_stationary"] == "output" else b * p2}
        words = sum((1 - s) * b + s * arrays[t] if r[t] == "1" else arrays[t] for t in arrays)
        words += b if r["av"] == "1" or r["av_stationary"] == "output" else b * t1 + b * (t1 - 1)
        if r["qk"] == "1":
            words += 2 * s * x[k] + 5 * s * x[k]
        else:
            words += 2 * x[k] + 2 * x[k]
        found.append(WORD * words)
    return np.array(found)


def _unfused(bh: np.ndarray, n: np.ndarray, e: np.ndarray, x: np.ndarray, tiles: np.ndarray) -> Table:
    b = bh * n * e
    traffic = 2 * (4 * x + 4 * b)
    products = 2 * np.maximum(2 * (x + 2 * b) / BANDWIDTH, e * tiles / CLOCK)
    softmax = np.maximum(4 * x / SIDE / CLOCK, 4 * x / BANDWIDTH)
    compute = 2 * e * tiles / CLOCK + 4 * x / SIDE / CLOCK
    return {"traffic": traffic, "latency": products + softmax, "compute": compute, "memory": traffic / BANDWIDTH}


def _linear(p: dict[str, np.ndarray]) -> Table:
    """Projections and feed-forward: four products D x HE, two D x S, of 64 N rows."""
    rows = BATCH * p["N"]
    latency = compute = traffic = np.zeros(len(rows))
    for count, k, width in ((4, p["D"], p["H"] * p["E"]), (2, p["D"], p["S"])):
        own = rows * k * width / CELLS / CLOCK
        moved = 2 * (rows * k + k * width + rows * width)
        latency = latency + count * np.maximum(own, moved / BANDWIDTH)
        compute, traffic = compute + count * own, traffic + count * moved
    return {"least_traffic": traffic, "latency": latency, "compute": compute, "memory": traffic / BANDWIDTH}


def headline(source: str = "model") -> dict[str, dict[str, float]]:
    """The paper's headline figures as means over the 24 points, arithmetic (which it quotes) and geometric.

    Args:
        source: "model" for our closed forms, "published" for the artifact's own points.
    Returns:
        figure -> {"arithmetic", "geometric", "paper"}: speedup and energy of attention and of the whole network over FLAT, speedup of
        attention over unfused, utilisation of the 2D array. Energy of the whole network uses the published linear layers.
    """
    if source not in ("model", "published"):
        raise ProbatumError(f"source must be model or published, got {source!r}")
    get = design if source == "model" else published
    flat, ours, unfused = get("flat"), get("binding"), get("unfused")
    linear_flat, linear_ours = get("linear-flat"), get("linear-fusemax")
    energy_flat, energy_ours = published("linear-flat")["energy"], published("linear-fusemax")["energy"]
    quantities = {
        "attention speedup over flat": (flat["latency"] / ours["latency"], 6.7),
        "attention energy against flat": (ours["energy"] / flat["energy"], 0.79),
        "network speedup over flat": ((flat["latency"] + linear_flat["latency"]) / (ours["latency"] + linear_ours["latency"]), 5.3),
        "network energy against flat": ((ours["energy"] + energy_ours) / (flat["energy"] + energy_flat), 0.83),
        "attention speedup over unfused": (unfused["latency"] / ours["latency"], 10.0),
        "utilisation, fusemax": (ours["util_2d"], 0.97),
        "utilisation, flat": (flat["util_2d"], 0.149),
    }
    return {
        name: {"arithmetic": float(np.mean(v)), "geometric": float(np.exp(np.mean(np.log(v)))), "paper": paper}
        for name, (v, paper) in quantities.items()
    }
