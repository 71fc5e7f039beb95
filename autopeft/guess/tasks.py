"""Which task the columns of a table show: rules in order, from what only one task has to what most have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft import plugins
from autopeft.errors import UsageError
from autopeft.guess.columns import COMPLETIONS, IDENTIFIERS, PAIRS, RATINGS, TARGETS, TEXTS, Column, by_name
from autopeft.guess.data import Found

OUT_OF_SCOPE = ("oos", "out_of_scope")
EXTRACTORS = ("preprocessor_config.json", "processor_config.json")  # either holds a feature extractor


@dataclass(frozen=True)
class Guess:
    """One value of a config.

    Attributes:
        key: Its place: `data.text`.
        value: The value.
        why: The reason, in a line; empty if the value speaks for itself.
    """

    key: str
    value: Any
    why: str = ""


def of_columns(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """Guesses the task and its columns.

    Raises:
        UsageError: No task fits.
    """
    for rule in (_of_media, _of_words, _of_conversations, _of_completions, _of_sets, _of_labels, _of_texts):
        guesses = rule(found, columns, model)
        if guesses:
            task = guesses[0].value
            if task not in plugins.names("tasks"):
                raise UsageError(f"the data is of {task} ({guesses[0].why}), for which there is no task here")
            return guesses
    seen = ", ".join(f"{column.name} ({column.kind})" for column in columns.values())
    raise UsageError(
        f"no task shows in the columns {seen}: expected texts, pictures or sounds, and labels, numbers or completions for "
        "them. Write the config by hand; README.md lists the tasks and their columns"
    )


def _target(columns: Mapping[str, Column], *kinds: str) -> Column | None:
    """Returns the likeliest column of targets: by its name, else the last one."""
    fitting = [column for column in columns.values() if column.kind in kinds and len(column.values) > 1]
    return next(iter([*by_name(fitting, TARGETS), *fitting[::-1]]), None)


def _texts(columns: Mapping[str, Column], target: Column | None) -> list[Column]:
    """Returns the column of texts, or the two of a pair; none if there is none."""
    others = [column for column in columns.values() if column is not target]
    plain = {column.plain: column for column in others}
    for first, second in PAIRS:
        if first in plain and second in plain:
            return [plain[first], plain[second]]
    texts = [column for column in others if column.kind == "text"]
    named = by_name(texts, TEXTS) or sorted(texts, key=lambda column: -column.length)
    words = [column for column in others if column.kind == "identifier" and column.plain not in IDENTIFIERS]
    words = [column for column in words if not all(value.lstrip("-").isdigit() for value in column.values)]
    return (named or by_name(others, TEXTS) or words)[:1]


def _of_media(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """Pictures or sounds, and a label."""
    label = _target(columns, "label")
    for kind, task, key in (
        ("picture", "image_classification", "image"),
        ("sound", "audio_classification", "audio"),
    ):
        for column in columns.values():
            if column.kind == kind and label is not None:
                return [
                    Guess("task.name", task, f"{column.name!r} holds {kind}s, {label.name!r} labels"),
                    *features(kind, model),
                    Guess(f"data.{key}", column.name, f"{kind}s"),
                    Guess("data.label", label.name, _classes(label, _names_of(found, label))),
                ]
    return []


def features(medium: str, model: str | None) -> list[Guess]:
    """A model of sounds in a folder without a feature extractor reads what YAMNet reads."""
    folder = Path(model or "").expanduser()
    if medium != "sound" or not model or not folder.is_dir() or any((folder / name).is_file() for name in EXTRACTORS):
        return []
    return [Guess("task.features", "yamnet", "the model has no feature extractor of its own")]


def _of_words(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """Words, and a tag for each."""
    assert found.table is not None
    lists = [column for column in columns.values() if column.kind in ("lists", "tags")]
    tags = [column for column in lists if column.kind == "tags"] or [
        column for column in lists if "tags" in column.plain and any(map(_is_tag, _names_of(found, column)))
    ]
    for tag in tags[:1]:
        words = [
            c for c in columns.values() if c is not tag and c.kind in ("lists", "text") and _is_as_long(found, c, tag)
        ]
        for word in sorted(words, key=lambda column: -len(column.values))[:1]:
            why = f"{tag.name!r} has a tag for each word of {word.name!r}"
            return [
                Guess("task.name", "token_classification", why),
                Guess("data.tokens", word.name, "words"),
                Guess("data.tags", tag.name, "O, B-… and I-…"),
            ]
    return []


def _is_tag(name: str) -> bool:
    return name.startswith(("B-", "I-"))


def _names_of(found: Found, column: Column) -> list[str]:
    """Returns the names of a column's integer labels, if some came with the data."""
    return list(map(str, found.names.get(column.name, found.names.get("", ()))))


def _is_as_long(found: Found, words: Column, tags: Column) -> bool:
    """Whether the first rows have as many words as tags."""
    assert found.table is not None

    def sizes(column: Column) -> list[int]:
        rows = list(found.table[column.name][:50])  # type: ignore[index]
        return [len(cell.split()) if isinstance(cell, str) else len(cell) for cell in rows if cell is not None]

    return sizes(words) == sizes(tags)


def _of_completions(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """A text, and a text that answers it, by their names."""
    plain = {
        column.plain: column for column in columns.values() if column.kind in ("text", "label", "number", "identifier")
    }
    for prompt, completion in COMPLETIONS:
        if (
            prompt in plain
            and completion in plain
            and plain[prompt].kind == "text"
            and plain[completion].kind == "text"
        ):
            return _completion(plain[prompt], plain[completion], model)
    return []


def _of_conversations(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """Lists of messages, each with the role of who says it."""
    for column in columns.values():
        if column.kind == "conversation":
            why = f"{column.name!r} holds messages, each with its role"
            task = Guess("task.name", "causal_language_modelling", why)
            return [task, Guess("data.messages", column.name, "what the assistant says is learned")]
    return []


def _of_texts(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """Texts and nothing that could be a target: a single one is learned whole; of two, the second answers the first."""
    texts = [column for column in columns.values() if column.kind == "text"]
    if len(texts) == 1:
        task = Guess("task.name", "causal_language_modelling", f"{texts[0].name!r} is a text, and nothing goes with it")
        return [task, Guess("data.text", texts[0].name, "learned whole")]
    return _completion(texts[0], texts[1], model) if len(texts) == 2 else []


def _completion(prompt: Column, completion: Column, model: str | None) -> list[Guess]:
    task = "sequence_to_sequence" if is_encoder_decoder(model) else "causal_language_modelling"
    return [
        Guess("task.name", task, f"{completion.name!r} is a text that follows {prompt.name!r}"),
        Guess("data.prompt", prompt.name, "what comes before"),
        Guess("data.completion", completion.name, "what is learned"),
    ]


def is_encoder_decoder(model: str | None) -> bool:
    file = Path(model or "") / "config.json"
    if not model or not file.is_file():
        return False
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("is_encoder_decoder"))
    except ValueError:
        return False


def _of_sets(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """A text, and a list of labels."""
    for column in columns.values():
        texts = _texts(columns, column)
        if column.kind == "lists" and texts and 1 < len(column.values) <= column.n_rows / 2:
            return [
                Guess("task.name", "multilabel_classification", f"{column.name!r} holds lists of {_classes(column)}"),
                _text_guess(texts),
                Guess("data.labels", column.name, _classes(column)),
            ]
    return []


def _of_labels(found: Found, columns: Mapping[str, Column], model: str | None) -> list[Guess]:
    """A text, and a label or a number."""
    target = _target(columns, "label", "number")
    texts = _texts(columns, target)
    if target is None or not texts:
        return []
    names = _names_of(found, target)
    out = next((name for name in names or target.values if name.lower() in OUT_OF_SCOPE), None)
    if target.kind == "number":
        task = Guess("task.name", "regression", f"{target.name!r} holds numbers, {len(target.values):,} different ones")
    elif out is not None:
        task = Guess("task.name", "intent_classification", f"{target.name!r} has {out!r} among its labels")
    else:
        why = f"{target.name!r} holds {_classes(target, names)}"
        if target.plain in RATINGS:
            why += "; `regression` if their order matters"
        task = Guess("task.name", "text_classification", why)
    option = (
        [Guess("task.out_of_scope", out, "")] if out not in (None, OUT_OF_SCOPE[0]) and target.kind != "number" else []
    )
    what = "numbers" if target.kind == "number" else _classes(target, names)
    return [task, *option, _text_guess(texts), Guess("data.label", target.name, what)]


def _text_guess(texts: list[Column]) -> Guess:
    names = [column.name for column in texts]
    why = (
        f"texts of {texts[0].length:,.0f} characters on average"
        if len(names) == 1
        else "a pair of texts, by their names"
    )
    return Guess("data.text", names[0] if len(names) == 1 else names, why)


def _classes(column: Column, names: Sequence[str] = ()) -> str:
    """Says how many labels there are, and which are the most frequent. `names`: of integer codes."""
    most = sorted(column.values, key=lambda value: -column.values[value])[:3]
    some = ", ".join(repr(names[int(code)] if code.isdigit() and int(code) < len(names) else code) for code in most)
    return f"{len(column.values):,} different labels such as {some}"
