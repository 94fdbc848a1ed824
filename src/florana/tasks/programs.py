"""Programs from descriptions: MBPP (arXiv 2108.07732) and HumanEval (arXiv 2107.03374).

Answers are judged by running them, which needs ``evaluation.allow_code = true``.
"""

from __future__ import annotations

from florana.errors import DataError
from florana.sandbox import Reference
from florana.tasks.catalogue import NamedTask
from florana.tasks.rows import Row

MBPP_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
    "{test_list}\n[BEGIN]\n"
)
MBPP_RESPONSE = "{code}\n[DONE]"
MBPP_STOPS = ("[DONE]",)
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Those of the paper: the function that was asked for has ended."""


def mbpp_reference(row: Row) -> str:
    """What it takes to check an answer to a problem of MBPP: its set-up code, then its asserts.

    Args:
        row: with ``test_list`` (sources of asserts) and, as far as there is any, ``test_setup_code``.

    Raises:
        DataError: if these are no Python.

    Example:
        >>> mbpp_reference({"test_list": ["assert one() == 1"], "test_setup_code": ""})
        '{"tests": "assert one() == 1", "prompt": "", "entry_point": null, "stops": ["[DONE]"]}'
    """
    tests = row["test_list"]
    if not (isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests)):
        raise DataError(f"test_list must be a list of asserts, not {tests!r:.80}")
    setup = row.get("test_setup_code") or ""
    return _checked(Reference("\n".join([setup, *tests] if setup else tests), stops=MBPP_STOPS))


def humaneval_reference(row: Row) -> str:
    """What it takes to check a completion of HumanEval: its prompt, and ``check`` called with the function asked for.

    Args:
        row: with ``prompt``, ``test`` and ``entry_point``.

    Raises:
        DataError: if these are no Python.
    """
    name = row["entry_point"]
    if not (isinstance(name, str) and name.isidentifier()):
        raise DataError(f"entry_point must be the name of a function, not {name!r:.80}")
    tests = f"{row['test']}\ncheck({name})\n"
    return _checked(Reference(tests, row["prompt"], name, HUMANEVAL_STOPS))


def _checked(reference: Reference) -> str:
    try:
        compile(reference.tests, "tests", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"the tests are no Python ({error}): {reference.tests[:80]!r}") from None
    return reference.text()


TASKS = (
    NamedTask(
        "mbpp",
        "causal",
        "google-research-datasets/mbpp:full@train",
        ("pass@1", "perplexity"),
        "MBPP: a Python function from one sentence and three tests; answers are run (CC BY 4.0)",
        test="google-research-datasets/mbpp:full@test",
        prompt=MBPP_PROMPT,
        response=MBPP_RESPONSE,
        reference_of=mbpp_reference,
        scorer="program",
        max_new_tokens=512,
    ),
    NamedTask(
        "humaneval",
        "causal",
        "openai/openai_humaneval@test",
        ("pass@1", "perplexity"),
        "HumanEval: the body of a Python function from its head; answers are run; 164 problems, made to test on (MIT)",
        prompt="{prompt}",
        response="{canonical_solution}",
        reference_of=humaneval_reference,
        scorer="program",
        max_new_tokens=512,
    ),
)
