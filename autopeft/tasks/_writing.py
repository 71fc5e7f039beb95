"""What tasks whose model writes text have in common: options, scores of what it writes, its end.

A task says how a row becomes tokens, what a token's loss is, and how a completion is generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault, UsageError, did_you_mean
from autopeft.objectives import Goal
from autopeft.tasks import UNSCORED, Columns, Kept, Ragged, Scores
from autopeft.tasks import _generation as generation
from autopeft.tasks._chat import ChatTemplate
from autopeft.tasks._completions import CUT_BEGINNING, CUT_END
from autopeft.tasks._targets import row_fault
from autopeft.tasks._text import tokenizer
from autopeft.tasks._texts import FromTables

LIKELIHOODS: Mapping[str, Goal] = {"perplexity": "minimize", "token_accuracy": "maximize"}
GENERATED = ("exact_match", "contains")  # if the config names no others
NO_PATTERN = "expected the text before an answer, such as '####'; got an empty one"


class Writing(FromTables):
    """A task on texts that a model writes. Targets: `labels`, UNSCORED where nothing is learned; `cut`.

    Args:
        generate_rows: Number of first rows of a split whose completions are generated (greedily) and scored; 0 for none.
        new_tokens: Most generated tokens; at most half of what the model takes.
        generated: Metrics of what is generated, of `generation.METRICS`.
        answer_after: What stands before the answer in a completion: `####`. If given, `exact_match` and `contains` are of
            the answer alone.
        too_long: Whether to `cut` or to `drop` rows longer than `max_length`, or than the model takes.
    """

    calls_model = True
    trivial_title = "untouched base"
    metrics: Mapping[str, Goal] = {
        **LIKELIHOODS,
        **{name: generation.METRICS[name] for name in GENERATED},
        "loss": "minimize",
    }

    def __init__(
        self,
        generate_rows: int = 64,
        new_tokens: int = 64,
        generated: Sequence[str] = GENERATED,
        answer_after: str | None = None,
        too_long: str = "cut",
    ) -> None:
        faults = [
            *([] if generate_rows >= 0 else [Fault("generate_rows", f"expected 0 or more, got {generate_rows}")]),
            *([] if new_tokens >= 1 else [Fault("new_tokens", f"expected 1 or more, got {new_tokens}")]),
            *([] if too_long in ("cut", "drop") else [Fault("too_long", f"expected cut or drop, got {too_long!r}")]),
            *([] if answer_after is None or answer_after.strip() else [Fault("answer_after", NO_PATTERN)]),
            *_metric_faults(generated),
        ]
        if faults:
            raise ConfigError(faults, "task")
        self.generated = tuple(dict.fromkeys([generated] if isinstance(generated, str) else generated))
        self.generate_rows, self.new_tokens = generate_rows, new_tokens
        self.answer_after, self.too_long = answer_after, too_long
        written = {name: generation.METRICS[name] for name in self.generated if generate_rows}
        self.metrics = {**LIKELIHOODS, **written, "loss": "minimize"}

    def lacking(self) -> list[Fault]:
        """Finds libraries that metrics of what is generated need, and that are not installed."""
        messages = [generation.missing_library(name) for name in self.generated]
        return [Fault("task.generated", message) for message in messages if message]

    def without_answer(self, said: Sequence[str | None], split: str) -> list[Fault]:
        """Finds rows whose wanted completion lacks `answer_after`."""
        pattern = self.answer_after
        lacking = [row for row, text in enumerate(said) if pattern and text is not None and pattern not in text]
        return [row_fault("task.answer_after", split, lacking, f"without {pattern!r}")] if lacking else []

    def weights(self, targets: Columns) -> np.ndarray:
        """Counts the tokens of each row that are learned."""
        labels = targets["labels"]
        assert isinstance(labels, Ragged)
        return np.add.reduceat(labels.values != UNSCORED, labels.offsets[:-1]).astype(np.float32)

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Computes exp of the mean loss, the share of right tokens, and the scores of what was generated."""
        n_tokens = float(self.weights(targets).sum())
        with np.errstate(over="ignore"):  # infinite for a model that diverged; its trial has failed
            perplexity = float(np.exp(np.sum(kept["loss"]) / n_tokens))
        metrics = {"perplexity": perplexity, "token_accuracy": float(np.sum(kept["right"]) / n_tokens)}
        pairs = [pair for pair in zip(kept["completion"], kept["wanted"], strict=True) if pair[1] is not None]
        found = {}
        if pairs and self.generate_rows:
            written, wanted = zip(*pairs, strict=True)
            found = generation.scores(self.generated, written, wanted, self.answer_after)
        cut = np.asarray(targets["cut"])
        counts = {
            "rows": len(cut),
            "tokens": int(n_tokens),
            "generated": len(pairs),
            "cut_prompts": int((cut & CUT_BEGINNING > 0).sum()),
            "cut_completions": int((cut & CUT_END > 0).sum()),
        }
        detail = {"completions": counts, "row_scores": {name: score.to_json() for name, score in found.items()}}
        return Scores({**metrics, **{name: score.value for name, score in found.items()}}, detail)

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the unchanged base."""
        kept = base()
        found = self.score(kept, targets, about)
        loss = float(np.sum(kept["loss"]) / self.weights(targets).sum())
        return Scores({**found.metrics, "loss": loss}, found.detail)

    def truths(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Returns the wanted `completion`; None for rows that were not answered."""
        return {"completion": list(kept["wanted"])}

    def trivial_answers(
        self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]
    ) -> Mapping[str, Sequence[Any]]:
        """Returns what the unchanged base writes."""
        return self.answers(base(), about)

    def answers(self, kept: Kept, about: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Returns `completion`, as the model generated it."""
        return {"completion": list(kept["completion"])}


def end_token(tokens: Any, config: Any) -> int:
    """Returns the token that ends a completion: the tokenizer's end token, else the model's.

    Raises:
        UsageError: There is none.
    """
    own = getattr(config.get_text_config(), "eos_token_id", None)
    for end in (tokens.eos_token_id, own[0] if isinstance(own, (list, tuple)) else own):
        if isinstance(end, int):
            return end
    raise UsageError(
        f"the model {config.name_or_path!r} names no end token, so that no completion would end: give one, eos_token_id "
        "in its config.json"
    )


def end_tokens(tokens: Any, model: Any) -> list[int]:
    """Returns the tokens at which generation ends: the one that is learned, the checkpoint's own, its chat template's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [end_token(tokens, model.config), *(own if isinstance(own, (list, tuple)) else [own])]
    if tokens.chat_template:
        with contextlib.suppress(ConfigError):  # a template that this task could not learn by
            found += ChatTemplate(tokens).ends
    return list(dict.fromkeys(end for end in found if isinstance(end, int)))


def _metric_faults(generated: Any) -> list[Fault]:
    """Finds names in `generated` that are no metrics of texts."""
    names = [generated] if isinstance(generated, str) else generated
    known = ", ".join(generation.METRICS)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return [Fault("generated", f"expected a list of {known}; got {generated!r}")]
    return [
        Fault("generated", f"no metric {name!r}.{did_you_mean(name, generation.METRICS)} There are: {known}")
        for name in names
        if name not in generation.METRICS
    ]


@lru_cache(maxsize=4)
def tokenizer_of(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    return tokenizer(path, {"revision": revision, "trust_remote_code": trust_remote_code})


def plain_text(tokens: Any, ids: Any) -> str:
    return str(tokens.decode(ids, skip_special_tokens=True)).strip()
