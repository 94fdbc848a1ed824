"""Random decoders and random text on disk, for benchmarks in which only shapes matter."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 500
SPECIAL = ("[PAD]", "[UNK]", "<s>", "</s>")


@dataclass(frozen=True, slots=True)
class Decoder:
    """The shape of a Llama-like decoder.

    Args:
        hidden: width of the residual stream.
        inner: width of the MLP.
        layers: number of layers.
        heads: attention heads; keys and values have as many.
        vocabulary: number of tokens, of which texts use the first few hundred.
        dtype: ``"float32"`` or ``"bfloat16"``.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = WORDS + len(SPECIAL)
    dtype: str = "float32"

    def layer(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one layer's weights."""
        square, up = (self.hidden, self.hidden), (self.inner, self.hidden)
        return {
            **{f"self_attn.{name}_proj.weight": square for name in "qkvo"},
            "mlp.gate_proj.weight": up,
            "mlp.up_proj.weight": up,
            "mlp.down_proj.weight": up[::-1],
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
        }


def write_decoder(folder: Path, shape: Decoder) -> int:
    """Write config, weights (one file per layer, so that memory is that of one) and a tokenizer; the weights' bytes."""
    import torch  # not before it is needed: a process that only starts others shall stay small
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    g = torch.Generator().manual_seed(0)

    def make(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        made = {}
        for name, size in shapes.items():
            drawn = torch.randn(size, generator=g).mul_(0.02)
            made[name] = (torch.ones(size) if len(size) == 1 else drawn).to(dtype)
        return made

    whole = (shape.vocabulary, shape.hidden)
    ends = {"model.embed_tokens.weight": whole, "model.norm.weight": (shape.hidden,)}
    parts = [{**ends, "lm_head.weight": whole}]
    parts += [
        {f"model.layers.{i}.{name}": size for name, size in shape.layer().items()}
        for i in range(shape.layers)
    ]
    places: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(parts):
        file, tensors = f"model-{number:05}.safetensors", make(shapes)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _write_config(folder, shape)
    _write_tokenizer(folder)
    return total


def write_texts(path: Path, count: int) -> None:
    """``count`` lines of six random words, of two classes."""
    draw = random.Random(0)
    with path.open("w") as stream:
        for number in range(count):
            text = " ".join(f"w{draw.randrange(WORDS)}" for _ in range(6))
            stream.write(json.dumps({"text": text, "label": str(number % 2)}) + "\n")


def _write_config(folder: Path, shape: Decoder) -> None:
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "tie_word_embeddings": False,
        "dtype": shape.dtype,
    }
    (folder / "config.json").write_text(json.dumps(settings))


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    whole: Any = PreTrainedTokenizerFast
    whole(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="</s>"
    ).save_pretrained(folder)
