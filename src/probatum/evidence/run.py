"""What a claim's function is handed: budget, seed, device, meters, artifacts, and where to put what it measured."""

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.errors import ProbatumError
from probatum.evidence import meters
from probatum.evidence.measurements import Measurement, Samples, Table
from probatum.evidence.process import Isolated, isolated, tell

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

__all__ = ["Picture", "Run"]


@dataclass(frozen=True)
class Picture:
    """A figure or image as it is stored: PNG bytes and a caption."""

    name: str
    caption: str
    png: bytes


@dataclass
class Run:
    """One seed of a claim (in its function) or all of them (in its figures).

    Attributes:
        budget: "smoke", "quick" or "full".
        seed: the seed at hand; in figures the first one.
        device: a torch device name.
        threads: threads that numerical libraries use in this process.
        code: hash of the code, part of every artifact's key.
    """

    paper: str
    claim: str
    budget: str
    seed: int
    device: str = "cpu"
    threads: int = 1
    code: str = ""
    artifacts: Path | None = None
    table: Table = field(default_factory=Table)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def smoke(self) -> bool:
        """True where only seconds may be spent and no verdict is given."""
        return self.budget == "smoke"

    def number(self, purpose: str = "") -> int:
        """A 63-bit number that depends on paper, claim, seed and purpose alone: the seed of every generator of the run."""
        text = f"{self.paper}:{self.claim}:{self.seed}:{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    @cached_property
    def rng(self) -> "np.random.Generator":
        """A numpy generator of this seed."""
        import numpy as np

        return np.random.default_rng(self.number())

    def generator(self, purpose: str = "") -> "torch.Generator":
        """A fresh torch CPU generator of this seed and purpose."""
        import torch

        return torch.Generator().manual_seed(self.number(purpose))

    def record(
        self,
        system: str,
        metrics: Mapping[str, Any] | None = None,
        /,
        *,
        unit: str = "",
        of: Samples = "item",
        at: Sequence[float] | None = None,
        **more: Any,
    ) -> None:
        """Keep what an arm measured in this seed: numbers, or sequences of one number a test item (a pair, a trial, a size).

        Args:
            system: the arm, as the conditions name it.
            metrics, more: metric -> value; a mapping where names are no identifiers.
            unit: unit of these metrics.
            of: what the entries of a sequence are; items stand in the same order in all arms and seeds.
            at: sizes at which a sequence of `of="size"` was measured.
        """
        for metric, value in {**(metrics or {}), **more}.items():
            if hasattr(value, "tolist"):
                value = value.tolist()
            if isinstance(value, (list, tuple)):
                samples = tuple(float(entry) for entry in value)
                if not samples:
                    raise ProbatumError(f"{metric} of {system!r} has no entries in seed {self.seed}")
                mean = math.fsum(samples) / len(samples)
                row = Measurement(system, metric, self.seed, mean, unit, samples, of, tuple(map(float, at)) if at else None)
            else:
                row = Measurement(system, metric, self.seed, float(value), unit)
            self.table.add(row)

    def values(self, system: str, metric: str) -> list[float]:
        """What an arm measured, a number a seed, for figures."""
        return [row.value for row in self.table.of(system, metric).values()]

    def progress(self, steps: Iterable[Any], total: int | None = None, label: str = "") -> Iterator[Any]:
        """Iterate and say how far the seed is; at most ten messages a second."""
        if total is None:
            steps = steps if hasattr(steps, "__len__") else list(steps)
            total = len(steps)  # type: ignore[arg-type]
        told = 0.0
        for done, step in enumerate(steps):
            if time.monotonic() - told > 0.1:
                told = time.monotonic()
                name = label or (step if isinstance(step, str) else "")
                tell({"claim": f"{self.paper}:{self.claim}", "seed": self.seed, "done": done, "total": total, "label": name})
            yield step

    def isolated(self, function: Callable[..., Any], *args: Any, threads: int | None = None) -> Isolated:
        """Call a module-level function in a fresh process: its value, seconds and peak resident bytes."""
        return isolated(function, *args, threads=threads or self.threads)

    def time_arms(self, make: Callable[..., dict[str, Callable[[], Any]]], *args: Any, pairs: int | None = None) -> None:
        """Time several arms against each other in one fresh process and record them as `seconds` (a call), for conditions of kind timing.

        Args:
            make: a module-level function; `make(*args)` returns arm name -> function of no arguments, already set up.
            pairs: rounds; default 9, in full 20, in smoke 1.
        """
        from probatum.evidence.timing import time_arms

        count = pairs or {"smoke": 1, "quick": 9, "full": 20}[self.budget]
        least = 0.002 if self.smoke else 0.02
        result = self.isolated(time_arms, make, args, count, self.number("order"), least, self.device, threads=1).value
        for system, seconds in result.items():
            self.record(system, seconds=seconds, unit="s", of="pair")

    def timer(self) -> AbstractContextManager[meters.Timer]:
        """Wall time of a block."""
        return meters.timer(self.device)

    def memory(self) -> AbstractContextManager[meters.Memory]:
        """Peak memory of a block: torch's allocations on the device, and the process."""
        return meters.memory(self.device)

    def artifact(self, name: str, make: Callable[..., None], **inputs: Any) -> Path:
        """An expensive file, made once for these inputs and this code, kept on disk and checked before use.

        Args:
            name: file name, with its ending.
            make: `make(path, **inputs)` writes the file.
            inputs: everything it depends on, as JSON can write it.
        Returns:
            Path of the finished file.
        """
        from probatum.evidence import store

        key = hashlib.sha256(json.dumps([self.paper, name, self.code, inputs], sort_keys=True).encode()).hexdigest()[:16]
        place = store.folder((self.artifacts or store.home() / "artifacts") / self.paper / key)
        path, label = place / name, place / "artifact.json"
        with store.lock(f"artifact-{key}"):
            known = store.read_json(label)
            if known and path.is_file():
                if known["sha256"] == _digest(path):
                    return path
                path.replace(path.with_name(f"{name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"))
            partial = path.with_name(f".partial-{name}")
            make(partial, **inputs)
            partial.replace(path)
            store.write_json(label, {"name": name, "inputs": inputs, "sha256": _digest(path)})
        return path

    @contextmanager
    def figure(self, name: str, caption: str, *, size: tuple[float, float] = (6.4, 4.0)) -> Iterator["Figure"]:
        """A matplotlib figure to draw into; it is stored as PNG when the block ends."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
        self._keep(name, caption, buffer.getvalue())

    def image(self, name: str, pixels: Any, caption: str) -> None:
        """Keep a picture: an array (H, W), (H, W, 3) or (3, H, W), uint8 or floats in 0..1."""
        import matplotlib.image
        import numpy as np

        array = np.asarray(pixels.detach().cpu() if hasattr(pixels, "detach") else pixels)
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8:
            array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        buffer = io.BytesIO()
        matplotlib.image.imsave(buffer, array, format="png", cmap="gray", vmin=0, vmax=255)
        self._keep(name, caption, buffer.getvalue())

    def note(self, text: str) -> None:
        """A sentence for the record: which weights were used, what was left out."""
        self.notes.append(text)

    def _keep(self, name: str, caption: str, png: bytes) -> None:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ProbatumError(f"a figure's name is letters, digits, - and _, got {name!r}")
        self.pictures.append(Picture(name, caption, png))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
