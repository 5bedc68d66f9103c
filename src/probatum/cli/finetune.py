"""`probatum finetune`: fine-tune a checkpoint on labelled texts by any method of the catalog."""

from pathlib import Path
from typing import Annotated, Any

import typer

from probatum.cli.output import console, duration, interruptible, print_json, progress_bar, size
from probatum.errors import MissingExtra, ProbatumError

__all__ = ["finetune"]


def finetune(
    model: Annotated[str, typer.Option(help="A Hugging Face folder with safetensors weights and a tokenizer, or minilm, or gemma-3-270m.")],
    data: Annotated[Path, typer.Option(help="A .csv, .tsv or .jsonl of texts and labels.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to make.")],
    method: Annotated[str, typer.Option(help="How; `--method list` shows all, with what they cost.")] = "mezo",
    steps: Annotated[int, typer.Option(help="Steps; see `--method list` for what one costs.")] = 500,
    batch: Annotated[int, typer.Option(help="Texts a step.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens a text is cut at.")] = 128,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default the method's for small encoders.")] = None,
    eps: Annotated[float | None, typer.Option(help="Length of a perturbation; default the method's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the batches and the directions.")] = 0,
    text: Annotated[str, typer.Option(help="Name of the column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="Name of the column of labels.")] = "label",
    words: Annotated[
        str | None, typer.Option(help="For a language model: class=word,class=word; it answers with these.")
    ] = None,
    template: Annotated[str, typer.Option(help="With --words: what stands before the word.")] = "{text} It was",
    hold_out: Annotated[float, typer.Option(help="Share of the texts kept for measuring.")] = 0.2,
    save: Annotated[
        str | None, typer.Option(help="model (a checkpoint), adapter (what was tuned), log (seed and two numbers a step), where the method has it.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A summary as one JSON document on standard output.")] = False,
) -> None:
    """Fine-tune a checkpoint on labelled texts in little memory: accuracy before and after, peak memory, time left."""
    try:
        from probatum.data.texts import read_labelled
        from probatum.finetune.job import Job, run
        from probatum.finetune.methods import METHODS
    except ImportError as error:
        raise MissingExtra(f"finetune needs {error.name}: pip install 'probatum[finetune]'") from None
    if method == "list":
        _methods(METHODS, json)
        return
    job = Job(
        model, method, steps, batch, length, lr, eps, seed, _words(words) if words else None, template, hold_out, save
    )
    job.check()
    texts = read_labelled(data, text=text, label=label)
    with interruptible(), _screen(method, steps, json) as screen:
        outcome = run(job, texts, out, overwrite=overwrite, watch=screen, device=device)
    if json:
        print_json({"method": method, "out": str(out), **vars(outcome)})
        return
    if outcome.kept:
        console().print(f"finished before: {out}", soft_wrap=True)
    console().print(
        f"{method}: accuracy {outcome.before:.3f} -> {outcome.after:.3f} on {outcome.held_out} held-out texts, {outcome.tuned:,} numbers tuned, "
        f"peak memory {size(outcome.peak_memory)}, {duration(outcome.seconds)}: {out}",
        soft_wrap=True,
    )


def _screen(method: str, steps: int, json: bool) -> Any:
    """A bar with time left on a terminal, a line a tenth of the steps elsewhere; and the memory of this process."""
    from probatum.evidence.process import peak_memory, reset_peak_memory
    from probatum.finetune.job import Watch

    class Screen(Watch):
        def __init__(self) -> None:
            self.out = console(to_stderr=True)
            self.bar = progress_bar(self.out)
            self.task = self.bar.add_task("opening the model", total=steps)
            self.told = 0

        def __enter__(self) -> "Screen":
            self.bar.start()
            return self

        def __exit__(self, *_: object) -> None:
            self.bar.stop()

        def start(self) -> None:
            reset_peak_memory()

        def step(self, step: int, loss: float) -> None:
            done = step + 1
            self.bar.update(self.task, completed=done, description=f"{method}: step {done} of {steps}, loss {loss:.3f}")
            if not self.out.is_terminal and not json and done * 10 // steps > self.told:
                self.told = done * 10 // steps
                self.out.print(f"step {done} of {steps}, loss {loss:.3f}")

        def peak_memory(self) -> int:
            return peak_memory()

    return Screen()


def _words(given: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given.split(",")]
    if not all(name.strip() and word.strip() for name, _, word in pairs):
        raise ProbatumError(f"--words must be class=word,class=word, got {given!r}")
    return {name.strip(): word.strip() for name, _, word in pairs}


def _methods(methods: dict[str, Any], json: bool) -> None:
    rows = [
        {"method": m.name, "about": m.about, "paper": m.paper, "forwards a step": m.forwards, "lr": m.grid[1]} for m in methods.values()
    ]
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("method", "what it does", "forwards a step", "lr", box=None)
    for row in rows:
        table.add_row(row["method"], row["about"], f"{row['forwards a step']:g}", f"{row['lr']:g}")
    console().print(table)
