"""Jobs: a verb each, the paper behind it as an option."""

import typer


def add_to(application: typer.Typer) -> None:
    """Add every job whose first paper is built."""
