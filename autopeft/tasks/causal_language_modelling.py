"""Causal language modelling: a completion for a prompt, by a pretrained language model and its own output layer.

A row is the prompt's tokens, the completion's tokens, and an end token. The model learns the completion and the end
token. Prompt and completion are tokenized separately: a space or a line break between them must be part of one of them.

If a row is too long, its prompt loses tokens on the left, so that generated tokens have room, too. The end of a
completion is cut off only if the completion leaves no room for a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from autopeft.errors import UsageError
from autopeft.objectives import Goal
from autopeft.tasks import (
    UNSCORED,
    Batch,
    Columns,
    Dataset,
    Kept,
    Kind,
    Ragged,
    Raw,
    Scores,
    Source,
    Split,
    column_names,
)  # fmt: skip
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Texts
from autopeft.tasks._text import (
    NO_LIMIT,
    encode_texts,
    longest_input,
    model_config,
    padding,
    special_tokens,
    tokenizer,
)  # fmt: skip
from autopeft.tasks._texts import FromTables

CUT_PROMPT, CUT_COMPLETION = 1, 2  # bits of the target `cut`


class CausalLanguageModelling(FromTables):
    """Rows from CSV, TSV, JSON, JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub.

    Targets: `labels`, one a token, UNSCORED for those of a prompt; `cut`.

    Args:
        generate_rows: Number of first rows of a split whose completions are generated (greedily) for `exact_match`;
            0 for none.
        new_tokens: Most generated tokens; at most half of what the model takes.
    """

    auto_class = "AutoModelForCausalLM"
    columns: Mapping[str, Kind] = {"prompt": "text", "completion": "target"}
    calls_model = True
    token_target, foretells = "labels", True
    trivial_title = "untouched base"
    metrics: Mapping[str, Goal] = {
        "perplexity": "minimize",
        "token_accuracy": "maximize",
        "exact_match": "maximize",
        "loss": "minimize",
    }

    def __init__(self, generate_rows: int = 64, new_tokens: int = 64) -> None:
        if generate_rows < 0 or new_tokens < 1:
            raise UsageError("task: generate_rows is 0 or more, new_tokens 1 or more")
        self.generate_rows, self.new_tokens = generate_rows, new_tokens
        if not generate_rows:
            self.metrics = {name: goal for name, goal in self.metrics.items() if name != "exact_match"}

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        return read_table(
            data, column_names(self.columns, data, inputs_only=True), Texts(data, "completion", n_outputs=0), seed
        )

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Encodes token ids end to end, with the completion's as `labels`; prompts only if there are no completions."""
        tokens, config = self.processor(source), model_config(source.model, source.options)
        begin, end = special_tokens(tokens)[0], end_token(tokens, config)
        longest = min(source.max_length or NO_LIMIT, longest_input(tokens, config))
        if longest < len(begin) + 2:
            raise UsageError(f"{longest} tokens have no room for a prompt and a completion: raise training.max_length")
        room = min(self.new_tokens, longest // 2, longest - len(begin) - 1)

        def encode(raw: Raw) -> Split:
            (prompts,) = raw.inputs.values()
            rows, labels, cut = [], [], []
            given = encode_texts(tokens, raw.targets["completion"]) if raw.targets else [None] * len(raw)
            for prompt, answer in zip(encode_texts(tokens, prompts), given, strict=True):
                whole = [] if answer is None else [*answer, end]
                completion = whole[: longest - len(begin) - 1]
                kept = prompt[-(longest - len(begin) - max(len(completion), room)) :]
                rows.append([*begin, *kept, *completion])
                labels.append([UNSCORED] * (len(begin) + len(kept)) + completion)
                cut.append(
                    CUT_PROMPT * (len(kept) < len(prompt)) + CUT_COMPLETION * (len(completion) < len(whole))
                )  # fmt: skip
            inputs = {"input_ids": Ragged.of(rows, np.int32, padding(tokens, config))}
            if not raw.targets:
                return Split(inputs, {})
            return Split(inputs, {"labels": Ragged.of(labels, np.int32, UNSCORED), "cut": np.array(cut, np.uint8)})

        return encode

    def weights(self, targets: Columns) -> np.ndarray:
        """Counts the tokens of each completion, its end token included."""
        labels = targets["labels"]
        assert isinstance(labels, Ragged)
        return np.add.reduceat(labels.values != UNSCORED, labels.offsets[:-1]).astype(np.float32)

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the cross entropy of a completion's tokens, each predicted from the tokens before it."""
        from torch.nn.functional import cross_entropy

        wanted = targets["labels"][:, 1:]
        foretold = outputs[:, :-1].transpose(1, 2)
        return cross_entropy(foretold, wanted, ignore_index=UNSCORED, reduction="none").sum(1)

    def token_loss(self, outputs: Any, wanted: Any) -> Any:
        """Computes the cross entropy of each token that is foretold; 0 for those of a prompt."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, wanted, ignore_index=UNSCORED, reduction="none")

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Keeps each row's loss and number of right tokens, and for the first rows the model's own completion."""
        kept: dict[str, Sequence[Any]] = {}
        asked = np.ones(len(batch.rows), dtype=bool)
        if batch.targets:
            wanted = batch.targets["labels"][:, 1:]
            is_right = (outputs[:, :-1].argmax(-1) == wanted) & (wanted != UNSCORED)
            kept = {"loss": self.loss(outputs, batch.targets).double(), "right": is_right.sum(1)}
            asked = batch.rows < self.generate_rows
        written: list[str | None] = [None] * len(batch.rows)
        is_match: list[bool | None] = [None] * len(batch.rows)
        if asked.any():
            self._write(np.flatnonzero(asked), batch, model, written, is_match)
        return {**kept, "completion": written, "is_match": is_match}

    def _write(
        self, rows: np.ndarray, batch: Batch, model: Any, written: list[str | None], is_match: list[bool | None]
    ) -> None:
        """Generates completions of some rows of a batch. Returns them, and whether they are right."""
        source = model.autopeft_source
        tokens = _tokenizer(source.path, source.revision, source.trust_remote_code)
        labels = batch.targets.get("labels")
        prompts, wanted = [], []
        for row in rows:
            real = batch.inputs["attention_mask"][row].bool()
            if labels is not None:
                wanted.append(labels[row][labels[row] != UNSCORED])
                real &= labels[row] == UNSCORED
            prompts.append(batch.inputs["input_ids"][row][real])
        answers = greedy(model, tokens, prompts, self.new_tokens)
        for at, row in enumerate(rows):
            written[row] = _text(tokens, answers[at])
            if labels is not None:
                is_match[row] = written[row] == _text(tokens, wanted[at])

    def score(self, kept: Kept, targets: Columns, about: Mapping[str, Any]) -> Scores:
        """Computes exp of the mean loss, the share of right tokens, and the share of right completions."""
        n_tokens = float(self.weights(targets).sum())
        with np.errstate(over="ignore"):  # infinite for a model that diverged; its trial has failed
            perplexity = float(np.exp(np.sum(kept["loss"]) / n_tokens))
        metrics = {"perplexity": perplexity, "token_accuracy": float(np.sum(kept["right"]) / n_tokens)}
        matches = [match for match in kept["is_match"] if match is not None]
        if matches:
            metrics["exact_match"] = float(np.mean(matches))
        cut = np.asarray(targets["cut"])
        counts = {
            "rows": len(cut),
            "tokens": int(n_tokens),
            "generated": len(matches),
            "cut_prompts": int((cut & CUT_PROMPT > 0).sum()),
            "cut_completions": int((cut & CUT_COMPLETION > 0).sum()),
        }
        return Scores(metrics, {"completions": counts})

    def trivial(self, train: Columns, targets: Columns, about: Mapping[str, Any], base: Callable[[], Kept]) -> Scores:
        """Scores the unchanged base."""
        kept = base()
        found = self.score(kept, targets, about)
        loss = float(np.sum(kept["loss"]) / self.weights(targets).sum())
        return Scores({**found.metrics, "loss": loss}, found.detail)

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


def greedy(model: Any, tokens: Any, prompts: Sequence[Any], new_tokens: int) -> list[Any]:
    """Generates after each prompt the likeliest token, again and again, up to the end token or to `new_tokens`.

    Args:
        model: A causal language model in evaluation mode.
        tokens: The model's tokenizer.
        prompts: (n_tokens,) ids of each prompt. `encoder` cuts prompts so that the new tokens have room.
    """
    import torch
    from transformers import GenerationConfig

    pad, longest = padding(tokens, model.config), max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(prompt, (longest - len(prompt), 0), value=pad) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
    mask = (torch.arange(longest, device=ids.device) >= longest - lengths[:, None]).long()
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=min(new_tokens, longest_input(tokens, model.config) // 2),
        pad_token_id=pad,
        eos_token_id=end_token(tokens, model.config),
    )
    return list(model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, longest:])


@lru_cache(maxsize=4)
def _tokenizer(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    return tokenizer(path, {"revision": revision, "trust_remote_code": trust_remote_code})


def _text(tokens: Any, ids: Any) -> str:
    return str(tokens.decode(ids, skip_special_tokens=True)).strip()


plugin = CausalLanguageModelling
