"""Messages of 300 MB go through a real deployment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployment import federation

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

PYPROJECT = """\
[project]
name = "big"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "florana"

[tool.flwr.app.components]
serverapp = "big_app:server_app"
clientapp = "big_app:client_app"
"""


def test_messages_of_300_megabytes_go_both_ways(tmp_path: Path) -> None:
    """Two clients get 307 MB each and send as much; the mean of what they sent is exact to float32."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "faults").mkdir()
    with federation(tmp_path, [f"partition-id={k} num-partitions=2" for k in range(2)]) as flower:
        status, streamed = flower.run(app, timeout=900)
        assert status == "finished:completed", streamed
    said = json.loads((tmp_path / "faults" / "big.json").read_text())
    assert said["clients"] == 2
    assert said["bytes_up"] > 2 * 300e6
    assert said["bytes_down"] > 2 * 300e6
    assert said["error"] < 1e-6
