"""A conversation with a finished model in the terminal, by its own template and stop tokens: `python -m trainer.finished.chat MODEL`.

Owns the turns and what is printed as it is generated. Lines come from standard input, so that a script can speak with a model too.
Ctrl-C ends an answer, a second one (or /quit, or the input's end) the conversation.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.run.exits import BadInput, ExitCode

COMMANDS = "/reset forgets what was said, /system TEXT sets the system message, /quit ends"
SMALL_BYTES = 4 << 30
"""Weights up to here are computed in fp32 on a CPU, larger ones in bf16."""


@dataclass
class Conversation:
    system: str
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, *self.turns] if self.system else list(self.turns)


class Speaker:
    """A loaded model, and its tokenizer. Raises BadInput where the folder holds none that speaks."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        is_on_gpu = torch.cuda.is_available()
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        dtype = torch.float32 if not is_on_gpu and size <= SMALL_BYTES else torch.bfloat16
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError, ImportError) as error:
            raise BadInput(f"{folder}: does not load: {(str(error).strip().splitlines() or [''])[0]}") from error
        if self.tokenizer.chat_template is None:
            raise BadInput(f"{folder}: its tokenizer has no chat template: it is no model to chat with")
        self.model = model.to("cuda" if is_on_gpu else "cpu").eval()

    def answer(self, conversation: Conversation, max_new_tokens: int, is_greedy: bool) -> str:
        """The next answer, printed as it comes. Raises BadInput where the template refuses the turns, or they are too long."""
        import torch
        from jinja2 import TemplateError

        try:
            ids = self.tokenizer.apply_chat_template(
                conversation.messages(), add_generation_prompt=True, return_dict=False, tokenize=True
            )
        except TemplateError as error:
            raise BadInput(f"the model's template does not take this: {error}") from error
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and len(ids) >= room:
            raise BadInput(f"{len(ids)} tokens were said, and the model reads {room}: /reset")
        tensor = torch.tensor([ids], device=self.model.device)
        printer = Printer(self.tokenizer)
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1} if is_greedy else {}
        if room is not None:
            max_new_tokens = min(max_new_tokens, room - len(ids))
        try:
            with torch.no_grad():
                self.model.generate(
                    tensor,
                    attention_mask=torch.ones_like(tensor),
                    max_new_tokens=max_new_tokens,
                    streamer=printer,
                    **options,
                )
        except KeyboardInterrupt:  # of a person who has read enough
            printer.end()
        print(flush=True)
        return printer.said


class Printer:
    """Prints an answer as its tokens come: transformers' protocol of a streamer. A character of several tokens waits for its last."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids, self.said = tokenizer, list[int](), ""
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Token ids, the prompt's first."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += value.reshape(-1).tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            self._print(text)

    def end(self) -> None:
        self._print(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _print(self, text: str) -> None:
        new = text[len(self.said) :]
        self.said = text
        shown = "".join(
            c if c.isprintable() or c in "\n\t" else "\ufffd" for c in new
        )  # it may write what moves a terminal
        print(shown, end="", flush=True)


def converse(speaker: Speaker, conversation: Conversation, max_new_tokens: int, is_greedy: bool) -> None:
    """Turns until the input ends."""
    is_person = sys.stdin.isatty()
    if is_person:
        print(COMMANDS, file=sys.stderr)
    while True:
        try:
            line = input("> ") if is_person else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not is_person and not line:
            return
        line = line.strip()
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            conversation.turns.clear()
        elif command == "/system":
            conversation.system = rest.strip()
        elif command.startswith("/"):
            print(f"no such command; {COMMANDS}", file=sys.stderr)
        elif line:
            conversation.turns.append({"role": "user", "content": line})
            try:
                said = speaker.answer(conversation, max_new_tokens, is_greedy)
                conversation.turns.append({"role": "assistant", "content": said})
            except BadInput as error:
                conversation.turns.pop()
                print(f"dolphin: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.finished.chat", description="Speak with a finished model.")
    parser.add_argument("model", type=Path, help="the model folder")
    parser.add_argument("--system", default="", help="the system message")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="length of an answer at most (512)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    options = parser.parse_args()
    try:
        converse(Speaker(options.model), Conversation(options.system), options.max_new_tokens, options.greedy)
    except BadInput as error:
        print(f"dolphin: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)


if __name__ == "__main__":
    main()
