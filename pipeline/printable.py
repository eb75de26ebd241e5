"""Text that came from data, made safe to show: no file name and no task text may move a reader's cursor.

Ground floor: imports nothing of this project.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Control and format characters (among them what turns the direction of text), lone surrogates (what a file name that
# is not UTF-8 decodes to; printing one fails), private and unassigned characters, line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: object) -> str:
    """`text` in one line, with whatever a terminal would obey written as an escape: `\\x1b[2J` instead of a cleared
    screen, `\\n` instead of a line that the text made up."""
    return "".join(_escaped(character) if _is_hidden(character) else character for character in str(text))


def printable_lines(text: object) -> str:
    """The same for a text of ours that has several lines: its line ends stay."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def listed(indexes: Sequence[int], limit: int = 5) -> str:
    """The first few of them, and how many more there are."""
    shown = ", ".join(map(str, indexes[:limit]))
    return f"{shown} and {len(indexes) - limit} more" if len(indexes) > limit else shown


def error_line(error: Exception) -> str:
    """What a command says on stderr of an error that its user can mend: its kind, and its text made safe."""
    return printable_lines(f"{type(error).__name__}: {error}")


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
