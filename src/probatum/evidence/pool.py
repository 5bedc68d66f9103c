"""Where tasks run: fresh processes of this machine, or a Ray cluster. Both take a call and report its end, one code path for the engine."""

import os
import socket
from collections.abc import Callable, Hashable, Iterator
from multiprocessing.connection import wait
from typing import Any, Protocol

from probatum.errors import MissingExtra, NotHere, ProbatumError
from probatum.evidence.process import Child, ChildError

__all__ = ["LocalPool", "Pool", "RayPool"]

Event = tuple[Hashable, str, Any]  # token, "progress" | "done" | "refused" | "failed", content


class Pool(Protocol):
    """Runs module-level functions elsewhere."""

    @property
    def busy(self) -> bool:
        """Whether anything runs."""

    def accepts(self, alone: bool) -> bool:
        """Whether a task may start now; `alone` tasks share the machine with nothing."""

    def submit(self, token: Hashable, function: Callable[..., Any], args: tuple[Any, ...], alone: bool = False) -> None: ...

    def events(self, timeout: float) -> Iterator[Event]:
        """What happened, waiting at most `timeout` seconds for a first event."""

    def close(self) -> None: ...


class LocalPool:
    """At most `jobs` worker processes, started when first needed; one that dies fails its task and is replaced.

    `reuse`: keep a worker for its next task; without, every task has a fresh process (its memory is its own).
    """

    def __init__(self, jobs: int, threads: int, *, reuse: bool = True) -> None:
        self.jobs, self.threads, self.reuse = jobs, threads, reuse
        self._idle: list[Child] = []
        self._running: dict[Any, tuple[Hashable, Child, bool]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def accepts(self, alone: bool) -> bool:
        if any(task[2] for task in self._running.values()) or len(self._running) >= self.jobs:
            return False
        return not (alone and self._running)

    def submit(self, token: Hashable, function: Callable[..., Any], args: tuple[Any, ...], alone: bool = False) -> None:
        child = self._idle.pop() if self._idle else Child(self.threads)
        child.send(function, *args)
        self._running[child.connection] = (token, child, alone)

    def events(self, timeout: float) -> Iterator[Event]:
        for connection in wait(list(self._running), timeout):
            token, child, _ = self._running[connection]
            try:
                kind, content = child.receive()
            except ProbatumError as error:
                kind, content = "refused", error
            except ChildError as error:
                kind, content = "failed", str(error)
            if kind != "progress":
                del self._running[connection]
                if kind == "failed" or not self.reuse:
                    child.close()
                else:
                    self._idle.append(child)
            yield token, kind, content

    def close(self) -> None:
        for child in [*self._idle, *(task[1] for task in self._running.values())]:
            child.close()
        self._idle, self._running = [], {}


class RayPool:
    """Tasks on a Ray cluster; a task whose worker is lost runs again elsewhere.

    Args:
        address: of the cluster ("auto", "ray://host:10001", "host:6379"), or "local" for a cluster of this machine's cores.
        threads: CPUs that a task takes.
    """

    RETRIES = 3

    def __init__(self, address: str, threads: int = 1) -> None:
        try:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            import ray
        except ImportError:
            raise MissingExtra("--cluster needs Ray: pip install 'probatum[cluster]'") from None
        self._ray, self.threads = ray, threads
        if not ray.is_initialized():
            _reach(address)
            try:
                ray.init(address=None if address == "local" else address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise NotHere(f"--cluster {address!r} cannot be reached: {error}") from None
            self._ours = True
        else:
            self._ours = False
        self._running: dict[Any, Hashable] = {}
        self._cpus = int(ray.cluster_resources().get("CPU", 1))

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def accepts(self, alone: bool) -> bool:
        # Ray queues what does not fit; a few tasks ahead of its CPUs keep every worker busy and Ctrl-C cheap.
        return len(self._running) < 2 * self._cpus

    def submit(self, token: Hashable, function: Callable[..., Any], args: tuple[Any, ...], alone: bool = False) -> None:
        # A task that times things takes every CPU of its node.
        widest = max(int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes() if node["Alive"])
        remote = self._ray.remote(num_cpus=widest if alone else self.threads, max_retries=self.RETRIES)(function)
        self._running[remote.remote(*args)] = token

    def events(self, timeout: float) -> Iterator[Event]:
        ready, _ = self._ray.wait(list(self._running), timeout=timeout)
        for reference in ready:
            token = self._running.pop(reference)
            try:
                yield token, "done", self._ray.get(reference)
            except ProbatumError as error:
                cause = getattr(error, "cause", error)
                yield token, "refused", cause if isinstance(cause, ProbatumError) else ProbatumError(str(cause))
            except self._ray.exceptions.RayError as error:
                yield token, "failed", str(error)

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        if self._ours:
            self._ray.shutdown()


def _reach(address: str) -> None:
    """Fail at once where nothing listens; Ray itself waits for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise NotHere(f"--cluster {address!r} cannot be reached: {error.strerror or error}") from None
