"""``florana run --dry-run``: what it tells is what the run does, and it neither loads nor writes."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import pytest
from torch import nn

from florana import cli
from florana.config import LoraConfig, RunConfig, load_config
from florana.errors import ConfigError, FloranaError, ModelError
from florana.experiments.rehearsal import rehearse
from florana.experiments.setup import prepare
from florana.training.base_model import find_model
from florana.training.head import Head
from florana.training.targets import factor_numbers, find_targets, skeleton
from tiny_models import LABELS, Kind, build_kinds, make

KINDS = ("own head", "sentence encoder", "decoder")
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """Tiny base models."""
    return build_kinds(tmp_path_factory.mktemp("models"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """120 labelled texts, one of them long."""
    path = tmp_path / "data.csv"
    rows = [
        f"{' '.join(['w1'] * (30 if i == 7 else 4))} w{i % 20},{i % 3},{i % 5}" for i in range(120)
    ]
    path.write_text("\n".join(["text,label,topic", *rows]))
    return path


def configured(kind: Kind, table: Path, *overrides: str) -> RunConfig:
    """A run of three clients on that table."""
    return load_config(
        None,
        [
            f"model.name={kind.source.path}",
            "model.max_length=16",
            f"data.source={table}",
            "federation.clients=3",
            "federation.dirichlet_alpha=2.0",
            f"lora.target_modules={list(kind.targets)}",
            "lora.rank=2",
            *overrides,
        ],
    )


@every_kind
def test_a_skeleton_has_the_models_modules(kinds: dict[str, Kind], name: str) -> None:
    """The same modules would be adapted, in the same shapes, as in the model with its weights."""
    kind = kinds[name]
    base = skeleton(kind.source, Head("classification", LABELS))
    assert all(p.is_meta for p in base.parameters())
    found = find_targets(base, kind.source, LoraConfig(target_modules=kind.targets, rank=4))
    adapted = make(kind).initial.pairs
    assert {_tail(n): (m.out_features, m.in_features) for n, m in found.items()} == {
        _tail(n): pair.shape for n, pair in adapted.items()
    }


def _tail(module: str) -> str:
    """The name from the number of the layer on; what is before it depends on the head."""
    return module[module.index("layer") :]


def test_a_causal_skeleton_has_its_own_head(kinds: dict[str, Kind]) -> None:
    """A model that writes has an output for every word."""
    base = skeleton(kinds["decoder"].source, Head("causal", 0))
    output = base.get_submodule("lm_head")
    assert isinstance(output, nn.Linear)
    assert output.out_features == base.config.vocab_size  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", ["lora", "dora", "hira"])
def test_factors_are_counted_as_peft_makes_them(kinds: dict[str, Kind], variant: str) -> None:
    """The number told is that of the tensors in an adapter, beside its head."""
    kind = kinds["own head"]
    model = make(kind, rank=4, alpha=4.0, variant=variant)
    tensors = {n: t for n, t in model.initial.tensors().items() if n not in model.initial.extras}
    config = LoraConfig(target_modules=kind.targets, rank=4, alpha=4.0, variant=variant)  # type: ignore[arg-type]
    base = skeleton(kind.source, Head("classification", LABELS))
    found = find_targets(base, kind.source, config)
    assert factor_numbers(found, config) == sum(t.numel() for t in tensors.values())


@every_kind
def test_a_rehearsal_tells_what_the_run_has(kinds: dict[str, Kind], name: str, table: Path) -> None:
    """Partition, sizes, notes and modules are those of the run itself."""
    config = configured(kinds[name], table)
    told, run = rehearse(config), prepare(config)
    assert [c.train for c in told.partition.clients] == [len(c.train) for c in run.clients]
    assert [c.held_out for c in told.partition.clients] == [len(c.test) for c in run.clients]
    assert (told.train, told.test) == (108, 12)
    assert told.notes == run.server.notes
    assert any("1 of 1" in note and "max_length = 16" in note for note in told.notes)
    assert told.modules == len(run.model.initial.pairs)
    assert told.source.sha256 == run.provenance["base_model"]["sha256"]


def test_weights_are_not_loaded_and_nothing_is_written(
    kinds: dict[str, Kind], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that cannot be read do not matter, as long as they are there; the folder stays as it was."""
    folder = tmp_path / "model"
    shutil.copytree(kinds["decoder"].source.path, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    kind = Kind(find_model(str(folder)), kinds["decoder"].targets, "score")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert rehearse(configured(kind, table)).parameters > 0
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ModelError):
        prepare(configured(kind, table))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["lora.target_modules=['q_proj']"], "has no linear module 'q_proj'; lora.target_modules may name: "),
        (["lora.rank=17"], "lora.rank 17 is above min(d_out, d_in) = 16"),
        (["federation.clients=40"], "40 clients"),
        (["data.text=review"], "no column 'review'"),
        (["federation.partition=column", "federation.column=who"], "no column 'who'"),
    ],
)  # fmt: skip
def test_what_stops_a_run_stops_its_rehearsal(
    kinds: dict[str, Kind], table: Path, overrides: list[str], told: str
) -> None:
    """The same message, told before any weights are loaded."""
    config = configured(kinds["own head"], table, *overrides)
    messages = []
    for attempt in (rehearse, prepare):
        with pytest.raises(FloranaError) as caught:
            attempt(config)
        messages.append(str(caught.value))
    assert told in messages[0]
    assert messages[0] == messages[1]


def test_a_pooled_method_on_another_engine_is_refused(kinds: dict[str, Kind], table: Path) -> None:
    """As the run itself does."""
    config = configured(
        kinds["own head"], table, "method.name=centralised", "federation.engine=simulation"
    )
    with pytest.raises(ConfigError, match="one place"):
        rehearse(config)


def test_the_command_shows_it_and_trains_nothing(
    kinds: dict[str, Kind],
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Model, data, every client and the long example are shown; no folder is made; a run cannot go on so."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"
    file.write_text(
        f'[model]\nname = "{kinds["own head"].source.path}"\nmax_length = 16\n[data]\nsource = "{table}"\n'
        "[federation]\nclients = 3\ndirichlet_alpha = 2.0\n[lora]\nrank = 2\n"
    )

    def ended(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["florana", "run", *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        logging.captureWarnings(False)
        return ending.value.code, *capsys.readouterr()

    code, out, _ = ended(str(file), "--dry-run")
    assert code == 0
    for part in ("108 to train, 12 to test", "in 4 modules", "held out", "label skew", "are cut", "Nothing was trained"):  # fmt: skip
        assert part in out
    assert not (tmp_path / "runs").exists()
    assert ended("--dry-run", "--resume", str(tmp_path))[0] == 2
