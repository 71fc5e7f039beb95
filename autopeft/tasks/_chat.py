"""Conversations as tokens: messages by the model's own chat template, of which the assistant's are learned.

A template that marks them, `{% generation %}`, says itself what is learned. Under any other, the assistant's turn is what
the conversation up to it has more than the conversation before it, with the template's beginning of an answer. Both are
rendered and compared: a template that writes earlier turns otherwise once later ones follow is refused, as then no part
of its text is the turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import ConfigError, Fault, UsageError
from autopeft.tasks._targets import is_missing, row_fault

ASSISTANT = "assistant"
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")  # around what the assistant says

Message = Mapping[str, Any]


def conversation(cell: Any) -> list[Message]:
    """Returns the messages of a cell: a list of `{role, content}`, or its JSON as text.

    Raises:
        ValueError: It is none; the text says why.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError as fault:
            raise ValueError(f"are no JSON ({fault})") from fault
    if not isinstance(cell, (list, tuple)) and hasattr(cell, "tolist"):  # an array of pandas
        cell = cell.tolist()
    if not isinstance(cell, (list, tuple)) or not cell:
        raise ValueError("are no list of messages")
    for number, message in enumerate(cell):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"have no text `role` and `content` in message {number}")
    return [{key: value for key, value in message.items() if value is not None} for message in cell]


def asked(messages: Sequence[Message]) -> list[Message]:
    """Returns a conversation without the assistant's last turn, if it ends with that: what is to be answered."""
    return list(messages[:-1] if messages[-1]["role"] == ASSISTANT else messages)


class Conversations:
    """The target of a table of conversations (`_targets.Target`): the assistant's turns.

    Args:
        column: The column.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self.columns: Mapping[str, str] = {column: "messages"}

    def shape_faults(self, table: Mapping[str, Sequence[Any]], split: str) -> list[Fault]:
        return []

    def is_unlabelled(self, table: Mapping[str, Sequence[Any]]) -> bool:
        """Whether all cells are missing. A conversation without an answer is a fault."""
        return all(is_missing(cell) for cell in table[self.column])

    def about(
        self, train: Mapping[str, Sequence[Any]], given: Sequence[Any] | None
    ) -> tuple[dict[str, Any], list[Fault]]:
        return {"n_outputs": 0}, []

    def encode(
        self, table: Mapping[str, Sequence[Any]], split: str, about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], None, list[Fault]]:
        """The cells as they are."""
        faults = conversation_faults(table[self.column], split, are_answered=True)
        return {"messages": table[self.column]}, None, faults


def conversation_faults(cells: Sequence[Any], split: str, *, are_answered: bool) -> list[Fault]:
    """Finds cells that are no conversation, or in which the assistant answers nothing."""
    found: dict[str, list[int]] = {}
    for row, cell in enumerate(cells):
        why = _why_not(cell, are_answered)
        if why:
            found.setdefault(why, []).append(row)
    expected = "expected a list of {role, content}, or its JSON as text"
    return [row_fault("data.messages", split, rows, f"that {why} ({expected})") for why, rows in found.items()]


def _why_not(cell: Any, is_answered: bool) -> str:
    if is_missing(cell):
        return "are empty"
    try:
        messages = conversation(cell)
    except ValueError as fault:
        return str(fault)
    if not is_answered:
        return "" if asked(messages) else "ask nothing"
    answers = [at for at, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not answers:
        return "have no turn of the assistant, from which there is to learn"
    if answers[0] == 0:
        return "begin with the assistant: there is nothing that it answers"
    return "" if all(messages[at]["content"].strip() for at in answers) else "have an empty turn of the assistant"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: Token ids.
        is_learned: For each token, whether the assistant says it.
    """

    ids: list[int]
    is_learned: list[bool]

    @property
    def last_turn(self) -> tuple[int, int]:
        """Where the assistant's last turn begins and ends."""
        end = len(self.is_learned) - self.is_learned[::-1].index(True)
        begin = end
        while begin > 0 and self.is_learned[begin - 1]:
            begin -= 1
        return begin, end


class ChatTemplate:
    """A model's chat template.

    Args:
        tokenizer: The model's tokenizer.

    Raises:
        UsageError: It has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, Mapping):
            template = template.get("default")
        if not template:
            raise UsageError(
                f"the model {tokenizer.name_or_path!r} has no chat template, so that `data.messages` cannot be written for "
                "it: give `prompt` and `completion`, or the chat (instruct) model of its family"
            )
        self.is_marked = MARK.search(template) is not None

    def question(self, messages: Sequence[Message]) -> list[int]:
        """Returns a conversation that ends where the assistant is to answer, as token ids."""
        return self._ids(self._text(asked(messages), is_asked=True))

    def answered(self, messages: Sequence[Message]) -> Rendered:
        """Returns a conversation and what of it is learned.

        Raises:
            ConfigError: The template writes nothing of the assistant's that could be told apart.
        """
        found = self._by_marks(messages) if self.is_marked else self._by_prefixes(messages)
        if not any(found.is_learned):
            raise _cannot("marks nothing as the assistant's, though it has {% generation %}")
        return found

    @property
    def ends(self) -> list[int]:
        """Returns the control tokens with which a turn of the assistant ends, beside the tokenizer's end token."""
        rendered = self.answered([{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "a"}])
        begin, end = rendered.last_turn
        special = set(self.tokenizer.all_special_ids)
        return [token for token in rendered.ids[begin:end] if token in special][-1:]

    def _by_marks(self, messages: Sequence[Message]) -> Rendered:
        try:
            found = self.tokenizer.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as fault:  # of the template, which may refuse an order of roles
            raise _cannot(f"refuses this conversation: {fault}") from fault
        return Rendered(list(found["input_ids"]), [bool(each) for each in found["assistant_masks"]])

    def _by_prefixes(self, messages: Sequence[Message]) -> Rendered:
        """Each part is tokenized by itself, so that a turn begins at a token, as it does when it is generated."""
        ids: list[int] = []
        is_learned: list[bool] = []
        whole = self._text(messages)
        at = 0
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._text(messages[:number], is_asked=True)
            until = self._text(messages[: number + 1])
            if not (until.startswith(before) and whole.startswith(until) and len(before) >= at):
                raise _cannot(
                    f"writes turn {number} of it otherwise than it would be asked for, or otherwise once more turns "
                    "follow, and has no {% generation %} to mark it: give conversations with one answer, or a model whose "
                    "template has the mark"
                )
            for text, is_answer in ((whole[at : len(before)], False), (whole[len(before) : len(until)], True)):
                part = self._ids(text) if text else []
                ids += part
                is_learned += self._until_end(part) if is_answer else [False] * len(part)
            at = len(until)
        return Rendered(ids, is_learned)

    def _until_end(self, turn: list[int]) -> list[bool]:
        """Marks the tokens of a turn up to its last control token: behind it, nothing is generated any more."""
        special = set(self.tokenizer.all_special_ids)
        last = max((at for at, token in enumerate(turn) if token in special), default=len(turn) - 1)
        return [at <= last for at in range(len(turn))]

    def _text(self, messages: Sequence[Message], *, is_asked: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=is_asked)
            )
        except Exception as fault:  # of the template, which may refuse an order of roles
            raise _cannot(f"refuses this conversation: {fault}") from fault

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _cannot(why: str) -> ConfigError:
    return ConfigError([Fault("data.messages", f"the model's chat template {why}")], "data")
