"""Whether settings are right, each by itself and together with the others."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from florana.config.data import DataConfig
from florana.config.messages import explain
from florana.config.run import RunConfig
from florana.config.training import MethodConfig
from florana.errors import ConfigError
from florana.garbage import importing


def with_task(given: dict[str, Any]) -> dict[str, Any]:
    """Settings with the keys of ``[data]`` that ``data.task`` knows and the user left out.

    A key at its default counts as left out, so that a file with all keys, as ``florana config`` writes it, takes a task.
    A source of the user's own brings its own test set, or none; the task's would be of other data.

    Raises:
        ConfigError: if there is no such task.
    """
    data = given.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("task"), str):
        return given
    from florana.tasks import catalogue

    task = catalogue.find(data["task"])
    known = task.settings()
    fields = DataConfig.model_fields
    data = {k: v for k, v in data.items() if k not in fields or v != fields[k].default}
    if "source" in data:
        known = {key: v for key, v in known.items() if key not in ("test", "second_test")}
    filled = {**given, "data": {**known, **data}}
    evaluation = given.get("evaluation", {})
    if task.max_new_tokens is not None and isinstance(evaluation, dict):
        filled["evaluation"] = {"max_new_tokens": task.max_new_tokens, **evaluation}
    return filled


def validate(given: dict[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """The checked config, or all that is wrong with it."""
    with importing("florana.aggregators"):  # and torch with it
        from florana import aggregators

    config, mistakes = None, []
    try:
        given = with_task(given)
    except ConfigError as error:
        return None, str(error).splitlines()
    try:
        config = RunConfig.model_validate(given)
    except ValidationError as error:
        mistakes = explain(error)
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
    from florana.tasks.judging import judge_of

    mistakes = []
    odd = set(config.lora.client_ranks or ()) - {config.lora.rank}
    if odd and not cards()[config.method.name].mixed_ranks:
        able = ", ".join(card.name for card in cards().values() if card.mixed_ranks)
        mistakes.append(
            f"lora.client_ranks: {config.method.name} needs rank {config.lora.rank} for all clients; methods that take "
            f"unlike ranks: {able}"
        )
    quantization, variant = config.model.quantization, config.lora.variant
    if quantization != "none" and variant == "dora" and cards()[config.method.name].keeps_residual:
        mistakes.append(
            f"model.quantization: {config.method.name} adds a matrix to the frozen weights, whose rows DoRA then scales, which "
            f"a base in {quantization} cannot hold; use 'none', lora.variant = 'lora', or a method without residual"
        )
    try:
        judge_of(config)
    except ConfigError as error:
        mistakes.append(str(error))
    try:
        check_server(config.server, config.method.name, config.lora.variant)
    except ConfigError as error:
        mistakes.append(str(error))
    return mistakes
