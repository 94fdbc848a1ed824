"""What it takes to check a completion, and the program that a completion makes."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Self

from florana.sandbox.errors import SandboxError

FENCE = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL
)
"""A fenced block of Markdown; the last may be cut off by the limit on new tokens."""
LANGUAGES = ("", "python", "python3", "py")
FENCE_LINE = re.compile(r"^[ \t]*```[ \t]*(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reference:
    """What it takes to check a completion.

    Args:
        tests: source that ends without an exception if the program is right.
        prompt: source that the completion continues, such as the head of a function; empty if completions are whole programs.
        entry_point: the function that is asked for, if it has a name that is known.
        stops: texts at which a completion ends; what a model writes from there on is not its answer.
    """

    tests: str
    prompt: str = ""
    entry_point: str | None = None
    stops: tuple[str, ...] = ()

    def text(self) -> str:
        """As JSON text, for the column of references."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        """Read back what :meth:`text` wrote.

        Raises:
            SandboxError: if it is something else, or its tests are not Python.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            made = cls(**(found | {"stops": tuple(found.get("stops", ()))}))
            compile(made.tests, "tests", "exec", dont_inherit=True)
        except (ValueError, TypeError, AttributeError, SyntaxError) as error:
            raise SandboxError(
                f"the reference of a program must be JSON with tests, prompt, entry_point and stops, not {text[:80]!r}: {error}"
            ) from None
        return made


def program(completion: str, reference: Reference) -> str:
    r"""The program that a completion makes.

    - A fenced block (```` ```python ````) of a chat answer is taken out: the first that defines the entry point, else the first of
      Python. It is not cut at stops.
    - Text in front of a closing fence is taken likewise: then the prompt had opened it.
    - A whole program is one that defines the entry point in its first column. It takes the place of the head in the prompt,
      behind the prompt's imports.
    - Anything else continues the prompt, and ends at the first stop.

    Args:
        completion: what a model wrote.
        reference: what it was asked.

    Example:
        >>> head = Reference("assert one() == 1", "def one():\n", "one", ("\ndef",))
        >>> print(program("    return 1\n\ndef two():", head))
        def one():
            return 1
        <BLANKLINE>
        >>> print(program("Sure!\n```python\nreturn_value = 1\n```", Reference("")))
        return_value = 1
        <BLANKLINE>
    """
    fenced = _fenced(completion, reference.entry_point)
    code = completion if fenced is None else fenced
    if reference.prompt and _defines(code, reference.entry_point):
        head = re.search(_head(reference.entry_point), reference.prompt, re.MULTILINE)
        return f"{reference.prompt[: head.start() if head else None]}\n{code}"
    return reference.prompt + (_cut(code, reference.stops) if fenced is None else code)


def _fenced(text: str, entry_point: str | None) -> str | None:
    marks = list(FENCE_LINE.finditer(text))
    if len(marks) % 2 and not marks[0][1].strip() and text[: marks[0].start()].strip():
        return text[: marks[0].start()]
    blocks = [found[2] for found in FENCE.finditer(text) if found[1].lower() in LANGUAGES]
    defining = (block for block in blocks if _defines(block, entry_point))
    return next(defining, blocks[0] if blocks else None)


def _defines(code: str, entry_point: str | None) -> bool:
    return entry_point is not None and bool(re.search(_head(entry_point), code, re.MULTILINE))


def _head(entry_point: str | None) -> str:
    return rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point or '')}\b"


def _cut(text: str, stops: tuple[str, ...]) -> str:
    start = len(text) - len(text.lstrip())  # an answer does not end before it begins
    ends = [end for stop in stops if (end := text.find(stop, start)) >= 0]
    return text[: min(ends, default=len(text))]
