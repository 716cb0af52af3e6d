"""Commands on a job file: `init`, `validate`, `schema`, `data`, `plan`, `launch`, `sweep`. Parse and delegate: each imports what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.arguments import Detach, Force, Job, Json, Nproc, Set

app = typer.Typer()


@app.command()
def init(
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Where to write; - is standard output.")
    ] = "job.yaml",
    from_: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="Convert this axolotl configuration.")
    ] = None,
    set_: Set = None,
) -> int:
    """Write a commented job.yaml, or convert an axolotl configuration."""
    from launcher.commands.init import init_command

    return init_command(output, from_, set_ or ())


@app.command()
def validate(job: Job, set_: Set = None, json_: Json = False) -> int:
    """Report every error of a job, each with its line."""
    from launcher.commands.validate import validate_command

    return validate_command(str(job), set_ or (), json_)


@app.command()
def schema(
    keys: Annotated[
        bool, typer.Option("--keys", help="A page for people instead: type, default, meaning, example of each key.")
    ] = False,
) -> int:
    """Print a JSON Schema of job.yaml, for editors."""
    if keys:
        from launcher.commands.reference import keys_command

        return keys_command()
    from launcher.commands.schema import schema_command

    return schema_command()


@app.command()
def data(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.YAML]", help="The job file.", show_default=False)] = None,
    show: Annotated[
        int, typer.Option("--show", metavar="N", min=0, help="Print N conversations, what is trained in colour.")
    ] = 0,
    formats: Annotated[bool, typer.Option("--formats", help="List the dataset formats.")] = False,
    set_: Set = None,
    json_: Json = False,
) -> int:
    """Prepare the data without training, and show what became of it."""
    from launcher.commands.data import data_command, formats_command
    from launcher.runs.errors import BadUsage

    if formats:
        return formats_command(json_)
    if job is None:
        raise BadUsage("name the job file: dolphin data job.yaml")
    return data_command(job, set_ or (), show, json_)


@app.command()
def plan(
    job: Job,
    on: Annotated[
        str | None, typer.Option("--on", help="Offers of this backend alone: local, docker or sky.", show_default=False)
    ] = None,
    nproc: Nproc = None,
    sequences: Annotated[
        int | None, typer.Option("--sequences", min=1, help="Packed sequences of an epoch, stated.", show_default=False)
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME", help="Mark the offers that make it, as 72h or 3d.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Offers of the cached catalog alone.")] = False,
    set_: Set = None,
    json_: Json = False,
) -> int:
    """Steps, memory, hours and price, before anything is paid."""
    from launcher.commands.plan import PlanOptions, plan_command

    return plan_command(job, PlanOptions(set_ or (), json_, sequences, deadline, offline, on, nproc))


@app.command()
def launch(
    job: Job,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", help="local, docker or sky; not given: as the job says, with accelerators sky.", show_default=False
        ),
    ] = None,
    nproc: Nproc = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Start without asking.")] = False,
    detach: Detach = False,
    set_: Set = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="On sky: this cluster, made where it is missing.")
    ] = None,
    yes_lose_progress: Annotated[
        bool, typer.Option("--yes-lose-progress", help="On sky: spot with no checkpoint store, all the same.")
    ] = False,
    force: Force = False,
    json_: Json = False,
) -> int:
    """Show the plan, start the job, and follow it to its model."""
    from launcher.commands.launch import LaunchOptions
    from launcher.commands.launch import launch as launch_command

    sky_options = {"cluster": cluster, "yes_lose_progress": yes_lose_progress}
    stated = {name: value for name, value in sky_options.items() if value}
    return launch_command(job, LaunchOptions(on, nproc, set_ or (), yes, force, detach, json_, stated))


@app.command()
def sweep(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.YAML]", help="The job file.", show_default=False)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=V,V", help="Values to try, as train.learning_rate=1e-5,2e-5."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0.01, help="US dollars for all runs together.")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Runs at a time.")] = 1,
    on: Annotated[str | None, typer.Option("--on", help="local, docker or sky.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Start without asking.")] = False,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="NAME", help="Go on with this sweep.", show_default=False)
    ] = None,
    json_: Json = False,
) -> int:
    """A run for every combination of settings, under one budget; the worse half is stopped early."""
    from launcher.commands.sweep import SweepOptions, resume_sweep, sweep_command
    from launcher.runs.errors import BadUsage

    if resume is not None:
        if job is not None or set_ or budget or on:
            raise BadUsage("--resume NAME goes on as the sweep began; leave out the job and its settings")
        return resume_sweep(resume, json_)
    if job is None or not set_:
        raise BadUsage("name the job and what to try: dolphin sweep job.yaml --set train.learning_rate=1e-5,2e-5")
    return sweep_command(job, SweepOptions(set_, budget, parallel, on, yes, json_))


@app.command()
def offers(
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.YAML]", help="The job file.", show_default=False)] = None,
    accelerators: Annotated[
        str | None, typer.Option("--accelerators", metavar="NAME:COUNT", help="Of such a node, as L40S:8.")
    ] = None,
    on: Annotated[str | None, typer.Option("--on", help="Of this backend alone: local, docker or sky.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Offers of the cached catalog alone.")] = False,
    set_: Set = None,
    json_: Json = False,
) -> int:
    """Prices, and what earlier runs saw of each place."""
    from launcher.commands.offers import OffersOptions, offers_command

    return offers_command(job, OffersOptions(accelerators, set_ or (), on, offline, json_))
