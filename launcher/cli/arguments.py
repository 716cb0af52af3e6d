"""Arguments that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Job = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job file.", show_default=False)]
Run = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run id or its beginning; the newest run where not given.")
]
OneRun = Annotated[str, typer.Argument(metavar="RUN", help="A run id or its beginning.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as train.max_steps=20.")
]
Nproc = Annotated[int | None, typer.Option("--nproc", min=1, help="Ranks on the node.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output, for scripts.")]
Detach = Annotated[bool, typer.Option("-d", "--detach", help="Return at once; the run goes on.")]
Force = Annotated[bool, typer.Option("--force", help="Start also what does not fit.")]
