"""What can be wrong with the lists that make a comparison, each told in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from florana.errors import ConfigError
from florana.experiments.comparison.items import Cell, RunKey
from florana.tasks.metrics import Metric


def of_lists(
    tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int], baseline: str
) -> list[str]:
    """Empty lists, names given twice, and a baseline that is not run."""
    mistakes = []
    for what, given in (("task", tasks), ("method", methods), ("seed", seeds)):
        mistakes += [] if given else [f"no {what} is given"]
        mistakes += [f"{what} {item!r} is given twice" for item in _twice(given)]
    if methods and baseline not in methods:
        mistakes.append(
            f"the baseline {baseline!r} is not among the methods ({', '.join(methods)}); "
            "add it, or choose one of them with --baseline"
        )
    return mistakes


def of_numbers(jobs: int | None, reach: float | None) -> list[str]:
    """Numbers that make no sense."""
    told = []
    if jobs is not None and jobs < 1:
        told.append(f"jobs is {jobs}: expected 1 or more")
    if reach is not None and not 0 < reach < float("inf"):
        told.append(f"reach is {reach:g}: expected a score above 0")
    return told


def check_reach(reach: float | None, metrics: Mapping[str, Metric]) -> None:
    """Refuse a level that no score can reach.

    Args:
        reach: the level, or None.
        metrics: task → what judges its runs.

    Raises:
        ConfigError: if it is above 1, and a task is judged by a score that is at most 1.
    """
    bounded = [metric.label for metric in metrics.values() if metric.higher_is_better]
    if reach is not None and reach > 1 and bounded:
        raise ConfigError(
            f"comparison:\n  reach is {reach:g}: {bounded[0]} is at most 1, expected a score such as 0.6"
        )


def of_overrides(overrides: Sequence[str]) -> list[str]:
    """Keys that a comparison sets for each run itself."""
    keys = {override: override.partition("=")[0].strip() for override in overrides}
    return [
        f"--set {override!r}: a comparison sets {key} for each run; see --methods, --seeds, --output"
        for override, key in keys.items()
        if key.split(".")[0] in ("method", "seed", "output")
    ]


def of_cells(cells: Sequence[Cell]) -> list[str]:
    """One configuration under two labels, such as 0.1 and 1e-1; folders that clash; unlike threads."""
    mistakes = []
    seen: dict[tuple[str, str], RunKey] = {}
    for cell in cells:
        bare = cell.config.model_copy(update={"output": None}).model_dump_json()
        first = seen.setdefault((cell.key.task, bare), cell.key)
        if first.method != cell.key.method:
            mistakes.append(f"methods {first.method!r} and {cell.key.method!r} are the same")
    # A file system may not tell capital letters from small ones.
    of_tasks = {cell.key.task: cell.folder.parent.parent.name.lower() for cell in cells}
    of_methods = {cell.key.method: cell.folder.parent.name.lower() for cell in cells}
    for what, names in (("tasks", of_tasks), ("methods", of_methods)):
        for name in _twice(names.values()):
            labels = " and ".join(repr(label) for label in names if names[label] == name)
            mistakes.append(f"{what} {labels} would have one folder, {name}; rename one")
    threads = {cell.key.task: cell.config.threads for cell in cells}
    if len(set(threads.values())) > 1:
        found = ", ".join(f"{task} {number or 'not set'}" for task, number in threads.items())
        mistakes.append(
            f"threads differ between tasks ({found}), which moves last bits; give one number to all: "
            "--set threads=1"
        )
    return list(dict.fromkeys(mistakes))


def gather(
    found: Mapping[str, Sequence[RunKey]], tasks: Sequence[str], methods: Sequence[str]
) -> list[str]:
    """Mistakes of single runs, each told once, with what they have in common.

    Args:
        found: mistake → the runs that have it.
        tasks: labels of all tasks.
        methods: labels of all methods.

    Example:
        >>> gather({"bad key": [RunKey("a", "x", 0), RunKey("a", "y", 0)]}, ["a", "b"], ["x", "y"])
        ['task a: bad key']
    """
    return [f"{_common(keys, tasks, methods)}: {mistake}" for mistake, keys in found.items()]


def _common(keys: Sequence[RunKey], tasks: Sequence[str], methods: Sequence[str]) -> str:
    of_tasks = [task for task in tasks if any(key.task == task for key in keys)]
    of_methods = [method for method in methods if any(key.method == method for key in keys)]
    words = []
    if len(of_tasks) < len(tasks):
        words.append(f"task {' and '.join(of_tasks)}")
    if len(of_methods) < len(methods):
        words.append(f"method {' and '.join(of_methods)}")
    return ", ".join(words) or "all runs"


def _twice(items: Iterable[object]) -> list[object]:
    return [item for item, times in Counter(items).items() if times > 1]
