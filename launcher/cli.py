"""The `dolphin` command: parse, delegate, exit code. Nothing is decided here.

The top imports the standard library and typer alone, so that `dolphin --help` is quick (tested): each command
imports what it needs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="dolphin",
    help="One file in, a fine-tuned language model out: on spot GPUs, in docker, or on a CPU.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
spectrum = typer.Typer(
    help="Choose the layers to train by signal-to-noise ratio.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(spectrum, name="spectrum")

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
    force: Annotated[bool, typer.Option("--force", help="Start also what does not fit.")] = False,
    json_: Json = False,
) -> int:
    """Show the plan, start the job, and follow it to its model."""
    from launcher.commands.launch import LaunchOptions
    from launcher.commands.launch import launch as launch_command

    sky_options = {"cluster": cluster, "yes_lose_progress": yes_lose_progress}
    stated = {name: value for name, value in sky_options.items() if value}
    return launch_command(job, LaunchOptions(on, nproc, set_ or (), yes, force, detach, json_, stated))


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
    json_: Json = False,
) -> int:
    """Phase, step, loss, speed, time left and price of a run."""
    from launcher.commands import runs
    from launcher.runs import ledger

    if all_ or (run is None and not ledger.all_runs()):
        return runs.status_of_all(json_wanted=json_)
    return runs.status(ledger.find(run), json_wanted=json_)


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
def resume(run: OneRun, nproc: Nproc = None, detach: Detach = False, set_: Set = None, json_: Json = False) -> int:
    """Go on with a stopped run from its last checkpoint."""
    from launcher.commands.launch import LaunchOptions
    from launcher.commands.launch import resume as resume_command
    from launcher.runs import ledger

    options = LaunchOptions(nproc=nproc, overrides=set_ or (), is_detached=detach, as_json=json_)
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
    """Take over a run from its bucket, where this machine knows nothing of it."""
    from launcher.commands.adopt import adopt_command

    return adopt_command(url)


@app.command()
def merge(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run id or its beginning, or an adapter's folder.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; it must not exist.")],
) -> int:
    """Make one model of an adapter and its base."""
    from launcher.commands.merge import merge_command

    return merge_command(source, target)


@app.command()
def forget(run: OneRun) -> int:
    """Take a run that is over out of the list; its results are kept."""
    from launcher.commands import runs
    from launcher.runs import ledger

    return runs.forget(ledger.find(run))


@app.command()
def doctor(json_: Json = False) -> int:
    """Check this machine, backend by backend, and say what to do."""
    from launcher.commands.doctor import doctor_command

    return doctor_command(json_wanted=json_)


@spectrum.command("scan")
def spectrum_scan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or hub id.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write the ratios.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Matrices at once; fewer need less memory.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
) -> int:
    """Measure a model's signal-to-noise ratios."""
    from launcher.commands.spectrum import scan_command

    return scan_command(model, output, device=device, batch=batch, revision=revision)


@spectrum.command("select")
def spectrum_select(
    snr: Annotated[str, typer.Argument(metavar="SNR.JSON", help="What `scan` wrote.")],
    top: Annotated[str, typer.Option("--top", metavar="PERCENT", help="Share of each module type.")] = "50%",
    json_: Json = False,
) -> int:
    """Print the patterns of the layers with the highest ratios."""
    from launcher.commands.spectrum import select_command

    return select_command(snr, top, json_)


@spectrum.command("names")
def spectrum_names(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or hub id.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
    json_: Json = False,
) -> int:
    """List a model's parameter names, for train.unfrozen."""
    from launcher.commands.spectrum import names_command

    return names_command(model, revision, json_)


def main() -> None:
    """Entry point. Every error that is not a defect of dolphin is one or two lines, without a traceback."""
    _take_no_strangers_modules()
    from launcher import streams

    streams.mend()
    _obey_no_strangers_escapes()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # Looking for pydantic plugins reads the metadata of every installed package: a tenth of `dolphin validate`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(args=arguments, prog_name="dolphin", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = _interrupted()
    except BrokenPipeError:  # `dolphin logs | head`: the reader has enough
        streams.discard_output()
        code = _interrupted()
    except Exception as error:
        from launcher.commands.explain import explain

        code = explain(error, debug)
    try:
        sys.stdout.flush()
    except OSError:  # else the end of the process tries again, and has a code of its own for it
        streams.discard_output()
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted() -> int:
    from launcher.runs.states import EXIT_CODES, EndReason

    return EXIT_CODES[EndReason.DETACHED]


def _take_no_strangers_modules() -> None:
    """A `trainer.py` on PYTHONPATH or in the working folder is not dolphin's."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from trainer.run import python

    del sys.path[0]
    python.protect()


def _obey_no_strangers_escapes() -> None:
    """What commands print goes through one filter: names, data, logs and servers' answers are strangers' words."""
    from launcher.config.untrusted import Shown

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, Shown(stream))


if __name__ == "__main__":
    main()
