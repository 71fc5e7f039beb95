"""Alerts on a stream of answers: which share of the last ones has a label."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import UsageError, did_you_mean
from autopeft.training.export import Exported


@dataclass(frozen=True, slots=True)
class Alert:
    """When to say that a label has become frequent.

    Attributes:
        label: The label; `column=label` for one of several columns of labels.
        share: Share of the last answers from which on it is said, above 0 and at most 1.
    """

    label: str
    share: float

    @staticmethod
    def of(text: str) -> Alert:
        """Reads `negative=0.4`.

        Raises:
            UsageError: It is no label and share.
        """
        label, _, share = text.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not label or not 0 < value <= 1:
            raise UsageError(f"an alert is a label and a share of answers above 0, such as negative=0.4; got {text!r}")
        return Alert(label, value)


def watched(
    exported: Exported, answers: Iterable[Mapping[str, Any]], alerts: Sequence[Alert], window: int
) -> Iterator[Mapping[str, Any]]:
    """Yields answers, and behind the one that brings a label's share of the last `window` to its bound, `alert`.

    An alert is said once, and again when the share has been below its bound. Nothing is said before there are `window`
    answers. Errors are no answers.

    Args:
        exported: The adapter that answers.

    Raises:
        UsageError: The adapter gives no labels, or not these.
    """
    if window < 1:
        raise UsageError(f"--window is 1 answer or more, not {window}")
    known = _labels(exported.about)
    for alert in alerts:
        if alert.label not in known:
            near = did_you_mean(alert.label, known)
            some = ", ".join(known[:20]) or "none: its answers are no labels"
            raise UsageError(f"no label {alert.label!r} to alert about.{near} The adapter's labels: {some}")
    return _watched(exported.about, answers, alerts, window)


def _watched(
    about: Mapping[str, Any], answers: Iterable[Mapping[str, Any]], alerts: Sequence[Alert], window: int
) -> Iterator[Mapping[str, Any]]:
    last: deque[set[str]] = deque(maxlen=window)
    is_above = dict.fromkeys(alerts, False)
    for line, answer in enumerate(answers, start=1):
        yield answer
        if not alerts or "error" in answer:
            continue
        last.append(_held(answer, about))
        if len(last) < window:
            continue
        for alert in alerts:
            share = sum(alert.label in held for held in last) / window
            if share >= alert.share and not is_above[alert]:
                yield {"alert": {"label": alert.label, "share": share, "window": window, "line": line}}
            is_above[alert] = share >= alert.share


def _labels(exported: Mapping[str, Any]) -> list[str]:
    """Returns the labels that an adapter's answers may hold."""
    about = exported["about"]
    if "outputs" in about:
        pairs = [(column, name) for column, names in about["outputs"].items() for name in names]
        return [*(f"{column}={name}" for column, name in pairs), *dict.fromkeys(name for _, name in pairs)]
    if exported["auto_class"] == "AutoModelForTokenClassification":
        return []  # its labels are of words
    return list(about.get("labels", about.get("label_names", ())))


def _held(answer: Mapping[str, Any], exported: Mapping[str, Any]) -> set[str]:
    """Returns the labels of an answer."""
    about = exported["about"]
    if "outputs" in about:
        return {held for column in about["outputs"] for held in (f"{column}={answer[column]}", str(answer[column]))}
    if "labels" in about:
        return set(str(answer["labels"]).split(exported["options"].get("separator", ";")))
    return {str(answer["label"])}
