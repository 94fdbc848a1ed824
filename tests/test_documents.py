"""What the documents say is true: their Python blocks run, and the examples print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def python_blocks(document: str) -> list[str]:
    """The ```python blocks of a Markdown file."""
    text = (ROOT / document).read_text("utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(script: Path) -> None:
    """Every example runs as it stands."""
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python blocks run one after the other, given three adapter folders to read."""
    import torch

    import florana

    for seed, name in enumerate(("site_a", "site_b", "site_c")):
        numbers = torch.Generator().manual_seed(seed)
        A, B = torch.randn(4, 12, generator=numbers), torch.randn(8, 4, generator=numbers)
        adapter = florana.Adapter({"model.layers.0.q_proj": florana.LoraPair(A, B, alpha=8)})
        florana.save_adapter(adapter, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = python_blocks("README.md")
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_contributing_aggregator_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregator that CONTRIBUTING shows can be registered and called as it stands."""
    import torch

    import florana
    from florana.aggregators import _registry

    (block,) = python_blocks("CONTRIBUTING.md")
    module = types.ModuleType("half")
    monkeypatch.setitem(sys.modules, "half", module)
    try:
        exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)
        pair = florana.LoraPair(torch.ones(2, 6), torch.ones(5, 2), alpha=2)
        update = florana.ClientUpdate("only", 1, florana.Adapter({"layer": pair}))
        made = florana.aggregate([update], method="half").adapter.pairs["layer"].delta_w()
        torch.testing.assert_close(made, pair.delta_w() / 2)
    finally:
        _registry._registry.pop("half", None)


def test_methods_table_is_up_to_date() -> None:
    """docs/methods.md holds what ``florana methods --markdown`` prints."""
    from florana.aggregators import cards
    from florana.cli.methods import markdown

    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    found = re.search(
        r"<!-- made by: florana methods --markdown -->\n(.*?)\n<!-- end -->", text, re.DOTALL
    )
    assert found is not None
    assert found[1] == markdown(cards().values())
