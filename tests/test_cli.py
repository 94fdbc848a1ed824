"""The command line: fast, one message for a mistake, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

import florana
from florana import cli
from florana.aggregators import cards
from florana.config import RunConfig, load_config
from florana.training.base_model import ModelSource


class Ended(NamedTuple):
    """How a command ended and what it printed."""

    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Command]:
    """The entry point itself, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["florana", *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        captured = capsys.readouterr()
        return Ended(ending.value.code, captured.out, captured.err)

    yield call
    logging.captureWarnings(False)


def assert_refused(ended: Ended, *expected: str) -> None:
    """Exit code 2, one message on stderr that says what is expected of it, and no traceback."""
    assert ended.code == 2, ended
    assert ended.err.startswith("florana: "), ended.err
    assert "Traceback" not in ended.out + ended.err
    for part in expected:
        assert part in ended.err


def test_libraries_are_imported_without_a_word() -> None:
    """PEFT imports bitsandbytes where that is there, which tells of kernels that nobody asked for."""
    code = "from florana.training import load_libraries; load_libraries()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_help_imports_nothing_heavy() -> None:
    """``import florana, florana.cli`` and the help text need neither torch nor flower nor pydantic."""
    code = (
        "import sys, florana, florana.cli\n"
        "sys.argv = ['florana', *sys.argv[1:]]\n"
        "try:\n"
        "    florana.cli.main()\n"
        "except SystemExit as ending:\n"
        "    assert not ending.code, ending.code\n"
        "heavy = {'torch', 'transformers', 'flwr', 'peft', 'pydantic', 'numpy', 'safetensors', 'rich.progress'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["--version"], ["run", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_florana_is_the_command(tmp_path: Path) -> None:
    """A mistake ends a real process with code 2, stderr and no traceback; stdout stays empty."""
    done = subprocess.run(
        [sys.executable, "-m", "florana", "run", "--method", "fedavg"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert_refused(Ended(done.returncode, done.stdout, done.stderr), "unknown method 'fedavg'")
    assert done.stdout.strip() == ""
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(command: Command) -> None:
    """Also without arguments; each command explains itself."""
    ended = command("--help")
    assert ended.code == 0
    for name in ("run", "compare", "report", "config", "methods"):
        assert name in ended.out
        one = command(name, "--help")
        assert one.code == 0
        assert "Usage: " in one.out
    assert "Usage: " in command().out + command().err


def test_version(command: Command) -> None:
    """The package's own."""
    assert command("--version") == (0, f"florana {florana.__version__}\n", "")


def test_public_names_are_all_there() -> None:
    """Every name of ``florana.__all__`` can be had, and an unknown one is an AttributeError."""
    for name in florana.__all__:
        assert getattr(florana, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = florana.nonsense


def test_methods_lists_every_method(command: Command) -> None:
    """Name, paper, wire cost and options of each."""
    ended = command("methods")
    assert ended.code == 0
    for card in cards().values():
        for part in (card.name, card.title, card.paper, card.summary, card.uplink, card.downlink):
            assert part in ended.out
        for option in card.options:
            assert option in ended.out


def test_methods_as_json(command: Command) -> None:
    """The same for scripts."""
    ended = command("methods", "--json")
    rows = json.loads(ended.out)
    assert [row["name"] for row in rows] == list(cards())
    for row, card in zip(rows, cards().values(), strict=True):
        assert row["options"] == list(card.options)
        assert (row["paper"], row["uplink"], row["downlink"]) == (
            card.paper,
            card.uplink,
            card.downlink,
        )
        assert row["mixed_ranks"] is card.mixed_ranks


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "florna"], ["unknown method 'florna', did you mean 'florana'?"]),
        (["--set", "lora.rnak=8"], ["unknown key 'lora.rnak', did you mean 'rank'?"]),
        (["--set", "lora.rnak=8", "--seed", "-1", "--method", "x"], ["'lora.rnak'", "seed: ", "unknown method 'x'"]),
        (["--set", "nonsense"], ["--set 'nonsense': expected section.key=value"]),
        (["--method", "florana", "--set", "method.solver=x"], ["option solver: Input should be 'als' or 'gradient', got 'x'"]),
        (["--method", "fedit", "--set", "method.gauge=balanced"], ["method 'fedit' has no option 'gauge'"]),
        (["--method", "fedit", "--set", "server.momentum=0.5"], ["server.momentum: fedit averages", "florana-opt"]),
        (["--method", "fedit", "--set", "lora.client_ranks=[2, 4]"], ["lora.client_ranks: fedit needs rank 8", "hetlora"]),
        (["gone.toml"], ["there is no configuration file gone.toml"]),
        (["."], ["cannot read . as TOML"]),
        (["--set", "data.source=gone.txt", "--set", "data.text=t"], ["'gone.txt'"]),
        (["--resume", "gone"], ["gone holds no run"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_writes_nothing(
    command: Command, tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    """Unknown methods, keys and options, missing files: exit code 2, and no run folder."""
    assert_refused(command("run", *arguments), *expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["run", "--nonsense"], ["nonsense"], ["run", "--seed", "x"]])
def test_a_mistyped_command_line_is_a_usage_error(command: Command, arguments: list[str]) -> None:
    """Exit code 2, and no traceback."""
    ended = command(*arguments)
    assert ended.code == 2
    assert "Usage: " in ended.err
    assert "Traceback" not in ended.err


def test_a_file_with_mistakes_is_named(command: Command, tmp_path: Path) -> None:
    """All of them are told under the file's name."""
    (tmp_path / "run.toml").write_text('sed = 1\n[federation]\nclients = "many"\n')
    ended = command("run", "run.toml")
    assert_refused(ended, "run.toml:", "unknown key 'sed', did you mean 'seed'?", "'many'")
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


@pytest.mark.parametrize(
    "others",
    [
        ["run.toml"],
        ["--set", "federation.rounds=3"],
        ["--method", "fedit"],
        ["--seed", "0"],
        ["--output", "there"],
    ],
)
def test_resume_takes_no_other_arguments(command: Command, others: list[str]) -> None:
    """A resumed run is what its folder says, so anything beside the folder is refused."""
    ended = command("run", "--resume", "somewhere", *others)
    assert_refused(ended, "--resume takes everything from the run's folder")


@pytest.mark.parametrize("content", ["", "not JSON", "[]", "{}", '{"config": {"sed": 1}}'])
def test_resume_needs_a_run(command: Command, tmp_path: Path, content: str) -> None:
    """A folder without a run, or whose provenance is damaged, is told by its path."""
    (tmp_path / "old").mkdir()
    assert_refused(command("run", "--resume", "old"), "old holds no run", "provenance.json")
    (tmp_path / "old" / "provenance.json").write_text(content)
    assert_refused(command("run", "--resume", "old"), "provenance.json", "cannot be read")


NOWHERE = ["--set", "data.source=nowhere", "--set", "model.name=nowhere"]


@pytest.mark.parametrize("how", [["--output", "used"], ["--set", "output=used"]])
def test_a_used_folder_is_refused_before_anything_is_loaded(
    command: Command, tmp_path: Path, how: list[str]
) -> None:
    """Neither data nor model is looked for, and what is in the folder stays as it is."""
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("all of it")
    assert_refused(command("run", *NOWHERE, *how), "used is not empty", "choose another --output")
    (used / "provenance.json").write_text("{}")
    ended = command("run", *NOWHERE, *how)
    assert_refused(ended, "used is not empty and holds another run", "florana run --resume used")
    assert sorted(path.name for path in used.iterdir()) == ["provenance.json", "thesis.txt"]
    assert (used / "thesis.txt").read_text() == "all of it"


def test_a_file_in_the_place_of_the_folder_is_refused(command: Command, tmp_path: Path) -> None:
    """The output must be a folder."""
    (tmp_path / "used").write_text("a file")
    assert_refused(command("run", *NOWHERE, "--output", "used"), "used is not empty")


def write_table(folder: Path) -> None:
    """Sixty labelled texts."""
    rows = [{"text": f"text number {i}", "label": i % 2, "who": i % 3} for i in range(60)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.text=body"], ["table.jsonl, example 1: no column 'body'; it has text, label, who"]),
        (["federation.clients=30"], ["federation.dirichlet_alpha"]),
        (
            ["federation.partition=column", "federation.column=who", "federation.clients=5"],
            ["the partition column has 3 values, fewer than 5 clients"],
        ),
        (
            ["federation.partition=iid", "federation.clients=2", "model.name=no/where"],
            ["model 'no/where' is no folder"],
        ),
    ],
)
def test_data_that_cannot_be_used_writes_nothing(
    command: Command, tmp_path: Path, overrides: list[str], expected: list[str]
) -> None:
    """Mistakes that show only when data or model are read are told in the same way."""
    write_table(tmp_path)
    sets = [part for override in overrides for part in ("--set", override)]
    ended = command("run", "--set", "data.source=table.jsonl", "--output", "new", *sets)
    assert_refused(ended, *expected)
    assert [path.name for path in tmp_path.iterdir()] == ["table.jsonl"]


@pytest.mark.usefixtures("minilm")
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lora.rank=400", "lora.rank 400 is above min(d_out, d_in) = 384 of module 'query'"),
        (
            "lora.target_modules=['q_proj']",
            "has no linear module 'q_proj'; lora.target_modules may",
        ),
    ],
)
def test_a_lora_that_does_not_fit_the_model_writes_nothing(
    command: Command, tmp_path: Path, override: str, expected: str
) -> None:
    """The real MiniLM is loaded and refused."""
    write_table(tmp_path)
    ended = command(
        "run", "--set", "data.source=table.jsonl", "--set", "federation.partition=iid",
        "--set", "federation.clients=2", "--output", "new", "--set", override,
    )  # fmt: skip
    assert_refused(ended, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["table.jsonl"]


def test_docstrings_have_no_columns(command: Command, tmp_path: Path) -> None:
    """The default data cannot be split by a column, and the message says so."""
    ended = command("run", "--set", "federation.partition=column", "--set", "federation.column=who")
    assert_refused(ended, "the docstrings have no column 'who'", "data.source")


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with code 130 and the command that resumes."""
    app = typer.Typer()

    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ending:
        cli._guard(lambda: app([]))
    assert ending.value.code == 130
    assert "florana run --resume" in capsys.readouterr().err


def test_the_minilm_fixture_is_what_the_command_loads(minilm: ModelSource) -> None:
    """Tests and the command take one and the same model."""
    assert (minilm.path / "model.safetensors").is_file()


def test_the_printed_config_is_the_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What ``florana config`` prints is a file that gives the defaults, with every key in it."""
    from florana.cli.config import config

    config()
    text = capsys.readouterr().out
    (tmp_path / "my.toml").write_text(text)
    assert load_config(tmp_path / "my.toml") == load_config(None)
    for section in RunConfig.model_fields.values():
        for key in getattr(section.annotation, "model_fields", {}):
            assert f"\n{key} = " in text or f"\n# {key} =" in text
