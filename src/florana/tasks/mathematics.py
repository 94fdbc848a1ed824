r"""Word problems and competition mathematics: GSM8K (arXiv 2110.14168), MATH (2103.03874), SVAMP (2103.07191), MAWPS (N16-1136).

A model learns to write the worked answer, or only the number where the set has no more. The whole of it is the reference:
the scorers read the final number, or the last box, of either side. Columns are the hub's; those of other copies are said in
``data.prompt``, ``data.response`` and ``data.reference``.
"""

from __future__ import annotations

from florana.tasks.catalogue import NamedTask

METRICS = ("exact_match", "perplexity")
SHORT = 32
"""Tokens for a number in a sentence."""

TASKS = (
    NamedTask(
        "gsm8k",
        "causal",
        "openai/gsm8k:main@train",
        METRICS,
        "GSM8K: school word problems with worked answers; exact match of the number after ####",
        test="openai/gsm8k:main@test",
        prompt="Question: {question}\nAnswer:",
        response=" {answer}",
        reference="{answer}",
        scorer="number",
        max_new_tokens=320,
    ),
    NamedTask(
        "math",
        "causal",
        "DigitalLearningGmbH/MATH-lighteval:default@train",
        METRICS,
        "MATH: competition problems with solutions in LaTeX; equivalence of the last box",
        test="DigitalLearningGmbH/MATH-lighteval:default@test",
        prompt="Problem:\n{problem}\n\nSolution:",
        response=" {solution}",
        reference="{solution}",
        scorer="math",
        max_new_tokens=1024,
    ),
    NamedTask(
        "svamp",
        "causal",
        "ChilleD/SVAMP@train",
        METRICS,
        "SVAMP: one-step word problems, varied so that patterns mislead; exact match of the number",
        test="ChilleD/SVAMP@test",
        prompt="Question: {question_concat}\nAnswer:",
        response=" The answer is {Answer}.",
        reference="{Answer}",
        scorer="number",
        max_new_tokens=SHORT,
    ),
    NamedTask(
        "mawps",
        "causal",
        "MU-NLPC/Calc-mawps@train",
        METRICS,
        "MAWPS: word problems of one or two steps; exact match of the number",
        test="MU-NLPC/Calc-mawps@test",
        prompt="Question: {question}\nAnswer:",
        response=" The answer is {result}.",
        reference="{result}",
        scorer="number",
        max_new_tokens=SHORT,
    ),
)
