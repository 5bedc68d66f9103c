"""Worker processes that each hold an object and answer messages: where independent forward passes are spread over cores.

Weights do not travel: tensors in shared memory are seen by all. A worker ends when its parent's pipe closes.
"""

import pickle
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

from probatum.errors import ProbatumError

__all__ = ["Workers"]


class Workers:
    """`count` processes, each with `make(*arguments)`, a callable that answers (worker's number, message).

    Args:
        make, arguments: must be picklable; tensors in shared memory are shared, others are copied.
    Raises:
        ProbatumError: arguments that cannot be sent; later, a worker that raised or died.
    """

    def __init__(self, count: int, make: Callable[..., Callable[[int, Any], Any]], *arguments: Any) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, number, torch.get_num_threads(), make, arguments), daemon=True
            )
            try:
                process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                self.close()
                raise ProbatumError(f"workers={count} needs a model and a loss that can be sent to a process: {error}") from None
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self._end = weakref.finalize(self, _end, self.pipes, self.processes)

    def ask(self, message: Any) -> list[Any]:
        """Send the same message to all, and wait for all answers, in order."""
        answers = []
        try:
            for pipe in self.pipes:
                pipe.send(message)
            for pipe in self.pipes:
                failed, answer = pipe.recv()
                if failed:
                    raise ProbatumError(f"a worker failed: {answer}")
                answers.append(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.close()
            raise ProbatumError("a worker process died (out of memory?)") from None
        return answers

    def close(self) -> None:
        _end(self.pipes, self.processes)


def _serve(pipe: Any, number: int, threads: int, make: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)  # another number may add in another order
    answer = make(*arguments)
    while True:
        try:
            message = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((False, answer(number, message)))
        except KeyboardInterrupt:
            return
        except Exception as error:
            pipe.send((True, f"{type(error).__name__}: {error}"))


def _end(pipes: list, processes: list) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(timeout=5)
        if process.is_alive():
            process.terminate()
            process.join()
    pipes.clear()
    processes.clear()
