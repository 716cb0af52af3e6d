"""Commands on this machine. Parse and delegate: each imports what it needs."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.arguments import Json

app = typer.Typer()


@app.command()
def doctor(
    json_: Json = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="First set up what dolphin can: SkyPilot's plugin that keeps deadlines.")
    ] = False,
) -> int:
    """Check this machine, backend by backend, and say what to do."""
    from launcher.commands.doctor import doctor_command

    return doctor_command(json_wanted=json_, is_fixing=fix)
