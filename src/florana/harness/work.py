"""The harness at work on a model."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florana.errors import ConfigError, DataError
from florana.harness.loading import Adapted, load
from florana.harness.record import write_scores
from florana.harness.scores import Score, scores
from florana.harness.table import BASE

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the harness.

    Args:
        tasks: names of its tasks, groups or tags, or of those in ``include``.
        include: folders of task files (YAML) of one's own.
        shots: worked examples in each prompt; None: as many as the task says.
        limit: most examples of each task, to try things out; such numbers are no results.
        batch_size: prompts at once.
        chat: write prompts with the tokenizer's chat template.
    """

    tasks: tuple[str, ...]
    include: tuple[Path, ...] = ()
    shots: int | None = None
    limit: int | None = None
    batch_size: int = 8
    chat: bool = False


def evaluate(
    folder: Path,
    request: Request,
    *,
    adapter: str = "final",
    with_base: bool = False,
    base_model: str | None = None,
) -> list[Score]:
    """Evaluate the model of a run or a PEFT folder, and keep its scores in ``evaluation.json`` there.

    The adapter is used as it was exported, not merged into the base, so what is evaluated is what was trained, on quantised
    bases too. A method's residual (FedEx-LoRA) is part of the exported adapter. The base is the same model with
    its adapter switched off.

    Args:
        folder: of a finished run, or a PEFT folder.
        request: the tasks.
        adapter: ``final`` or ``best``, of a run.
        with_base: evaluate the base model too.
        base_model: name or folder of the base model of a PEFT folder.

    Returns:
        All scores that the file holds now, earlier ones too.

    Raises:
        ConfigError: if the harness is not installed, knows no such task, or the model does not write text.
        DataError: if a task's data cannot be had.
        RunError: if the run is not finished, or ``evaluation.json`` cannot be read or written.
        ModelError: if the model cannot be loaded.
    """
    version = _version()
    manager = _tasks(request)
    adapted = load(folder, adapter, base_model)
    new = _measure(adapted, request, manager, adapted.name)
    if with_base:
        with adapted.model.disable_adapter():
            new += _measure(adapted, request, manager, BASE)
    return write_scores(folder, new, f"lm-evaluation-harness {version}")


def _version() -> str:
    try:
        import lm_eval
    except ImportError as error:
        raise ConfigError(
            f"florana eval needs lm-evaluation-harness ({error}); install it with: pip install 'florana[eval]'"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return str(lm_eval.__version__)


def _tasks(request: Request) -> TaskManager:
    """The harness's list of tasks, with one's own, once all that are asked for are known to be in it."""
    from lm_eval.tasks import TaskManager

    for path in request.include:
        if not path.is_dir():
            raise ConfigError(
                f"--include-path {path} is no folder; give the one with your task files"
            )
    if not request.tasks:
        raise ConfigError("--tasks names no task, such as --tasks gsm8k,mmlu")
    own = [str(path) for path in request.include]
    if (
        own
    ):  # the harness's own 14,000 take seconds to list, and a task of one's own needs none of them
        manager = TaskManager(include_path=own, include_defaults=False)
        if set(request.tasks) <= set(manager.all_subtasks):
            return manager
    manager = TaskManager(include_path=own or None)
    unknown = [task for task in request.tasks if task not in manager.task_index]
    if unknown:
        raise ConfigError("\n".join(_unknown(task, manager.all_tasks) for task in unknown))
    return manager


def _unknown(task: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(task, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else "lm-eval ls tasks lists them;"
    return f"--tasks: the harness knows no task {task!r}; {hint} your own are found with --include-path"


def _measure(adapted: Adapted, request: Request, manager: TaskManager, name: str) -> list[Score]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    make: Any = HFLM
    model = make(
        pretrained=adapted.model, tokenizer=adapted.tokenizer, batch_size=request.batch_size
    )
    found: Any = lm_eval.simple_evaluate(
        model=model,
        tasks=_loaded(request.tasks, manager),
        task_manager=manager,
        num_fewshot=request.shots,
        limit=request.limit,
        apply_chat_template=request.chat,
        log_samples=False,
    )
    return scores(found, name, limit=request.limit, chat=request.chat)


def _loaded(names: Sequence[str], manager: TaskManager) -> list[Any]:
    """The tasks with their data, built anew for each model, since the harness keeps answers in them."""
    objects: list[Any] = []
    for name in names:
        try:
            loaded: Any = manager.load(name)
        except (
            Exception
        ) as error:  # the harness and the hub raise a different class for every cause
            raise DataError(
                f"the harness cannot load task {name!r} ({type(error).__name__}: {error}); is its data set here or the hub "
                "in reach?"
            ) from error
        unsafe = [
            key for key, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)
        ]
        if unsafe:
            raise ConfigError(
                f"task {unsafe[0]!r} runs programs that the model writes, and the harness has no sandbox for them; use "
                "data.task with scorer 'program', which has one"
            )
        group = loaded.get("groups", {}).get(name)
        objects += list(loaded["tasks"].values()) if group is None else [group]
    return objects
