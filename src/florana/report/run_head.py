"""The head of a run's report: the headline, the plan, and what the reader must know first."""

from __future__ import annotations

from florana.report import round_plots
from florana.report._page import Facts, Section, Tile
from florana.report._text import NONE, duration, megabytes, number, score
from florana.report.records import RunRecord
from florana.tasks.partition import in_words


def _rounds(run: RunRecord) -> str:
    """Rounds done, of how many."""
    return f"{run.rounds[-1].server_round} of {run.section('federation').get('rounds', '?')}"


def warning(run: RunRecord) -> str:
    """What to know first: that the run is not finished; empty if it is."""
    if run.summary is not None:
        return ""
    return (
        f"This run is not finished: {_rounds(run)} rounds are done. Go on with it: "
        f"florana run --resume {run.name}"
    )


def tiles(run: RunRecord) -> list[Tile]:
    """The headline: the last finished round, what single clients reach, and what it cost."""
    last = run.rounds[-1]
    metric = run.metric
    best = max(run.rounds, key=lambda r: metric.lead(r.score, 0.0))
    up, down = (sum(getattr(r, f"bytes_{way}") for r in run.rounds) for way in ("up", "down"))
    seconds = sum(round_plots.time_by_part(run.timings).values())
    tiles = [
        Tile(f"Global {metric.label}", metric.text(last.score), f"loss {number(last.loss)}, round {last.server_round}"),
        _best_client(run, last.score),
        Tile("Best round", str(best.server_round), score(best.score, metric)),
        Tile("Sent", f"{megabytes(up + down)} MB", f"{megabytes(up)} up, {megabytes(down)} down, all clients"),
    ]  # fmt: skip
    if last.error_used is not None:
        note = f"relative, round {last.server_round}; averaging {number(last.error_average)}"
        tiles.append(Tile("Aggregation error", number(last.error_used), note))
    if seconds:
        tiles.append(Tile("Wall time", duration(seconds), f"{_rounds(run)} rounds"))
    return tiles


def _best_client(run: RunRecord, final: float) -> Tile:
    label, summary = "Best single client", run.summary
    if summary is None or summary.best_client_score is None:
        return Tile(label, NONE, "tested after the last round")
    lead = run.metric.lead(final, summary.best_client_score)
    return Tile(
        label,
        run.metric.text(summary.best_client_score),
        f"{summary.best_client}; global {run.metric.lead_text(lead)} {'better' if lead >= 0 else 'worse'}",
    )


def plan(run: RunRecord) -> Section:
    """What was trained, on what, by whom and how."""
    data, model = run.provenance.data, run.provenance.base_model
    lora, training, federation = (run.section(s) for s in ("lora", "training", "federation"))
    options = [f"{k} = {v}" for k, v in run.section("method").items() if k != "name"]
    sizes = [sum(counts) for counts in run.provenance.partition]
    length = (
        f"{training['steps']} steps"
        if training.get("steps")
        else f"{training.get('epochs')} epochs"
    )
    modules = ", ".join(map(str, lora.get("target_modules", ())))
    server = [f"{key} {value}".lower() for key, value in run.section("server").items()]
    wire = [
        f"{federation[w]} {way}"
        for w, way in (("uplink", "up"), ("downlink", "down"))
        if w in federation
    ]
    rows = [
        ("Model", f"{model.name}, weights SHA-256 {model.sha256[:12]}…"),
        ("Data", f"{data.name}: {data.examples} examples to train, {data.test_examples} to test, "
                 f"{_asked(run)}"),
        ("Clients", f"{federation.get('clients', NONE)}, {_who(federation.get('participation'))}, {in_words(federation)}"
                    + (f", {min(sizes)} to {max(sizes)} training examples each" if sizes else "")),
        ("Method", ", ".join([run.method, *options])),
        ("LoRA", f"rank {lora.get('rank', NONE)}, alpha {lora.get('alpha', NONE)}"
                 f"{', rsLoRA' if lora.get('rslora') else ''} on {modules}"),
        ("Training", f"{federation.get('rounds', NONE)} rounds of {length} of {training.get('batch_size')}, "
                     f"learning rate {training.get('learning_rate')}"),
        *([("Server", ", ".join(server))] if server else []),
        *([("Wire", ", ".join(wire))] if wire else []),
    ]  # fmt: skip
    return Section("plan", "Plan", "", [Facts(rows)])


def _asked(run: RunRecord) -> str:
    """What is asked of a text, and what judges the answer."""
    family = run.section("data").get("family")
    kinds = {"regression": "a value each", "causal": "responses to prompts"}
    asked = kinds.get(str(family), f"{len(run.provenance.labels)} labels")
    return f"{asked}, judged by {run.metric.label}"


def _who(participation: object) -> str:
    """Who takes part in a round, in words."""
    share = participation if isinstance(participation, float) else 1.0
    return "all in every round" if share == 1 else f"{share:.0%} of them in a round"
