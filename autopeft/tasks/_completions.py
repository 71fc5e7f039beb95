"""Rows of a language model as tokens: what is given, what is learned, and where the last completion begins.

A row has one of three forms, by the keys that the config's `data` gives:

- `prompt` and `completion`, columns or templates over columns: the completion's tokens and an end token are learned. The
  two are tokenized separately: a space or a line break between them must be part of one of them.
- `messages`, a conversation: what the assistant says is learned (`autopeft.tasks._chat`).
- `text`, a column or a template: all tokens and an end token are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.errors import ConfigError, Fault, UsageError
from autopeft.tasks import UNSCORED, Kind, Raw
from autopeft.tasks._chat import ASSISTANT, ChatTemplate, asked, conversation
from autopeft.tasks._templates import columns_in, is_template, template_fault, texts_of
from autopeft.tasks._text import encode_texts, special_tokens

CUT_BEGINNING, CUT_END = 1, 2  # bits of the target `cut`

Form = Literal["completions", "chat", "text"]
COLUMNS: Mapping[str, Kind] = {"prompt": "text", "completion": "target", "messages": "conversation", "text": "text"}
KEYS: Mapping[Form, tuple[str, ...]] = {
    "completions": ("prompt", "completion"),
    "chat": ("messages",),
    "text": ("text",),
}  # fmt: skip


def form_of(data: Mapping[str, Any]) -> Form:
    """Returns the form of a row that the config's `data` gives: prompt and completion if it names nothing else."""
    return "chat" if data.get("messages") else "text" if data.get("text") else "completions"


def form_faults(data: Mapping[str, Any]) -> list[Fault]:
    """Finds keys of `data` of more than one form, and wrong templates."""
    faults = []
    given = [key for keys in KEYS.values() for key in keys if data.get(key) is not None]
    forms = [form for form, keys in KEYS.items() if any(key in given for key in keys)]
    if len(forms) > 1:
        faults.append(
            Fault(
                "data",
                f"gives {', '.join(map(repr, given))}: a row is a prompt and its completion, or a conversation (messages), "
                "or a text; give the keys of one",
            )
        )
    for key in given:
        value = data[key]
        if not isinstance(value, str):
            if key == "text":  # the schema takes pairs of texts
                faults.append(
                    Fault("data.text", f"expected a column or a template, got {value!r}: pairs are for classes")
                )
        elif key == "messages" and is_template(value):
            faults.append(Fault("data.messages", f"expected the column of conversations, got the template {value!r}"))
        elif (wrong := template_fault(value)) is not None:
            faults.append(Fault(f"data.{key}", wrong))
    return faults


def columns_of(data: Mapping[str, Any], *, inputs_only: bool = False) -> dict[str, str]:
    """Returns column → the key that names it. Of a column that a prompt and a completion name, the prompt's."""
    keys = KEYS[form_of(data)]
    keys = tuple(key for key in keys if COLUMNS[key] != "target") if inputs_only else keys
    return {column: key for key in reversed(keys) for column in columns_in(str(data.get(key) or key))}


@dataclass(frozen=True, slots=True)
class Row:
    """A row as tokens.

    Attributes:
        ids: Token ids.
        labels: The same ids; `UNSCORED` where nothing is learned.
        fixed: Number of first tokens that are never cut: the tokenizer's own before a text.
        begins: Where the last completion begins; 0 for a text, which has none.
    """

    ids: list[int]
    labels: list[int]
    fixed: int
    begins: int


class Tokens:
    """Makes rows of one form for one model.

    Args:
        tokenizer: The model's tokenizer.
        end: The token that ends a completion or a text.
        data: The config's data section.
    """

    def __init__(self, tokenizer: Any, end: int, data: Mapping[str, Any]) -> None:
        self.tokenizer, self.end, self.data = tokenizer, end, data
        self.form = form_of(data)
        self.begin = special_tokens(tokenizer)[0]

    def rows(self, raw: Raw) -> list[Row]:
        """Returns the rows of a chunk. Without targets, completions are left out."""
        make: Mapping[Form, Callable[[Raw], list[Row]]] = {
            "completions": self._completions,
            "chat": self._conversations,
            "text": self._texts,
        }
        return make[self.form](raw)

    def _completions(self, raw: Raw) -> list[Row]:
        prompts = encode_texts(self.tokenizer, texts_of(str(self.data.get("prompt") or "prompt"), raw.inputs)[:])
        if not raw.targets:
            return [self._row([*self.begin, *prompt], []) for prompt in prompts]
        answers = encode_texts(self.tokenizer, raw.targets["completion"])
        return [
            self._row([*self.begin, *prompt], [*answer, self.end])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _row(self, given: list[int], learned: list[int]) -> Row:
        return Row([*given, *learned], [UNSCORED] * len(given) + learned, len(self.begin), len(given))

    def _texts(self, raw: Raw) -> list[Row]:
        texts = encode_texts(self.tokenizer, texts_of(str(self.data["text"]), raw.inputs)[:])
        if not raw.targets:
            return [self._row([*self.begin, *text], []) for text in texts]
        whole = [[*self.begin, *text, self.end] for text in texts]
        unscored = max(len(self.begin), 1)  # nothing foretells the first token
        return [Row(ids, [UNSCORED] * unscored + ids[unscored:], len(self.begin), 0) for ids in whole]

    def _conversations(self, raw: Raw) -> list[Row]:
        template = ChatTemplate(self.tokenizer)
        (cells,) = raw.inputs.values()
        out: list[Row] = []
        faults: list[Fault] = []
        for row, cell in zip(raw.rows, cells, strict=True):
            try:
                out.append(_conversation(template, cell, is_answered=bool(raw.targets)))
            except ConfigError as fault:
                faults += [Fault(inner.path, f"row {row}: {inner.message}") for inner in fault.faults]
        if faults:
            raise ConfigError(faults, "data")
        return out


def _conversation(template: ChatTemplate, cell: Any, *, is_answered: bool) -> Row:
    """Makes a row of a conversation. What follows the assistant's last turn teaches nothing, and is left out."""
    try:
        messages = conversation(cell)
    except ValueError as fault:
        raise ConfigError([Fault("data.messages", f"the messages {fault}")], "data") from fault
    if not is_answered:
        if not asked(messages):
            raise ConfigError(
                [Fault("data.messages", "the messages ask nothing: a turn of the assistant alone")], "data"
            )
        ids = template.question(messages)
        return Row(ids, [UNSCORED] * len(ids), 0, len(ids))
    rendered = template.answered(messages)
    begin, end = rendered.last_turn
    labels = [
        token if is_learned else UNSCORED
        for token, is_learned in zip(rendered.ids[:end], rendered.is_learned[:end], strict=True)
    ]
    labels[0] = UNSCORED  # nothing foretells the first token
    return Row(rendered.ids[:end], labels, 0, begin)


@dataclass(frozen=True, slots=True)
class Fit:
    """How rows are made to fit.

    Attributes:
        longest: Most tokens of a row.
        room: Tokens that generation needs behind a prompt.
    """

    longest: int
    room: int

    def cut(self, row: Row) -> tuple[Row, int]:
        """Cuts a row that is too long. Returns the row, and which ends were cut.

        A prompt loses its beginning, behind the tokenizer's own tokens. A completion loses its end only if it leaves no
        room for a prompt; so does a text. A row without a completion leaves room for one.
        """
        if row.begins == 0:
            is_cut = len(row.ids) > self.longest
            return Row(row.ids[: self.longest], row.labels[: self.longest], row.fixed, 0), CUT_END * is_cut
        completion = row.ids[row.begins :][: self.longest - row.fixed - 1]
        room = len(completion) if completion else self.room
        skip = max(row.begins - (self.longest - room), 0)
        end = row.begins + len(completion)
        cut = CUT_BEGINNING * (skip > 0) + CUT_END * (end < len(row.ids))
        at = row.fixed + skip
        ids, labels = ([*each[: row.fixed], *each[at:end]] for each in (row.ids, row.labels))
        return Row(ids, labels, row.fixed, row.begins - skip), cut

    def prompt(self, row: Row) -> tuple[int, int]:
        """Returns what of a row is not the prompt for generation: (from, to) before it, behind the fixed tokens."""
        skip = max(row.begins - (self.longest - self.room), 0)
        return row.fixed, row.fixed + skip


def fit(longest: int, new_tokens: int, n_begin: int) -> Fit:
    """Makes a `Fit` for a model that takes `longest` tokens.

    Raises:
        UsageError: There is no room for a prompt and a completion.
    """
    if longest < n_begin + 2:
        raise UsageError(f"{longest} tokens have no room for a prompt and a completion: raise training.max_length")
    return Fit(longest, min(new_tokens, longest // 2, longest - n_begin - 1))


def last_said(table: Mapping[str, Sequence[Any]], data: Mapping[str, Any]) -> list[str | None]:
    """Returns the last completion of each row of a table: what is to be written. None where there is none."""
    if form_of(data) == "completions":
        return [str(text) for text in texts_of(str(data.get("completion") or "completion"), table)]
    if form_of(data) == "text":
        return []
    out: list[str | None] = []
    for cell in table[str(data["messages"])]:
        try:
            said = [str(message["content"]) for message in conversation(cell) if message["role"] == ASSISTANT]
        except ValueError:  # `Conversations` says so
            said = []
        out.append(said[-1] if said else None)
    return out
