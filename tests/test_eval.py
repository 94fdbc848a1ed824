"""``florana eval`` end to end: a real Llama of 260 K parameters learns two answers, and the harness sees it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from causal_models import stories_folder
from florana.cli.eval import evaluate as command
from florana.config import load_config
from florana.errors import ConfigError, DataError, ModelError, RunError
from florana.experiments import runner
from florana.harness import Request, evaluate
from florana.harness.loading import load
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, write_texts

ASKED = {"Who has the red ball?": "Lily", "Who has the big dog?": "Tom"}
TASKS = {
    "says": {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "chooses": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["Lily", "Tom"],
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "runs": {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "unsafe_code": True,
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def write_rows(path: Path, copies: int) -> Path:
    """Each question with its answer, many times."""
    rows = [{"question": q, "answer": a} for q, a in ASKED.items()] * copies
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tasks(folder: Path) -> Path:
    """The harness's task files; JSON is YAML."""
    rows = write_rows(folder / "test.jsonl", 2)
    for name, task in TASKS.items():
        common = {
            "task": f"who_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(rows)},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "metadata": {"version": 2},
        }
        (folder / f"{name}.yaml").write_text(json.dumps({**common, **task}))
    gone = {"task": "who_knows", "dataset_path": "json", "test_split": "test"}
    gone["dataset_kwargs"] = {"data_files": {"test": str(folder / "gone.jsonl")}}  # type: ignore[assignment]
    (folder / "gone.yaml").write_text(json.dumps(gone))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose method keeps a residual beside the pair, so that its export has to hold it."""
    folder = tmp_path_factory.mktemp("eval")
    settings = [
        "threads=1",
        "device=cpu",
        "data.family=causal",
        f"model.name='{stories_folder()}'",
        "model.max_length=64",
        f"data.source='{write_rows(folder / 'train.jsonl', 80)}'",
        "data.prompt='Question: {question}\\nAnswer:'",
        "data.response=' {answer}.'",
        "lora.target_modules=['q_proj','v_proj','o_proj','down_proj']",
        "federation.clients=2",
        "federation.rounds=2",
        "federation.partition=iid",
        "training.steps=20",
        "training.batch_size=8",
        "training.learning_rate=0.01",
        "method.name=fedex-lora",
        f"output='{folder / 'run'}'",
    ]
    runner.start(load_config(None, settings), lambda _event: None)
    return folder / "run"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files, and the harness to read them."""
    pytest.importorskip(
        "lm_eval", reason="needs lm-evaluation-harness: pip install 'florana[eval]'"
    )
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def florana_eval(*arguments: str) -> Result:
    """Call the command."""
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def values(folder: Path) -> dict[tuple[str, str], float]:
    """(model, task) -> value in evaluation.json."""
    told: Any = json.loads((folder / "evaluation.json").read_text())
    return {(s["model"], s["task"]): s["value"] for s in told["scores"]}


def test_harness_sees_what_was_learnt(run: Path, tasks: Path, tmp_path: Path) -> None:
    """The adapter answers both kinds of task, the base does not; a second call adds to the file and the table."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    own = ["--include-path", str(tasks)]
    done = florana_eval(str(folder), "--tasks", "who_says", *own)
    assert done.exit_code == 0, done.output
    assert values(folder) == {("final", "who_says"): 1.0}
    done = florana_eval(str(folder), "--tasks", "who_chooses, who_says", "--base", *own)
    assert done.exit_code == 0, done.output
    found = values(folder)
    assert found["final", "who_says"] == found["final", "who_chooses"] == 1.0
    assert found["base", "who_says"] == 0.0
    assert found["base", "who_chooses"] == 0.5
    said = [line.split() for line in done.stdout.splitlines()]
    assert [
        *[
            "who_says",
            "exact_match",
            "0",
            "4",
            "final",
            "0.000",
            "±",
            "0.000",
            "1.000",
            "±",
            "0.000",
            "+1.000",
        ]
    ] in said


def test_any_peft_folder(run: Path, tasks: Path, tmp_path: Path) -> None:
    """An adapter without a run is evaluated beside the base that it names, or that is given."""
    folder = tmp_path / "adapter"
    shutil.copytree(run / "best", folder)
    request = Request(("who_says",), (tasks,), limit=1)
    (score,) = evaluate(folder, request)
    assert (score.model, score.value, score.examples, score.limit) == ("adapter", 1.0, 1, 1)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": None})
    )
    with pytest.raises(ModelError, match="names no base model; say it with --base-model"):
        evaluate(folder, request)
    (score,) = evaluate(folder, request, base_model=str(stories_folder()))
    assert score.value == 1.0


def test_json_for_programs(run: Path, tasks: Path, tmp_path: Path) -> None:
    """--json prints what the file holds."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    done = florana_eval(
        str(folder),
        "--tasks",
        "who_says",
        "--include-path",
        str(tasks),
        "--adapter",
        "best",
        "--json",
    )
    told = json.loads(done.stdout)
    assert told == json.loads((folder / "evaluation.json").read_text())["scores"]
    assert [(row["model"], row["version"]) for row in told] == [("best", "2")]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("who_sais", ConfigError, "knows no task 'who_sais'; did you mean 'who_says'"),
        ("who_knows", DataError, "cannot load task 'who_knows'.*gone.jsonl"),
        ("who_runs", ConfigError, "'who_runs' runs programs that the model writes"),
        ("", ConfigError, "--tasks names no task"),
    ],
)
def test_tasks_that_cannot_be_done(
    run: Path, tasks: Path, name: str, error: type[Exception], message: str
) -> None:
    """What is wrong with a task is said, and nothing is written."""
    with pytest.raises(error, match=message):
        evaluate(run, Request((name,) if name else (), (tasks,)))
    assert not (run / "evaluation.json").exists()


def test_missing_task_folder(run: Path, tasks: Path) -> None:
    """A folder of task files that is not there is named."""
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        evaluate(run, Request(("who_says",), (tasks / "nowhere",)))


def test_harness_not_installed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the message says how to get it."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'florana\[eval\]'"):
        evaluate(run, Request(("gsm8k",)))


def test_unknown_adapter() -> None:
    """An adapter is final or best."""
    done = florana_eval("somewhere", "--tasks", "gsm8k", "--adapter", "last")
    assert isinstance(done.exception, ConfigError)
    assert "expected one of final, best" in str(done.exception)


def test_run_of_an_encoder(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """A run that classifies writes no text, and is told where its scores are."""
    settings = tiny_settings(kinds["own head"], write_texts(tmp_path / "texts.csv"))
    tiny_run(settings, tmp_path / "run", "federation.rounds=1")
    with pytest.raises(ConfigError, match=r"data.family = 'classification'.*metrics.jsonl"):
        load(tmp_path / "run")


def test_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    """A run without its final adapter is told how to go on, and one without its best likewise."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for adapter in ("final", "best"):
        shutil.rmtree(folder / adapter)
        with pytest.raises(RunError, match=f"no adapter '{adapter}' yet; .*--resume"):
            load(folder, adapter)
    with pytest.raises(ConfigError, match="a run knows its base model"):
        load(folder, "final", "another")


def test_folder_of_neither(tmp_path: Path) -> None:
    """A folder that holds neither a run nor an adapter is refused."""
    with pytest.raises(RunError, match=r"neither a run .* nor a PEFT adapter"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"task_type": "SEQ_CLS"}, ConfigError, "task_type 'SEQ_CLS'"),
        ({"task_type": "CAUSAL_LM"}, ModelError, "names no base model"),
        ({"base_model_name_or_path": "x"}, ModelError, "pickled weights are not loaded"),
        (["x"], ModelError, "holds list"),
    ],
)
def test_adapters_that_cannot_be_done(
    tmp_path: Path, settings: Any, error: type[Exception], message: str
) -> None:
    """An adapter that writes no text, names no base or is pickled is refused before anything is loaded."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(error, match=message):
        load(tmp_path)
