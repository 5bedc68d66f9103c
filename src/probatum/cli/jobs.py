"""Jobs: a verb each, the paper behind it as an option. A verb appears when its first paper is built."""

from importlib import import_module

import typer

# Verb -> module of this package whose function of the same name does it.
VERBS = ("cascade", "finetune", "match", "upscale")


def add_to(application: typer.Typer) -> None:
    """Add every job."""
    for verb in VERBS:
        application.command(verb)(getattr(import_module(f"probatum.cli.{verb}"), verb))
