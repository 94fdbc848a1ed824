"""Language understanding: GLUE (arXiv 1804.07461), BANKING77 (arXiv 2003.04807) and AG News (arXiv 1509.01626).

The hub's own test sets of GLUE have no labels, so its validation sets test, as papers do. Columns are the hub's,
or ``text``, ``text_pair`` and ``label`` as in local files; labels are the hub's numbers or their names.
"""

from __future__ import annotations

from florana.tasks.catalogue import NamedTask

ENTAILMENT = ("entailment", "not_entailment")


def _glue(
    name: str,
    columns: tuple[str, ...],
    metrics: tuple[str, ...],
    summary: str,
    labels: tuple[str, ...],
) -> NamedTask:
    """A classification of GLUE, under the hub's names of its columns."""
    first, *second = columns
    return NamedTask(
        name,
        "classification",
        f"nyu-mll/glue:{name}@train",
        metrics,
        summary,
        test=f"nyu-mll/glue:{name}@validation",
        text=(first, "text"),
        text_pair=(second[0], "text_pair") if second else None,
        labels=labels,
    )


TASKS = (
    _glue(
        "cola",
        ("sentence",),
        ("matthews", "accuracy"),
        "CoLA: is this sentence acceptable English?",
        ("unacceptable", "acceptable"),
    ),
    _glue(
        "sst2",
        ("sentence",),
        ("accuracy",),
        "SST-2: is this phrase of a film review positive?",
        ("negative", "positive"),
    ),
    _glue(
        "mrpc",
        ("sentence1", "sentence2"),
        ("f1", "accuracy"),
        "MRPC: do these two sentences mean the same?",
        ("not_equivalent", "equivalent"),
    ),
    _glue(
        "qqp",
        ("question1", "question2"),
        ("f1", "accuracy"),
        "QQP: do these two questions ask the same?",
        ("not_duplicate", "duplicate"),
    ),
    NamedTask(
        "stsb",
        "regression",
        "nyu-mll/glue:stsb@train",
        ("pearson", "spearman"),
        "STS-B: how alike in meaning are these two sentences, from 0 to 5?",
        test="nyu-mll/glue:stsb@validation",
        text=("sentence1", "text"),
        text_pair=("sentence2", "text_pair"),
        value_range=(0.0, 5.0),
    ),
    NamedTask(
        "mnli",
        "classification",
        "nyu-mll/glue:mnli@train",
        ("accuracy",),
        "MNLI: does the premise entail the hypothesis? Tested on matched genres, and on mismatched as second test",
        test="nyu-mll/glue:mnli@validation_matched",
        second_test="nyu-mll/glue:mnli@validation_mismatched",
        text=("premise", "text"),
        text_pair=("hypothesis", "text_pair"),
        labels=("entailment", "neutral", "contradiction"),
    ),
    _glue(
        "qnli",
        ("question", "sentence"),
        ("accuracy",),
        "QNLI: does the sentence answer the question?",
        ENTAILMENT,
    ),
    _glue(
        "rte",
        ("sentence1", "sentence2"),
        ("accuracy",),
        "RTE: does the first sentence entail the second?",
        ENTAILMENT,
    ),
    _glue(
        "wnli",
        ("sentence1", "sentence2"),
        ("accuracy",),
        "WNLI: does the sentence with its pronoun replaced follow from the first?",
        ("not_entailment", "entailment"),
    ),
    NamedTask(
        "banking77",
        "classification",
        "mteb/banking77@train",
        ("accuracy",),
        "BANKING77: the intent of a bank customer's question, of 77",
        test="mteb/banking77@test",
        label=("label_text", "label"),
    ),
    NamedTask(
        "ag_news",
        "classification",
        "fancyzhx/ag_news@train",
        ("accuracy",),
        "AG News: the topic of a news item, of 4",
        test="fancyzhx/ag_news@test",
    ),
)
