"""Sequence to sequence: a text for a text, by an encoder-decoder model (T5, BART) and its own output layer.

The encoder reads `prompt`, a column or a template: T5's prefixes are part of it (`prompt: "summarize: {article}"`). The
decoder learns `completion` with the special tokens that the tokenizer gives a target, its end token among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autopeft.errors import Fault, UsageError
from autopeft.tasks import UNSCORED, Batch, Dataset, Kind, Ragged, Raw, Source, Split
from autopeft.tasks import _completions as completions
from autopeft.tasks._completions import CUT_BEGINNING, CUT_END
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import nothing_wrong
from autopeft.tasks._templates import Written, row_faults, texts_of
from autopeft.tasks._text import NO_LIMIT, encode_texts, longest_input, model_config, padding, special_tokens
from autopeft.tasks._writing import Writing, end_token, end_tokens, plain_text, tokenizer_of


class SequenceToSequence(Writing):
    """Rows from CSV, TSV, JSON, JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub.

    Inputs: `input_ids` of the encoder; `decoder_input_ids`, the labels one place later behind the model's start token.
    A text that is too long loses its end. Targets: `labels`, one a token of the decoder; `cut`. Options: those of
    `Writing`.
    """

    auto_class = "AutoModelForSeq2SeqLM"
    columns: Mapping[str, Kind] = {"prompt": "text", "completion": "target"}

    def data_faults(self, data: Mapping[str, Any]) -> list[Fault]:
        """Finds keys of `data` that are of other tasks, wrong templates, and libraries that metrics lack."""
        faults = completions.form_faults(data)
        others = [key for key in ("messages", "text") if data.get(key) is not None]
        if others and not faults:
            faults.append(
                Fault(f"data.{others[0]}", "expected `prompt` and `completion`: the text that is read, and its answer")
            )
        return faults + self.lacking()

    def columns_of(self, data: Mapping[str, Any], *, inputs_only: bool = False) -> dict[str, str]:
        """Returns column → the key of `data` that names it."""
        return completions.columns_of(data, inputs_only=inputs_only)

    def read(self, data: Mapping[str, Any], seed: int) -> Dataset:
        nothing_wrong(self.data_faults(data))

        def input_faults(table: Mapping[str, Sequence[Any]], columns: Mapping[str, str], split: str) -> list[Fault]:
            prompts = row_faults(table, data.get("prompt") or "prompt", "prompt", split)
            return prompts + self.without_answer(completions.last_said(table, data), split)

        inputs, target = self.columns_of(data, inputs_only=True), Written(data, "completion", n_outputs=0)
        return read_table(data, inputs, target, seed, input_faults=input_faults)

    def encoder(self, source: Source, about: Mapping[str, Any]) -> Callable[[Raw], Split]:
        """Encodes token ids end to end: of the prompt for the encoder, of the completion for the decoder."""
        tokens, config = self.processor(source), model_config(source.model, source.options)
        pad, start = padding(tokens, config), start_token(config)
        longest = min(source.max_length or NO_LIMIT, longest_input(tokens, config))
        around, around_target = special_tokens(tokens), target_tokens(tokens, config)
        if longest <= max(sum(map(len, around)), sum(map(len, around_target))):
            raise UsageError(f"{longest} tokens have no room for a text: raise training.max_length")

        def encode(raw: Raw) -> Split:
            prompts = encode_texts(tokens, texts_of(str(source.data.get("prompt") or "prompt"), raw.inputs)[:])
            given = [_fitted(prompt, *around, longest) for prompt in prompts]
            if not raw.targets:
                return _inputs([row for row, _ in given], [[start]] * len(given), pad)
            answers = encode_texts(tokens, raw.targets["completion"])
            learned = [_fitted(answer, *around_target, longest) for answer in answers]
            cut = [CUT_BEGINNING * a + CUT_END * b for (_, a), (_, b) in zip(given, learned, strict=True)]
            too_long = [at for at, bits in enumerate(cut) if bits]
            left_out = too_long if self.too_long == "drop" else []
            kept = [at for at in range(len(cut)) if at not in set(left_out)]
            labels = [learned[at][0] for at in kept]
            done = "dropped" if self.too_long == "drop" else "cut"
            inputs = _inputs([given[at][0] for at in kept], [[start, *row[:-1]] for row in labels], pad).inputs
            return Split(
                inputs,
                {"labels": Ragged.of(labels, np.int32, UNSCORED), "cut": np.array([cut[at] for at in kept], np.uint8)},
                left_out=left_out,
                notes={f"longer than {longest} tokens: {done}": len(too_long)} if too_long else {},
            )

        return encode

    def loss(self, outputs: Any, targets: Mapping[str, Any]) -> Any:
        """Computes the cross entropy of a completion's tokens."""
        from torch.nn.functional import cross_entropy

        wanted = targets["labels"]
        return cross_entropy(outputs.transpose(1, 2), wanted, ignore_index=UNSCORED, reduction="none").sum(1)

    def keep(self, outputs: Any, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Keeps each row's loss and number of right tokens, and for the first rows the model's own completion."""
        kept: dict[str, Sequence[Any]] = {}
        asked = np.ones(len(batch.rows), dtype=bool)
        if batch.targets:
            wanted = batch.targets["labels"]
            is_right = (outputs.argmax(-1) == wanted) & (wanted != UNSCORED)
            kept = {"loss": self.loss(outputs, batch.targets).double(), "right": is_right.sum(1)}
            if model is None:
                return kept
            asked = np.asarray(batch.rows) < self.generate_rows
        return {**kept, **self._written(np.flatnonzero(asked), batch, model)}

    def asked(self, split: Split) -> np.ndarray:
        """Returns the first `generate_rows` rows."""
        return np.arange(min(self.generate_rows, len(split)))

    def write(self, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Generates a completion for each row."""
        return self._written(np.arange(len(batch.rows)), batch, model)

    def _written(self, places: np.ndarray, batch: Batch, model: Any) -> Mapping[str, Sequence[Any]]:
        """Returns the completions of some rows of a batch and the true ones; None for the other rows."""
        written: list[str | None] = [None] * len(batch.rows)
        reference: list[str | None] = [None] * len(batch.rows)
        if len(places):
            source = model.autopeft_source
            tokens = tokenizer_of(source.path, source.revision, source.trust_remote_code)
            for place, text in zip(places, self._write(tokens, places, batch, model), strict=True):
                written[place] = text
                if batch.targets:
                    labels = batch.targets["labels"][place]
                    reference[place] = plain_text(tokens, labels[labels != UNSCORED])
        return {"completion": written, "wanted": reference}

    def _write(self, tokens: Any, places: np.ndarray, batch: Batch, model: Any) -> list[str]:
        """Generates completions of some rows of a batch: the likeliest token each time."""
        import torch
        from transformers import GenerationConfig

        chosen = torch.as_tensor(places, device=batch.inputs["input_ids"].device)
        given = {name: batch.inputs[name][chosen] for name in ("input_ids", "attention_mask")}
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=min(self.new_tokens, longest_input(tokens, model.config) - 1),
            pad_token_id=padding(tokens, model.config),
            eos_token_id=end_tokens(tokens, model),
            decoder_start_token_id=start_token(model.config),
        )
        return [plain_text(tokens, row) for row in model.generate(**given, generation_config=settings)]


def start_token(config: Any) -> int:
    """Returns the token that the decoder begins with.

    Raises:
        UsageError: The model names none.
    """
    for name in ("decoder_start_token_id", "bos_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    raise UsageError(
        f"the model {config.name_or_path!r} names no token that its decoder begins with: give one, decoder_start_token_id "
        "in its config.json"
    )


def target_tokens(tokens: Any, config: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens before a target, and behind it: an end token at least."""
    found = tokens(text_target="a", return_special_tokens_mask=True)
    ids, added = found["input_ids"], found["special_tokens_mask"]
    first, last = added.index(0), len(added) - added[::-1].index(0)
    return list(ids[:first]), list(ids[last:]) or [end_token(tokens, config)]


def _fitted(text: list[int], before: list[int], behind: list[int], longest: int) -> tuple[list[int], bool]:
    """Returns a text between special tokens, without its end if it is too long, and whether that is so."""
    room = longest - len(before) - len(behind)
    return [*before, *text[:room], *behind], len(text) > room


def _inputs(encoder: list[list[int]], decoder: list[list[int]], pad: int) -> Split:
    columns = {"input_ids": encoder, "decoder_input_ids": decoder}
    return Split({name: Ragged.of(rows, np.int32, pad) for name, rows in columns.items()}, {})


plugin = SequenceToSequence
