"""Adapter folders read a module at a time, in shards, within limits; and written a tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from florana.adapter import Adapter, LoraPair
from florana.errors import AdapterError, RunError
from florana.peft_io import FolderWriter, Limits, load_adapter, open_adapter, save_adapter
from florana.peft_io.state_dict import adapter_to_config, adapter_to_state_dict
from florana.peft_io.tensors import TensorFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"
PREFIX = "base_model.model."


def some_adapter(seed: int = 0) -> Adapter:
    """Three modules, and a head with its bias."""
    g = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(torch.randn(r, 5, generator=g), torch.randn(4, r, generator=g), alpha=4)
        for name, r in {"x.q": 2, "x.v": 3, "x.o": 2}.items()
    }
    head = {"head.weight": torch.randn(2, 4, generator=g), "head.bias": torch.ones(2)}
    return Adapter(pairs, head)


def same(came: Adapter, expected: Adapter) -> bool:
    """Equal names and values."""
    ours, theirs = came.tensors(), expected.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# ---- reading -------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that are read from files, in turn."""
    names: list[str] = []
    read = TensorFile.read

    def counted(self: TensorFile, name: str) -> Tensor:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(TensorFile, "read", counted)
    return names


def test_a_module_is_read_alone(reads: list[str], tmp_path: Path) -> None:
    """Opening reads no tensor; a module or a head reads its own and no other, as often as one asks."""
    adapter = some_adapter()
    with open_adapter(save_adapter(adapter, tmp_path / "a")) as folder:
        assert reads == []
        assert sorted(folder.form.modules) == ["x.o", "x.q", "x.v"]
        for _ in range(2):
            (pair,) = folder.pairs("x.v").values()
            assert torch.equal(pair.B, adapter.pairs["x.v"].B)
            assert sorted(reads) == [f"{PREFIX}x.v.lora_{x}.weight" for x in "AB"]
            reads.clear()
        assert torch.equal(folder.extra("head.weight"), adapter.extras["head.weight"])
        assert len(reads) == 1
        assert same(folder.adapter(), adapter)
        assert len(reads) == 1 + 8


def test_names_that_are_not_there(tmp_path: Path) -> None:
    """A module or parameter that is not there is told with those that are."""
    with open_adapter(save_adapter(some_adapter(), tmp_path / "a")) as folder:
        with pytest.raises(AdapterError, match=r"no module 'q'.*'x\.q'"):
            folder.pairs("q")
        with pytest.raises(AdapterError, match=r"no extra parameter 'x\.q'.*'head\.weight'"):
            folder.extra("x.q")
    with pytest.raises(AdapterError, match="closed"):
        folder.pairs("x.q")


def test_values_are_checked_when_they_are_read(tmp_path: Path) -> None:
    """A NaN in one module does not keep another from being read, and is refused with the file's name."""
    state, config = adapter_to_state_dict(some_adapter()), adapter_to_config(some_adapter())
    state[f"{PREFIX}x.v.lora_A.weight"][0, 0] = torch.nan
    folder = write(tmp_path / "a", state, config)
    with open_adapter(folder) as opened:
        opened.pairs("x.q")
        with pytest.raises(AdapterError, match=rf"{WEIGHTS}: .*x\.v\.lora_A.*NaN"):
            opened.pairs("x.v")


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("config_bytes", 50, f"{CONFIG}: .*too large"),
        ("depth", 1, f"{CONFIG}: .*more than 1 deep"),
        ("file_bytes", 500, f"{WEIGHTS}: .*too large"),
        ("header_bytes", 100, f"{WEIGHTS}: .*header claims"),
        ("tensors", 6, f"{WEIGHTS}: .*at most 6"),
        ("name_length", 20, f"{WEIGHTS}: .*at most 20"),
        ("dimension", 4, f"{WEIGHTS}: .*no dimension above 4"),
        ("rank", 2, rf"{WEIGHTS}: module 'x\.v' has rank 3; expected at most 2"),
    ],
)
def test_limit_holds(limit: str, value: int, words: str, tmp_path: Path) -> None:
    """Each limit refuses what is beyond it, through both ways to read a folder."""
    folder = save_adapter(some_adapter(), tmp_path / "a")
    open_adapter(folder).close()
    for read in (open_adapter, load_adapter):
        with pytest.raises(AdapterError, match=words):
            read(folder, Limits(**{limit: value}))


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "circle/a"])
def test_paths_that_cannot_be(path: str, tmp_path: Path) -> None:
    """A zero byte, a name too long, links in a circle: florana's own errors, for reading and writing."""
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(AdapterError, match="is not a folder"):
        load_adapter(tmp_path / path)
    with pytest.raises(RunError, match="cannot write"):
        save_adapter(some_adapter(), tmp_path / path)


# ---- shards --------------------------------------------------------------------------------------


def write(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, object]) -> Path:
    """An adapter folder with any tensors."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    safetensors.torch.save_file(dict(state), folder / WEIGHTS)
    return folder


def sharded(folder: Path, adapter: Adapter, index: str = INDEX) -> dict[str, str]:
    """A folder with one shard for every two tensors; what its index says."""
    state, home = adapter_to_state_dict(adapter), {}
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(adapter_to_config(adapter)))
    keys = list(state)
    for i in range(0, len(keys), 2):
        name = f"adapter_model-{i // 2 + 1:05}-of-{(len(keys) + 1) // 2:05}.safetensors"
        safetensors.torch.save_file({k: state[k] for k in keys[i : i + 2]}, folder / name)
        home |= dict.fromkeys(keys[i : i + 2], name)
    put_index(folder, home, index)
    return home


def put_index(folder: Path, home: object, index: str = INDEX) -> None:
    """The index of a sharded folder."""
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": home}))


@pytest.mark.parametrize("index", [INDEX, "model.safetensors.index.json"])
def test_shards_are_one_adapter(index: str, tmp_path: Path) -> None:
    """A pair whose halves lie in two files is read, under both names that an index may have."""
    sharded(tmp_path / "a", some_adapter(), index)
    assert same(load_adapter(tmp_path / "a"), some_adapter())


def test_shards_of_transformers(tmp_path: Path) -> None:
    """An adapter that transformers itself cuts into shards has the values of the whole one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes))
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "cut", max_shard_size="1KB")
    assert len([*(tmp_path / "cut").glob("*.safetensors")]) > 2
    cut = load_adapter(tmp_path / "cut")
    assert len(cut.pairs) == 4
    assert same(cut, load_adapter(tmp_path / "whole"))


SHARD_FAULTS: dict[str, tuple[Any, str]] = {
    "leaves the folder": ("../a/x.safetensors", "expected a plain name"),
    "absolute": ("/etc/x.safetensors", "expected a plain name"),
    "hidden": (".x.safetensors", "expected a plain name"),
    "below": ("b/x.safetensors", "expected a plain name"),
    "zero byte": ("x\0.safetensors", "expected a plain name"),
    "new line": ("x.safetensors\n", "expected a plain name"),
    "pickle": ("adapter_model.bin", "expected a plain name"),
    "config": (CONFIG, "expected a plain name"),
    "number": (3, "expected a plain name"),
    "absent": ("absent.safetensors", "absent.safetensors: cannot be read"),
    "link": ("link.safetensors", "link.safetensors: is a symbolic link"),
    "another": ("adapter_model-00001-of-00004.safetensors", "which does not hold it"),
}


@pytest.mark.parametrize(("shard", "words"), SHARD_FAULTS.values(), ids=SHARD_FAULTS.keys())
def test_shard_fault_is_refused(shard: object, words: str, tmp_path: Path) -> None:
    """A shard that is elsewhere, no safetensors file, missing or another one is refused by name."""
    folder = tmp_path / "a"
    home: dict[str, Any] = {**sharded(folder, some_adapter())}
    (folder / "link.safetensors").symlink_to(folder / home[next(iter(home))])
    home |= dict.fromkeys(list(home)[-2:], shard)
    put_index(folder, home)
    with pytest.raises(AdapterError, match=words) as caught:
        open_adapter(folder)
    assert str(caught.value).startswith(f"{folder / INDEX}: ")


@pytest.mark.parametrize("home", [None, [], {}, "x", {"a": "b.safetensors"}])
def test_an_index_of_nothing_is_refused(home: object, tmp_path: Path) -> None:
    """An index without tensors, of another kind, or of other tensors is refused."""
    sharded(tmp_path / "a", some_adapter())
    put_index(tmp_path / "a", home)
    with pytest.raises(AdapterError, match=INDEX):
        open_adapter(tmp_path / "a")


def test_a_tensor_that_the_index_lacks_is_refused(tmp_path: Path) -> None:
    """More in a shard than the index says, or less: neither is overlooked."""
    home = sharded(tmp_path / "a", some_adapter())
    last = list(home)[-1]
    put_index(tmp_path / "a", {k: v for k, v in home.items() if k != next(iter(home))})
    with pytest.raises(AdapterError, match="the index has it in 'no file'"):
        open_adapter(tmp_path / "a")
    put_index(tmp_path / "a", home | {"more": home[last]})
    with pytest.raises(AdapterError, match=r"'more' in .* does not hold it"):
        open_adapter(tmp_path / "a")


def test_two_kinds_of_weights_are_refused(tmp_path: Path) -> None:
    """One file and an index of shards: which is meant nobody can tell. A whole model's index beside is none."""
    folder = save_adapter(some_adapter(), tmp_path / "a")
    put_index(folder, {}, "model.safetensors.index.json")
    open_adapter(folder).close()
    put_index(folder, {})
    with pytest.raises(AdapterError, match=rf"holds {WEIGHTS} and .* expected one of them"):
        open_adapter(folder)


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("file_bytes", None, "too large"),
        ("tensors", 6, "at most 6 in"),
        ("shards", 3, "8 tensors in 4 files; expected at most 100,000 in 3"),
    ],
)
def test_limits_are_for_all_shards_together(
    limit: str, value: int | None, words: str, tmp_path: Path
) -> None:
    """What each shard keeps to, all of them together may exceed."""
    folder = tmp_path / "a"
    sharded(folder, some_adapter())
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    open_adapter(folder, Limits(file_bytes=total)).close()
    with pytest.raises(AdapterError, match=words):
        open_adapter(folder, Limits(**{limit: value or total - 1}))


def test_an_index_has_the_limit_of_a_config(tmp_path: Path) -> None:
    """JSON takes many times its size in memory, so that the index of the shards has a small limit too."""
    folder = tmp_path / "a"
    sharded(folder, some_adapter())
    size = (folder / INDEX).stat().st_size
    assert size > (folder / CONFIG).stat().st_size
    open_adapter(folder, Limits(config_bytes=size)).close()
    with pytest.raises(AdapterError, match=f"{INDEX}: is no plain file or too large"):
        open_adapter(folder, Limits(config_bytes=size - 1))


def test_refused_shards_are_closed(tmp_path: Path) -> None:
    """A fault in the last shard closes the first ones too."""
    home = sharded(tmp_path / "a", some_adapter())
    (tmp_path / "a" / list(home.values())[-1]).write_bytes(b"")
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(AdapterError, match="claims 0 bytes") as caught:
        open_adapter(tmp_path / "a")
    assert caught.value
    assert len([*Path("/proc/self/fd").iterdir()]) == before


# ---- writing -------------------------------------------------------------------------------------


def stream(writer: FolderWriter, adapter: Adapter) -> None:
    """All tensors of an adapter, one after another."""
    for key, tensor in adapter_to_state_dict(adapter).items():
        writer.add(key, tensor)


def test_a_streamed_folder_is_the_adapter(tmp_path: Path) -> None:
    """Tensor by tensor, of mixed dtypes, in any order, with a model card: PEFT and florana read what was meant."""
    adapter = some_adapter()
    adapter = Adapter(adapter.pairs, {n: tensor.bfloat16() for n, tensor in adapter.extras.items()})
    with FolderWriter(tmp_path / "deep" / "a", expected_header_bytes=0) as writer:
        for key, tensor in reversed(adapter_to_state_dict(adapter).items()):
            writer.add(key, tensor)
        made = writer.finish(adapter_to_config(adapter), readme="# A card of \udcff")
    assert made == tmp_path / "deep" / "a"
    assert sorted(file.name for file in made.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert (made / "README.md").read_text() == "# A card of \\udcff"
    assert [file.name for file in made.parent.iterdir()] == ["a"]
    assert same(load_adapter(made), adapter)
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(5, 4) for name in "qvo"})
    base = torch.nn.ModuleDict({"x": layers, "head": torch.nn.Linear(4, 2)})
    before = layers["v"].weight.detach().clone()
    merged = PeftModel.from_pretrained(base, made).merge_and_unload()
    delta = adapter.pairs["x.v"].delta_w().float()
    torch.testing.assert_close(merged["x"]["v"].weight - before, delta, rtol=1e-5, atol=1e-6)
    assert torch.equal(merged["head"].bias, torch.ones(2))


def test_nothing_is_left_of_what_is_not_finished(tmp_path: Path) -> None:
    """Left without finish, by an error, by Ctrl-C: no folder, no litter, and what was there stays."""
    old = save_adapter(some_adapter(1), tmp_path / "a")
    for fault in (None, KeyError("x"), KeyboardInterrupt()):
        for name in ("a", "new"):
            try:
                with FolderWriter(tmp_path / name, overwrite=True) as writer:
                    stream(writer, some_adapter())
                    if fault:
                        raise fault
            except (KeyError, KeyboardInterrupt):
                pass
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert same(load_adapter(old), some_adapter(1))


def test_nothing_is_finished_that_cannot_be_opened(tmp_path: Path) -> None:
    """Values that are not finite, a tensor less, settings for other tensors: refused, and no trace left."""
    config = adapter_to_config(some_adapter())
    with pytest.raises(AdapterError, match="'q' holds NaN"), FolderWriter(tmp_path / "a") as writer:
        writer.add("q", torch.tensor([1.0, torch.nan]))
    for change, state in (
        ({}, list(adapter_to_state_dict(some_adapter()).items())[1:]),
        ({"r": 7}, adapter_to_state_dict(some_adapter()).items()),
        ({"use_mystery": 1}, adapter_to_state_dict(some_adapter()).items()),
    ):
        with FolderWriter(tmp_path / "a") as writer:
            for key, tensor in state:
                writer.add(key, tensor)
            with pytest.raises(AdapterError):
                writer.finish(config | change)
    assert list(tmp_path.iterdir()) == []


def killed_between_renames(tmp_path: Path) -> Path:
    """What is left when an overwrite is killed between its renames: the old folder under its hidden name."""
    folder = save_adapter(some_adapter(1), tmp_path / "a")
    folder.rename(tmp_path / ".a.replaced")
    return folder


def test_reading_renames_nothing(tmp_path: Path) -> None:
    """The folder that a killed overwrite left aside is read where it is; the next writer puts it back."""
    folder = killed_between_renames(tmp_path)
    assert same(load_adapter(folder), some_adapter(1))
    assert [file.name for file in tmp_path.iterdir()] == [".a.replaced"]
    with pytest.raises(RunError, match="exists"):
        save_adapter(some_adapter(), folder)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_stranger_under_the_hidden_name_is_left_alone(tmp_path: Path) -> None:
    """A folder or a link called .a.replaced that is none of ours is neither read, nor removed, nor renamed."""
    notes = tmp_path / "notes"
    aside = notes.parent / ".a.replaced"
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    save_adapter(some_adapter(2), tmp_path / "other" / "b")
    for make in (
        lambda: aside.symlink_to(notes),
        lambda: aside.symlink_to(tmp_path / "other" / "b"),
        lambda: aside.symlink_to(tmp_path / "absent"),
        lambda: aside.write_text("mine"),
        lambda: (aside.unlink(), aside.mkdir(), (aside / "notes.txt").touch()),
    ):
        if aside.is_symlink():
            aside.unlink()
        make()
        with pytest.raises(AdapterError, match="is not a folder"):
            load_adapter(tmp_path / "a")
        folder = save_adapter(some_adapter(1), tmp_path / "a")
        with pytest.raises(RunError, match="in the way"):
            save_adapter(some_adapter(), folder, overwrite=True)
        assert same(load_adapter(folder), some_adapter(1))
        assert {f.name for f in tmp_path.iterdir()} == {"a", "notes", "other", ".a.replaced"}
        shutil.rmtree(folder)
    assert [file.name for file in aside.iterdir()] == ["notes.txt"]
    assert [file.name for file in notes.iterdir()] == ["notes.txt"]
    assert same(load_adapter(tmp_path / "other" / "b"), some_adapter(2))


def test_the_fresh_folder_is_not_guessed(tmp_path: Path) -> None:
    """Each writer has its own hidden folder, so that nobody can have put a link there before."""
    with FolderWriter(tmp_path / "a") as one, FolderWriter(tmp_path / "a") as other:
        names = {file.name for file in tmp_path.iterdir()}
        assert len(names) == 2
        assert all(len(name) == len(".a.") + 16 for name in names)
        stream(one, some_adapter())
        stream(other, some_adapter(1))
        one.finish(adapter_to_config(some_adapter()))
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert same(load_adapter(tmp_path / "a"), some_adapter())
