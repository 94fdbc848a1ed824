"""The configuration of a run: one TOML file, checked at the door into frozen values.

Every section is a class below; its fields, their defaults and their limits are the reference. All
mistakes of a file are told at once, with the nearest known key for a mistyped one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from florana.errors import ConfigError
from florana.tasks.partition import Scheme

Codec = Literal["float32", "float16", "bfloat16", "int8"]
"""What stands for numbers on the wire, see :mod:`florana.federation.codec`."""

NODES = "nodes"
"""As ``data.source``: every SuperNode of a deployment brings its own file."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Variant = Literal["lora", "dora", "hira"]
"""How a module's factors change its weight; see :class:`florana.adapter.LoraPair`."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        """Pydantic would take true for 1."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError("this key is not one for true or false")
        return value


class ModelConfig(_Section):
    """The base model.

    ``name`` is ``"minilm"``, a folder or a hub name. ``pooling``: the head sits on the mean of the last
    hidden states (``mean``) or is the architecture's own (``model``); ``auto`` takes what a sentence
    encoder's folder says.
    """

    name: Name = "minilm"
    pooling: Literal["auto", "mean", "model"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_length: Annotated[int, Field(ge=4)] = 32
    gradient_checkpointing: bool = False


class DataConfig(_Section):
    """The labelled text.

    ``source`` is ``"docstrings"``, a jsonl or csv file, a folder of them, or a hub name
    ``owner/name[:config][@split]``; ``$VARIABLES`` of the environment are filled in. ``test`` is a second source for the global test set; without it
    ``test_fraction`` of the data is held out. Each client holds out ``local_test_fraction`` of its own.
    ``max_examples`` takes a random part of the source, before anything is held out.
    ``labels`` names the classes, in the order of the head's outputs; by default those found in the
    data. With ``source = "nodes"`` every node of a Flower deployment brings a file of its own (``florana app``); nobody
    sees all of the data then, so ``labels`` has to be given.
    """

    source: Name = "docstrings"
    test: Name | None = None
    labels: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    text: Name = "text"
    text_pair: Name | None = None
    label: Name = "label"
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    local_test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_examples: Count | None = None

    @model_validator(mode="after")
    def _labels_fit(self) -> DataConfig:
        if self.source == NODES and self.labels is None:
            raise ValueError("source = 'nodes' needs labels, the names of the classes on all nodes")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels names a class twice: {', '.join(self.labels)}")
        return self


class LoraConfig(_Section):
    """The LoRA factors: ΔW = s B A with s = alpha / rank, or alpha / √rank with ``rslora``.

    ``variant``: ``lora``; ``dora``, which scales every row of W + s B A to a trained length; ``hira``, ΔW =
    W ⊙ (B A), which has no s: alpha is then the rank.
    ``client_ranks`` gives clients unlike ranks of at most ``rank``, dealt out in turn, at that same s.
    """

    variant: Variant = "lora"
    rank: Count = 8
    client_ranks: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    alpha: Positive = 16.0
    rslora: bool = False
    dropout: Fraction = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("query", "value")

    @model_validator(mode="after")
    def _ranks_fit(self) -> LoraConfig:
        if self.client_ranks and max(self.client_ranks) > self.rank:
            raise ValueError(f"client_ranks go up to {max(self.client_ranks)}, rank is {self.rank}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _hira_has_no_scaling(cls, given: Any) -> Any:  # noqa: ANN401
        if (
            isinstance(given, Mapping)
            and given.get("variant") == "hira"
            and given.get("alpha") is None
        ):
            return {**given, "alpha": given.get("rank", cls.model_fields["rank"].default)}
        return given

    @model_validator(mode="after")
    def _scaling_fits(self) -> LoraConfig:
        if self.variant == "hira" and (self.rslora or self.alpha != self.rank):
            raise ValueError(
                f"variant = 'hira' has no scaling, so leave alpha and rslora out (alpha is {self.alpha:g})"
            )
        return self

    def rank_of(self, client: int) -> int:
        """The rank that a client trains."""
        return (
            self.client_ranks[client % len(self.client_ranks)] if self.client_ranks else self.rank
        )


class FederationConfig(_Section):
    """Clients, rounds, and how the data is spread.

    ``participation`` is the share of clients drawn for a round; a round with fewer than
    ``min_clients`` usable replies stops the run. ``partition``: ``iid``; ``dirichlet``, label skew,
    stronger for a small ``dirichlet_alpha``; ``label``, ``labels_per_client`` shards sorted by label;
    ``column``, all of one value of ``column`` together. Each client has ``min_labels`` or more.
    ``uplink`` and ``downlink`` are the number formats on the wire: float32, or float16, bfloat16 or int8 with
    error feedback.
    ``engine`` is where ``florana run`` has its clients: in this process, or on Flower's ``simulation``. On Flower's engines
    a round waits ``wait_seconds`` for enough nodes, and a client that takes longer than ``deadline_seconds``
    for its part of a round is left out of it. An update ΔW whose norm is above ``max_norm`` is refused.
    """

    clients: Annotated[int, Field(ge=2)] = 10
    rounds: Count = 6
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_clients: Count = 2
    partition: Scheme = "dirichlet"
    dirichlet_alpha: Positive = 0.3
    labels_per_client: Count = 2
    min_labels: Count = 2
    column: Name | None = None
    uplink: Codec = "float32"
    downlink: Codec = "float32"
    engine: Literal["local", "simulation"] = "local"
    wait_seconds: Positive = 600.0
    deadline_seconds: Positive | None = None
    max_norm: Positive | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> FederationConfig:
        misfits = []
        if self.partition == "column" and self.column is None:
            misfits.append("partition = 'column' needs federation.column")
        if self.min_clients > sampled_clients(self):
            misfits.append(
                f"min_clients = {self.min_clients} is more than the "
                f"{sampled_clients(self)} clients drawn in a round"
            )
        if misfits:
            raise ValueError("; ".join(misfits))
        return self


def sampled_clients(federation: FederationConfig) -> int:
    """Clients drawn for each round: the share ``participation`` of all, at least one."""
    return max(1, round(federation.participation * federation.clients))


class SimulationConfig(_Section):
    """What one client of ``federation.engine = "simulation"`` gets of this machine.

    As many clients train at a time as their shares go into ``cpus`` and ``gpus``, by default all that Ray finds. A
    client computes with as many threads as it has whole CPUs, at least one, unless ``threads`` says otherwise.
    """

    client_cpus: Positive = 1.0
    client_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cpus: Count | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None


class TrainingConfig(_Section):
    """Local training with AdamW: per round either ``steps`` or ``epochs``.

    The learning rate warms up over the share ``warmup`` of its schedule, then decays linearly to its
    end; the schedule spans every ``round`` anew, or the whole ``run``. ``accumulation`` batches make
    one step; ``clip`` bounds the norm of the gradient. ``proximal`` is FedProx's μ: it pulls the trained
    parameters back to where the round began. ``bf16``: matrix products in bfloat16, in training and in
    evaluation; the trained parameters stay float32.
    """

    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 16
    accumulation: Count = 1
    learning_rate: Positive = 1e-2
    schedule: Literal["round", "run"] = "round"
    warmup: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    clip: Positive = 1.0
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    bf16: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default_steps(cls, given: Any) -> Any:  # noqa: ANN401
        if (
            isinstance(given, Mapping)
            and given.get("steps") is None
            and given.get("epochs") is None
        ):
            return {**given, "steps": 8}
        return given

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        return self


class ServerConfig(_Section):
    """What the server does beside the method: add-ons to what it aims at.

    ``step_size`` η and ``momentum`` β: the global product moves by η times the (accumulated) step that the
    clients ask for. ``shrinkage`` makes that step smaller where clients disagree: ``agreement`` and ``noise``
    damp the directions that few clients share, ``norm`` shortens it to plain averaging's length.
    ``error_feedback`` carries what the result's rank cut off into the next round's target.
    """

    step_size: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    momentum: Fraction = 0.0
    shrinkage: Literal["none", "agreement", "noise", "norm"] = "none"
    error_feedback: bool = False

    @property
    def changes_target(self) -> bool:
        """Whether any add-on is on, so that the server aims at something else than the clients' mean."""
        smaller = self.step_size != 1 or self.shrinkage != "none"
        return smaller or self.momentum > 0 or self.error_feedback


class MethodConfig(BaseModel):
    """The aggregation method and, beside its name, its own options; see ``florana methods``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "florana-blend"

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})


class RunConfig(_Section):
    """A whole run. ``output`` is its folder; by default a free one under ``runs/``."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output: Name | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Count | None = None
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    federation: FederationConfig = FederationConfig()
    training: TrainingConfig = TrainingConfig.model_validate({})
    method: MethodConfig = MethodConfig()
    server: ServerConfig = ServerConfig()
    simulation: SimulationConfig = SimulationConfig()


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, apply ``section.key=value`` overrides, and check everything.

    Args:
        path: the file, or None for the defaults.
        overrides: as given to ``--set``; a value is read as TOML, and as a string where it is none.

    Raises:
        ConfigError: with one line for every mistake.
    """
    given = _read_toml(path) if path is not None else {}
    mistakes = []
    for override in overrides:
        key, equals, value = override.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys):
            mistakes.append(f"--set {override!r}: expected section.key=value")
            continue
        problem = _assign(given, keys, _toml_value(value))
        if problem:
            mistakes.append(f"--set {override!r}: {problem}")
    return check_config(given, str(path) if path is not None else "configuration", mistakes)


def check_config(
    given: dict[str, Any], where: str = "configuration", mistakes: Sequence[str] = ()
) -> RunConfig:
    """Check nested settings, as a TOML file holds them.

    Args:
        given: section -> key -> value.
        where: what they are from, for the message.
        mistakes: what is known to be wrong already.

    Raises:
        ConfigError: with one line for every mistake.
    """
    config, found = _validate(given)
    if config is None or mistakes or found:
        raise ConfigError("\n".join([f"{where}:", *(f"  {m}" for m in [*mistakes, *found])]))
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path} as TOML: {error}") from error


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], keys: list[str], value: object) -> str | None:
    """Set a nested key, or say why it cannot be set."""
    *sections, last = keys
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            return f"{section} is no section"
    tree[last] = value
    return None


def _validate(given: dict[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """The checked config, or all that is wrong with it."""
    from florana import aggregators

    config, mistakes = None, []
    try:
        config = RunConfig.model_validate(given)
    except ValidationError as error:
        mistakes = [_explain(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors()]
    method = given.get("method", {})
    if isinstance(method, dict) and isinstance(method.get("name", ""), str):
        options = {key: value for key, value in method.items() if key != "name"}
        try:
            aggregators.build(method.get("name", MethodConfig().name), options)
        except ConfigError as error:
            mistakes += str(error).splitlines()
    if config is not None and not mistakes:
        mistakes = _misfits(config)
    return config, mistakes


def _misfits(config: RunConfig) -> list[str]:
    """What the chosen method cannot do, found out before anything is trained."""
    from florana.aggregators import cards, check_server

    mistakes = []
    odd = set(config.lora.client_ranks or ()) - {config.lora.rank}
    if odd and not cards()[config.method.name].mixed_ranks:
        able = ", ".join(card.name for card in cards().values() if card.mixed_ranks)
        mistakes.append(
            f"lora.client_ranks: {config.method.name} needs rank {config.lora.rank} for all clients; methods that take "
            f"unlike ranks: {able}"
        )
    try:
        check_server(config.server, config.method.name, config.lora.variant)
    except ConfigError as error:
        mistakes.append(str(error))
    return mistakes


def _explain(loc: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    """One line for one mistake."""
    key = ".".join(map(str, loc))
    if kind != "extra_forbidden":
        came = "" if isinstance(value, Mapping) else f", got {value!r}"
        return f"{key}: {message.removeprefix('Value error, ')}{came}"
    section: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    close = difflib.get_close_matches(str(loc[-1]), list(section.model_fields), n=1, cutoff=0.5)
    meant = [*_elsewhere(str(loc[-1])), *close]
    hint = (
        f", did you mean {meant[0]!r}?" if meant else f"; known: {', '.join(section.model_fields)}"
    )
    return f"unknown key {key!r}{hint}"


def _elsewhere(key: str) -> list[str]:
    """Full names of the keys of that name in any section."""
    sections = {name: type(value) for name, value in RunConfig() if isinstance(value, BaseModel)}
    return [f"{name}.{key}" for name, section in sections.items() if key in section.model_fields]
