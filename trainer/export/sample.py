"""A sample answer: the exported folder loaded as anyone would load it, and asked one question.

Owns the choice of a held-out prompt and how question and answer are shown. Refuses to know ranks and DeepSpeed. Run by
hand it asks any model or adapter: `python -m trainer.sample MODEL --prompt "What does os.path.join do?"`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.questions import last_question
from trainer.export import load_folder
from trainer.run.exits import BadInput, ExitCode

MAX_WEIGHTS_BYTES = 2 << 30
"""A larger model is not loaded a second time on a node that is paid for by the minute."""
MAX_PROMPT_TOKENS = 200
MIN_ANSWER_TOKENS = 8
MAX_NEW_TOKENS = 80
NUM_TO_LOOK_AT = 500


class HeldOut(NamedTuple):
    prompt: list[int]
    """Token ids up to the first trained one: what the model is given."""
    answer: list[int]
    """Token ids of the answer that the data holds."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.sample", description="Ask an exported model one question.")
    parser.add_argument("model", type=Path, help="the folder of a model or of an adapter")
    parser.add_argument("--prompt", help="what the user says; a held-out prompt of --run where not given")
    parser.add_argument("--run", type=Path, help="the run folder; the one that holds the model where not given")
    parser.add_argument("--base", help="an adapter's base; where its own configuration says, if not given")
    parser.add_argument("--max-tokens", type=int, default=MAX_NEW_TOKENS, help="the longest answer")
    options = parser.parse_args()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries say while they load is no answer
            if options.prompt is not None:
                told = ask(options.model, options.prompt, options.base, options.max_tokens)
            else:
                told = _shown(of_run(options.model, options.run or options.model.resolve().parent, options.base))
    except BadInput as error:
        print(f"dolphin: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    print(told)


def _shown(sample: dict[str, str] | None) -> str:
    found = sample or {"sample": "none: the model is large, or no held-out conversation is short"}
    return "\n".join(f"{name}\n{textwrap.indent(text, '    ')}" for name, text in found.items())


def ask(folder: Path, prompt: str, base: str | None = None, max_tokens: int = MAX_NEW_TOKENS) -> str:
    """The answer to one user's turn, written by the folder's own chat template. Raises BadInput."""
    tokenizer = load_folder.tokenizer_of(folder)
    if tokenizer.chat_template is None:
        raise BadInput(f"{folder} has no chat template: its model continues texts, and answers no one")
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return generate(folder, tokenizer, list(ids), base, max_tokens)


def of_run(model_folder: Path, run_dir: Path, base: str | None = None) -> dict[str, str] | None:
    """`question` (held out of the run), the model's `answer`, and the one `expected` by the data.

    None where the model is too large to be loaded once more, or no held-out conversation is short enough to show.
    """
    if load_folder.size_bytes(model_folder) > MAX_WEIGHTS_BYTES:
        return None
    held_out = choose_held_out(run_dir)
    if held_out is None:
        return None
    tokenizer = load_folder.tokenizer_of(model_folder)
    return {
        "question": last_question(tokenizer, held_out.prompt),
        "answer": generate(model_folder, tokenizer, held_out.prompt, base),
        "expected": tokenizer.decode(held_out.answer, skip_special_tokens=True).strip(),
    }


def generate(
    folder: Path, tokenizer: Any, prompt: list[int], base: str | None = None, max_tokens: int = MAX_NEW_TOKENS
) -> str:
    """The likeliest answer, token by token; always the same for the same folder. Raises BadInput where it does not load."""
    import torch

    model = load_folder.model_of(folder, torch.float32, base)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, num_beams=1
        )
    found: str = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip()
    return found


def held_out_rows(run_dir: Path, count: int = 4, length: int = 256) -> list[list[int]]:
    """Token ids of the first held-out sequences, each cut to `length`; of the training data where nothing is held out."""
    from trainer.data.prepared import Prepared

    prepared = Prepared.open(run_dir)
    chosen = prepared.validation[:count] if len(prepared.validation) else prepared.train[:count]
    return [[int(i) for i in prepared.token_ids(int(sequence))[:length]] for sequence in chosen]


def choose_held_out(run_dir: Path) -> HeldOut | None:
    """The first held-out conversation with a short prompt and more than a word of answer; None where there is none."""
    import numpy as np

    from trainer.data.prepared import Prepared

    prepared = Prepared.open(run_dir)
    for sequence in prepared.validation[:NUM_TO_LOOK_AT]:
        ids = prepared.token_ids(int(sequence))
        is_target = prepared.token_weights(int(sequence)) > 0
        if not is_target.any():
            continue
        first = int(np.argmax(is_target))
        rest = is_target[first:]
        length = int(np.argmin(rest)) if not rest.all() else len(rest)
        if 0 < first <= MAX_PROMPT_TOKENS and length >= MIN_ANSWER_TOKENS:
            return HeldOut([int(i) for i in ids[:first]], [int(i) for i in ids[first : first + length]])
    return None


if __name__ == "__main__":
    main()
