"""The configurations of the paper's experiments load, and the page that lists them says nothing that does not."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from florana.config import load_config
from florana.experiments.comparison.grid import build_grid
from florana.experiments.comparison.items import split_items

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.toml"))
PAGE = (ROOT / "docs" / "reproduce.md").read_text("utf-8")
GLUE = {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"}
COMMANDS = re.findall(r"(?:^    |`)(florana (?:run|compare|eval) [^`\n]+)", PAGE, re.MULTILINE)

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask the network."""

    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise AssertionError("a configuration asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def options(command: str, name: str) -> list[str]:
    """All values of an option of a command."""
    words = shlex.split(command)
    return [words[at + 1] for at, word in enumerate(words) if word == name]


@every_file
@pytest.mark.parametrize("variant", ["lora", "dora", "hira"])
def test_a_config_loads_in_every_variant(file: Path, variant: str) -> None:
    """Each file is right by itself, and with each variant of the paper."""
    config = load_config(file, [f"lora.variant={variant}"])
    assert config.lora.variant == variant


@every_file
def test_a_config_says_what_the_paper_says(file: Path) -> None:
    """Ten clients, Dirichlet 0.5 where there is something to skew, the paper's method, and a GPU."""
    config = load_config(file)
    assert config.federation.clients == 10
    assert config.federation.dirichlet_alpha == 0.5 or config.federation.partition == "iid"
    assert (config.method.name, config.device) == ("florana", "cuda")
    assert ("roberta-large" in config.model.name) == (config.data.family != "causal")
    assert "2509.26399" in file.read_text("utf-8")


@every_file
def test_the_page_lists_every_config(file: Path) -> None:
    """Each file has a command that uses it."""
    assert any(f"configs/{file.name}" in command for command in COMMANDS)


def test_the_page_has_every_task_of_glue() -> None:
    """One command for each task of the paper, each with a folder of its own."""
    found = [option for command in COMMANDS for option in options(command, "--set")]
    assert {f"data.task={task}" for task in GLUE} <= set(found)
    folders = [option for command in COMMANDS for option in options(command, "--output")]
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_right(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are there, keys and values are known, and every method can do what is asked of it."""
    monkeypatch.chdir(ROOT)
    _, verb, first, *_ = shlex.split(command)
    overrides = options(command, "--set")
    if verb == "eval":
        made = [other for other in COMMANDS if first in options(other, "--output")]
        assert made, f"no command makes {first}"
        assert options(command, "--tasks")
    elif verb == "run":
        load_config(Path(first), overrides)
    else:
        (methods,), (output,) = options(command, "--methods"), options(command, "--output")
        grid = build_grid(
            {Path(first).stem: Path(first)},
            split_items(methods),
            [0, 1, 2],
            Path(output),
            baseline="fedit",
            overrides=overrides,
        )
        assert len(grid.cells) == 3 * len(methods.split(","))


def test_models_and_options_that_the_page_names_are_right() -> None:
    """What is to be added with --set can be, to the file that the sentence is about."""
    for option in re.findall(r"`--set ([^`]+)`", PAGE):
        file = "glue" if option.startswith(("device", "lora")) else "gsm8k"
        load_config(ROOT / "configs" / f"{file}.toml", [option])
