"""The Typer application: every command, in the order of the help."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli import finished, jobs, machine, models, runs

app = typer.Typer(
    name="dolphin",
    help="One file in, a fine-tuned language model out: on spot GPUs, in docker, or on a CPU.",
    epilog="Exit codes: 0 done; 1 the job failed, was preempted or lost; 2 a bad job or command line; 3 no capacity; 4 the "
    "backend or its credentials; 5 stopped, by you or by the job's own limits; 130 left by Ctrl-C, the run goes on.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
for group in (jobs, runs, finished, models, machine):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("dolphin-launcher"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """`debug` is taken out by `main`, wherever it stands; it is here for the help."""
