"""The Flower app, on a grid in this process: the same run, own data of the nodes, and what is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from florana.app_config import read_run_config, write_run_config
from florana.config import RunConfig, load_config
from florana.errors import ConfigError, DataError, FederationError, RunError
from florana.experiments import client
from florana.experiments.deployed import serve
from florana.experiments.events import ClientReplied, Event, RoundRow, Summary
from florana.experiments.node import NodeSettings, open_node
from florana.federation.local_grid import LocalGrid
from florana.flower_app import client_app
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, write_texts

pytestmark = pytest.mark.usefixtures("quiet_flower")


@pytest.fixture(scope="module")
def settings(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model and its texts."""
    texts = write_texts(tmp_path_factory.mktemp("texts") / "texts.csv")
    return tiny_settings(kinds["own head"], texts)


def own_app(config: RunConfig, own: Callable[[int], Mapping[str, Any]]) -> ClientApp:
    """The installed app, with what a deployment would put into each node's context."""
    flat, app = write_run_config(config), ClientApp()

    def filled(context: Context) -> Context:
        node = {**context.node_config, **own(int(context.node_config["partition-id"]))}
        return Context(context.run_id, context.node_id, node, RecordDict(), dict(flat))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return client_app(message, filled(context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return client_app(message, filled(context))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return client_app(message, filled(context))

    return app


def deploy(
    settings: list[str],
    folder: Path,
    *overrides: str,
    resume: bool = False,
    own: Callable[[int], Mapping[str, Any]] = lambda _partition: {},
) -> tuple[Summary, list[Event]]:
    """A run whose clients forget everything but what is on their disks."""
    output = [] if resume else [f"output='{folder / 'run'}'"]
    config = load_config(None, [*settings, *output, *overrides])
    events: list[Event] = []

    def node(partition: int) -> Mapping[str, Any]:
        return {"state": str(folder / f"state{partition}"), **own(partition)}

    grid = LocalGrid(own_app(config, node), config.federation.clients)
    summary, _ = serve(grid, config, folder / "run" if resume else None, events.append)
    return summary, events


def adapters(folder: Path) -> dict[str, bytes]:
    """The bytes of the final and the best adapter."""
    names = ("final", "best")
    return {n: (folder / n / "adapter_model.safetensors").read_bytes() for n in names}


def round_lines(folder: Path) -> list[dict[str, Any]]:
    """The rounds of metrics.jsonl, but for their bytes."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.startswith("bytes")}
        for line in lines
        if line["kind"] == "round"
    ]


METHODS = {
    "plain": ["method.name=fedit"],
    "a residual": ["method.name=fedex-lora"],
    "a core": ["method.name=fed-sb"],
    "parts in turn": ["method.name=rolora"],
    "few bits": ["method.name=ideal", "federation.uplink=int8", "federation.downlink=bfloat16"],
    "unlike ranks": ["method.name=florana-opt", "lora.client_ranks=[1, 2, 4]"],
    "unlike ranks in few bits": [
        "method.name=florana-opt",
        "lora.client_ranks=[1, 2, 4]",
        "federation.uplink=int8",
    ],
    "dora": ["lora.variant=dora"],
}


@pytest.mark.parametrize("case", METHODS)
def test_clients_that_live_for_one_message_do_the_same_run(
    settings: list[str], tmp_path: Path, case: str
) -> None:
    """Model, data and memory come from the node's disk each time; the adapters have the same bits."""
    tiny_run(settings, tmp_path / "here", *METHODS[case])
    _, events = deploy(settings, tmp_path, *METHODS[case])
    assert adapters(tmp_path / "run") == adapters(tmp_path / "here")
    assert round_lines(tmp_path / "run") == round_lines(tmp_path / "here")
    replied = [e for e in events if isinstance(e, ClientReplied)]
    assert len(replied) == 8
    assert all(e.seconds > 0 and "client" in e.client for e in replied)


def test_what_stays_at_home_is_on_the_nodes_own_disks(settings: list[str], tmp_path: Path) -> None:
    """fedsa-lora: the shared parts have the bits of a run in this process; B never reaches the server."""
    tiny_run(settings, tmp_path / "here", "method.name=fedsa-lora")
    deploy(settings, tmp_path, "method.name=fedsa-lora")
    clients = [
        [
            line
            for line in map(json.loads, (run / "metrics.jsonl").open())
            if line["kind"] == "client"
        ]
        for run in (tmp_path / "here", tmp_path / "run")
    ]
    for here, there in zip(*clients, strict=True):
        assert [here[k] for k in ("client", "score", "train-loss")] == [
            there[k] for k in ("client", "score", "train-loss")
        ]
    assert [line["round"] for line in round_lines(tmp_path / "run")] == [0, 1, 2, 3, 4]
    kept = list(tmp_path.glob("state*/runs/*/partition-*/round-*.safetensors"))
    assert kept
    assert not (tmp_path / "run" / "clients").exists()


def own_files(tmp_path: Path) -> Callable[[int], dict[str, str]]:
    """A file for each of three nodes."""
    files = [write_texts(tmp_path / f"own{n}.csv", 60, seed=n) for n in range(3)]
    return lambda partition: {"data": str(files[partition])}


OWN = ["data.source=nodes", "data.labels=['a', 'b', 'c']"]


def test_nodes_with_data_of_their_own_need_none_on_the_server(
    settings: list[str], tmp_path: Path
) -> None:
    """The clients score what they get: a row comes a round later, and is of the round that it says."""
    summary, events = deploy(settings, tmp_path, *OWN, own=own_files(tmp_path))
    rows = [e for e in events if isinstance(e, RoundRow)]
    assert [row.server_round for row in rows] == [0, 1, 2, 3, 4]
    assert [line["round"] for line in round_lines(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert rows[0].client_score is None
    assert rows[4].score == summary.score
    assert all(0 < row.loss < 3 for row in rows)
    assert len({row.loss for row in rows}) == 5
    best = max(rows, key=lambda row: row.score)
    assert summary.best_score == best.score
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["labels"] == ["a", "b", "c"]
    assert provenance["partition"] == []
    from florana.report import write_run_report

    write_run_report(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Texts with a value from 0 to 5, and what to write after them."""
    rng = np.random.default_rng(seed)
    rows = [
        {"text": f"w{value} w{rng.integers(24)}", "label": value, "said": f"w{value + 8} w{value}"}
        for value in (int(v) for v in rng.integers(0, 6, count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


FAMILIES = {
    "regression": ["data.task=stsb", "data.text_pair=text"],
    "causal": ["data.family=causal", "data.prompt={text}", "data.response=' {said}'"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_does_the_same_run_on_nodes(
    kinds: dict[str, Kind], tmp_path: Path, family: str
) -> None:
    """Values, prompts and metrics survive the node's cache and the wire: rounds and adapters are those of one process."""
    kind = kinds["decoder" if family == "causal" else "own head"]
    settings = tiny_settings(kind, write_rows(tmp_path / "rows.jsonl", 150))
    more = [*FAMILIES[family], f"lora.target_modules={list(kind.targets)}", "federation.rounds=2"]
    tiny_run(settings, tmp_path / "here", *more)
    deploy(settings, tmp_path, *more)
    assert adapters(tmp_path / "run") == adapters(tmp_path / "here")
    assert round_lines(tmp_path / "run") == round_lines(tmp_path / "here")
    assert all(line["metrics"] for line in round_lines(tmp_path / "run"))
    own = [write_rows(tmp_path / f"own{n}.jsonl", 60, seed=n) for n in range(3)]
    summary, events = deploy(
        settings,
        tmp_path / "own",
        *more,
        "data.source=nodes",
        own=lambda partition: {"data": str(own[partition])},
    )
    rows = [e for e in events if isinstance(e, RoundRow)]
    assert [row.server_round for row in rows] == [0, 1, 2]
    assert summary.metrics == rows[-1].metrics != {}
    assert rows[1].client_metrics.keys() == rows[1].metrics.keys()


def test_the_servers_own_test_set_is_used_where_it_has_one(
    settings: list[str], tmp_path: Path
) -> None:
    """And what the clients train is the same, so that the adapters are."""
    test = write_texts(tmp_path / "test.csv", 30, seed=9)
    own = own_files(tmp_path)
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    summary, _ = deploy(settings, tmp_path / "with", *OWN, f"data.test='{test}'", own=own)
    deploy(settings, tmp_path / "without", *OWN, own=own)
    made = [adapters(tmp_path / name / "run")["final"] for name in ("with", "without")]
    assert made[0] == made[1]
    assert (summary.score * 30) == pytest.approx(round(summary.score * 30))


class Died(BaseException):
    """The end of a process, which nothing catches."""


@pytest.mark.parametrize(
    "overrides",
    [["method.name=fedsa-lora"], ["method.name=fedex-lora"], [*OWN, "method.name=ideal"]],
    ids=["at home", "a residual", "own data"],
)
@pytest.mark.parametrize("moment", ["in training", "before the checkpoint"])
def test_a_server_that_died_goes_on_and_no_round_counts_twice(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], moment: str
) -> None:  # fmt: skip
    """Clients have trained round 3, or some of them, when the server dies; the resumed run has the same bits."""
    own = own_files(tmp_path) if OWN[0] in overrides else (lambda _partition: {})
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    deploy(settings, tmp_path / "unbroken", *overrides, own=own)
    broken = tmp_path / "broken"
    with monkeypatch.context() as patched:
        if moment == "in training":
            real, calls = client.train, iter(range(100))

            def train(*arguments: Any) -> float:
                if next(calls) == 5:  # two clients in each round
                    raise Died
                return real(*arguments)

            patched.setattr(client, "train", train)
        else:
            from florana.experiments.run_folder import RunFolder

            write, writes = RunFolder.write_checkpoint, iter(range(100))

            def write_checkpoint(self: RunFolder, checkpoint: Any) -> None:
                if next(writes) == 3:
                    raise Died
                write(self, checkpoint)

            patched.setattr(RunFolder, "write_checkpoint", write_checkpoint)
        with pytest.raises(Died):
            deploy(settings, broken, *overrides, own=own)
    assert not (broken / "run" / "summary.json").exists()
    deploy(settings, broken, *overrides, own=own, resume=True)
    assert adapters(broken / "run") == adapters(tmp_path / "unbroken" / "run")
    assert round_lines(broken / "run") == round_lines(tmp_path / "unbroken" / "run")


def test_another_configuration_does_not_go_on_with_the_run(
    settings: list[str], tmp_path: Path
) -> None:
    """It says what was, and what is; a finished run only tells its summary."""
    deploy(settings, tmp_path, "federation.rounds=1")
    with pytest.raises(
        RunError, match=r"another configuration: federation\.rounds was 1, here it is 2; give"
    ):
        deploy(settings, tmp_path, "federation.rounds=2", resume=True)
    summary, events = deploy(settings, tmp_path, "federation.rounds=1", resume=True)
    assert (summary.rounds, events) == (1, [])


def test_a_resumed_run_may_wait_for_another_time(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long nodes are waited for is no part of what is computed; the folder then holds what is used now."""

    def dying(*_: Any) -> float:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(client, "train", dying)
        with pytest.raises(Died):
            deploy(settings, tmp_path, "federation.rounds=1")
    others = ["federation.wait_seconds=5", "federation.deadline_seconds=70"]
    deploy(settings, tmp_path, "federation.rounds=1", *others, resume=True)
    federation = load_config(tmp_path / "run" / "config.toml").federation
    assert (federation.wait_seconds, federation.deadline_seconds) == (5, 70)


def test_a_client_that_lost_its_disk_gets_the_whole_model_next_time(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out by name once, and takes part again in the round after."""
    everyone = ["federation.participation=1.0", "method.name=fedex-lora"]
    real = client.train

    def train(model: Any, data: Any, objective: Any, config: Any, place: Any, *more: Any) -> float:
        if (place.server_round, place.client) == (2, 2):  # after client 1 of that round
            shutil.rmtree(tmp_path / "state1" / "runs")
        return real(model, data, objective, config, place, *more)

    monkeypatch.setattr(client, "train", train)
    deploy(settings, tmp_path, *everyone)
    lines = round_lines(tmp_path / "run")
    assert [list(line.get("left_out", {})) for line in lines] == [[], [], [], ["client 1"], []]
    assert "it must be sent whole" in lines[3]["left_out"]["client 1"]


def test_a_node_may_have_the_model_elsewhere_but_no_other(
    kinds: dict[str, Kind], settings: list[str], tmp_path: Path
) -> None:
    """Its folder is its own business; the weights are compared by hash."""
    same = shutil.copytree(kinds["own head"].source.path, tmp_path / "same")
    other = shutil.copytree(kinds["own head"].source.path, tmp_path / "other")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    one = ["federation.rounds=1", "federation.participation=1.0"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    deploy(settings, tmp_path / "a", *one, own=lambda p: {"model": str(same)} if p else {})
    assert round_lines(tmp_path / "a" / "run")[1]["left_out"] == {}
    deploy(settings, tmp_path / "b", *one, own=lambda p: {"model": str(other)} if p == 2 else {})
    left_out = round_lines(tmp_path / "b" / "run")[1]["left_out"]
    assert "base_hash is" in left_out["client 2"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "partition-id is None, expected 0 to 2"),
        ({"partition-id": 3}, "partition-id is 3, expected 0 to 2"),
        ({"partition-id": True}, "partition-id is True"),
        ({"partition-id": "1"}, "partition-id is '1'"),
    ],
)
def test_a_node_must_say_which_partition_it_is(node: dict[str, Any], message: str) -> None:
    """What came, and how to start it."""
    with pytest.raises(ConfigError, match=message):
        NodeSettings.read(node, 3)


def test_own_data_needs_named_labels(settings: list[str], tmp_path: Path) -> None:
    """Heads would mean something else on every node."""
    config = load_config(None, settings)
    node = {"partition-id": 0, "data": str(tmp_path / "own.csv"), "state": str(tmp_path)}
    write_texts(tmp_path / "own.csv")
    with pytest.raises(DataError, match=r"data\.labels has to name the classes"):
        open_node(config, node)


def test_a_node_without_data_is_told(settings: list[str], tmp_path: Path) -> None:
    """Where the configuration says that nodes bring their own."""
    config = load_config(None, [*settings, *OWN])
    with pytest.raises(DataError, match="client 0 names no data"):
        open_node(config, {"partition-id": 0, "state": str(tmp_path)})
    with pytest.raises(DataError, match="florana app DIR CONFIG"):
        tiny_run([*settings, *OWN], tmp_path / "run")


def test_tokenised_data_is_made_once(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second message reads the cache, has the same examples, and a torn file is made again."""
    from florana.experiments import node as module

    node = {"partition-id": 1, "state": str(tmp_path)}
    config = load_config(None, settings)
    first = open_node(config, node).data
    (file,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_tokenised", lambda *_: pytest.fail("tokenised again"))
        again = open_node(config, node).data
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert [ids.tolist() for ids in one.token_ids] == [ids.tolist() for ids in other.token_ids]
        assert one.labels.tolist() == other.labels.tolist()
        assert one.pad_id == other.pad_id
    whole = {name: tensor.clone() for name, tensor in load_file(file).items()}  # off the map
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    open_node(config, node)
    mended = load_file(file)  # not byte for byte: safetensors orders metadata as it likes
    assert mended.keys() == whole.keys()
    assert all(torch.equal(mended[name], tensor) for name, tensor in whole.items())
    open_node(config.model_copy(update={"seed": 7}), node)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pooled_methods_stay_in_one_process(settings: list[str], tmp_path: Path) -> None:
    """All data in one place is no federation."""
    with pytest.raises(ConfigError, match="centralised has all clients' data in one place"):
        deploy(settings, tmp_path, "method.name=centralised")


def test_too_few_nodes_stop_the_run_with_its_state_saved(
    settings: list[str], tmp_path: Path
) -> None:
    """Two of three nodes are refused: the run stops after the bounded wait, and can be resumed."""
    few = ["federation.wait_seconds=0.2", "federation.participation=1.0"]
    with pytest.raises(FederationError, match=r"1 nodes are connected after 0\.2 s"):
        deploy(settings, tmp_path, *few, own=lambda p: {"partition-id": 9} if p else {})
    summary, _ = deploy(settings, tmp_path, *few, resume=True)
    assert summary.rounds == 4


keys = st.sampled_from(
    ["seed=3", "threads=2", "federation.rounds=9", "lora.client_ranks=[1, 2]", "data.test='x.csv'",
     "data.labels=['a', '[b', 'c d']", "lora.target_modules=['q']", "training.epochs=2", "model.pooling=mean",
     "federation.deadline_seconds=7.5", "server.momentum=0.5", "method.name=florana-opt"]
)  # fmt: skip


@given(chosen=st.sets(keys))
def test_a_configuration_survives_flowers_flat_form(chosen: set[str]) -> None:
    """Every value is one that Flower carries, and what comes back is the same configuration."""
    config = load_config(None, sorted(chosen))
    flat = write_run_config(config)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert read_run_config(flat) == config


def test_mistakes_in_the_run_config_are_told() -> None:
    """As those of a file are."""
    flat = {**write_run_config(RunConfig()), "federation.rounds": 0, "lora.rnak": 3}
    with pytest.raises(
        ConfigError, match=r"(?s)the app's run config:.*lora\.rnak.*federation\.rounds"
    ):
        read_run_config(flat)
