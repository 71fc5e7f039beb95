"""Causal language modelling: text that goes on, by a pretrained language model and its own output layer.

A row is a prompt and its completion, a conversation, or a plain text (`autopeft.tasks._completions`). The model learns
the completion and an end token, what the assistant says, or all of the text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, Fault, UsageError, did_you_mean
from autopeft.objectives import Goal
from autopeft.tasks import UNSCORED, Batch, Columns, Dataset, Kept, Kind, Ragged, Raw, Scores, Source, Split
from autopeft.tasks import _completions as completions
from autopeft.tasks import _generation as generation
from autopeft.tasks._chat import ChatTemplate, Conversations
from autopeft.tasks._completions import CUT_BEGINNING, CUT_END, Tokens
from autopeft.tasks._examples import BETWEEN, Shown, with_examples
from autopeft.tasks._reading import read_table
from autopeft.tasks._targets import Target, nothing_wrong, row_fault
from autopeft.tasks._templates import Written, row_faults, texts_of
from autopeft.tasks._text import NO_LIMIT, longest_input, model_config, padding, tokenizer
from autopeft.tasks._texts import FromTables

LIKELIHOODS: Mapping[str, Goal] = {"perplexity": "minimize", "token_accuracy": "maximize"}
SHOWN_ROWS = 64  # of a split that a base with examples answers, if none are generated otherwise
GENERATED = ("exact_match", "contains")  # if the config names no others


class CausalLanguageModelling(FromTables):
    """Rows from CSV, TSV, JSON, JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub.

    Targets: `labels`, one a token, UNSCORED for those of a prompt; `cut`.

    Args:
        generate_rows: Number of first rows of a split whose completions are generated (greedily) and scored; 0 for none.
        new_tokens: Most generated tokens; at most half of what the model takes.
        generated: Metrics of what is generated, of `generation.METRICS`.
        answer_after: What stands before the answer in a completion: `####`. If given, `exact_match` and `contains` are of
            the answer alone.
        too_long: Whether to `cut` or to `drop` rows longer than `max_length`, or than the model takes.
        examples: What the unchanged base is shown before each prompt, as one more baseline: a number of training rows,
            drawn by seed, or rows as mappings of the data's columns. None for no such baseline.
    """

    auto_class = "AutoModelForCausalLM"
    columns: Mapping[str, Kind] = completions.COLUMNS
    calls_model = True
    token_target, foretells = "labels", True
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
        examples: int | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if generate_rows < 0 or new_tokens < 1:
            raise UsageError("task: generate_rows is 0 or more, new_tokens 1 or more")
        if too_long not in ("cut", "drop"):
            raise UsageError(f"task: too_long is cut or drop, not {too_long!r}")
        if answer_after is not None and not answer_after.strip():
            raise UsageError("task: answer_after is the text before an answer, such as '####'; got an empty one")
        self.generated = _metric_names(generated)
        self.generate_rows, self.new_tokens = generate_rows, new_tokens
        self.answer_after, self.too_long = answer_after, too_long
        self.examples = _examples(examples)
        self.stop: str | None = None  # behind it, what is generated is no part of the answer
        written = {name: generation.METRICS[name] for name in self.generated if generate_rows}
        self.metrics = {**LIKELIHOODS, **written, "loss": "minimize"}

    def data_faults(self, data: Mapping[str, Any]) -> list[Fault]:
        """Finds keys of `data` that do not go together or with the options, and libraries that metrics lack."""
        faults = completions.form_faults(data)
        if self.answer_after is not None and completions.form_of(data) == "text":
            faults.append(Fault("task.answer_after", "is of completions; `data.text` has none"))
        if self.examples is not None and completions.form_of(data) == "text":
            faults.append(Fault("task.examples", "are prompts and completions; `data.text` has none"))
        lacking = [generation.missing_library(name) for name in self.generated]
        return faults + [Fault("task.generated", message) for message in lacking if message]

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
            return prompts + self._without_answer(completions.last_said(table, data), split)

        return read_table(data, inputs, target, seed, input_faults=input_faults)

    def _without_answer(self, said: Sequence[str | None], split: str) -> list[Fault]:
        """Finds rows whose wanted completion lacks `answer_after`."""
        pattern = self.answer_after
        lacking = [row for row, text in enumerate(said) if pattern and text is not None and pattern not in text]
        return [row_fault("task.answer_after", split, lacking, f"without {pattern!r}")] if lacking else []

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

    def weights(self, targets: Columns) -> np.ndarray:
        """Counts the tokens of each row that are learned."""
        labels = targets["labels"]
        assert isinstance(labels, Ragged)
        return np.add.reduceat(labels.values != UNSCORED, labels.offsets[:-1]).astype(np.float32)

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
            has_completion = batch.targets["span"][:, 2].cpu().numpy() > 0
            asked = (np.asarray(batch.rows) < self.generate_rows) & has_completion
        written: list[str | None] = [None] * len(batch.rows)
        reference: list[str | None] = [None] * len(batch.rows)
        if asked.any():
            self._write(np.flatnonzero(asked), batch, model, written, reference)
        return {**kept, "completion": written, "wanted": reference}

    def _write(
        self, rows: np.ndarray, batch: Batch, model: Any, written: list[str | None], wanted: list[str | None]
    ) -> None:
        """Generates the last completion of some rows of a batch into `written`; the true one goes into `wanted`."""
        source = model.autopeft_source
        tokens = _tokenizer(source.path, source.revision, source.trust_remote_code)
        prompts = []
        for row in rows:
            ids = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()]
            if batch.targets:
                fixed, start, begins = batch.targets["span"][row].tolist()
                labels = batch.targets["labels"][row][begins:]
                wanted[row] = _text(tokens, labels[labels != UNSCORED])
                ids = ids[[*range(fixed), *range(start, begins)]]
            prompts.append(ids)
        for row, answer in zip(rows, greedy(model, tokens, prompts, self.new_tokens), strict=True):
            text = _text(tokens, answer)
            written[row] = text if self.stop is None else text.partition(self.stop)[0].strip()

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
        some = f"{len(rows)} examples" if mean == len(rows) else f"up to {len(rows)} examples ({mean:.1f} on average)"
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
    raise UsageError(
        f"task: examples is a number of training rows, or a list of rows as {{column: value}}; got {given!r}"
    )


def _metric_names(generated: Any) -> tuple[str, ...]:
    names = [generated] if isinstance(generated, str) else generated
    known = ", ".join(generation.METRICS)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"task: generated is a list of {known}; got {generated!r}")
    for name in names:
        if name not in generation.METRICS:
            raise UsageError(
                f"task: generated has no metric {name!r}.{did_you_mean(name, generation.METRICS)} There are: {known}"
            )
    return tuple(dict.fromkeys(names))


@lru_cache(maxsize=4)
def _tokenizer(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    return tokenizer(path, {"revision": revision, "trust_remote_code": trust_remote_code})


def _text(tokens: Any, ids: Any) -> str:
    return str(tokens.decode(ids, skip_special_tokens=True)).strip()


plugin = CausalLanguageModelling
