"""``florana aggregate``: data on stdout, everything else on stderr, one message for a mistake, no litter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import florana
from adapter_folders import clients, write, write_base
from florana import cli


class Ended(NamedTuple):
    """How a command ended and what it printed."""

    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The entry point itself, in a folder with three adapters."""
    monkeypatch.chdir(tmp_path)
    clients(tmp_path)
    capsys.readouterr()

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["florana", "aggregate", *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        captured = capsys.readouterr()
        return Ended(ending.value.code, captured.out, captured.err)

    return call


SITES = ("site_0", "site_1", "site_2")


def test_it_makes_a_folder_and_says_how_good_it_is(command: Command, tmp_path: Path) -> None:
    """Weights, overall errors as the library has them, the worst modules first, and how to load the result."""
    ended = command(*SITES, "--out", "made", "--weights", "3,1,1", "--no-streaming")
    assert ended.code == 0, ended
    assert ended.err == ""
    paths = [tmp_path / site for site in SITES]
    expected = florana.aggregate_folders(
        paths, tmp_path / "other", weights=[3, 1, 1], streaming=False
    )
    assert expected.error is not None
    lines = ended.out.splitlines()
    assert lines[0] == "3 LoRA adapters made into one of rank 2, float32"
    assert "  site_0  weight 0.600" in lines
    numbers = [f"{number:.3f}" for number in expected.error[:3]]
    assert [line.split()[-3:] for line in lines if line.startswith("all modules")] == [numbers]
    shown = [line.split()[0] for line in lines if line.startswith("layers.")]
    assert shown == [module.name for module in expected.worst(5)]
    assert "  PeftModel.from_pretrained(model, 'made')" in lines
    assert max(map(len, lines)) <= 80
    same = (tmp_path / "made" / "adapter_model.safetensors").read_bytes()
    assert same == (tmp_path / "other" / "adapter_model.safetensors").read_bytes()


def test_equal_weights_are_said_to_be_equal(command: Command) -> None:
    """A default that decides the result is no secret."""
    assert "weights are equal, since none were given" in command(*SITES, "--out", "made").out


def test_json_is_all_that_stdout_holds(command: Command, tmp_path: Path) -> None:
    """One object with every module, and nothing on stderr where it is no terminal."""
    ended = command(
        *SITES, "--out", "made", "--json", "--method", "fedex-lora", "--dtype", "bfloat16"
    )
    told = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert told["method"] == "fedex-lora"
    assert told["weights"] == pytest.approx(dict.fromkeys(SITES, 1 / 3))
    assert told["dtypes"] == ["bfloat16"]
    assert [m["name"] for m in told["modules"]] == list(florana.load_adapter("made").pairs)
    assert told["out"] == str(tmp_path / "made")
    assert set(told["error"]) == {"used", "average", "optimum", "target_norm"}


def test_settings_reach_the_method(command: Command) -> None:
    """``--set`` takes options of the method and add-ons of the server, and nothing else."""
    ended = command(
        *SITES,
        "--out",
        "made",
        "--json",
        "--set",
        "gauge=balanced",
        "--set",
        "server.shrinkage=norm",
    )
    assert json.loads(ended.out)["options"] == {"gauge": "balanced", "server.shrinkage": "norm"}
    card = Path("made/README.md").read_text()
    assert "--set gauge=balanced --set server.shrinkage=norm" in card


def test_the_card_has_a_command_that_makes_the_same_again(command: Command, tmp_path: Path) -> None:
    """The line in the card, run, gives the same file."""
    assert (
        command(
            *SITES, "--out", "made", "--weights", "0.1,7,3", "--rank", "3", "--alpha", "0.3"
        ).code
        == 0
    )
    before = Path("made/adapter_model.safetensors").read_bytes()
    line = next(
        text
        for text in Path("made/README.md").read_text().splitlines()
        if text.startswith("florana ")
    )
    assert command(*line.split()[2:], "--overwrite").code == 0
    assert Path("made/adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--weights", "1,2"), "2 weights for 3 adapters"),
        (("--weights", "a,b,c"), "--weights is 'a,b,c'; expected numbers"),
        (("--method", "fedt"), "unknown method 'fedt', did you mean 'fedit'"),
        (("--method", "local"), "cannot merge finished adapters"),
        (("--set", "gauge=square"), "option gauge: Input should be 'balanced'"),
        (("--set", "gague=balanced"), "did you mean 'gauge'"),
        (("--set", "lora.rank=3"), "no other setting has a part in aggregating"),
        (("--set", "server.shrinkage=some"), "server.shrinkage"),
        (("--missing", "skip"), "--missing is 'skip'; expected one of refuse, zero, mean"),
        (("--dtype", "fp8"), "dtype is fp8"),
        (("--rank", "9"), "rank 9 is above min(d_out, d_in) = 6"),
        (("nowhere",), "nowhere is not a folder"),
    ],
)
def test_mistakes_end_with_one_message(
    arguments: tuple[str, ...], message: str, command: Command, tmp_path: Path
) -> None:
    """Exit code 2, nothing on stdout, no traceback, nothing written."""
    before = sorted(tmp_path.iterdir())
    ended = command(*SITES, *arguments, "--out", "made")
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("florana: ")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_streamed_result_shows_its_bound(command: Command) -> None:
    """Estimate, bound and least in place of the exact errors, and the way to those."""
    ended = command(*SITES, "--out", "made", "--streaming")
    head = next(line for line in ended.out.splitlines() if line.endswith("least"))
    assert head.split() == ["rank", "used", "bound", "least"]
    assert "--no-streaming" in ended.out


def test_missing_modules_and_the_base_model_have_their_options(
    command: Command, tmp_path: Path
) -> None:
    """``--missing`` and ``--base`` do what the messages promise."""
    for seed, targets in ((1, ["up", "down"]), (2, ["up"])):
        write(tmp_path, f"dora_{seed}", seed, use_dora=True, target_modules=targets)
    write_base(tmp_path / "base")
    refused = command("dora_1", "dora_2", "--out", "made")
    assert "--missing zero" in refused.err
    refused = command("dora_1", "dora_2", "--out", "made", "--missing", "zero")
    assert "--base" in refused.err
    ended = command("dora_1", "dora_2", "--out", "made", "--missing", "zero", "--base", "base")
    assert ended.code == 0, ended
    assert "2 DoRA adapters" in ended.out
    assert "dora_2  weight 0.500, lacks 2 modules: counted as no change" in ended.out


def test_names_cannot_steer_the_terminal(command: Command, tmp_path: Path) -> None:
    """Control characters in module and folder names are shown, not sent."""
    pair = florana.LoraPair(torch.ones(1, 3), torch.ones(2, 1), alpha=1)
    florana.save_adapter(florana.Adapter({"\x1b[2Jm": pair}), tmp_path / "x\x1b]0;y\x07\nz")
    other = florana.Adapter({"\x1b[2Jm": pair, "\x9bother": pair})
    florana.save_adapter(other, tmp_path / "b")
    for arguments in (("--missing", "mean"), ()):
        ended = command("x\x1b]0;y\x07\nz", "b", "--out", "made\x1b", *arguments)
        assert ended.code == (0 if arguments else 2)
        assert "\x1b" not in ended.out + ended.err
        assert "\x9b" not in ended.out + ended.err


def test_many_adapters_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    """Twelve lines and a number, however many there are."""
    from florana.cli._aggregate_text import text

    weights = {f"site_{u}": 1 / 1000 for u in range(1000)}
    few = florana.aggregate_folders(clients(tmp_path, 2), tmp_path / "out", weights=[1, 2])
    result = replace(few, weights=weights)
    said = text(result, Path("out"))
    assert "1,000 LoRA adapters" in said
    assert "and 988 more" in said


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import florana.folders.writing as job
combine = job.combine
def slowly(*arguments):
    print("module", file=sys.stderr, flush=True)
    time.sleep(60)
    return combine(*arguments)
job.combine = slowly
from florana.cli import main
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_leaves_the_old_folder(stop: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C: exit code 130 and no litter. A kill: the old adapter is whole, and the same command works again."""
    clients(tmp_path)
    paths = [tmp_path / site for site in SITES]
    florana.aggregate_folders(paths, tmp_path / "made")
    before = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    listing = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["aggregate", *SITES, "--out", "made", "--overwrite", "--method", "fedit"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "module\n"
        time.sleep(0.1)
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == ""
    assert {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()} == before
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err
        assert sorted(path.name for path in tmp_path.iterdir()) == listing
    florana.aggregate_folders(paths, tmp_path / "made", "fedit", overwrite=True)
