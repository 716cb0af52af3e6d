"""The `dolphin` command: parse, delegate, exit code. Nothing is decided here.

The tops import the standard library and typer alone, so that `dolphin --help` is quick (tested): each command imports what it needs.
"""

from launcher.cli.app import app
from launcher.cli.main import main

__all__ = ["app", "main"]
