"""Commands on a model. Parse and delegate: each imports what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.arguments import Json

app = typer.Typer()
spectrum = typer.Typer(
    help="Choose the layers to train by signal-to-noise ratio.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(spectrum, name="spectrum")


@app.command()
def merge(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run id or its beginning, or an adapter's folder.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; it must not exist.")],
) -> int:
    """Make one model of an adapter and its base."""
    from launcher.commands.merge import merge_command

    return merge_command(source, target)


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


@app.command()
def sample(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A model's or adapter's folder, or a run id.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What you say; else the run's held-out one.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="An adapter's base, where it lies elsewhere.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 80,
) -> int:
    """Ask a model one question, on this machine's CPU."""
    from launcher.commands.sample import sample_command

    return sample_command(source, prompt, base, max_tokens)
