"""Fresh Python processes that end with their parent.

A child is a new interpreter (never a fork: a fork keeps the allocator's state and the thread pools of its parent). It is told what to
call as ``module:name``, so nothing depends on the parent's ``__main__``, and it ends by itself when its parent's end of the pipe closes,
also when the parent was killed. What a child prints goes to standard error.
"""

import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from time import perf_counter
from typing import Any

from probatum.errors import ProbatumError

__all__ = ["Child", "ChildError", "Isolated", "isolated", "peak_memory", "reset_peak_memory", "tell"]


class ChildError(RuntimeError):
    """A call in another process failed; the message holds its traceback or how the process died."""


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that make every numerical library of a new process use so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {name: str(threads) for name in names}


def _address(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", "")
    if not name or "<" in name or function.__module__ == "__main__":
        raise ProbatumError(
            f"a function for another process must be importable (a plain function of a module), got {name or function!r}"
        )
    return f"{function.__module__}:{name}"


class Child:
    """A new interpreter that answers one call at a time.

    Args:
        threads: threads of its numerical libraries.
    """

    def __init__(self, threads: int = 1) -> None:
        ours, theirs = Pipe(duplex=True)
        code = (
            "import sys; sys.path[:] = sys.argv[2].split(chr(31)); "
            "from probatum.evidence.process import _serve; _serve(int(sys.argv[1]))"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), chr(31).join(sys.path)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={**os.environ, **thread_environment(threads), "PROBATUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which decides what happens to its children
        )
        theirs.close()
        self.connection: Connection = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin a call; its messages are read from `connection` and understood by `receive`."""
        self.connection.send((_address(function), args))

    def receive(self) -> tuple[str, Any]:
        """The next message: ("progress", anything) or ("done", value).

        Raises:
            ProbatumError: the call raised one.
            ChildError: the call failed otherwise, or the process died.
        """
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            status = self._process.wait()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            hint = " (out of memory?)" if status == -9 else ""
            raise ChildError(f"the worker process {how}{hint}") from None
        if kind == "refused":
            raise content
        if kind == "failed":
            raise ChildError(content)
        return kind, content

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """One whole call; progress messages are dropped."""
        self.send(function, *args)
        while True:
            kind, content = self.receive()
            if kind == "done":
                return content

    def close(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _serve(descriptor: int) -> None:
    """The main loop of a child."""
    connection = Connection(descriptor)
    calls: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue()

    def listen() -> None:
        while True:
            try:
                calls.put(connection.recv())
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone: nobody wants the result

    threading.Thread(target=listen, daemon=True).start()
    while True:
        address, args = calls.get()
        try:
            module, _, name = address.partition(":")
            function: Any = import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            _Messages.connection = connection
            connection.send(("done", function(*args)))
        except BrokenPipeError:
            os._exit(1)
        except ProbatumError as error:
            connection.send(("refused", error))
        except BaseException:
            connection.send(("failed", traceback.format_exc()))


class _Messages:
    """Where the running child sends its progress; None in the parent."""

    connection: Connection | None = None


def tell(content: Any) -> None:
    """Send a progress message to the parent; does nothing outside a child."""
    if _Messages.connection is not None:
        _Messages.connection.send(("progress", content))


@dataclass(frozen=True)
class Isolated:
    """What a call in a fresh process gave: its value, seconds (without start-up), and the peak resident bytes of the process."""

    value: Any
    seconds: float
    peak: int


def isolated(function: Callable[..., Any], *args: Any, threads: int = 1) -> Isolated:
    """Call a module-level function in a fresh process.

    Args:
        function: importable as module:name; its arguments and its result are pickled.
        threads: threads of the numerical libraries there.
    Raises:
        ChildError: the call failed or the process died.
    """
    child = Child(threads)
    try:
        return Isolated(*child.call(_measured, _address(function), args))
    finally:
        child.close()


def _measured(address: str, args: tuple[Any, ...]) -> tuple[Any, float, int]:
    module, _, name = address.partition(":")
    function = getattr(import_module(module), name)
    begun = perf_counter()
    value = function(*args)
    return value, perf_counter() - begun, peak_memory()


def peak_memory() -> int:
    """The most resident bytes of this process since its start or the last `reset_peak_memory` (VmHWM; elsewhere ru_maxrss)."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def reset_peak_memory() -> bool:
    """Forget the peak so far; False where the system cannot (then the peak is that of the whole process)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
            clear.write("5")
        return True
    except OSError:
        return False
