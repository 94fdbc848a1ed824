"""Make one PEFT adapter out of two, and say how good it is. No federation, no training.

    python examples/merge_two_adapters.py

With adapters of your own, `load_adapter("site_a")` takes the place of `site(...)`.
"""

import tempfile
from pathlib import Path

import torch

import florana


def site(seed: int) -> florana.Adapter:
    """Stands for an adapter that a site trained: rank 8 on one 256 × 512 weight."""
    numbers = torch.Generator().manual_seed(seed)
    A = torch.randn(8, 512, generator=numbers)
    B = torch.randn(256, 8, generator=numbers)
    return florana.Adapter({"layers.0.q_proj": florana.LoraPair(A, B, alpha=16)})


def main() -> None:
    """Aggregate by three methods and compare how far each is from the exact mean."""
    updates = [
        florana.ClientUpdate("site_a", num_examples=1200, adapter=site(0)),
        florana.ClientUpdate("site_b", num_examples=300, adapter=site(1)),
    ]
    for method in ("fedit", "florana", "florana-opt", "ideal"):
        result = florana.aggregate(updates, method=method)
        rank = result.adapter.pairs["layers.0.q_proj"].rank
        print(f"{method:12} error {result.error.used:.3f} at rank {rank}")
    with tempfile.TemporaryDirectory() as folder:
        merged = florana.aggregate(updates, method="florana-opt").adapter
        print("written to", florana.save_adapter(merged, Path(folder) / "merged").name)


if __name__ == "__main__":
    main()
