"""``florana inspect`` on folders that PEFT wrote: what it prints, what it refuses, and that it writes nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from peft import HiraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

import florana
from florana import cli
from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.errors import AggregationError, ConfigError
from florana.folders.inspect import inspect_folders
from strategies import dense_delta, example

NAMES = ["layers.9.v", "layers.10.v", "q"]


class Ended(NamedTuple):
    """How a command ended and what it printed."""

    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The entry point itself."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["florana", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        captured = capsys.readouterr()
        return Ended(ending.value.code, captured.out, captured.err)

    return call


class Base(nn.Module):
    """A model with the modules of ``NAMES``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.q = nn.Linear(20, 12, bias=False)
        self.layers = nn.ModuleList([nn.Identity() for _ in range(9)])
        for _ in range(2):
            layer = nn.Module()
            layer.v = nn.Linear(8, 20, bias=False)
            self.layers.append(layer)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Not asked for."""
        return x


def write(root: Path, count: int = 3, spread: float = 0.3, **settings: Any) -> list[Path]:
    """Folders ``site_0``, … as PEFT's ``save_pretrained`` writes them, of clients near one update."""
    hira = settings.pop("hira", False)
    kind = HiraConfig if hira else LoraConfig
    folders = []
    for u in range(count):
        config = kind(r=4, target_modules=["q", "v"], **settings)
        model = get_peft_model(Base(), config)
        common, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(10 + u)
        for name, parameter in model.named_parameters():
            if "_A" in name or "_B" in name:
                shared = torch.randn(parameter.shape, generator=common)
                drift = torch.randn(parameter.shape, generator=own)
                parameter.data = 0.1 * (shared + spread * drift)
        model.save_pretrained(root / f"site_{u}")
        folders.append(root / f"site_{u}")
    return folders


def write_base(root: Path) -> Path:
    """The base model's folder."""
    root.mkdir()
    weights = {name: p.detach().clone() for name, p in Base().named_parameters()}
    safetensors.torch.save_file(weights, root / "model.safetensors")
    return root


def refused(ended: Ended, *expected: str) -> None:
    """Exit code 2, one message on stderr, nothing on stdout."""
    assert ended.code == 2, ended
    assert ended.err.startswith("florana: ")
    assert ended.out == ""
    for part in expected:
        assert part in ended.err, ended.err


def test_folders_of_peft_are_told_as_they_are_in_memory(tmp_path: Path) -> None:
    """Norms, cosines and errors of PEFT's folders are those of the adapters that load_adapter makes of them."""
    folders = write(tmp_path, lora_alpha=16, use_rslora=True)
    found = inspect_folders(folders, [2, 4], weights=[3, 1, 1])
    adapters = [florana.load_adapter(folder) for folder in folders]
    assert [m.name for m in found.modules] == NAMES  # layer 10 after layer 9
    for u, adapter in enumerate(adapters):
        norm = torch.cat([dense_delta(p).flatten() for p in adapter.pairs.values()]).norm()
        assert found.clients[u].norm == pytest.approx(float(norm), rel=1e-9)
    updates = [
        ClientUpdate(str(u), w, a) for u, (w, a) in enumerate(zip([3, 1, 1], adapters, strict=True))
    ]
    for rank in (2, 4):
        expected = florana.aggregate(updates, "florana-opt", rank=rank).error
        assert expected is not None
        assert found.losses.optimum[rank] == pytest.approx(expected.optimum, rel=1e-6)
        assert found.losses.average == pytest.approx(expected.average, rel=1e-6)
    T = sum(w / 5 * dense_delta(a.pairs["q"]) for w, a in zip([3, 1, 1], adapters, strict=True))
    assert isinstance(T, Tensor)
    module = found.modules[2]
    assert module.norm == pytest.approx(float(T.norm()), rel=1e-9)
    whole = torch.linalg.svdvals(T)
    assert module.spectrum.energy[0] == pytest.approx(
        float(whole[0] ** 2 / whole.square().sum()), rel=1e-9
    )


@pytest.mark.parametrize("variant", ["dora", "hira"])
def test_variants_need_the_base_and_are_told_with_it(tmp_path: Path, variant: str) -> None:
    """DoRA and HiRA without --base are refused; with it errors are those of ``aggregate`` with the frozen weights."""
    folders = write(tmp_path, **({"hira": True} if variant == "hira" else {"use_dora": True}))
    with pytest.raises(ConfigError, match="--base"):
        inspect_folders(folders)
    found = inspect_folders(folders, [2, 6], base=write_base(tmp_path / "base"))
    weights = {name.removesuffix(".weight"): p.detach() for name, p in Base().named_parameters()}
    updates = [ClientUpdate(folder.name, 1, florana.load_adapter(folder)) for folder in folders]
    expected = florana.aggregate(updates, "florana-opt", rank=2, base_weights=weights).error
    assert expected is not None
    assert found.losses.optimum[2] == pytest.approx(expected.optimum, rel=1e-5)
    assert found.losses.average == pytest.approx(expected.average, rel=1e-5)
    assert found.norm == pytest.approx(expected.target_norm, rel=1e-5)
    assert found.variant == variant
    assert "products" in found.compared
    assert "hetlora" in found.left_out


def test_text_is_narrow_plain_and_complete(tmp_path: Path, command: Command) -> None:
    """Piped output has 80 columns at most and no colour, names every client and method, and ends well."""
    ended = command(*write(tmp_path))
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.out.isascii()
    assert "\x1b" not in ended.out
    for part in ("site_0", "site_2", "florana-opt", "fedit", "plain averaging", "recommended"):
        assert part in ended.out
    assert ended.err == ""


def test_long_lists_stay_narrow(tmp_path: Path, command: Command) -> None:
    """Many ranks go into several blocks, long names lose their beginning, and 80 columns stay 80."""
    pair = example()[0].adapter.pairs["encoder.query"]
    name = "a" * 200
    for u in range(30):
        florana.save_adapter(
            Adapter({f"{name}.q": pair, f"{name}.v": pair}), tmp_path / f"{u}{name}"
        )
    ended = command(
        *sorted(tmp_path.iterdir()), "--ranks", "1,2,3,4,5,6,7,8,9,10,11,12", "--methods", "fedit"
    )
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "6 more" in ended.out


def test_json_is_all_there_is_on_stdout(tmp_path: Path, command: Command) -> None:
    """``--json`` is one object with every module, and agrees with the Python call."""
    folders = write(tmp_path)
    ended = command(*folders, "--json", "--ranks", "4,2")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found == json.loads(json.dumps(inspect_folders(folders, [2, 4]).as_dict()))
    assert [m["name"] for m in found["modules"]] == NAMES
    assert found["losses"]["ranks"] == [2, 4]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_is_drawn(tmp_path: Path, command: Command, ending: str) -> None:
    """``--plot`` writes a picture of that kind, and nothing beside it."""
    folders, out = write(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    ended = command(*folders, "--plot", out / f"a.{ending}")
    assert ended.code == 0, ended.err
    content = (out / f"a.{ending}").read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    assert [file.name for file in out.iterdir()] == [f"a.{ending}"]


def test_plot_of_one_adapter_and_of_zero_adapters(tmp_path: Path, command: Command) -> None:
    """A figure is drawn where there is no cosine and no spectrum."""
    assert command(*write(tmp_path / "one", 1), "--plot", tmp_path / "one.svg").code == 0
    pair = LoraPair(torch.ones(2, 6), torch.zeros(5, 2), alpha=2)
    zero = [florana.save_adapter(Adapter({"q": pair}), tmp_path / "zero" / n) for n in "ab"]
    ended = command(*zero, "--plot", tmp_path / "zero.svg")
    assert ended.code == 0, ended.err
    assert "the mean update is zero" in ended.out


def test_plot_and_text_of_updates_that_cancel(tmp_path: Path, command: Command) -> None:
    """Where T = 0 and a method's result is not, errors are infinite: told so, drawn within the panel, null in JSON."""
    g = torch.Generator().manual_seed(0)
    (A, C), B = torch.randn(2, 2, 6, generator=g), torch.randn(5, 2, generator=g)
    pairs = [(A, B), (A, -B), (C, B), (-C, B)]
    folders = [
        florana.save_adapter(Adapter({"q": LoraPair(a, b, alpha=2)}), tmp_path / str(u))
        for u, (a, b) in enumerate(pairs)
    ]
    ended = command(*folders, "--plot", tmp_path / "a.svg")
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert json.loads(command(*folders, "--json").out)["norm"] == pytest.approx(0, abs=1e-6)


def test_mistakes_are_told_before_anything_is_read(tmp_path: Path, command: Command) -> None:
    """Each wrong option is one message that says what is expected."""
    folders = write(tmp_path, 2)
    refused(command(*folders, "--ranks", "4,x"), "--ranks is '4,x'", "such as 4,8,16")
    refused(command(*folders, "--ranks", "0"), "1 or more")
    refused(command(*folders, "--weights", "1"), "1 weights for 2 adapters")
    refused(command(*folders, "--weights", "1,nan"), "finite")
    refused(command(*folders, "--methods", "fedt"), "did you mean 'fedit'")
    refused(command(*folders, "--missing", "drop"), "refuse, zero, mean")
    refused(command(*folders, "--plot", tmp_path / "a.pdf"), ".png or .svg")
    refused(command(*folders, "--plot", tmp_path / "no" / "a.svg"), "no such folder")
    refused(command(folders[0], folders[0]), "given twice")
    refused(command(folders[0], tmp_path / "nothing"), "nothing")


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Other bases and other modules are refused by name, and what to do is said."""

    def save(name: str, adapter: Adapter) -> Path:
        return florana.save_adapter(adapter, tmp_path / name)

    pair = LoraPair(torch.ones(2, 6), torch.ones(5, 2), alpha=2)
    one = save("one", Adapter({"q": pair}, base_model="org/one"))
    other = save("other", Adapter({"q": pair}, base_model="org/other"))
    with pytest.raises(AggregationError, match=r"org/one.*org/other.*--base-name"):
        inspect_folders([one, other])
    assert inspect_folders([one, other], base_name="org/one").base_model == "org/one"
    more = save("more", Adapter({"q": pair, "v": pair}, base_model="org/one"))
    with pytest.raises(AggregationError, match=r"one lacks module v"):
        inspect_folders([one, more])
    assert inspect_folders([one, more], missing="zero").clients[0].missing == ("v",)


def test_dtypes_may_differ(tmp_path: Path) -> None:
    """Nothing is written, so a float16 and a float32 adapter can be looked at together."""
    A, B = torch.ones(2, 6), torch.ones(5, 2)
    one = florana.save_adapter(Adapter({"q": LoraPair(A, B, 2)}), tmp_path / "one")
    half = florana.save_adapter(Adapter({"q": LoraPair(A.half(), B.half(), 2)}), tmp_path / "half")
    assert inspect_folders([one, half]).cosines[0][1] == pytest.approx(1.0)


def test_names_cannot_write_to_the_terminal(tmp_path: Path, command: Command) -> None:
    """Escape sequences in names of modules and folders are shown, not sent."""
    pair = LoraPair(torch.ones(2, 6), torch.ones(5, 2), alpha=2)
    evil = Adapter({"q\x1b[2J": pair, "v": pair})
    folders = [florana.save_adapter(evil, tmp_path / f"{n}\x1b[31m") for n in "ab"]
    ended = command(*folders)
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out + ended.err


def test_default_ranks_go_past_the_clients(tmp_path: Path) -> None:
    """Powers of two to four times the clients' rank, that rank, and where nothing is lost."""
    assert inspect_folders(write(tmp_path / "three")).losses.ranks == (1, 2, 4, 8, 12)
    assert inspect_folders(write(tmp_path / "two", 2)).losses.ranks == (1, 2, 4, 8)
    assert inspect_folders(write(tmp_path / "one", 1)).losses.ranks == (1, 2, 4)
