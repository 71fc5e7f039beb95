"""The model card of an exported adapter: what it is, what it scored and how that was measured, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from autopeft.history import History, Record
from autopeft.reports import content, text
from autopeft.reports.facts import Facts

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


def model_card(history: History, record: Record, description: str, command: str) -> str:
    """A README.md with the hub's metadata on top.

    Args:
        history: Of the search.
        record: The complete trial that is exported.
        description: What a person calls it.
        command: What made the folder.
    """
    return "\n".join(_lines(Facts(history, lambda _: description), record, description, command)).rstrip() + "\n"


def _lines(facts: Facts, record: Record, description: str, command: str) -> Iterator[str]:
    model = str(facts.header.get("model", {}).get("name", "the base model"))
    yield "---"
    yield "tags: [autopeft, parameter-efficient-fine-tuning]"
    if _HUB_NAME.fullmatch(model):  # the hub refuses a card whose base model is a folder's name
        yield f"base_model: {json.dumps(model)}"
    yield "---\n"
    yield f"# {text.markdown(description)}\n"
    yield (f"An adapter for {text.code(model)}, trial {record.number} of an autopeft search. "
           f"{_sizes(facts, record)}\n")
    yield "## Scores\n"
    yield "| score | value | what it is |\n|---|---:|---|"
    yield from _scores(facts, record)
    labels = facts.header.get("dataset", {}).get("label_names", ())
    if labels:
        yield "\n## Labels\n"
        yield ", ".join(text.code(label) for label in labels[:200])
    yield "\n## How it was made\n"
    yield f"{text.code(command)}\n"
    yield f"- seed: {text.code(record.trial.seed)}"
    yield from (f"- {text.markdown(key)}: {text.code(text.param(value))}" for key, value in record.params.items())
    training = facts.history.config.get("training") or {}
    yield from (f"- training {text.markdown(key)}: {text.code(value)}" for key, value in training.items()
                if value is not None)
    yield "\n## Provenance\n"
    for name, value in content.provenance_rows(facts):
        if not name.endswith("path"):  # the card is published, the folders of this machine are not
            yield f"- {text.markdown(name)}: {text.code(value)}"


def _sizes(facts: Facts, record: Record) -> str:
    metrics = {**record.known, **record.metrics}
    if "trainable_parameters" not in metrics:
        return ""
    size = metrics["trainable_parameters"]
    whole = facts.model_parameters
    part = f" ({text.share(size, whole)} of the model)" if whole else ""
    head = f", {text.count(metrics['head_parameters'])} of them the head's" if metrics.get("head_parameters") else ""
    return f"It has {text.count(size)} trained parameters{part}{head}."


def _scores(facts: Facts, record: Record) -> Iterator[str]:
    confirmed = facts.confirmation(record)
    metric = text.markdown(text.metric_title(facts.metric))
    if confirmed is not None:
        mean = text.mean_and_interval(confirmed.interval.mean, confirmed.interval.half_width)
        yield f"| {metric} | {mean} | {confirmed.label}: of its retrainings, this one is of the search's seed |"
    yield f"| {metric} | {text.score(facts.score(record))} | {facts.validation_label}, the best of many: flattered |"
    for baseline in facts.baselines:
        yield (f"| {metric}: {text.markdown(baseline.title)} | {text.score(baseline.score)} | "
               "validation, for comparison |")
