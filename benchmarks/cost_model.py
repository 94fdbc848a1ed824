"""What a federated round costs, computed from a model's shapes: the formulas of docs/scale.md, as code.

    python benchmarks/cost_model.py         # the tables of docs/scale.md that are computed and not measured

Symbols: U clients in a round, r rank, R = U r, d_in and d_out of a module, d = min(d_in, d_out), h numbers that are trained
in full (heads). A formula stands for one module; a message holds its sum over all modules, and h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shapes = Sequence[tuple[int, int]]
"""(d_out, d_in) of every adapted module."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Numbers per module that one client sends and gets in a round that is not the first, as Python expressions.

    ``alternating`` stands for a method whose rounds take turns: its formulas are means over two.
    """

    up: str
    down: str
    heads: bool = True
    alternating: bool = False


PAIR = "r * (d_in + d_out)"
TRAFFIC: Mapping[str, Traffic] = {
    **dict.fromkeys(
        (
            "fedit",
            "florana",
            "florana-opt",
            "florana-blend",
            "flexlora",
            "hetlora",
            "lora-fair",
        ),
        Traffic(PAIR, PAIR),
    ),
    "ffa-lora": Traffic("r * d_out", "r * d_out"),
    "fedsa-lora": Traffic("r * d_in", "r * d_in"),
    "rolora": Traffic("r * (d_in + d_out) / 2", "r * (d_in + d_out) / 2", alternating=True),
    "fed-sb": Traffic("r * r", "r * r"),
    "flora": Traffic(PAIR, "min(R, d) * (d_in + d_out)"),
    "florist": Traffic(PAIR, "min(R, d) * (d_in + d_out)"),
    "frlora": Traffic(PAIR, "min(R + r, d) * (d_in + d_out)"),
    "fedex-lora": Traffic(PAIR, "(r + min(R + r, d)) * (d_in + d_out)"),
    "ideal": Traffic(PAIR, "(r + min(R + r, d)) * (d_in + d_out)"),
    "local": Traffic("0", "0", heads=False),
    "centralised": Traffic("0", "0", heads=False),
}
"""Method -> formulas. Of ``florist`` it is the most: it sends as many components as its ``energy`` asks for."""


def numbers(formula: str, shapes: Shapes, rank: int, clients: int, heads: int = 0) -> float:
    """Numbers in one message.

    Example:
        >>> numbers("r * (d_in + d_out)", [(48, 96), (64, 32)], rank=2, clients=3, heads=5)
        485
    """
    total = heads
    for d_out, d_in in shapes:
        names = {"r": rank, "R": clients * rank, "d_in": d_in, "d_out": d_out}
        names |= {"d": min(d_in, d_out)}
        total += eval(formula, {"__builtins__": {}, "min": min}, names)  # our own strings, above
    return total


def server_bytes(shapes: Shapes, rank: int, clients: int) -> float:
    """Memory of aggregation beside the model and the global adapter: float64 copies of the widest module.

    A stack of all clients' factors, 8 R (d_in + d_out), while R ≤ d, and the mean as a matrix, 8 d_in d_out, above;
    :data:`COPIES` of them. The clients' adapters themselves lie on disk, :func:`disk_bytes`.
    """
    return max(COPIES * 8 * _held(d_out, d_in, clients * rank) for d_out, d_in in shapes)


COPIES = 4
"""The mean, what a method aims at, one that is being decomposed and its decomposition."""


def disk_bytes(shapes: Shapes, rank: int, clients: int, heads: int = 0) -> float:
    """The clients' updates of a round, in float32."""
    return 4 * clients * numbers(PAIR, shapes, rank, clients, heads)


def flops(shapes: Shapes, rank: int, clients: int, decompositions: int = 1) -> float:
    r"""Floating-point operations of aggregation that are more than a pass over the numbers: SVDs of the mean.

    .. math:: 2 R^2 (d_{in} + d_{out}) + 20 R^3 \;\text{ if } 2R \le d, \qquad
              2 R\, d_{in} d_{out} + 2 d^2 \max(d_{in}, d_{out}) + 10 d^3 \;\text{ above}

    The first is Gram matrices of the stack and two symmetric eigenproblems, the second the mean as a matrix, its
    Gram matrix, and one eigenproblem.
    """
    return decompositions * sum(_svd_flops(d_out, d_in, clients * rank) for d_out, d_in in shapes)


def _held(d_out: int, d_in: int, R: int) -> int:
    return R * (d_in + d_out) if min(d_in, d_out) >= R else d_in * d_out


def _svd_flops(d_out: int, d_in: int, R: int) -> float:
    d = min(d_in, d_out)
    if d >= 2 * R:
        return 2 * R**2 * (d_in + d_out) + 20 * R**3
    return 2 * R * d_in * d_out + 2 * d**2 * max(d_in, d_out) + 10 * d**3


MINILM: Shapes = [(384, 384)] * 24
LLAMA_7B: Shapes = [(4096, 4096)] * 64
"""Query and value of 32 layers of width 4096."""
LLAMA_70B: Shapes = [(8192, 8192), (1024, 8192)] * 80
"""Query and value of 80 layers of width 8192, with 8 of 64 heads for keys and values (Llama 2 and 3, 70B)."""
LLAMA_70B_ALL: Shapes = [
    (8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672)
] * 80  # fmt: skip
"""All linear modules of the same, with an MLP of 28672."""
MODELS: Mapping[str, tuple[Shapes, int]] = {
    "MiniLM, rank 8, query and value": (MINILM, 8),
    "7B, rank 16, query and value": (LLAMA_7B, 16),
    "70B, rank 16, query and value": (LLAMA_70B, 16),
    "70B, rank 16, all linear": (LLAMA_70B_ALL, 16),
}


def size(count: float) -> str:
    """Bytes as people write them.

    Example:
        >>> size(1.5e9), size(2e15)
        ('1.5 GB', '2 PB')
    """
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    step = min(len(units) - 1, max(0, int(math.log10(count) // 3))) if count >= 1 else 0
    return f"{count / 1000**step:.3g} {units[step]}"


def extrapolation(clients: Sequence[int] = (100, 10_000, 1_000_000)) -> str:
    """A table of models and numbers of clients in one round, as Markdown."""
    lines = [
        "| model | clients in a round | one client up, float32 | int8 | all up, float32 | `fedex-lora`, one client down "
        "| server, memory | disk | SVD of the mean, flops |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, (shapes, rank) in MODELS.items():
        for count in clients:
            one = numbers(PAIR, shapes, rank, count)
            down = numbers(TRAFFIC["fedex-lora"].down, shapes, rank, count)
            lines.append(
                f"| {title} | {count:,} | {size(4 * one)} | {size(one * (1 + 4 / 256))} | {size(4 * one * count)} "
                f"| {size(4 * down)} | {size(server_bytes(shapes, rank, count))} "
                f"| {size(disk_bytes(shapes, rank, count))} | {flops(shapes, rank, count):.1e} |"
            )
    return "\n".join(lines)


def traffic_table() -> str:
    """The formulas, one line per method, as Markdown."""
    lines = ["| method | numbers up | numbers down |", "| --- | --- | --- |"]
    for method, said in TRAFFIC.items():
        heads = " + h" if said.heads else ""
        lines.append(f"| `{method}` | `{said.up}`{heads} | `{said.down}`{heads} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(traffic_table(), extrapolation(), sep="\n\n")
