r"""The last ``\boxed{...}`` of a text, in one pass, however deep its braces are nested."""

from __future__ import annotations

import re
from collections import deque

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,9}(?:\{|([^\s{}$\\]+|\\[A-Za-z]+))")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` or ``\fbox{...}``, or behind a ``\boxed`` without braces.

    Args:
        text: any text; a last box whose brace is never closed, as at the end of what a model was allowed to
            write, is no answer.

    Returns:
        None where there is no box, or the last one stays open.

    Example:
        >>> last_boxed(r"Not \boxed{1} but \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> last_boxed(r"so $x=\boxed 7$")
        '7'
    """
    boxes = deque(_BOX.finditer(text), maxlen=1)
    if not boxes:
        return None
    box = boxes[0]
    if box[1] is not None:
        return box[1]
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[box.end() :]):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[box.end() : box.end() + brace.start()]
    return None
