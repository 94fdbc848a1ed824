"""Tables of the one-round evidence, made from its results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from evidence_cases import BLENDS, RIVALS, Case, Row, cases, spearman
from evidence_cells import SKEWS, units
from evidence_document import write_document
from evidence_operators import CONTROLS, CORE, OPERATORS

DRIFT: tuple[str, ...] = ("error", "rest_share", "step_cosine", "step_agreement", "step_noise")
DRIFT += ("rest_cosine", "rest_noise", "head_cosine", "largest_weight")
DIRECTIONS = ("average", "exact at average's norm", "average at exact's norm", "exact")
HEADS = ("start", "head alone", "average, start's head", "exact, start's head", "average", "exact")


SHOWN = (*RIVALS, "head alone")
"""Operators of the table in docs/evidence.md."""


def write_tables(rows: Sequence[Row], path: Path) -> str:
    """Write all tables to ``path``, the short ones into docs/evidence.md, and return all."""
    found = cases(rows)
    count = (
        f"{len(found)} of {len(list(units()))} cases so far: a case is one setting after one number of local "
        "steps. Gains are accuracy over plain averaging in percentage points, and loss below it in nats, on the "
        "same test examples."
    )
    parts = [
        "# One round, the same clients, many operators",
        f"Made by `python benchmarks/evidence.py --tables` from {path.stem}.jsonl beside it. {count}",
        "## Which operator is good everywhere",
        everywhere(found),
        "### Every operator, in the first cases",
        everywhere(cases(rows, operators=OPERATORS), tuple(OPERATORS)),
        "### One λ for all modules, M + λ R, by rule",
        "Interpolated along the line between λ = 0, 0.25, 0.5, 0.75 and 1.",
        rules(found),
        "### Mean gain by setting",
        by_stratum(found, lambda of, name: f"{mean(c.gain(name) for c in of):+.1f}"),
        "### Worst gain by setting",
        by_stratum(found, lambda of, name: f"{min(c.gain(name) for c in of):+.1f}"),
        "### Mean loss gain by setting",
        by_stratum(found, lambda of, name: f"{mean(c.loss_gain(name) for c in of):+.3f}"),
        "## Does the error order the operators?",
        error_matters(found),
        "## Direction or norm",
        contrast(found, DIRECTIONS),
        "## Head or update",
        contrast(found, HEADS),
        "## Every case",
        every_case(found),
        *(f"## {_title(group)}\n\n{by_operator(of)}" for group, of in _groups(found)),
        "## bf16 against float32",
        precision(found, cases(rows, bf16=False)),
    ]
    text = "\n\n".join(parts) + "\n"
    path.write_text(text)
    write_document(
        {
            "count": count,
            "everywhere": everywhere(found, SHOWN),
            "setting": by_setting(found, "exact"),
            "worst": by_stratum(found, lambda of, name: f"{min(c.gain(name) for c in of):+.1f}"),
            "error": error_matters(found),
            "direction": contrast(found, DIRECTIONS),
            "head": contrast(found, HEADS),
        }
    )
    return text


def by_setting(found: Sequence[Case], operator: str) -> str:
    """Gain of one operator in points, a row per task and rate, a column per skew and number of steps."""
    fresh = [c for c in found if (c.settings["start"], c.settings["rank"]) == ("fresh", 8)]
    columns = sorted(
        {
            (SKEWS.index(c.settings["skew"]), c.settings["steps"])
            for c in fresh
            if c.settings["seed"] == 0
        }
    )
    header = ["task, rate", *(f"{SKEWS[skew]}, {steps}" for skew, steps in columns)]
    lines = []
    for task, rate in sorted({(c.settings["task"], c.settings["learning_rate"]) for c in fresh}):
        by = {
            (SKEWS.index(c.settings["skew"]), c.settings["steps"]): c.gain(operator)
            for c in fresh
            if (c.settings["task"], c.settings["learning_rate"], c.settings["seed"])
            == (task, rate, 0)
        }
        lines.append([f"{task}, {rate:g}", *(f"{by[k]:+.1f}" if k in by else "" for k in columns)])
    return _table(header, lines)


def everywhere(found: Sequence[Case], names: Sequence[str] = (*RIVALS, "head alone")) -> str:
    """Per operator: gain over plain averaging and regret, on average and at worst; loss likewise."""
    header = ["operator", "mean gain", "worst gain", "better / worse by 2 SE", "mean regret"]
    header += ["worst regret", "mean loss gain", "worst loss gain"]
    lines = []
    for name in names:
        points = [case.gain(name) for case in found]
        sure = [(case.gain(name), 2 * case.gain_error(name)) for case in found]
        regrets = [case.regret(name) for case in found]
        nats = [case.loss_gain(name) for case in found]
        lines.append(
            [
                name,
                f"{mean(points):+.2f}",
                f"{min(points):+.1f}",
                f"{sum(g > e > 0 for g, e in sure)} / {sum(-g > e > 0 for g, e in sure)}",
                f"{mean(regrets):.2f}",
                f"{max(regrets):.1f}",
                f"{mean(nats):+.3f}",
                f"{min(nats):+.3f}",
            ]
        )
    return _table(header, lines) + f"\n\n{len(found)} cases."


def rules(found: Sequence[Case]) -> str:
    """Rules for a single λ: its mean, gain on average and at worst."""
    header = ["rule", "mean λ", "mean gain", "worst gain", "mean loss gain", "worst loss gain"]
    lines = []
    for name, key in BLENDS.items():
        made = [case.blended(key) for case in found]
        lines.append(
            [
                name,
                f"{mean(max(0.0, case.about(key)) for case in found):.2f}",
                f"{mean(points for points, _ in made):+.2f}",
                f"{min(points for points, _ in made):+.1f}",
                f"{mean(nats for _, nats in made):+.3f}",
                f"{min(nats for _, nats in made):+.3f}",
            ]
        )
    return _table(header, lines)


def by_stratum(found: Sequence[Case], cell: Callable[[Sequence[Case], str], str]) -> str:
    """One statistic of every operator over the cases of each setting."""
    strata = _strata(found)
    header = ["operator", *(f"{title} ({len(of)})" for title, of in strata)]
    names = (*RIVALS, "head alone")
    return _table(header, [[name, *(cell(of, name) for _, of in strata)] for name in names])


def error_matters(found: Sequence[Case]) -> str:
    """Along the line from average to exact: rank correlation with the error, and gain of the exact mean."""
    header = ["cases", "number", "error of average", "error and accuracy", "error and loss"]
    header += ["gain of exact", "loss gain of exact", "exact better / worse by 2 SE"]
    lines = []
    for name, of in [("all", list(found)), *_strata(found)]:
        sure = [(case.gain("exact"), 2 * case.gain_error("exact")) for case in of]
        lines.append(
            [
                name,
                str(len(of)),
                f"{mean(case.about('error') for case in of):.2f}",
                f"{mean(case.correlation('accuracy') for case in of):+.2f}",
                f"{mean(case.correlation('loss') for case in of):+.2f}",
                f"{mean(case.gain('exact') for case in of):+.2f}",
                f"{mean(case.loss_gain('exact') for case in of):+.3f}",
                f"{sum(g > e > 0 for g, e in sure)} / {sum(-g > e > 0 for g, e in sure)}",
            ]
        )
    across = {
        key: spearman([c.about(key) for c in found], [c.loss_gain("exact") for c in found])
        for key in DRIFT
    }
    said = ", ".join(f"{key} {value:+.2f}" for key, value in across.items())
    return _table(header, lines) + f"\n\nRank correlation with the exact mean's loss gain: {said}."


def contrast(found: Sequence[Case], names: Sequence[str]) -> str:
    """Mean accuracy (loss) of a few operators, by stratum."""
    header = ["cases", *names]
    lines = []
    for title, of in [("all", list(found)), *_strata(found)]:
        scores = [(mean(c.accuracy(n) for c in of), mean(c.loss(n) for c in of)) for n in names]
        lines.append([title, *(f"{accuracy:.3f} ({loss:.3f})" for accuracy, loss in scores)])
    return _table(header, lines)


def every_case(found: Sequence[Case]) -> str:
    """One line per case: how far the clients drift, what is lost, what is best."""
    header = ["setting", "steps", "cosine", "‖R‖/‖D‖", "error", "average", "exact ± SE"]
    header += ["ρ loss", "best", "its gain ± SE"]
    lines = []
    for case in found:
        best = case.best()
        lines.append(
            [
                f"{_title(_group(case))}, {case.settings['skew']}, seed {case.settings['seed']}",
                str(case.settings["steps"]),
                f"{case.about('step_cosine'):+.2f}",
                f"{case.about('rest_share'):.2f}",
                f"{case.about('error'):.2f}",
                f"{case.accuracy('average'):.3f}",
                f"{case.gain('exact'):+.1f} ± {case.gain_error('exact'):.1f}",
                f"{case.correlation('loss'):+.1f}",
                best,
                f"{case.gain(best):+.1f} ± {case.gain_error(best):.1f}",
            ]
        )
    return _table(header, lines)


def by_operator(found: Sequence[Case]) -> str:
    """Accuracy of every operator, a column for each skew and number of steps; mean over seeds."""
    columns = [
        (skew, steps)
        for skew in SKEWS
        for steps in sorted({c.settings["steps"] for c in found})
        if any((c.settings["skew"], c.settings["steps"]) == (skew, steps) for c in found)
    ]
    header = ["operator", *(f"{skew}, {steps}" for skew, steps in columns)]
    lines = []
    for name in (*CORE, *CONTROLS):
        of = [[c for c in found if (c.settings["skew"], c.settings["steps"]) == k] for k in columns]
        lines.append([name, *(f"{mean(c.accuracy(name) for c in cs):.3f}" for cs in of)])
    return _table(header, lines)


def precision(half: Sequence[Case], full: Sequence[Case]) -> str:
    """The largest difference that bf16 makes to what is compared, where both were measured."""
    lines = []
    for case in full:
        twin = next((c for c in half if c.settings == case.settings), None)
        if twin is None:
            continue
        points = [(twin.gain(n), case.gain(n)) for n in RIVALS]
        nats = [(twin.loss_gain(n), case.loss_gain(n)) for n in RIVALS]
        lines.append(
            [
                f"{_title(_group(case))}, {case.settings['skew']}",
                str(case.settings["steps"]),
                f"{twin.accuracy('average'):.3f} / {case.accuracy('average'):.3f}",
                f"{max(abs(a - b) for a, b in points):.1f}",
                f"{spearman(*map(list, zip(*points, strict=True))):+.2f}",
                f"{max(abs(a - b) for a, b in nats):.3f}",
                f"{spearman(*map(list, zip(*nats, strict=True))):+.2f}",
            ]
        )
    header = ["setting", "steps", "average, bf16 / float32", "largest change of a gain"]
    header += ["rank correlation", "largest change of a loss gain", "rank correlation"]
    return _table(header, lines)


def _strata(found: Sequence[Case]) -> list[tuple[str, list[Case]]]:
    """The cases by each setting in turn."""
    keys = ("skew", "steps", "start", "learning_rate", "rank", "task", "seed")
    pairs = {(key, case.settings[key]): None for key in keys for case in found}
    return [
        (f"{key.replace('_', ' ')} {value}", [c for c in found if c.settings[key] == value])
        for key, value in pairs
    ]


def _group(case: Case) -> tuple[Any, ...]:
    return tuple(case.settings[key] for key in ("task", "start", "learning_rate", "rank"))


def _groups(found: Sequence[Case]) -> Iterable[tuple[tuple[Any, ...], list[Case]]]:
    for group in dict.fromkeys(_group(case) for case in found):
        yield group, [case for case in found if _group(case) == group]


def _title(group: tuple[Any, ...]) -> str:
    task, start, rate, rank = group
    return f"{task}, {start}, rate {rate:g}, r = {rank}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
