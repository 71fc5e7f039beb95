"""Causal language modelling: text that goes on, by a pretrained language model and its own output layer.

A row is a prompt and its completion, a conversation, or a plain text (`autopeft.tasks._completions`). The model learns
the completion and an end token, what the assistant says, or all of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault, UsageError
from autopeft.tasks import UNSCORED, Batch, Dataset, Kind, Ragged, Raw, Source, Split
from autopeft.tasks import _completions as completions
from autopeft.tasks._chat import Conversations
from autopeft.tasks._completions import Tokens
from autopeft.tasks._examples import BETWEEN, Shown, with_examples
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Target, nothing_wrong
from autopeft.tasks._templates import Written, row_faults, texts_of
from autopeft.tasks._text import NO_LIMIT, longest_input, model_config, padding
from autopeft.tasks._writing import GENERATED, Writing, end_token, end_tokens, plain_text, tokenizer_of

SHOWN_ROWS = 64  # of a split that a base with examples answers, if none are generated otherwise


class CausalLanguageModelling(Writing):
    """Rows from CSV, TSV, JSON, JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub.

    Targets: `labels`, one a token, UNSCORED for those of a prompt; `cut`.

    Args: those of `Writing`, and
        examples: What the unchanged base is shown before each prompt, as one more baseline: a number of training rows,
            drawn by seed, or rows as mappings of the data's columns. None for no such baseline.
    """

    auto_class = "AutoModelForCausalLM"
    columns: Mapping[str, Kind] = completions.COLUMNS
    token_target, foretells = "labels", True

    def __init__(
        self,
        generate_rows: int = 64,
        new_tokens: int = 64,
        generated: Sequence[str] = GENERATED,
        answer_after: str | None = None,
        too_long: str = "cut",
        examples: int | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(generate_rows, new_tokens, generated, answer_after, too_long)
        self.examples = _examples(examples)
        self.stop: str | None = None  # behind it, what is generated is no part of the answer

    def data_faults(self, data: Mapping[str, Any]) -> list[Fault]:
        """Finds keys of `data` that do not go together or with the options, and libraries that metrics lack."""
        faults = completions.form_faults(data)
        if self.answer_after is not None and completions.form_of(data) == "text":
            faults.append(Fault("task.answer_after", "is of completions; `data.text` has none"))
        if self.examples is not None and completions.form_of(data) == "text":
            faults.append(Fault("task.examples", "are prompts and completions; `data.text` has none"))
        return faults + self.lacking()

    def columns_of(self, data: Mapping[str, Any], *, inputs_only: bool = False) -> dict[str, str]:
        """Returns column → the key of `data` that names it: of the form of a row that `data` gives."""
        return completions.columns_of(data, inputs_only=inputs_only)

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        nothing_wrong(self.data_faults(data))
        form, inputs = completions.form_of(data), self.columns_of(data, inputs_only=True)
        target: Target = (
            Conversations(next(iter(inputs)))
            if form == "chat"
            else Written(data, "text" if form == "text" else "completion", n_outputs=0)
        )

        def input_faults(table: Mapping[str, Sequence[Any]], columns: Mapping[str, str], split: str) -> list[Fault]:
            # Of other forms the input is the target, whose faults are found there.
            prompts = (
                row_faults(table, data.get("prompt") or "prompt", "prompt", split) if form == "completions" else []
            )
            return prompts + self.without_answer(completions.last_said(table, data), split)

        return read_table(data, inputs, target, seed, input_faults=input_faults)

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Encodes token ids end to end, with those that are learned as `labels`; prompts only if there are no targets."""
        tokens, config = self.processor(source), model_config(source.model, source.options)
        maker = Tokens(tokens, end_token(tokens, config), source.data)
        longest = min(source.max_length or NO_LIMIT, longest_input(tokens, config))
        fit = completions.fit(longest, self.new_tokens, len(maker.begin))

        def encode(raw: Raw) -> Split:
            fitted = [fit.cut(row) for row in maker.rows(raw)]
            too_long = [at for at, (_, cut) in enumerate(fitted) if cut] if raw.targets else []
            left_out = too_long if self.too_long == "drop" else []
            kept = [each for at, each in enumerate(fitted) if at not in set(left_out)] if left_out else fitted
            rows, cut = [row for row, _ in kept], [bits for _, bits in kept]
            inputs = {"input_ids": Ragged.of([row.ids for row in rows], np.int32, padding(tokens, config))}
            if not raw.targets:
                return Split(inputs, {})
            done = "dropped" if self.too_long == "drop" else "cut"
            return Split(
                inputs,
                {
                    "labels": Ragged.of([row.labels for row in rows], np.int32, UNSCORED),
                    "cut": np.array(cut, np.uint8),
                    "span": np.array([(*fit.prompt(row), row.begins) for row in rows], np.int32).reshape(-1, 3),
                },
                left_out=left_out,
                notes={f"longer than {longest} tokens: {done}": len(too_long)} if too_long else {},
            )

        return encode

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the cross entropy of a row's tokens that are learned, each predicted from the tokens before it."""
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
            if model is None:
                return kept
            has_completion = batch.targets["span"][:, 2].cpu().numpy() > 0
            asked = (np.asarray(batch.rows) < self.generate_rows) & has_completion
        written: list[str | None] = [None] * len(batch.rows)
        reference: list[str | None] = [None] * len(batch.rows)
        if asked.any():
            self._write(np.flatnonzero(asked), batch, model, written, reference)
        return {**kept, "completion": written, "wanted": reference}

    def asked(self, split: Split) -> np.ndarray:
        """Returns those of the first `generate_rows` rows that have a completion."""
        spans = np.asarray(split.targets["span"])[: self.generate_rows]
        return np.flatnonzero(spans[:, 2] > 0)

    def write(self, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Generates the last completion of each row."""
        written: list[str | None] = [None] * len(batch.rows)
        wanted: list[str | None] = [None] * len(batch.rows)
        if len(batch.rows):
            self._write(np.arange(len(batch.rows)), batch, model, written, wanted)
        return {"completion": written, "wanted": wanted}

    def _write(
        self, rows: np.ndarray, batch: Batch, model: Any, written: list[str | None], wanted: list[str | None]
    ) -> None:
        """Generates the last completion of some rows of a batch into `written`; the true one goes into `wanted`."""
        source = model.autopeft_source
        tokens = tokenizer_of(source.path, source.revision, source.trust_remote_code)
        prompts = []
        for row in rows:
            ids = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()]
            if batch.targets:
                fixed, start, begins = batch.targets["span"][row].tolist()
                labels = batch.targets["labels"][row][begins:]
                wanted[row] = plain_text(tokens, labels[labels != UNSCORED])
                ids = ids[[*range(fixed), *range(start, begins)]]
            prompts.append(ids)
        for row, answer in zip(rows, greedy(model, tokens, prompts, self.new_tokens), strict=True):
            text = plain_text(tokens, answer)
            written[row] = text if self.stop is None else text.partition(self.stop)[0].strip()

    def shown(self, train: Split, split: Split, source: Source, about: Mapping[str, Any], seed: int) -> Shown | None:
        """Returns the first `generate_rows` rows of a split (or 64) with examples before their prompts."""
        if not self.examples:
            return None
        tokens, config = self.processor(source), model_config(source.model, source.options)
        if isinstance(self.examples, int):
            given, of = train, np.random.default_rng(seed).choice(len(train), min(self.examples, len(train)), False)
        else:
            given, of = self._given_examples(source, about), np.arange(len(self.examples))
        ids, task = given.inputs["input_ids"], copy(self)
        rows = [ids[row].tolist()[given.targets["span"][row][0] :] for row in of]
        if completions.form_of(source.data) == "completions":
            end, between = end_token(tokens, config), tokens(BETWEEN, add_special_tokens=False)["input_ids"]
            rows = [[*(row[:-1] if row[-1] == end else row), *between] for row in rows]
            task.stop = (
                None if any(BETWEEN in tokens.decode(row[: len(row) - len(between)]) for row in rows) else BETWEEN
            )
        first = np.arange(min(self.generate_rows or SHOWN_ROWS, len(split)))
        longest = longest_input(tokens, config)
        room = longest - min(self.new_tokens, longest // 2)
        found, mean = with_examples(split, first, rows, room)
        if not mean:
            raise UsageError(
                f"none of the examples fits into {room} tokens with a prompt and its completion: give shorter ones, "
                "or leave `examples` out"
            )
        some = (
            f"{len(rows)} example{'s' * (len(rows) > 1)}"
            if mean == len(rows)
            else f"up to {len(rows)} examples ({mean:.1f} on average)"
        )
        of_split = f", first {len(first):,} rows" if len(first) < len(split) else ""
        return Shown(f"{self.trivial_title}, shown {some}{of_split}", task, found)

    def _given_examples(self, source: Source, about: Mapping[str, Any]) -> Split:
        """Encodes the examples that the config lists."""
        assert self.examples is not None and not isinstance(self.examples, int)
        columns = self.columns_of(source.data)
        lacking = [name for name in columns if any(name not in row for row in self.examples)]
        if lacking:
            raise ConfigError(
                [Fault("task.examples", f"one has no {lacking[0]!r}: each has {', '.join(columns)}")], "task"
            )
        table = {name: [row[name] for row in self.examples] for name in columns}
        if completions.form_of(source.data) == "chat":
            targets: dict[str, Any] = {"messages": next(iter(table.values()))}
        else:
            targets = {"completion": texts_of(str(source.data.get("completion") or "completion"), table)}
        inputs = {name: table[name] for name in self.columns_of(source.data, inputs_only=True)}
        task = copy(self)
        task.too_long = "cut"
        return task.encoder(source, about)(Raw(inputs, targets, np.arange(len(self.examples))))


def greedy(model: Any, tokens: Any, prompts: Sequence[Any], new_tokens: int) -> list[Any]:
    """Generates after each prompt the likeliest token, again and again, up to an end token or to `new_tokens`.

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
        eos_token_id=end_tokens(tokens, model),
    )
    return list(model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, longest:])


def _examples(given: Any) -> int | tuple[Mapping[str, Any], ...] | None:
    is_count = isinstance(given, int) and not isinstance(given, bool) and given >= 0
    if given is None or is_count:
        return given or None
    if isinstance(given, (list, tuple)) and given and all(isinstance(row, Mapping) for row in given):
        return tuple(given)
    raise UsageError(f"examples is a number of training rows, or a list of rows as {{column: value}}; got {given!r}")


plugin = CausalLanguageModelling
