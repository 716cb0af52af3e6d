"""Text of strangers on a person's terminal: data, logs, model names and servers' answers may hold commands to it.

A terminal that obeys them writes the clipboard (OSC 52), makes links to elsewhere (OSC 8), renames its window, moves the cursor
over what was said, or turns letters around. Owns what passes: letters, line ends, tabs and colours. All else is shown as the
escape that JSON writes for it, so that JSON on standard output stays what it was. Refuses to know what is printed.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

_COLOUR = r"\x1b\[[0-9;:]*m"
_COMMANDS = (
    r"\x1b\][^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # operating system commands: clipboard, links, titles
    r"|\x1b[P_^X][^\x1b\x9c\n]*(?:\x1b\\|\x9c)"  # device control, application, privacy, start of string
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # the cursor, the screen, modes, colours
    r"|\x1b[ -/]*[0-~]"
)
# The same commands in their one-letter forms (U+0080 to U+009F) lose that letter alone: JSON does not escape it.
_UNSEEN = "\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
"""Control characters, marks that turn the direction of writing, letters that nobody sees; tab and line feed are not among them, nor what
terminals pass over (U+0000, U+2028)."""
_TO_SHOW = re.compile(f"(?P<colour>{_COLOUR})|(?P<command>{_COMMANDS})|(?P<end>\r+\n?)|(?P<unseen>[{_UNSEEN}])")
_RESET = "\x1b[0m"


def shown(text: str, *, is_terminal: bool = True) -> str:
    """`text` as a terminal may have it. A colour that is begun ends with the text. In a pipe or a file lines keep their
    carriage returns; on a terminal what is drawn over itself is shown line by line."""
    if text.isascii() and text.isprintable():
        return text
    clean = _TO_SHOW.sub(_replacement if is_terminal else _replacement_in_a_file, text)
    last = clean.rfind("\x1b[")
    if last < 0 or re.match(r"\x1b\[[0:;]*m", clean[last:]):
        return clean
    body = clean.rstrip("\n")
    return f"{body}{_RESET}{clean[len(body) :]}"


def _replacement(match: re.Match[str]) -> str:
    if match.lastgroup == "colour":
        return match.group()
    if match.lastgroup == "command":
        return ""
    return "\n" if match.lastgroup == "end" else _escaped(match.group())


def _replacement_in_a_file(match: re.Match[str]) -> str:
    return match.group() if match.lastgroup == "end" else _replacement(match)


def _escaped(letter: str) -> str:
    number = ord(letter)
    if number < 0x10000:
        return f"\\u{number:04x}"
    return "".join(
        f"\\u{unit:04x}" for unit in (0xD800 + (number - 0x10000 >> 10), 0xDC00 + (number - 0x10000 & 0x3FF))
    )


class Shown:
    """A text stream that passes on what may be shown; everything but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream
        self._is_terminal = stream.isatty()

    def write(self, text: str) -> int:
        self.raw.write(shown(text, is_terminal=self._is_terminal))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """The stream beneath, for a program that moves the cursor itself and shows strangers' text by `shown`."""
    return stream.raw if isinstance(stream, Shown) else stream
