"""Commands on a run that exists. Parse and delegate: each imports what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.cli.arguments import Detach, Force, Json, Nproc, OneRun, Run, Set

app = typer.Typer()


@app.command()
def logs(
    run: Run = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Print what there is, and end.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Begin with the last N lines.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="AGE", help="Begin with lines of this age, as 10m or 2h.")
    ] = None,
) -> int:
    """Follow a run's log, from any moment; its exit code is the run's."""
    from launcher.commands import runs
    from launcher.follow.follow import LogFrom, parse_age
    from launcher.runs import ledger

    start = LogFrom(tail, parse_age(since) if since is not None else None)
    return runs.logs(ledger.find(run), start, is_following=not no_follow)


@app.command()
def status(
    run: Run = None,
    all_: Annotated[bool, typer.Option("--all", help="A table of every run.")] = False,
    watch_: Annotated[bool, typer.Option("--watch", help="Stay, and show it as `dolphin watch` does.")] = False,
    json_: Json = False,
) -> int:
    """Phase, step, loss, speed, time left and price of a run.

    Without a name: of the newest, or a table where several are active.
    """
    from launcher.commands import runs
    from launcher.runs import ledger

    if watch_:
        return watch(run)
    if all_ or (run is None and not ledger.all_runs()):
        return runs.status_of_all(json_wanted=json_)
    if run is None and not json_:
        return runs.status_of_newest()
    return runs.status(ledger.find(run), json_wanted=json_)


@app.command()
def watch(run: Run = None) -> int:
    """A run on the whole terminal, while it goes on.

    q leaves it alone, n shows the next one, s saves and stops it.
    """
    from launcher.commands.watch import watch_command

    return watch_command(run)


@app.command("down")
def down_(
    run: Run = None,
    grace: Annotated[float, typer.Option("--grace", min=0, help="Seconds that the trainer has to save.")] = 60.0,
    now: Annotated[bool, typer.Option("--now", help="Kill at once; steps since the last save are lost.")] = False,
) -> int:
    """Stop a run, and return once it is known to be gone."""
    from launcher.commands.down import down

    return down(run, 0.0 if now else grace)


@app.command()
def resume(
    run: OneRun,
    nproc: Nproc = None,
    detach: Detach = False,
    set_: Set = None,
    json_: Json = False,
    force: Force = False,
) -> int:
    """Go on with a stopped run from its last checkpoint."""
    from launcher.commands.launch import LaunchOptions
    from launcher.commands.launch import resume as resume_command
    from launcher.runs import ledger

    options = LaunchOptions(nproc=nproc, overrides=set_ or (), is_forced=force, is_detached=detach, as_json=json_)
    return resume_command(ledger.find(run), options)


@app.command()
def fetch(
    run: OneRun,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    what: Annotated[Literal["model", "checkpoints", "log"], typer.Option("--what", help="Which part.")] = "model",
) -> int:
    """Bring a run's model folder home."""
    from launcher.commands import runs
    from launcher.runs import ledger

    return runs.fetch(ledger.find(run), target, what)


@app.command()
def adopt(
    url: Annotated[str, typer.Argument(metavar="URL", help="Its place, as s3://bucket/prefix/RUN.")],
) -> int:
    """Take over a run of another machine's from its bucket."""
    from launcher.commands.adopt import adopt_command

    return adopt_command(url)


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run ids or their beginnings; the newest run where none is given."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.html", help="Where to write; into the run's folder else."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the pages of all runs on this machine alone, updating themselves.")
    ] = False,
) -> int:
    """One page of what a run did, or of several side by side."""
    from launcher.commands.report import report_command, serve_command
    from launcher.runs.errors import BadUsage

    if live and (runs or output):
        raise BadUsage("--live serves every run, and writes no file; leave out the runs and -o")
    return serve_command() if live else report_command(runs or [], output)


@app.command()
def forget(run: OneRun) -> int:
    """Take a run that is over out of the list; its results are kept."""
    from launcher.commands import runs
    from launcher.runs import ledger

    return runs.forget(ledger.find(run))


@app.command()
def samples(
    run: Run = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Show N evaluations side by side.")] = 5,
    json_: Json = False,
) -> int:
    """What the model answered at each evaluation, over the steps."""
    from launcher.commands.samples import samples_command
    from launcher.runs import ledger

    return samples_command(ledger.find(run), steps, json_)
