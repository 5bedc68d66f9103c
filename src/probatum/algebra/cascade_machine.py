"""What a cascade costs on a machine that a small TOML file describes: the longer of its compute and its memory traffic.

The model: sums of products of two tensors run on a matrix array, everything else on a vector array, both at once. Matrix work
is one operation (multiply-add) a lane and cycle; a vector operation takes `cycles` of its kind. Between chip and memory move
every input and output once, and beside that what the passes ask for: an outer rank is cut into tiles, so many that their live
words (fibres that a later pass needs, carried state, the tile's own rows) fit the buffer; an input without the outer rank is
read once a tile and pass, unless it fits beside them; a fibre that does not fit even for one tile is written and read again.

>>> Machine.load("fusemax").matrix_lanes
65536
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path

from probatum.algebra.cascade_graph import Graph
from probatum.algebra.cascade_passes import footprints_of, is_contraction, operations_of, passes_of
from probatum.errors import ProbatumError, did_you_mean

__all__ = ["Cost", "Machine", "cost_of"]


@dataclass(frozen=True)
class Machine:
    """A machine, from a TOML file with these keys at its top.

    Args:
        name: shown.
        clock: cycles a second.
        matrix_lanes: multiply-adds a cycle of the matrix array.
        vector_lanes: operations a cycle of the vector array.
        bandwidth: bytes a second between chip and memory.
        buffer: bytes on chip.
        word: bytes of a number.
        cycles: operation -> cycles of a vector lane; 1 where not named. The table [cycles] of the file.
        energy: operation -> joules, "macc" for a multiply-add, "byte" for a byte moved; the table [energy]. Empty: no energy is told.
    """

    name: str
    clock: float
    matrix_lanes: int
    vector_lanes: int
    bandwidth: float
    buffer: float
    word: int = 2
    cycles: dict[str, float] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path) -> "Machine":
        """A machine by name (`fusemax`, `flat`, `h100`, `laptop`) or from a TOML file.

        Raises:
            ProbatumError: no such name or file, a file that is not TOML, a missing, unknown or impossible key.
        """
        shipped = tomllib.loads(files("probatum.algebra").joinpath("cascade_machines.toml").read_text("utf-8"))
        if str(source) in shipped:
            return cls._checked({"name": str(source), **shipped[str(source)]}, str(source))
        path = Path(source)
        if not path.is_file():
            raise ProbatumError(f"machine {str(source)!r}: no such file, and no machine of that name: {did_you_mean(str(source), shipped)}")
        try:
            row = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ProbatumError(f"machine {path}: not a TOML file: {error}") from None
        return cls._checked({"name": path.stem, **row}, str(path))

    @classmethod
    def _checked(cls, row: dict, where: str) -> "Machine":
        known = {f.name for f in fields(cls)}
        for key in row:
            if key not in known:
                raise ProbatumError(f"machine {where}: unknown key {key!r}: {did_you_mean(key, known)}")
        missing = [f.name for f in fields(cls) if f.name not in row and f.name not in ("word", "cycles", "energy")]
        if missing:
            raise ProbatumError(f"machine {where}: lacks {', '.join(missing)}")
        numbers = {k: v for k, v in row.items() if k not in ("name", "cycles", "energy")}
        for key, value in [*numbers.items(), *row.get("cycles", {}).items(), *row.get("energy", {}).items()]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ProbatumError(f"machine {where}: {key} must be a positive number, got {value!r}")
        return cls(**row)


@dataclass(frozen=True)
class Cost:
    """What a cascade costs on a machine.

    Attributes:
        seconds: the longest of the three below. matrix_seconds, vector_seconds, memory_seconds: each by itself.
        bytes: moved between chip and memory. by_tensor: of each tensor.
        maccs: multiply-adds on the matrix array. operations: vector operations by kind.
        tiles: pieces of the outer rank; outer: that rank or None.
        spilled: tensors whose fibre does not fit and goes through memory.
        joules: energy, None where the machine tells none.
    """

    seconds: float
    matrix_seconds: float
    vector_seconds: float
    memory_seconds: float
    bytes: float
    by_tensor: dict[str, float]
    maccs: int
    operations: dict[str, int]
    tiles: int
    outer: str | None
    spilled: tuple[str, ...]
    joules: float | None

    @property
    def bound(self) -> str:
        """What takes longest: "matrix", "vector" or "memory"."""
        return max(("matrix", "vector", "memory"), key=lambda what: getattr(self, f"{what}_seconds"))


def cost_of(graph: Graph, machine: Machine, extents: Mapping[str, int], family: tuple[str, ...]) -> Cost:
    """The model of this module's docstring.

    Raises:
        ProbatumError: an extent is missing.
    """
    missing = [v.upper() for v in graph.variables if v.upper() not in extents]
    if missing:
        raise ProbatumError(f"the extents {', '.join(missing)} are not known: give {missing[0]}=NUMBER and so on")
    maccs, vector, cycles = 0, dict[str, int](), 0.0
    for statement, counts in zip(graph.statements, operations_of(graph, extents), strict=True):
        if is_contraction(statement):
            maccs += graph.volume(statement.space, extents)
            continue
        for kind, count in counts.items():
            vector[kind] = vector.get(kind, 0) + count
            cycles += count * machine.cycles.get(kind, 1)
    outer, tiles, traffic, spilled = _traffic(graph, machine, extents, family)
    total = sum(traffic.values())
    parts = (maccs / machine.matrix_lanes / machine.clock, cycles / machine.vector_lanes / machine.clock, total / machine.bandwidth)
    joules = None
    if machine.energy:
        priced = {kind: machine.energy.get(kind, machine.energy.get("macc", 0.0) * machine.cycles.get(kind, 1)) for kind in vector}
        joules = maccs * machine.energy.get("macc", 0.0) + total * machine.energy.get("byte", 0.0)
        joules += sum(count * priced[kind] for kind, count in vector.items())
    return Cost(max(parts), *parts, total, traffic, maccs, vector, tiles, outer, spilled, joules)


def _traffic(
    graph: Graph, machine: Machine, extents: Mapping[str, int], family: tuple[str, ...]
) -> tuple[str | None, int, dict[str, float], tuple[str, ...]]:
    passes = passes_of(graph, family)
    prints = {f.name: f for f in footprints_of(graph, family, extents)}

    def ranks(name: str) -> set[str]:
        return {v for index in graph.indices_of(name) for v in index.variables}

    def size(name: str) -> float:
        return machine.word * math.prod(graph.shape_of(name, extents))

    count = {v: sum(v in ranks(n) for n in prints) * math.log2(1 + extents[v.upper()]) for v in graph.variables if v not in family}
    outputs = set.intersection(*(ranks(n) for n in graph.outputs)) if graph.outputs else set()
    # The tiled rank: of those that all outputs have, the one that most of the data hangs on; ranks that every input shares are a plain
    # batch and tile for free.
    batch = set.intersection(*(ranks(n) for n in graph.inputs)) if graph.inputs else set()
    eligible = [v for v in count if v in outputs and v not in batch] or [v for v in count if v in outputs]
    outer = max(eligible, key=lambda v: count[v], default=None)
    fixed = {v for v in batch if v != outer and v not in family}
    per_batch = math.prod(extents[v.upper()] for v in fixed)

    def part(name: str) -> float:
        """Bytes of one batch element."""
        return size(name) / math.prod([extents[v.upper()] for v in ranks(name) & fixed] or [1])

    length = extents[outer.upper()] if outer else 1
    live_fibre, live_row = 0.0, 0.0
    for name, found in prints.items():
        if outer is not None and outer in ranks(name):
            if found.needs == "fibre":
                live_fibre += part(name) / length
            elif found.needs in ("state", "tile"):
                shape = {
                    v
                    for v in ranks(name)
                    if v not in fixed and v != outer and v != graph.iterative and (found.needs == "tile" or v not in family)
                }
                live_row += machine.word * math.prod(extents[v.upper()] for v in shape)
            elif name in graph.inputs and not ranks(name) & set(family):
                live_row += part(name) / length
    spilled: tuple[str, ...] = ()
    if outer is not None and live_fibre + live_row > machine.buffer:
        spilled = tuple(n for n, f in prints.items() if f.needs == "fibre" and outer in ranks(n))
        live_fibre = 0.0
    held = max(1, min(length, int(machine.buffer // max(live_fibre + live_row, 1e-9)))) if outer is not None else 1
    tiles = -(-length // held)
    traffic: dict[str, float] = {}
    for name, found in prints.items():
        times = 0.0
        reads = max(1, len(found.passes))
        if found.role == "input":
            times = 1.0
            if outer is None or outer in ranks(name):
                times = reads if name in spilled or (outer is None and found.needs == "fibre" and part(name) > machine.buffer) else 1
            elif ranks(name) & set(family) and part(name) + held * (live_fibre + live_row) > machine.buffer:
                times = tiles * reads
        elif found.role == "output":
            times = 1.0
        elif name in spilled:
            times = 1.0 + len([p for p in found.passes if p > passes.made_in.get(name, 0)])
        if times:
            traffic[name] = times * (part(name) * per_batch if ranks(name) & fixed else size(name))
    return outer, tiles, traffic, spilled
