"""Names that others chose, shown so that they can do no harm: on a terminal, in Markdown, in YAML, in a command."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

LONGEST = 200
"""Characters of a name that are shown; a longer one is cut."""

_CODE = re.compile(r"[\w.,:=+\-\[\]/@]+( [\w.,:=+\-\[\]/@]+)*")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)


def plain(text: str) -> str:
    r"""Text that a terminal shows as it is: what cannot be printed is escaped, what is long is cut.

    Example:
        >>> plain("site\x1b[2J\n")
        'site\\x1b[2J\\n'
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: LONGEST + 1]
    )
    return shown if len(shown) <= LONGEST else shown[:LONGEST] + "…"


def markdown(text: str) -> str:
    """A name as Markdown, in a table too: an ordinary one as code, any other one character by character.

    A numeric entity stands for its character and cannot begin emphasis, a link, a cell or HTML.

    Example:
        >>> markdown("layers.0.q_proj"), markdown("<b>|")
        ('`layers.0.q_proj`', '&#60;b&#62;&#124;')
    """
    shown = plain(text)
    if _CODE.fullmatch(shown):
        return f"`{shown}`"
    return "".join(c if c.isalnum() or c in " .-" else f"&#{ord(c)};" for c in shown)


def is_hub_name(name: str) -> bool:
    """Whether a base model's name is one that the hub could have: no path, no markup.

    Example:
        >>> is_hub_name("org/model-7b"), is_hub_name("/models/7b"), is_hub_name("a: b")
        (True, False, False)
    """
    return _HUB_NAME.fullmatch(name) is not None and len(name) <= LONGEST


def yaml(text: str) -> str:
    """A string in JSON's quotes, which are YAML's too; nothing that YAML forbids is left unescaped."""
    return json.dumps(plain(text), ensure_ascii=False)


def command_line(arguments: Sequence[str]) -> str:
    r"""Arguments as one line for a shell.

    Example:
        >>> command_line(["florana", "a b", "c\n"])
        "florana 'a b' $'c\\x0a'"
    """
    return " ".join(_quoted(argument) for argument in arguments)


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    text = argument.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escaped(c) for c in text) + "'"


def _escaped(character: str) -> str:
    undecodable = "\udc80" <= character <= "\udcff"  # a byte of a file's name that is no UTF-8
    encoded = character.encode("utf-8", "surrogateescape" if undecodable else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in encoded)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    shown = ", ".join(plain(name) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
