"""Where the optimizer state of parameters that are not trained at the moment waits: on their device, in host memory, or on disk."""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from probatum.errors import ProbatumError

__all__ = ["Offload", "Place"]

Place = Literal["device", "cpu", "disk"]
States = dict[str, dict[str, Any]]  # parameter name -> what an optimizer keeps for it


class Offload:
    """Optimizer state by bundle (a group of parameters), put away and taken back; values come back bit for bit.

    "device" leaves tensors where they are. "cpu" copies CUDA tensors to pinned memory and back on a stream of its own, so that `prefetch`
    overlaps with other work; on a CPU it is the same as "device". "disk" writes a safetensors file a bundle, beside its old one, and
    renames it. Tables are tensors of which only rows are fetched: on disk they are memory-mapped files, written in place.

    Args:
        place: where to.
        folder: for "disk"; None makes a temporary one, which goes when this does.
    Raises:
        ProbatumError: an unknown place, a folder without "disk", a folder that cannot be written to.
    """

    def __init__(self, place: Place = "device", folder: str | os.PathLike[str] | None = None) -> None:
        if place not in get_args(Place):
            raise ProbatumError(f"state must be one of {', '.join(get_args(Place))}, got {place!r}")
        if folder is not None and place != "disk":
            raise ProbatumError(f"folder goes with state='disk', got state={place!r}")
        self.place = place
        self._held: dict[int, States] = {}
        self._coming: dict[int, tuple[States, Any]] = {}
        self._files: dict[int, Path] = {}
        if place == "disk":
            if folder is None:
                folder = tempfile.mkdtemp(prefix="probatum-state-")
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.folder = Path(folder)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            except OSError as error:
                raise ProbatumError(f"folder={str(self.folder)!r} cannot be written to: {error.strerror}") from error

    def put(self, bundle: int, states: States) -> None:
        """Take over the states of a bundle.

        Raises:
            ProbatumError: the disk refuses; what it held before is still there, and the caller still has the states.
        """
        if self.place == "disk":
            self._write(bundle, states)
        elif self.place == "cpu":
            self._held[bundle] = _copied(states, _to_host)
        else:
            self._held[bundle] = states

    def prefetch(self, bundle: int, devices: Mapping[str, torch.device]) -> None:
        """Begin to bring a bundle back to the devices of its parameters (host to CUDA); does nothing elsewhere."""
        if self.place != "cpu" or bundle not in self._held or not any(d.type == "cuda" for d in devices.values()):
            return
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self._coming[bundle] = self._on_devices(self._held[bundle], devices), stream

    def take(self, bundle: int, devices: Mapping[str, torch.device]) -> States:
        """Give a bundle's states back, on the devices of their parameters; {} where there are none."""
        if bundle in self._coming:
            states, stream = self._coming.pop(bundle)
            torch.cuda.current_stream().wait_stream(stream)
            self._held.pop(bundle)
            return states
        if self.place == "disk":
            return self._on_devices(self._read(bundle), devices)
        return self._on_devices(self._held.pop(bundle, {}), devices)

    def peek(self, bundle: int) -> States:
        """A bundle's states where they are (on disk: read), which stay here too."""
        return self._read(bundle) if self.place == "disk" else self._held.get(bundle, {})

    def clear(self) -> None:
        """Forget all bundles."""
        self._held, self._coming, self._files = {}, {}, {}

    def table(self, name: str, key: str, like: Tensor, rows: int, source: Tensor | None = None) -> Tensor:
        """A tensor (rows, ...) of zeros, or a copy of `source`, where this keeps things; `like` gives width, dtype and device."""
        shape = (rows, *like.shape[1:])
        if self.place == "disk":
            count = rows * like[:1].numel()
            path = self.folder / f"table-{name}-{key}-{os.getpid()}.bin"
            try:
                made = torch.from_file(str(path), shared=True, size=count, dtype=like.dtype).view(shape)
            except RuntimeError as error:
                raise ProbatumError(f"{path} of {count * like.element_size()} bytes cannot be made: {error}") from error
            path.unlink()  # the mapping keeps it; nothing is left behind by a run that is killed
        else:
            host = self.place == "cpu"
            made = torch.zeros(shape, dtype=like.dtype, device="cpu" if host else like.device)
        return made if source is None else made.copy_(source)

    def bytes(self) -> int:
        """Held at the moment, files included; scalars such as step counts are left out."""
        if self.place == "disk":
            return sum(_payload(path) for path in self._files.values())
        return sum(_size(state.values()) for states in self._held.values() for state in states.values())

    def _on_devices(self, states: States, devices: Mapping[str, torch.device]) -> States:
        def back(name: str, value: Tensor) -> Tensor:
            return value.to(devices[name], non_blocking=True) if value.ndim else value  # step counts stay on the CPU

        return {
            name: {key: back(name, value) if isinstance(value, Tensor) else value for key, value in state.items()}
            for name, state in states.items()
        }

    def _write(self, bundle: int, states: States) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {
            f"{name}|{key}": value.detach().contiguous()
            for name, state in states.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        plain = {name: {k: v for k, v in state.items() if not isinstance(v, Tensor)} for name, state in states.items()}
        path = self.folder / f"group-{bundle}.safetensors"
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, {"state": json.dumps(plain)})
            os.replace(partial, path)
        except TypeError as error:
            raise ProbatumError(f"state='disk' keeps tensors and numbers, but the optimizer holds something else: {error}") from error
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            kept = "what it held before is kept" if path.exists() else "nothing was written"
            raise ProbatumError(f"the state of group {bundle} cannot be written to {self.folder}: {error}; {kept}") from error
        self._files[bundle] = path

    def _read(self, bundle: int) -> States:
        from safetensors import safe_open

        if bundle not in self._files:
            return {}
        with safe_open(str(self._files[bundle]), "pt") as file:
            states: States = json.loads((file.metadata() or {})["state"])
            for label in file.keys():  # noqa: SIM118 (not a dict)
                name, _, key = label.rpartition("|")
                states[name][key] = file.get_tensor(label)
        return states


def _to_host(value: Tensor) -> Tensor:
    if value.device.type != "cuda":
        return value
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


def _copied(states: States, copy: Any) -> States:
    made = {
        name: {key: copy(value) if isinstance(value, Tensor) else value for key, value in state.items()}
        for name, state in states.items()
    }
    if any(isinstance(v, Tensor) and v.device.type == "cuda" for state in states.values() for v in state.values()):
        torch.cuda.current_stream().synchronize()  # before the device copies are given up
    return made


def _size(values: Iterable[Any]) -> int:
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor) and v.ndim)


def _payload(path: Path) -> int:
    """Bytes of the tensors with dimensions in a safetensors file."""
    with open(path, "rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    parts = [part for name, part in head.items() if name != "__metadata__" and part["shape"]]
    return sum(part["data_offsets"][1] - part["data_offsets"][0] for part in parts)
