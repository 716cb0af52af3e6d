"""`dolphin chat` and `dolphin serve`: a finished model in the terminal, and behind an endpoint on loopback. Owns what the commands take.

The endpoint is vLLM's where that is installed, else transformers' own; dolphin has none.
"""

from __future__ import annotations

import importlib.util

from launcher.commands import finished_model, trainer_side
from launcher.follow import screen
from launcher.runs.errors import BadUsage

LOOPBACK = "127.0.0.1"


def chat_command(source: str, system: str, max_new_tokens: int, greedy: bool) -> int:
    """Speak with a model; lines from standard input, answers on standard output."""
    trainer_side.require("chat", "torch", "transformers", extras="train")
    model = finished_model.find(source)
    options = ["--system", system, "--max-new-tokens", str(max_new_tokens), *(["--greedy"] if greedy else [])]
    trainer_side.run("trainer.finished.chat", str(model.folder), *options, failed=f"{source} does not speak")
    return 0


def serve_command(source: str, port: int) -> int:
    """Serve OpenAI's chat API on loopback until it is interrupted."""
    trainer_side.require("serve", "torch", "transformers", extras="train,serve")
    model = finished_model.find(source)
    if importlib.util.find_spec("vllm") is not None:
        arguments = [
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model.folder),
            "--served-model-name",
            model.name,
        ]
    elif importlib.util.find_spec("openai") is not None:
        arguments = ["transformers.cli.transformers", "serve", str(model.folder)]
    else:
        raise BadUsage(
            "dolphin serve needs vLLM (pip install vllm), or transformers' own server: pip install 'dolphin-launcher[serve]'"
        )
    screen.say(f"{model.folder}: http://{LOOPBACK}:{port}/v1/chat/completions, for this machine alone; Ctrl-C ends it")
    trainer_side.run(*arguments, "--host", LOOPBACK, "--port", str(port), failed=f"{source} is not served any more")
    return 0
