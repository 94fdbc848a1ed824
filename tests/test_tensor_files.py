"""Safetensors files: held against the safetensors library, against hostile headers, and against what happens to open files."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor

from florana.errors import AdapterError, ConfigError
from florana.peft_io import tensors as tensor_files
from florana.peft_io.header import DTYPES
from florana.peft_io.limits import Limits
from florana.peft_io.tensors import TensorWriter, open_tensors

in_one_folder = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def file_of(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:  # fmt: skip
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of any bits that the dtype has."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    top = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, top, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


def same_bits(came: Tensor, expected: Tensor) -> bool:
    """Equal dtype, shape and bytes: NaN is itself, and -0.0 is not 0.0."""
    if came.dtype != expected.dtype or came.shape != expected.shape:
        return False
    return torch.equal(came.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


named_tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.builds(
        random_tensor,
        st.sampled_from([*DTYPES.values()]),
        st.lists(st.integers(0, 4), max_size=4).map(tuple),
        st.integers(0, 99),
    ),
    max_size=6,
)

# ---- what is right -------------------------------------------------------------------------------


@in_one_folder
@given(named=named_tensors, metadata=st.none() | st.dictionaries(st.text("aé\"\\", max_size=3), st.text("b\n\U0001d518", max_size=3), min_size=1))  # fmt: skip
def test_reads_what_the_library_writes(
    named: dict[str, Tensor], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    """Any names, dtypes, shapes and metadata: every tensor has the bits that were saved.

    Metadata are none or some: of no tensors and ``{}`` safetensors 0.8 writes a header that it cannot read itself.
    """
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors.torch.save(named, metadata))
    with open_tensors(file) as opened:
        assert opened.infos.keys() == named.keys()
        for name, tensor in named.items():
            assert same_bits(opened.read(name), tensor)


@in_one_folder
@given(named=named_tensors, room=st.sampled_from([0, 8, 100, 4096]))
def test_library_reads_what_is_streamed(
    named: dict[str, Tensor], room: int, tmp_path: Path
) -> None:
    """In any order of dtypes and with any room for the header, the library and we read what was added."""
    file = tmp_path / "a.safetensors"
    file.unlink(missing_ok=True)
    with TensorWriter(file, room) as writer:
        for name, tensor in named.items():
            writer.add(name, tensor)
        writer.finish()
    theirs = safetensors.torch.load_file(file)
    assert theirs.keys() == named.keys()
    with open_tensors(file) as opened:
        for name, tensor in named.items():
            assert same_bits(theirs[name], tensor)
            assert same_bits(opened.read(name), tensor)
    with safetensors.safe_open(file, "pt") as library:
        assert library.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_streamed_tensors_are_aligned(tmp_path: Path) -> None:
    """Small elements before large ones: in the file, each tensor begins at a multiple of its elements' size."""
    file = tmp_path / "a.safetensors"
    dtypes = [torch.int8, torch.float64, torch.bfloat16, torch.float32]
    with TensorWriter(file) as writer:
        for dtype in dtypes:
            writer.add(str(dtype), torch.ones(3, dtype=dtype))
        writer.finish()
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert len(header) == 4
    for name, said in header.items():
        begin = 8 + length + said["data_offsets"][0]
        assert begin % getattr(torch, name.removeprefix("torch.")).itemsize == 0


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    """Transposed, strided and trained tensors are written by value."""
    weight = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    views = {"t": weight.T, "s": weight[:, ::2], "x": weight[0, 0].expand(3)}
    with TensorWriter(tmp_path / "a") as writer:
        for name, view in views.items():
            writer.add(name, view)
        writer.finish()
    theirs = safetensors.torch.load_file(tmp_path / "a")
    assert all(torch.equal(theirs[name], view) for name, view in views.items())


def test_a_name_cannot_come_twice(tmp_path: Path) -> None:
    """The second tensor of a name is refused, and so is a name that means the header's own data."""
    with TensorWriter(tmp_path / "a") as writer:
        writer.add("a", torch.ones(1))
        with pytest.raises(AdapterError, match="'a' comes twice"):
            writer.add("a", torch.ones(1))
    with TensorWriter(tmp_path / "b") as writer:
        writer.add("__metadata__", torch.ones(1))
        with pytest.raises(AdapterError, match="__metadata__"):
            writer.finish()


def test_reading_takes_the_memory_of_one_tensor(tmp_path: Path) -> None:
    """In a process whose memory may grow by a quarter of the file, all of its tensors are read in turn."""
    script = """
        import resource, sys, torch
        from pathlib import Path
        from florana.peft_io.tensors import open_tensors

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 32 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with open_tensors(sys.argv[1]) as file:
            print(sum(float(file.read(name)[0, 0]) for name in file.infos))
            try:
                kept = [file.read(name) for name in file.infos]
            except (RuntimeError, MemoryError):
                print("all at once do not fit")
    """
    file = tmp_path / "a.safetensors"
    with TensorWriter(file) as writer:
        for i in range(32):
            writer.add(str(i), torch.full((1024, 1024), 1.0))
        writer.finish()
    command = [sys.executable, "-c", textwrap.dedent(script), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["32.0", "all at once do not fit"]


# ---- what is wrong -------------------------------------------------------------------------------

GOOD = {"a": entry(), "b": entry("F16", (1, 4), (8, 16))}
ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "claims 0 bytes"),
    "seven bytes": (b"\x00" * 7, "file of 7"),
    "half a header": (file_of(b"{"), "goes on with ''"),
    "no header": (b"\x00" * 8, "goes on with ''"),
    "header only": (file_of(GOOD), "16 bytes, and 0 follow"),
    "cut": (file_of(GOOD, b"x" * 15), "16 bytes, and 15 follow"),
    "trailing": (file_of(GOOD, b"x" * 17), "16 bytes, and 17 follow"),
    "hole": (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, b"x" * 20), "no gap"),
    "hole at the start": (file_of({"a": entry(offsets=(4, 12))}, b"x" * 12), "no gap"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=(4, 12))}, b"x" * 12), "no overlap"),
    "twice the same bytes": (file_of({"a": entry(), "b": entry()}, b"x" * 8), "no overlap"),
    "backwards": (file_of({"a": entry(offsets=(8, 0))}, b"x" * 8), "bytes 8 to 0"),
    "beyond the file": (file_of({"a": entry(offsets=(0, 2**62))}), "4,611,686,018,427,387,904"),
    "size": (file_of({"a": entry(shape=(3,))}, b"x" * 8), "0 to 12"),
    "overflow": (file_of({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}), "dimension above"),
    "overflow behind a zero": (file_of({"a": entry(shape=(0, *[2**24] * 3), offsets=(0, 0))}), "dimension above"),
    "2**63": (file_of({"a": entry(shape=(2**63,))}), "dimension above"),
    "2**70": (file_of({"a": entry(shape=(2**70,))}), "goes on with"),
    "negative": (file_of({"a": entry(shape=(-2,))}, b"x" * 8), "goes on with"),
    "minus zero": (file_of(ONE.replace(b"[0,8]", b"[-0,8]") + b"}", b"x" * 8), "goes on with"),
    "leading zero": (file_of(ONE.replace(b"[2]", b"[02]") + b"}", b"x" * 8), "goes on with"),
    "float": (file_of({"a": entry(shape=(2.0,))}, b"x" * 8), "goes on with"),
    "exponent": (file_of(ONE.replace(b"[2]", b"[2e0]") + b"}", b"x" * 8), "goes on with"),
    "NaN": (file_of({"a": entry(shape=(float("nan"),))}), "goes on with"),
    "bool": (file_of({"a": entry(shape=(True,))}), "goes on with"),
    "three offsets": (file_of({"a": entry(offsets=(0, 8, 8))}, b"x" * 8), "goes on with"),
    "nine dimensions": (file_of({"a": entry(shape=(1,) * 9)}), "goes on with"),
    "list in a shape": (file_of({"a": entry(shape=([2],))}, b"x" * 8), "goes on with"),
    "dtype": (file_of({"a": entry("F99")}, b"x" * 8), "F99; expected one of F64"),
    "dtype of half bytes": (file_of({"a": entry("F4", (16,))}, b"x" * 8), "is F4"),
    "no dtype": (file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"x" * 8), "goes on with"),
    "a field more": (file_of({"a": entry(more=1)}, b"x" * 8), "goes on with"),
    "a field twice": (file_of(ONE.replace(b'"shape":[2]', b'"dtype":"F32"') + b"}", b"x" * 8), "a field twice"),
    "a name twice": (file_of(ONE + b"," + ONE[1:] + b"}", b"x" * 8), "'a' comes twice"),
    "a name twice, escaped": (file_of(ONE + b"," + ONE[1:].replace(b'"a"', b'"\\u0061"') + b"}", b"x" * 8), "comes twice"),
    "metadata twice": (file_of(b'{"__metadata__":{},"__metadata__":{},' + ONE[1:] + b"}", b"x" * 8), "comes twice"),
    "metadata numbers": (file_of({"__metadata__": {"a": 1}, "a": entry()}, b"x" * 8), "goes on with"),
    "metadata null": (file_of({"__metadata__": None, "a": entry()}, b"x" * 8), "goes on with"),
    "metadata surrogate": (file_of({"__metadata__": {"a": "\ud83d"}, "a": entry()}, b"x" * 8), "surrogates not allowed"),
    "half a surrogate": (file_of({"\ud800": entry()}, b"x" * 8), "surrogates not allowed"),
    "control character": (file_of(ONE.replace(b'"a"', b'"\n"') + b"}", b"x" * 8), "goes on with"),
    "bad escape": (file_of(ONE.replace(b'"a"', b'"\\x61"') + b"}", b"x" * 8), "goes on with"),
    "latin-1": (file_of(ONE.replace(b'"a"', b'"\xe9"') + b"}", b"x" * 8), "UTF-8"),
    "UTF-16": (file_of(json.dumps(GOOD).encode("utf-16"), b"x" * 16), "UTF-8"),
    "byte order mark": (file_of(b"\xef\xbb\xbf" + ONE + b"}", b"x" * 8), "goes on with"),
    "blank in front": (file_of(b" " + ONE + b"}", b"x" * 8), "goes on with"),
    "comma at the end": (file_of(ONE + b",}", b"x" * 8), "goes on with"),
    "comma in an entry": (file_of(ONE.replace(b"8]}", b"8],}") + b"}", b"x" * 8), "goes on with"),
    "comma missing": (file_of(ONE + ONE[1:] + b"}", b"x" * 8), "goes on with"),
    "not closed": (file_of(ONE, b"x" * 8), "goes on with"),
    "two objects": (file_of(ONE + b"}{}", b"x" * 8), "goes on with"),
    "zero byte behind": (file_of(ONE + b"}\x00", b"x" * 8), "goes on with"),
    "a list": (file_of([]), "goes on with '[]'"),
    "list of lists": (file_of(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"), "goes on with"),
    "deep": (file_of(b"[" * 1_000_000), "goes on with"),
    "long name": (file_of({"n" * 1025: entry()}, b"x" * 8), "1,025 characters"),
    "very long name": (file_of({"n" * 7000: entry()}, b"x" * 8), "7,002 characters"),
    "long metadata": (file_of({"__metadata__": {"a": "b" * 2**20}}), "1,048,578 characters"),
    "escapes without end": (file_of(b'{"' + b"\\n" * 1_000_000 + b'":{}}'), "goes on with"),
    "header beyond the file": (struct.pack("<Q", 9) + b"{}", "claims 9 bytes; expected at most 2"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}", "18,446,744,073,709,551,615"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_fault_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    """Every fault of a file is refused with what came and what was expected, in a message of bounded length."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AdapterError) as caught:
        open_tensors(tmp_path / "a")
    message = str(caught.value)
    assert words in message
    assert "expected" in message
    assert len(message) < 1000


OTHER_SPELLINGS = {
    "order of fields": ONE.replace(b'"dtype":"F32",', b"")[:-1] + b',"dtype":"F32"}}',
    "blanks": b'{ "a"\t:\r\n{ "dtype" : "F32" , "shape" : [ 2 ] , "data_offsets" : [ 0 , 8 ] } }  \n',
    "empty metadata": b'{"__metadata__":{},' + ONE[1:] + b"}",
    "metadata last": ONE + b',"__metadata__":{"a":"\\ud83d\\ude00"}}',
    "escaped name": ONE.replace(b'"a"', b'"\\u0061"') + b"}",
}


@pytest.mark.parametrize("header", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS.keys())
def test_other_spellings_are_read(header: bytes, tmp_path: Path) -> None:
    """What JSON leaves open, other writers may do in their own way."""
    content = file_of(header, struct.pack("<ff", 1, 2))
    assert safetensors.torch.load(content)["a"].tolist() == [1, 2]
    (tmp_path / "a").write_bytes(content)
    with open_tensors(tmp_path / "a") as file:
        assert file.read("a").tolist() == [1, 2]


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A good file with some bytes replaced, put in or taken out, mostly of its header."""
    named = draw(named_tensors)
    content = bytearray(safetensors.torch.save(named))
    end = 8 + int.from_bytes(content[:8], "little")
    pieces = st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"-", b".", b" ", b"\\"])  # fmt: skip
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(8, end))
        content[at : at + draw(st.integers(0, 3))] = draw(pieces | st.binary(max_size=3))
    if draw(st.booleans()):  # so that the length is right again
        length = len(content) - 8 - sum(tensor.nbytes for tensor in named.values())
        content[:8] = max(0, length).to_bytes(8, "little")
    return bytes(content)


@in_one_folder
@given(content=mutated_files())
def test_accepts_no_more_than_the_library(content: bytes, tmp_path: Path) -> None:
    """Whatever is accepted, the library accepts with the same names and bits; what it refuses is refused."""
    (tmp_path / "a").write_bytes(content)
    try:
        with open_tensors(tmp_path / "a") as file:
            ours = {name: file.read(name) for name in file.infos}
    except AdapterError:
        return
    try:
        theirs = safetensors.torch.load(content)
    except SafetensorError as error:
        pytest.fail(f"accepted what the library does not: {error}")
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("file_bytes", 400, "too large"),
        ("header_bytes", 100, "header claims"),
        ("tensors", 2, "holds 3 tensors or more; expected at most 2"),
        ("name_length", 4, "has 5 characters; expected at most 4"),
        ("dimension", 99, "expected no dimension above 99"),
    ],
)
def test_limit_holds(limit: str, value: int, words: str, tmp_path: Path) -> None:
    """One beyond each limit is refused; without the limit the same file is read."""
    named = {"a": torch.ones(100), "b": torch.ones(1), "cdefg": torch.ones(1)}
    safetensors.torch.save_file(named, tmp_path / "a")
    open_tensors(tmp_path / "a").close()
    with pytest.raises(AdapterError, match=words):
        open_tensors(tmp_path / "a", Limits(**{limit: value}))


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "8"])
def test_limit_is_a_whole_number(value: Any) -> None:
    """A limit that is none is refused rather than ignored."""
    with pytest.raises(ConfigError, match="limit rank is"):
        Limits(rank=value)


def test_many_empty_tensors_are_refused_at_the_limit(tmp_path: Path) -> None:
    """300,000 empty tensors, which cost the library 20 s, end at the one above the limit."""
    header = {f"k{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(200_000)}
    (tmp_path / "a").write_bytes(file_of(header))
    with pytest.raises(AdapterError, match="100,001 tensors or more"):
        open_tensors(tmp_path / "a")


MEMORY_BOMBS: dict[str, Callable[[], bytes]] = {
    "wide metadata": lambda: file_of(
        b'{"__metadata__":{"' + "\U0001d518".encode() + b"a" * (2**24 - 60) + b'":"x"}}'
    ),
    "tensors": lambda: file_of(
        {f"{i}": entry(shape=(2**20, 2**20, 0), offsets=(0, 0)) for i in range(100_000)}
    ),
    "lists": lambda: file_of(b'{"a":[' + b"[]," * (2**22) + b"[]]}"),
    "escapes": lambda: file_of(b'{"' + b"\\n" * (2**23 - 60) + b'":{}}'),
}


@pytest.mark.parametrize("bomb", MEMORY_BOMBS.values(), ids=MEMORY_BOMBS.keys())
def test_header_takes_no_more_than_said(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    """Six times the header's bytes and 700 for each tensor, as ``Limits`` says, whatever the header is."""
    (tmp_path / "a").write_bytes(bomb())
    size, limits = (tmp_path / "a").stat().st_size, Limits()
    tracemalloc.start()
    try:
        open_tensors(tmp_path / "a", limits).close()
    except AdapterError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 6.1 * size + 700 * limits.tensors


# ---- what is no plain file, and what changes while it is open ------------------------------------


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    """No link, not even to a good file; no pipe, which would block; no folder; nothing."""
    (tmp_path / "good").write_bytes(file_of(GOOD, b"x" * 16))
    (tmp_path / "link").symlink_to(tmp_path / "good")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    open_tensors(tmp_path / "good").close()
    for name, words in {"link": "symbolic link", "circle": "symbolic link", "pipe": "no plain file", "folder": "no plain file", "absent": "No such file"}.items():  # fmt: skip
        with pytest.raises(AdapterError, match=words):
            open_tensors(tmp_path / name)


def by_name(file: Path) -> None:
    """Replace the file by another of the same size and time."""
    status, other = file.stat(), file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, 100),
    "longer": lambda file: os.truncate(file, 1000),
    "rewritten": lambda file: os.utime(file, ns=(0, 0)),
}


@pytest.fixture(params=["kept open", "opened again"])
def few_descriptors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold a file: a descriptor, or none because too many are in use."""
    if request.param == "opened again":
        monkeypatch.setattr(tensor_files, "_SPARE_DESCRIPTORS", 2**62)
    return str(request.param)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_changes_is_noticed(
    change: Callable[[Path], object], few_descriptors: str, tmp_path: Path
) -> None:
    """Cut short, made longer or rewritten between two reads: an error, no old length and no SIGBUS."""
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(8), "b": torch.zeros(8)}, file)
    with open_tensors(file) as opened:
        assert opened.read("a").sum() == 8
        change(file)
        with pytest.raises(AdapterError, match=r"changed while it was in use|too large"):
            opened.read("b")


def test_another_file_of_the_name_is_not_mistaken(few_descriptors: str, tmp_path: Path) -> None:
    """Replaced by an equal one: the open descriptor reads the old file, opening again tells the difference."""
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(8)}, file)
    with open_tensors(file) as opened:
        by_name(file)
        if few_descriptors == "kept open":
            assert opened.read("a").sum() == 8
        else:
            with pytest.raises(AdapterError, match="changed"):
                opened.read("a")


def test_a_file_that_ends_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short between the check and the read, which no check can see: an error."""
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(8)}, file)
    with open_tensors(file) as opened:
        os.truncate(file, file.stat().st_size - 4)
        monkeypatch.setattr(tensor_files, "_identity", lambda _: opened._identity)
        with pytest.raises(AdapterError, match="4 more; something cut it short"):
            opened.read("a")


def test_closed_is_closed(few_descriptors: str, tmp_path: Path) -> None:
    """Nothing is read from a closed file, and closing twice does no harm."""
    safetensors.torch.save_file({"a": torch.ones(8)}, tmp_path / "a")
    file = open_tensors(tmp_path / "a")
    file.close()
    file.close()
    with pytest.raises(AdapterError, match="closed"):
        file.read("a")


def test_a_missing_name_is_an_error(tmp_path: Path) -> None:
    """A name that is not there is told with those that are."""
    safetensors.torch.save_file({"a": torch.ones(8)}, tmp_path / "a")
    with open_tensors(tmp_path / "a") as file, pytest.raises(AdapterError, match=r"'b'.*\['a'\]"):
        file.read("b")


@pytest.fixture
def at_most_300_descriptors() -> Iterator[None]:
    """Few descriptors for this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("at_most_300_descriptors")
def test_more_files_than_descriptors(tmp_path: Path) -> None:
    """400 files are open at once where a process may have 300, and none of its descriptors is lost."""
    before = len([*Path("/proc/self/fd").iterdir()])
    files = []
    for i in range(400):
        safetensors.torch.save_file({"a": torch.full((2,), float(i))}, tmp_path / str(i))
        files.append(open_tensors(tmp_path / str(i)))
    for _ in range(2):
        assert [int(file.read("a")[1]) for file in files] == [*range(400)]
    for file in files:
        file.close()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_refused_files_are_closed(tmp_path: Path) -> None:
    """A thousand refusals leave no descriptor behind."""
    (tmp_path / "a").write_bytes(file_of(GOOD))
    before = len([*Path("/proc/self/fd").iterdir()])
    kept = []
    for _ in range(50):
        with pytest.raises(AdapterError) as caught:
            open_tensors(tmp_path / "a")
        kept.append(caught)  # with its traceback, and so with the frame that opened the file
    assert len([*Path("/proc/self/fd").iterdir()]) == before
