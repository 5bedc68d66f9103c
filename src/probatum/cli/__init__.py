"""`probatum`, the command line. Each module holds a group of commands and loads what it needs when one is called."""

import sys

__all__ = ["app", "main"]


def app():
    """The typer application with every command."""
    import typer

    from probatum.cli import browse, check, compare, jobs, report

    application = typer.Typer(
        help="Efficient deep learning, tested: use a published method, re-run its claim, or ask which one to take.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for group in (browse, check, compare, report, jobs):
        group.add_to(application)
    return application


def main() -> None:
    """Entry point: bad input ends with one line and status 2 and something that cannot run here with 3."""
    from probatum.errors import MissingExtra, NotHere, ProbatumError

    try:
        app()()
    except (MissingExtra, NotHere) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except ProbatumError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has gone (| head)
        sys.stderr.close()
        raise SystemExit(141) from None
