"""Commands of a finished model. Parse and delegate: each imports what it needs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

app = typer.Typer()

Model = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run id or its beginning, or a model folder.", show_default=False)
]


@app.command()
def export(
    source: Model,
    to: Annotated[Literal["gguf"], typer.Option("--to", help="The format: gguf, for llama.cpp and Ollama.")] = "gguf",
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m; may be repeated.")
    ] = None,
) -> int:
    """Write a finished model in another format, and read it back."""
    from launcher.commands.export import export_command

    return export_command(source, kind or ())


@app.command("eval")
def eval_(
    source: Model,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", metavar="A,B", help="Names of lm-evaluation-harness, or task files.", show_default=False
        ),
    ],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions of each task.")] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="What to compare with; a run's own base where not given; none for nothing."),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put questions into the chat template.")
    ] = False,
) -> int:
    """Ask a finished model and its base the same tasks."""
    from launcher.commands.evaluate import eval_command

    return eval_command(source, tasks, limit, base, chat_template)


@app.command()
def push(
    source: Model,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="OWNER/NAME", help="Where to; a job's push.repo where not given.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> int:
    """Publish a finished model to the hub, and verify what is there."""
    from launcher.commands.push import push_command

    return push_command(source, repo, public)


@app.command()
def chat(
    source: Model,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system message.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of an answer at most.")] = 512,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
) -> int:
    """Speak with a finished model in the terminal."""
    from launcher.commands.talk import chat_command

    return chat_command(source, system, max_new_tokens, greedy)


@app.command()
def serve(source: Model, port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000) -> int:
    """Serve a finished model by OpenAI's API, to this machine alone."""
    from launcher.commands.talk import serve_command

    return serve_command(source, port)
