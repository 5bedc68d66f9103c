"""Jobs: a verb each, the paper behind it as an option."""

import typer

from probatum.cli import upscale


def add_to(application: typer.Typer) -> None:
    """Add every job whose first paper is built."""
    upscale.add_to(application)
