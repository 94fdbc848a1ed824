"""Every kind of thing that PEFT adapts, folder to folder: the rows of :data:`peft_rows.ROWS`."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

import peft_clients
from florana import aggregate_folders
from peft_clients import SIZES, Row
from peft_rows import ROWS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_folders_merge_to_the_mean_of_the_clients_merged_weights(row: Row, tmp_path: Path) -> None:
    """All that PEFT makes of the result is the weighted mean of what it makes of the clients; W comes from a file."""
    paths = peft_clients.saved(row, tmp_path)
    state = {name: tensor.clone() for name, tensor in row.base().state_dict().items()}
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    result = aggregate_folders(
        paths, tmp_path / "out", "ideal", SIZES, base=tmp_path / "base", streaming=False
    )
    mean = peft_clients.mean([peft_clients.merged(row.base(), path) for path in paths])
    assert peft_clients.off(peft_clients.merged(row.base(), result.out), mean) == {}
