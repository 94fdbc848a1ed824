"""The configuration: what is taken, what is refused, and that every mistake is told at once."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from florana.aggregators import cards
from florana.config import (
    DataConfig,
    FederationConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    ServerConfig,
    TrainingConfig,
    load_config,
    sampled_clients,
)
from florana.errors import ConfigError
from florana.experiments.run_folder import RunFolder

SECTIONS = [
    RunConfig,
    ModelConfig,
    DataConfig,
    LoraConfig,
    FederationConfig,
    TrainingConfig,
    MethodConfig,
    ServerConfig,
]


def mistakes(*overrides: str, path: Path | None = None) -> list[str]:
    """The lines of the ConfigError that these overrides raise, but for its heading."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    heading, *lines = str(caught.value).splitlines()
    assert heading == (f"{path}:" if path else "configuration:")
    assert all(line.startswith("  ") for line in lines)
    return [line.strip() for line in lines]


def written(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return path


# What is taken


def test_the_defaults_are_valid() -> None:
    """No file and no overrides give the default run, which is also ``RunConfig()``."""
    config = load_config(None)
    assert config == RunConfig() == RunConfig.model_validate({})
    assert (config.model.name, config.data.source) == ("minilm", "docstrings")
    assert (config.federation.clients, config.federation.dirichlet_alpha) == (10, 0.3)
    assert (config.method.name, config.method.options) == ("florana-blend", {})
    assert config.training.steps is not None
    assert config.training.epochs is None
    assert config.output is None


def test_a_file_fills_its_keys_and_leaves_the_others(tmp_path: Path) -> None:
    """A TOML file sets what it names; everything else keeps its default."""
    path = written(
        tmp_path,
        """
        seed = 7
        [lora]
        rank = 4
        alpha = 8
        target_modules = ["q_proj", "v_proj"]
        [method]
        name = "florana-opt"
        gauge = "balanced"
        """,
    )
    config = load_config(path)
    assert (config.seed, config.lora.rank, config.lora.alpha) == (7, 4, 8.0)
    assert config.lora.target_modules == ("q_proj", "v_proj")
    assert (config.method.name, config.method.options) == ("florana-opt", {"gauge": "balanced"})
    assert config.federation == FederationConfig()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("federation.rounds=3", 3),
        ("federation.rounds=3.0", 3),
        (" federation . rounds = 3 ", 3),
        ("training.learning_rate=1e-3", 1e-3),
        ("lora.alpha=4", 4.0),
        ("lora.rslora=true", True),
        ("lora.target_modules=['query', \"key\"]", ("query", "key")),
        ("data.source=a folder/of, things=x.jsonl", "a folder/of, things=x.jsonl"),
        ("data.source='quoted'", "quoted"),
        ('data.text="1"', "1"),
        ("data.test=owner/name:config@test", "owner/name:config@test"),
        ("model={name = 'here', max_length = 9}", ModelConfig(name="here", max_length=9)),
        ("seed=4294967295", 2**32 - 1),
        ("lora.client_ranks=[2, 4]", (2, 4)),
        ("server.step_size=0.5", 0.5),
        ("server.error_feedback=true", True),
        ("server.shrinkage=norm", "norm"),
        ("federation.uplink=int8", "int8"),
        ("device=cpu", "cpu"),
        ("output=runs/x", "runs/x"),
    ],
)
def test_set_reads_toml_and_else_a_string(override: str, value: object) -> None:
    """Numbers, booleans, lists and tables are TOML; what is none is a string, equals signs and all."""
    found: Any = load_config(None, [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part.strip())
    assert found == value
    assert type(found) is type(value)


def test_later_overrides_win_and_beat_the_file(tmp_path: Path) -> None:
    """Overrides apply in order, after the file, key by key."""
    path = written(tmp_path, "[federation]\nrounds = 2\nclients = 4\n")
    config = load_config(path, ["federation.rounds=3", "federation.rounds=5"])
    assert (config.federation.rounds, config.federation.clients) == (5, 4)


def test_method_options_are_set_beside_its_name() -> None:
    """Options of the chosen method are keys of its section."""
    config = load_config(
        None, ["method.name=florana", "method.solver=gradient", "method.iterations=50"]
    )
    assert config.method.options == {"solver": "gradient", "iterations": 50}
    config = load_config(None, ["method.name=ideal", "method.gauge=orthonormal"])
    assert (config.method.name, config.method.options) == ("ideal", {"gauge": "orthonormal"})


def test_epochs_stand_in_for_the_default_steps() -> None:
    """Epochs alone are enough: the default number of steps steps back."""
    training = load_config(None, ["training.epochs=1"]).training
    assert (training.steps, training.epochs) == (None, 1)
    training = load_config(None, ["training.batch_size=4"]).training
    assert (training.steps, training.epochs) == (RunConfig().training.steps, None)


@given(
    clients=st.integers(2, 1000),
    participation=st.floats(0, 1, exclude_min=True),
)
def test_at_least_one_client_and_no_more_than_all_are_drawn(
    clients: int, participation: float
) -> None:
    """The number drawn is the rounded share, from 1 to all."""
    federation = FederationConfig(clients=clients, participation=participation, min_clients=1)
    drawn = sampled_clients(federation)
    assert 1 <= drawn <= clients
    assert abs(drawn - participation * clients) <= 0.5 or drawn == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_a_config_is_frozen(section: type[BaseModel]) -> None:
    """No field of any section can be set after the check."""
    config = section.model_validate({})
    for name in section.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, None)


# Round trips

CONFIGS = [
    pytest.param([], id="defaults"),
    pytest.param(["training.epochs=2"], id="epochs only"),
    pytest.param(
        ["method.name=florana", "method.solver=gradient", "method.iterations=9"],
        id="method options",
    ),
    pytest.param(
        ["lora.target_modules=['a.b', 'c']", "federation.column=who", "federation.partition=column"],
        id="lists and columns",
    ),
    pytest.param(
        ["method.name=florana-opt", "lora.client_ranks=[2, 4]", "server.momentum=0.9", "federation.downlink=int8", "training.proximal=0.1"],
        id="ranks, add-ons and codecs",
    ),
    pytest.param(
        ["threads=2", "output=x", "data.test=t.csv", "data.max_examples=9", "lora.alpha=0.1"],
        id="everything optional",
    ),
]  # fmt: skip


@pytest.mark.parametrize("overrides", CONFIGS)
def test_provenance_gives_the_config_back(overrides: list[str]) -> None:
    """Through JSON, as provenance.json keeps it, a config comes back equal."""
    config = load_config(None, overrides)
    kept = json.loads(json.dumps(config.model_dump(mode="json")))
    assert RunConfig.model_validate(kept) == config


@pytest.mark.parametrize("overrides", CONFIGS)
def test_the_written_file_gives_the_config_back(tmp_path: Path, overrides: list[str]) -> None:
    """The config.toml of a run folder, run again, is the same run in another folder."""
    config = load_config(None, overrides)
    folder = RunFolder.create(tmp_path / "run", config, {})
    elsewhere = config.model_copy(update={"output": None})
    assert load_config(folder.path / "config.toml") == elsewhere


# What is refused


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Wrong keys, values, sections, overrides, method options and misfits: one error has them all."""
    path = written(
        tmp_path,
        """
        sed = 1
        seed = -1
        [lora]
        rnak = 8
        alpha = 0
        [federation]
        min_clients = 99
        partition = "column"
        [training]
        steps = 3
        epochs = 3
        [modle]
        name = "x"
        [method]
        name = "florana"
        solvr = "als"
        iterations = 0
        """,
    )
    found = mistakes("data.test_fraction=2", "nonsense", "seed.x=1", path=path)
    expected = [
        "--set 'nonsense': expected section.key=value",
        "--set 'seed.x=1': seed is no section",
        "unknown key 'sed', did you mean 'seed'?",
        "seed: Input should be greater than or equal to 0, got -1",
        "unknown key 'lora.rnak', did you mean 'rank'?",
        "lora.alpha: Input should be greater than 0, got 0",
        "federation: partition = 'column' needs federation.column; "
        "min_clients = 99 is more than the 10 clients drawn in a round",
        "training: set steps or epochs, not both",
        "unknown key 'modle', did you mean 'model'?",
        "method 'florana' has no option 'solvr', did you mean 'solver'? "
        "(options: solver, iterations, tolerance, learning_rate)",
        "method 'florana', option iterations: Input should be greater than or equal to 1, got 0",
        "data.test_fraction: Input should be less than 1, got 2",
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnak=3", "unknown key 'lora.rnak', did you mean 'rank'?"),
        ("federation.round=3", "unknown key 'federation.round', did you mean 'rounds'?"),
        ("data.zzz=3", "unknown key 'data.zzz'; known: task, family, metric, source, test, second_test, labels, text, text_pair, label, value_range, prompt, response, system, chat, reference, scorer, test_fraction, local_test_fraction, max_examples"),
        ("method.name=florna", f"unknown method 'florna', did you mean 'florana'?; known: {', '.join(cards())}"),
        ("method.name=zzz", f"unknown method 'zzz'; known: {', '.join(cards())}"),
        ("method.name=3", "method.name: Input should be a valid string, got 3"),
        ("method.gauge=tall", "method 'florana-blend', option gauge: Input should be 'balanced', 'mean-aligned' or 'orthonormal', got 'tall'"),
        ("method.solver=als", "method 'florana-blend' has no option 'solver' (options: gauge)"),
        ("method=fedit", "method: Input should be a valid dictionary or instance of MethodConfig, got 'fedit'"),
        ("training.steps=0", "training.steps: Input should be greater than or equal to 1, got 0"),
        ("federation.participation=0", "federation.participation: Input should be greater than 0, got 0"),
        ("federation.participation=0.1", "federation: min_clients = 2 is more than the 1 clients drawn in a round"),
        ("federation.partition=random", "federation.partition: Input should be 'iid', 'dirichlet', 'label' or 'column', got 'random'"),
        ("federation.partition=column", "federation: partition = 'column' needs federation.column"),
        ("federation.clients=1", "federation.clients: Input should be greater than or equal to 2, got 1"),
        ("federation.rounds=3.5", "federation.rounds: Input should be a valid integer, got a number with a fractional part, got 3.5"),
        ("federation.rounds=three", "federation.rounds: Input should be a valid integer, unable to parse string as an integer, got 'three'"),
        ("lora.rank=true", "lora.rank: this key is not one for true or false, got True"),
        ("training.bf16=maybe", "training.bf16: Input should be a valid boolean, unable to interpret input, got 'maybe'"),
        ("lora.target_modules=query", "lora.target_modules: Input should be a valid tuple, got 'query'"),
        ("lora.target_modules=[]", "lora.target_modules: Tuple should have at least 1 item after validation, not 0, got []"),
        ("data.source=", "data.source: String should have at least 1 character, got ''"),
        ("federation.clients_at_once=-3", "federation.clients_at_once: Input should be greater than or equal to 1, or 'auto', got -3"),
        ("federation.clients_at_once=many", "federation.clients_at_once: Input should be a valid integer, unable to parse string as an integer, or 'auto', got 'many'"),
        ("data.chat=perhaps", "data.chat: Input should be a valid boolean, unable to interpret input, or 'auto', got 'perhaps'"),
        ("data.text=3", "data.text: Input should be a valid string, or a valid tuple, got 3"),
        ("data.value_range=[1]", "data.value_range.1: Field required, got [1]"),
        ("output=", "output: String should have at least 1 character, got ''"),
        ("seed=4294967296", "seed: Input should be less than 4294967296, got 4294967296"),
        ("device=tpu", "device: Input should be 'auto', 'cpu', 'cuda' or 'mps', got 'tpu'"),
        ("bananas=3", "unknown key 'bananas'; known: seed, output, device, threads, model, data, lora, federation, training, method, server, simulation, evaluation"),
        ("seed", "--set 'seed': expected section.key=value"),
        ("=3", "--set '=3': expected section.key=value"),
        (".=3", "--set '.=3': expected section.key=value"),
        ("lora..rank=3", "--set 'lora..rank=3': expected section.key=value"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(override: str, message: str) -> None:
    """What came, what was expected, and the nearest or all known names."""
    assert mistakes(override) == [message]


def numbers() -> Iterator[str]:
    """Every key that takes a floating-point number."""
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (
                f"{name}.{key}"
                for key, inner in section.model_fields.items()
                if inner.annotation is float
            )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
@pytest.mark.parametrize("key", list(numbers()))
def test_no_number_may_be_nan_infinite_or_negative(key: str, value: str) -> None:
    """Every floating-point key refuses them, by name."""
    (line,) = mistakes(f"{key}={value}")
    assert line.startswith(f"{key}: Input should be ")
    assert line.endswith(f", got {value}")


def test_steps_and_epochs_exclude_each_other(tmp_path: Path) -> None:
    """Whether both stand in the file, or one of them comes with --set."""
    both = "training: set steps or epochs, not both"
    assert mistakes("training.steps=3", "training.epochs=1") == [both]
    path = written(tmp_path, "[training]\nsteps = 3\n")
    assert mistakes("training.epochs=1", path=path) == [both]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = \n", r"cannot read .*run\.toml as TOML: .*line 1"),
        (b"seed = 1\nseed = 2\n", r"cannot read .*run\.toml as TOML: .*line 2"),
        (b'output = "\xff"\n', r"cannot read .*run\.toml as TOML: .*utf-8"),
    ],
)
def test_a_file_that_is_no_toml_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    """The message names the file, and the line where there is one."""
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    """Neither is a traceback."""
    with pytest.raises(ConfigError, match=r"there is no configuration file .*gone\.toml"):
        load_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"cannot read .* as TOML"):
        load_config(tmp_path)


@pytest.mark.parametrize("section", [s for s in SECTIONS if s is not RunConfig])
def test_a_section_of_the_wrong_type_is_told(tmp_path: Path, section: type[BaseModel]) -> None:
    """A section given as a number is one mistake, not a crash."""
    name = section.__name__.removesuffix("Config").lower()
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({name: 3}))
    assert tomllib.loads(path.read_text()) == {name: 3}
    (line,) = mistakes(path=path)
    assert line.startswith(f"{name}: Input should be a valid dictionary")


def test_a_key_in_the_wrong_place_is_told_its_section() -> None:
    """A key that exists in another section is named with that section."""
    with pytest.raises(ConfigError, match=r"'rounds', did you mean 'federation\.rounds'"):
        load_config(None, ["rounds=3"])
    with pytest.raises(ConfigError, match=r"'lora\.steps', did you mean 'training\.steps'"):
        load_config(None, ["lora.steps=3"])
