"""The default data, read by a process of its own while this one still loads its libraries.

Parsing the standard library takes as long as importing torch, transformers and PEFT, and needs none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys

_PROGRAM = "import json, sys; from florana.tasks import docstrings; json.dump(docstrings.found(), sys.stdout)"
_reading: list[subprocess.Popen[bytes]] = []


def read_ahead() -> None:
    """Begin to read the docstrings of the standard library; :func:`taken` has them."""
    if sys.executable and not _reading:
        command = [sys.executable, "-c", _PROGRAM]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        _reading.append(process)


def taken() -> list[tuple[str, str]] | None:
    """What was read, as (docstring, part of the library); None if nobody asked for it or the process failed.

    The caller then reads them itself, to the same end, and finds out what is wrong.
    """
    if not _reading:
        return None
    process = _reading.pop()
    text, _ = process.communicate()
    return None if process.returncode else [(doc, part) for doc, part in json.loads(text)]
