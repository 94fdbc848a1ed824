"""Hostile adapter folders for ``fuzz_folders.py``: folders of PEFT's own, taken apart, changed, and put together again."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
INDEX = WEIGHTS + ".index.json"

HOSTILE_NAMES = [
    *("", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a/b", "a\\b", "C:\\x", "~root"),
    *("a\0b", "\u202egnp.exe", "ﬀ", "é", "e\u0301", "𝔘", "\ud800", "\x1b[2J", "\n", "%s%n", "{0.__class__}", "x" * 600, "x" * 70_000),
    *("(a+)+b", "(.*)*$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(?P<x", "[", "\\", ".*", "(" * 500, "a" * 40 + "!"),
    *("__metadata__", "__class__", "base_model.model.", "base_model.model", "base_model.model..lora_A.weight"),
    *("base_model.model.q.lora_A.weight", "base_model.model.../x.lora_A.weight", "module._orig_mod.x", "..."),
]  # fmt: skip
HOSTILE_NUMBERS: list[Any] = [
    *(0, -0.0, -1, 1, 2, 3, 7, 100_000, 2**24, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**63 - 1, 2**64, 2**64 - 1, 10**18, 10**400),
    *(0.5, 1e30, 1e-30, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), True, False, None, "1", "", [], [1], {}, {"a": 1}),
]  # fmt: skip
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "U16", "F99", "f32", "", None, 3]  # fmt: skip


class Bomb:
    """A pickle that would run a command, were it ever loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        """What the unpickler would call."""
        return os.system, ("echo a pickle was run >&2; exit 1",)


@dataclass(slots=True)
class Case:
    """An adapter folder in parts. What is raw replaces what would be made from the parts."""

    config: Any
    entries: list[list[Any]]
    data: bytearray
    metadata: Any = field(default_factory=lambda: {"format": "pt"})
    length: int | None = None
    raw_config: bytes | None = None
    raw_header: bytes | None = None
    trailing: bytes = b""
    others: dict[str, bytes] = field(default_factory=dict)
    special: dict[str, str] = field(default_factory=dict)

    def config_bytes(self) -> bytes:
        """``adapter_config.json``."""
        return json.dumps(self.config).encode() if self.raw_config is None else self.raw_config

    def header_bytes(self) -> bytes:
        """The weights' header, in which names may come twice."""
        if self.raw_header is not None:
            return self.raw_header
        items = [["__metadata__", self.metadata]] if self.metadata is not None else []
        return (
            "{"
            + ",".join(f"{json.dumps(n)}:{json.dumps(v)}" for n, v in items + self.entries)
            + "}"
        ).encode()

    def weights_bytes(self) -> bytes:
        """``adapter_model.safetensors``."""
        header = self.header_bytes()
        length = len(header) if self.length is None else self.length
        return struct.pack("<Q", length % 2**64) + header + bytes(self.data) + self.trailing

    def write(self, folder: Path) -> None:
        """Make the folder's files; it must be empty."""
        files = {CONFIG: self.config_bytes(), WEIGHTS: self.weights_bytes(), **self.others}
        for name, content in files.items():
            kind = self.special.get(name, "file")
            path = folder / name
            if kind == "file":
                path.write_bytes(content)
            elif kind == "link":
                path.symlink_to(folder.parent / "outside" / name)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()


def parts_of(folder: Path) -> Case:
    """A folder of PEFT's, taken apart."""
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__", None)
    entries = sorted(([n, e] for n, e in header.items()), key=lambda e: e[1]["data_offsets"])
    config = json.loads((folder / CONFIG).read_text())
    return Case(config, entries, bytearray(content[end:]), metadata)


class _Experts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.zeros(3, 4, 6))


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(6, 4)
        self.q = torch.nn.Linear(4, 6)
        self.conv = torch.nn.Conv1d(4, 3, 3)
        self.head = torch.nn.Linear(4, 2)
        self.mha = torch.nn.MultiheadAttention(4, 2)
        self.experts = _Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x)  # type: ignore[no-any-return]


def corpus(folder: Path) -> list[bytes]:
    """Small folders that PEFT itself writes, of unlike kinds, taken apart and pickled; written below ``folder``."""
    from peft import HiraConfig, LoraConfig, get_peft_model

    settings: list[Any] = [
        LoraConfig(r=2, lora_alpha=4, target_modules=["q"]),
        LoraConfig(
            r=2, lora_alpha=3, target_modules=["q", "head"], use_rslora=True, rank_pattern={"q": 3}
        ),
        LoraConfig(r=2, target_modules=["q"], bias="lora_only", modules_to_save=["head"]),
        LoraConfig(r=2, target_modules=["emb", "conv"]),
        LoraConfig(r=1, target_modules=["q"], use_dora=True),
        LoraConfig(r=2, target_modules=["q"], lora_bias=True),
        HiraConfig(r=2, target_modules=["q"]),
        LoraConfig(r=1, target_modules=["conv"], use_dora=True),
        LoraConfig(r=2, target_modules=["mha"]),
        LoraConfig(r=2, target_modules=["q"], target_parameters=["experts.up"]),
        LoraConfig(r=2, target_modules=["q"], trainable_token_indices={"emb": [0, 3]}),
    ]
    found = []
    for i, config in enumerate(settings):
        torch.manual_seed(i)
        model = get_peft_model(_Net(), config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        if i == 1:
            model.bfloat16()
        model.save_pretrained(folder / str(i))
        found.append(pickle.dumps(parts_of(folder / str(i))))
    return found


def make_case(cases: list[bytes], number: random.Random) -> tuple[Case, list[str]]:
    """One input: a (pickled) folder of the corpus with one to three changes, and what these are called."""
    case: Case = pickle.loads(number.choice(cases))  # copies in a third of deepcopy's time
    changes = number.choices(CHANGES, k=number.choice([1, 1, 1, 2, 3]))
    for change in changes:
        change(case, number)
    return case, [change.__name__ for change in changes]


# ---- changes ---------------------------------------------------------------------------------


def _entry(case: Case, number: random.Random) -> dict[str, Any]:
    entry = number.choice(case.entries)[1] if case.entries else {}
    return entry if isinstance(entry, dict) else {}


def setting_value(case: Case, number: random.Random) -> None:
    """Any setting, any value."""
    names = [*case.config, "use_dora", "unknown", "kasa_config", "__proto__"]
    value = number.choice([*HOSTILE_NUMBERS, *HOSTILE_NAMES])
    case.config[number.choice(names)] = number.choice([value, [value], {"q": value}])


def setting_number(case: Case, number: random.Random) -> None:
    """Ranks and scalings."""
    name = number.choice(["r", "lora_alpha", "lora_dropout"])
    case.config[name] = number.choice([100_000, 1e30, *HOSTILE_NUMBERS, number.randrange(1, 9)])


def setting_pattern(case: Case, number: random.Random) -> None:
    """Regular expressions and names in patterns and lists."""
    texts = number.choices([*HOSTILE_NAMES, "q", "head", "^q", "conv"], k=number.choice([1, 3]))
    name = number.choice(["rank_pattern", "alpha_pattern", "target_modules", "modules_to_save", "exclude_modules", "target_parameters", "trainable_token_indices", "layer_replication"])  # fmt: skip
    value = number.choice([1, 2, 3, *HOSTILE_NUMBERS])
    case.config[name] = number.choice([dict.fromkeys(texts, value), texts, texts[0]])


def setting_gone(case: Case, number: random.Random) -> None:
    """A setting less."""
    if case.config:
        del case.config[number.choice([*case.config])]


def config_bytes(case: Case, number: random.Random) -> None:
    """Bytes of the config."""
    case.raw_config = _mangled(case.config_bytes(), number)


def config_whole(case: Case, number: random.Random) -> None:
    """Another file altogether."""
    text = case.config_bytes()
    deep = number.choice([30, 33, 500, 5_000, 100_000])
    choices = [
        *(b"", b"[]", b"null", b"{}", b"1", b'"x"', text + text, b"\xef\xbb\xbf" + text, text + b" " * 2**20),
        *(b"[" * deep, b'{"r":' * deep, b'{"r":' + b"[" * deep + b"]" * deep + b"}", b'{"a":' * deep + b"1" + b"}" * deep),
        *(text[:-1] + b', "r": 2}', text[:-1] + b', "r": 1e400}', text[:-1] + b', "x": ' + b"1" * 5_000 + b"}"),
        *(b'{"r":[' + b"[]," * 100_000 + b"[]]}", text.decode(errors="replace").encode("utf-16"), number.randbytes(100)),
    ]  # fmt: skip
    case.raw_config = number.choice(choices)


def entry_dtype(case: Case, number: random.Random) -> None:
    """Another dtype."""
    _entry(case, number)["dtype"] = number.choice(DTYPES)


def entry_shape(case: Case, number: random.Random) -> None:
    """Another shape."""
    entry = _entry(case, number)
    shape = entry.get("shape", [])
    if not isinstance(shape, list):
        return
    position = number.randrange(len(shape) + 1)
    changed: list[Any] = [
        shape[::-1],
        [*shape, 1],
        [1, *shape],
        [*shape[:position], number.choice(HOSTILE_NUMBERS), *shape[position + 1 :]],
        [1] * number.choice([8, 9, 70, 5_000]),
        [0, 2**24, 2**24, 2**24],
        [2**32, 2**32],
        None,
        "2",
        {"0": 2},
    ]
    entry["shape"] = number.choice(changed)


def entry_offsets(case: Case, number: random.Random) -> None:
    """Other places."""
    entry = _entry(case, number)
    offsets = entry.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2):
        return
    begin, end = offsets
    if not (type(begin) is int and type(end) is int):
        return
    step = number.choice([1, 2, 4, 8])
    changed: list[Any] = [
        *([begin + step, end + step], [begin - step, end - step], [begin, end + step], [end, begin]),
        *([begin, number.choice(HOSTILE_NUMBERS)], [number.choice(HOSTILE_NUMBERS), end], [begin, end, end], [begin]),
        *([2**63, 2**63 + end - begin], [0, 0], [], "0", None),
    ]  # fmt: skip
    entry["data_offsets"] = number.choice(changed)


def entry_name(case: Case, number: random.Random) -> None:
    """Another name, or one twice."""
    if case.entries:
        name = number.choice([*HOSTILE_NAMES, number.choice(case.entries)[0]])
        chosen = number.choice(case.entries)
        chosen[0] = number.choice(
            [name, f"base_model.model.{name}.lora_A.weight", f"module.{chosen[0]}", str(chosen[0]).replace("q", name)]
        )  # fmt: skip


def entry_field(case: Case, number: random.Random) -> None:
    """A field more or less, or another order."""
    entry = _entry(case, number)
    choice = number.randrange(3)
    if choice == 0 and entry:
        del entry[number.choice([*entry])]
    elif choice == 1:
        entry[number.choice(["extra", "__class__", "dtypE"])] = number.choice(HOSTILE_NUMBERS)
    else:
        items = [*entry.items()]
        number.shuffle(items)
        entry.clear()
        entry.update(items)


def entry_gone(case: Case, number: random.Random) -> None:
    """A tensor less, its bytes left or taken away."""
    if case.entries:
        position = number.choice([0, len(case.entries) - 1, number.randrange(len(case.entries))])
        _, entry = case.entries.pop(position)
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if position == len(case.entries) and number.random() < 0.7 and isinstance(offsets, list):
            del case.data[-number.choice([4, 8, 16, 32]) :]


def entry_more(case: Case, number: random.Random) -> None:
    """Tensors more, empty ones or one that fits."""
    end = len(case.data)
    if number.random() < 0.5:
        chance = number.random()
        count = 1 if chance < 0.9 else number.choice([10, 1_000, 150_000 if chance < 0.902 else 2])
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        case.entries += [[f"base_model.model.{i}" if count < 9_999 else f"{i}", empty] for i in range(count)]  # fmt: skip
    else:
        case.data += number.randbytes(8)
        name = number.choice(["base_model.model.head.bias", "base_model.model.q.base_layer.bias", "base_model.model.z.lora_B.weight"])  # fmt: skip
        case.entries.append([name, {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}])


def entry_order(case: Case, number: random.Random) -> None:
    """Entries in another order, which is none of a change."""
    number.shuffle(case.entries)


def header_bytes(case: Case, number: random.Random) -> None:
    """Bytes of the header."""
    case.raw_header = _mangled(case.header_bytes(), number)


def header_blank(case: Case, number: random.Random) -> None:
    """Blanks where JSON has them, or where it has none."""
    text, blank = case.header_bytes(), number.choice([b" ", b"\n", b"\t", b"\r", b"\x0c", b"\xa0", b"\0", b"   "])  # fmt: skip
    at = number.choice([0, len(text), number.randrange(len(text) + 1)])
    case.raw_header = text[:at] + blank + text[at:]


def header_whole(case: Case, number: random.Random) -> None:
    """Another header altogether."""
    deep = number.choice([100, 1_000, 100_000])
    text = case.header_bytes()
    choices = [
        *(b"", b"{}", b"[]", b"null", b" " * 1_000, b"{" * deep, b"[" * deep, b'{"a":' * deep, text * 2, text[:-1] + b",}", b"{,}"),
        *(b'{"a":[' + b"[]," * deep + b"[]]}", b"\xef\xbb\xbf" + text, number.randbytes(64), b'{"' + b"\\n" * deep + b'":{}}'),
        *(text.decode(errors="replace").encode("utf-16"), b'{"__metadata__":{"a":"' + b"\\u0041" * 5_000 + b'"},' + text[1:]),
    ]  # fmt: skip
    case.raw_header = number.choice(choices)


def header_metadata(case: Case, number: random.Random) -> None:
    """Metadata of any kind."""
    values: list[Any] = [{}, {"a": 1}, {"a": None}, {"a": {"b": "c"}}, [], "pt", 1, {"é": "\ud83d"}, {"a": "\ud83d\ude00"}]  # fmt: skip
    case.metadata = number.choice([None, {n: n for n in HOSTILE_NAMES[:30]}, *values])


def length_prefix(case: Case, number: random.Random) -> None:
    """Another length of the header."""
    right = len(case.header_bytes())
    case.length = number.choice([0, 1, right - 1, right + 1, right + len(case.data), right + len(case.data) + 1, 2**24, 2**31, 2**63, 2**64 - 1, 2**64 - 8])  # fmt: skip


def data_bytes(case: Case, number: random.Random) -> None:
    """Values: any bits, NaN, infinity, very large."""
    if len(case.data) >= 8:
        at = number.randrange(len(case.data) - 7) // 4 * 4
        values = [float("nan"), float("inf"), 3e38, -0.0, 1e-45, number.random()]
        new = number.choice([number.randbytes(4), struct.pack("<f", number.choice(values))])
        case.data[at : at + 4] = new


def data_all(case: Case, number: random.Random) -> None:
    """All values at once."""
    count = len(case.data) // 4
    value = number.choice([0.0, 1.0, 1e-38, 1e19, 3e38, -1e-45, float("nan")])
    case.data[: 4 * count] = struct.pack("<f", value) * count


def file_end(case: Case, number: random.Random) -> None:
    """A file cut short or with more behind it."""
    if number.random() < 0.5 and case.data:
        del case.data[number.randrange(len(case.data)) :]
    else:
        case.trailing = number.randbytes(number.choice([1, 8, 1_000]))


def file_kind(case: Case, number: random.Random) -> None:
    """Something else in place of a file."""
    name = number.choice([CONFIG, WEIGHTS])
    case.special[name] = number.choice(["link", "pipe", "folder", "gone"])


def file_pickle(case: Case, number: random.Random) -> None:
    """A pickle that runs code, or unpacks to a gibibyte, instead of the weights or beside them."""
    content = io.BytesIO()
    if number.random() < 0.5:
        torch.save(Bomb(), content)
    else:
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(2**16))
    case.others[PICKLE] = content.getvalue()
    if number.random() < 0.8:
        case.special[WEIGHTS] = "gone"


def file_index(case: Case, number: random.Random) -> None:
    """Shards, honest ones or outside the folder."""
    shard = number.choice(["adapter_model-00001-of-00001.safetensors"] * 4 + [f"{n}.safetensors" for n in HOSTILE_NAMES] + ["../outside/" + WEIGHTS, WEIGHTS])  # fmt: skip
    home: dict[str, Any] = {str(name): shard for name, _ in case.entries}
    choice = number.randrange(6)
    if choice == 0 and home:
        home.popitem()
    elif choice == 1:
        home["base_model.model.more"] = number.choice([shard, "absent.safetensors", 3, None])
    index: Any = {"metadata": {"total_size": len(case.data)}, "weight_map": home}
    if choice == 2:
        index = number.choice([{}, [], {"weight_map": []}, {"weight_map": {}}, None])
    name = number.choice([INDEX, "model.safetensors.index.json"])
    case.others[name] = json.dumps(index).encode()
    if "/" not in shard and "\\" not in shard and "\0" not in shard and len(shard) < 200:
        shard_name = shard.encode(errors="replace").decode()
        if shard_name != WEIGHTS:
            case.others[shard_name] = case.weights_bytes()
    if number.random() < 0.9:
        case.special[WEIGHTS] = "gone"


def _mangled(text: bytes, number: random.Random) -> bytes:
    """Bytes flipped, cut out, put in, or doubled."""
    content = bytearray(text)
    for _ in range(number.choice([1, 1, 2, 8])):
        at = number.randrange(len(content) + 1)
        choice = number.randrange(5)
        if choice == 0 and at < len(content):
            content[at] ^= 1 << number.randrange(8)
        elif choice == 1:
            del content[at : at + number.choice([1, 2, 20])]
        elif choice == 2:
            content[at:at] = number.choice([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b"9", b"-", b"e9", b".0", b"\\ud800", b"\xff", b"\xed\xa0\x80", number.randbytes(3)])  # fmt: skip
        elif choice == 3:
            content[at:at] = content[at : at + number.choice([5, 50])]
        elif at < len(content):
            content[at] = number.randrange(256)
    return bytes(content)


CHANGES: list[Callable[[Case, random.Random], None]] = [
    *(setting_value, setting_number, setting_pattern, setting_gone, config_bytes, config_whole),
    *(entry_dtype, entry_shape, entry_offsets, entry_name, entry_field, entry_gone, entry_more, entry_order),
    *(header_bytes, header_blank, header_whole, header_metadata, length_prefix),
    *(data_bytes, data_all, file_end, file_kind, file_pickle, file_index),
]  # fmt: skip
