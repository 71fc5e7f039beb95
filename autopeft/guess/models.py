"""Which pretrained model to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autopeft.guess.columns import Column
from autopeft.guess.tasks import Guess
from autopeft.tasks import Task

# By the transformers class that a task loads: a small model that many know, so that a first search is cheap.
KNOWN = {
    "AutoModelForSequenceClassification": "microsoft/MiniLM-L12-H384-uncased",
    "AutoModelForTokenClassification": "distilbert/distilbert-base-cased",
    "AutoModelForImageClassification": "facebook/deit-tiny-patch16-224",
    "AutoModelForAudioClassification": "facebook/wav2vec2-base",
    "AutoModelForCausalLM": "HuggingFaceTB/SmolLM2-135M",
    "AutoModelForSeq2SeqLM": "google/flan-t5-small",
}
MANY_LANGUAGES = "microsoft/Multilingual-MiniLM-L12-H384"
FOREIGN = 0.2  # share of characters that are no ASCII, above which a model of English would be the wrong one


def model_for(task: Task, model: str | None, texts: Sequence[Column]) -> Guess:
    """Returns the model that was said, or a small one that fits the task."""
    if model is not None:
        path = Path(model).expanduser()
        return Guess("model", str(path.resolve()) if path.is_dir() else model, "as you said")
    sample = "".join(text for column in texts for text in list(column.values)[:200])
    if sample and sum(not character.isascii() for character in sample) / len(sample) > FOREIGN:
        return Guess("model", MANY_LANGUAGES, "a small model of many languages; --model names another")
    return Guess("model", KNOWN[task.auto_class], "a small model that many know; --model names another")
