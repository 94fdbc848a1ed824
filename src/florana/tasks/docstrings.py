"""The default data: to which part of Python's standard library does this docstring belong?

It is real text, on every machine that runs Python, and needs no download. Source files are parsed,
never imported. Other versions of Python have somewhat other docstrings; a run's fingerprint tells.
"""

from __future__ import annotations

import ast
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from florana.errors import DataError
from florana.tasks.ahead import taken
from florana.tasks.dataset import TextDataset

MIN_WORDS = 6
"""Shorter docstrings seldom say which part of the library they are from."""

PARTS = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading _threading_local",
    "data formats": "base64 configparser copyreg csv dbm html json pickle pickletools plistlib shelve sqlite3 tomllib xdrlib xml",
    "debugging and testing": "bdb cProfile doctest logging pdb profile pstats pydoc timeit trace traceback tracemalloc unittest warnings",
    "files and text": "_compression _pyio bz2 codecs compression difflib encodings filecmp fileinput fnmatch genericpath gettext glob gzip io locale lzma ntpath os pathlib posixpath re shutil stat string tarfile tempfile textwrap zipfile",
    "graphics": "colorsys curses tkinter turtle turtledemo",
    "language services": "_collections_abc abc ast code codeop collections contextlib copy dataclasses dis enum functools graphlib inspect operator pprint reprlib symtable tokenize types typing weakref",
    "mail": "email imaplib mailbox mailcap mimetypes nntplib poplib quopri smtpd smtplib",
    "network": "cgi cgitb ftplib http ipaddress netrc socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc",
    "numbers and dates": "_pydatetime _pydecimal _strptime bisect calendar datetime fractions hashlib heapq hmac numbers random secrets statistics uuid zoneinfo",
    "packaging": "_osx_support distutils ensurepip imp importlib modulefinder pkgutil platform runpy site sysconfig venv zipapp zipimport",
}
"""Part of the library -> its top-level modules, after the chapters of the library reference."""


def load(root: Path | None = None) -> TextDataset:
    """Docstrings of six words or more, each once, labelled by the part of the library.

    Args:
        root: folder of library sources; by default the running Python's own.

    Raises:
        DataError: if the library's sources are not there (some embedded Pythons ship none).

    Example:
        >>> data = load()
        >>> len(data.label_names), len(data) > 3000
        (10, True)
    """
    read = taken() if root is None else None
    texts = dict(found(root) if read is None else read)
    if not texts:
        raise DataError(
            f"no docstrings under {root or _library()}: this Python ships no library sources; "
            "set data.source to a folder of jsonl or csv files, or to a hub data set"
        )
    label_names = sorted(PARTS)
    return TextDataset(
        "docstrings of the Python standard library",
        list(texts),
        np.array([label_names.index(part) for part in texts.values()], dtype=np.int64),
        label_names,
    )


def found(root: Path | None = None) -> list[tuple[str, str]]:
    """Docstrings of six words or more, each once, with the part of the library that they are first found in."""
    root = root or _library()
    part_of = {module: part for part, modules in PARTS.items() for module in modules.split()}
    texts: dict[str, str] = {}
    for path in _sources(root, part_of):
        part = part_of[path.relative_to(root).parts[0].removesuffix(".py")]
        for text in _docstrings(path):
            texts.setdefault(text, part)
    return list(texts.items())


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _sources(root: Path, modules: Iterable[str]) -> list[Path]:
    """The modules' source files but tests, in one order on every machine."""
    files = [root / f"{module}.py" for module in modules]
    files += [file for module in modules for file in (root / module).rglob("*.py")]
    wanted = (
        f for f in files if not {"test", "tests"} & {*f.relative_to(root).parts} and f.is_file()
    )
    return sorted(wanted, key=lambda path: path.relative_to(root).as_posix())


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):  # templates and samples of broken code
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if len(words) >= MIN_WORDS:
                yield " ".join(words)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The tree's statements, breadth first: ``ast.walk`` without the expressions, which hold no docstring."""
    todo: deque[ast.AST] = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        if hasattr(node, "body"):
            children = ast.iter_child_nodes(node)
            todo.extend(
                c for c in children if isinstance(c, ast.stmt | ast.excepthandler | ast.match_case)
            )
