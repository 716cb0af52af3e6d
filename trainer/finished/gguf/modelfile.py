"""An Ollama Modelfile: which file, what a conversation looks like, where an answer stops.

Ollama's templates are Go's. What goes before and behind each role's words is taken from what the tokenizer's own template writes, and
kept only where conversations put together so are the very texts of that template.
"""

from __future__ import annotations

from pathlib import Path

from trainer.finished.gguf.tokens import Tokens

MARKS = {"system": "\ufffcA\ufffc", "user": "\ufffcB\ufffc", "assistant": "\ufffcC\ufffc"}
TRIED = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


def of(tokens: Tokens, file_name: str, folder: Path) -> tuple[str, bool]:
    """The Modelfile, and whether it holds the template."""
    lines = [f"FROM ./{file_name}"]
    around, begins = _around(tokens, folder)
    if around is not None:
        lines.append(f'TEMPLATE """{begins}{go_template(around)}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in tokens.stops]
    return "\n".join(lines) + "\n", around is not None


def go_template(around: dict[str, tuple[str, str]]) -> str:
    """As Go has it: each message with what its role has around it, and the beginning of an answer."""
    branches = ""
    for number, role in enumerate(MARKS):
        before, behind = around[role]
        branches += f'{{{{ {"if" if not number else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
    return f"{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{around['assistant'][0]}"


def put_together(turns: list[tuple[str, str]], around: dict[str, tuple[str, str]]) -> str:
    """What `go_template` writes for (role, words) turns."""
    text = "".join(around[role][0] + words + around[role][1] for role, words in turns)
    return text + around["assistant"][0]


def _around(tokens: Tokens, folder: Path) -> tuple[dict[str, tuple[str, str]] | None, str]:
    """What is before and behind the words of each role (None where no such pairs give the template's texts), and what a
    conversation begins with, where the reader does not put it there itself."""
    if tokens.chat_template is None or '"""' in tokens.chat_template:
        return None, ""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token or ""

    def written(roles: tuple[str, ...], begins_answer: bool = True) -> str:
        turns = [{"role": role, "content": MARKS[role]} for role in roles]
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begins_answer)
        return text.removeprefix(bos)

    try:
        answer = _pieces(written(("user",)), MARKS["user"])
        both = written(("system", "user"), False)
        talk = written(("user", "assistant", "user"), False)
        closes = written(("user",), False).partition(MARKS["user"])[2]
        opens = answer[1].removeprefix(closes)
        user = (answer[0], closes)
        system = (
            both.partition(MARKS["system"])[0],
            both.partition(MARKS["system"])[2].partition(user[0] + MARKS["user"])[0],
        )
        behind = talk.partition(MARKS["assistant"])[2].partition(user[0] + MARKS["user"])[0]
        around = {"system": system, "user": user, "assistant": (opens, behind)}
        for roles in TRIED:
            if put_together([(role, MARKS[role]) for role in roles], around) != written(roles):
                return None, ""
    except Exception:  # a template may insist on other turns
        return None, ""
    if any("{{" in part for pair in around.values() for part in pair):
        return None, ""
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return around, bos if bos and plain.startswith(bos) and not tokens.adds_bos else ""


def _pieces(text: str, mark: str) -> tuple[str, str]:
    before, found, behind = text.partition(mark)
    if not found:
        raise ValueError("the template does not write what the user says")
    return before, behind


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
