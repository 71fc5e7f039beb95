"""The model card of an exported adapter: its description, its scores and their measurement, its use, its origin.

The code in the card runs unchanged in the exported folder. It takes the name of the base from the folder's own config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.history import History, Record
from autopeft.reports import content, text
from autopeft.reports.facts import Describe, Facts
from autopeft.tasks._templates import columns_in, fill, is_template

SAID = [{"role": "user", "content": "a text"}]  # a conversation, for an example
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


def model_card(history: History, record: Record, describe: Describe, command: str, about: Mapping[str, Any]) -> str:
    """A README.md with the hub's metadata on top.

    Args:
        history: History of the search.
        record: The complete trial that is exported.
        describe: Params → a name for people.
        command: Command that made the folder.
        about: The folder's autopeft.json.
    """
    facts = Facts(history, describe)
    return facts.redactor.text("\n".join(_lines(facts, record, command, about)).rstrip() + "\n")


def _lines(facts: Facts, record: Record, command: str, about: Mapping[str, Any]) -> Iterator[str]:
    model = str(facts.header.get("model", {}).get("name", "the base model"))
    yield "---"
    yield "tags: [autopeft, parameter-efficient-fine-tuning]"
    if about["form"] == "peft":
        yield "library_name: peft"
    if _HUB_NAME.fullmatch(model):  # the hub refuses a card whose base model is a folder's name
        yield f"base_model: {json.dumps(model)}"
    yield "---\n"
    yield f"# {text.markdown(facts.names[record.number])}\n"
    what = "An adapter for {}" if about["form"] != "merged" else "{} with an adapter in its weights"
    yield f"{what.format(text.code(model))}, trial {record.number} of an autopeft search. {_sizes(facts, record)}\n"
    yield "## Scores\n"
    yield "| score | value | what it is |\n|---|---:|---|"
    yield from _scores(facts, record, about.get("retrained_score"))
    labels = facts.header.get("dataset", {}).get("label_names", ())
    if labels:
        yield "\n## Labels\n"
        yield ", ".join(text.code(label) for label in labels[:200])
    yield "\n## How to use it\n"
    yield from _usage(about)
    yield "\n## How it was made\n"
    yield f"{text.code(command)}\n"
    yield f"- seed: {text.code(record.trial.seed)}"
    yield from (
        f"- {text.markdown(key)}: {text.code(json.dumps(value, ensure_ascii=False))}"
        for key, value in record.params.items()
    )
    training = facts.history.config.get("training") or {}
    yield from (
        f"- training {text.markdown(key)}: {text.code(value)}" for key, value in training.items() if value is not None
    )
    yield "\n## Provenance\n"
    for name, value in content.provenance_rows(facts):
        if not name.endswith("path"):  # the card is published, the folders of this machine are not
            yield f"- {text.markdown(name)}: {text.code(value)}"


def _usage(about: Mapping[str, Any]) -> Iterator[str]:
    if about["form"] == "merged":
        yield "A stock transformers model, fp32: what was trained is in its weights. In this folder:\n"
        if about.get("dequantised"):
            yield f"Its base was trained on in {about['dequantised']}; these weights are the dequantised ones.\n"
        yield "```python"
        yield from _stock(about)
        yield "```\n"
        yield "Or with autopeft:\n"
    elif about["form"] == "peft":
        its_head = "" if _writes(about) else ", its head among it"
        yield f"A stock peft adapter{its_head}. In this folder:\n"
        yield "```python"
        yield from _stock(about)
        yield "```\n"
        yield "Or with autopeft:\n"
    else:
        yield "Stock peft cannot hold what was trained here; autopeft loads it. In this folder:\n"
    images, texts = _columns(about)
    columns: dict[str, Any] = dict.fromkeys(texts, "a text") if texts else dict.fromkeys(images, "picture.png")
    columns |= dict.fromkeys(_conversations(about), SAID)
    columns |= dict.fromkeys(_sounds(about), "sound.wav")
    yield "```python"
    yield "import autopeft\n"
    trust = ", trust_remote_code=True" if about["trust_remote_code"] else ""
    yield f'adapter = autopeft.load("."{trust})  # base=… where the base model has moved'
    rows = ", ".join(f"{json.dumps(name)}: [{json.dumps(value)}]" for name, value in columns.items())
    yield (
        f"print(adapter.predict({{{rows}}}))" if rows else "# adapter.predict({column: values}): labels, probabilities"
    )
    yield "```\n"
    yield "Or a whole file: `autopeft predict . new.csv`, with `--base` where the base model has moved."


def _stock(about: Mapping[str, Any]) -> Iterator[str]:
    """Code that loads and runs the export with transformers and peft alone."""
    images, texts = _columns(about)
    sounds = _sounds(about) if about["auto_class"] == "AutoModelForAudioClassification" else []
    processor = "AutoTokenizer" if texts or _writes(about) else "AutoImageProcessor" if images else ""
    processor = processor or ("AutoFeatureExtractor" if sounds else "")
    labels = about["about"].get("label_names") if about["auto_class"].endswith("Classification") else None
    is_adapter, writes = about["form"] == "peft", _writes(about)
    if about.get("quantisation_config"):
        yield "import json"
    if sounds:
        yield "import soundfile"
    yield "import torch"
    if is_adapter:
        yield f"from peft import {_auto_peft(about) if writes else 'PeftConfig, PeftModel'}"
    if images:
        yield "from PIL import Image"
    used = [processor, "" if is_adapter and writes else about["auto_class"], "GenerationConfig" if writes else ""]
    yield f"from transformers import {', '.join(sorted(filter(None, used)))}\n"
    if about.get("quantisation_config"):
        yield "from transformers.quantizers import AutoQuantizationConfig\n"
    if labels:
        yield f"labels = {json.dumps(labels, ensure_ascii=False)}"
    yield from _loading(about, labels)
    if writes:
        yield 'tokenizer = AutoTokenizer.from_pretrained(".", padding_side="left")'
        if _conversations(about):
            yield f"said = [{json.dumps(SAID)}]"
            options = 'add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"'
            yield f"inputs = tokenizer.apply_chat_template(said, {options})"
        else:
            yield f'inputs = tokenizer([{_prompt(about)}], padding=True, return_tensors="pt")'
        yield 'given = {name: inputs[name] for name in ("input_ids", "attention_mask")}'
        yield 'config = GenerationConfig.from_pretrained(".")'
        yield f"greedy = {{'do_sample': False, 'max_new_tokens': {_new_tokens(about)}}}".replace("'", '"')
        yield "written = model.generate(**given, generation_config=config, **greedy)"
        new = (
            "written" if about["auto_class"] == "AutoModelForSeq2SeqLM" else 'written[:, given["input_ids"].shape[1] :]'
        )
        yield f"print(tokenizer.batch_decode({new}, skip_special_tokens=True))"
        return
    if texts:
        cut = f", max_length={about['max_length']}" if about["max_length"] else ""
        yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
        values = ", ".join('["a text"]' for _ in texts)
        yield f'inputs = tokenizer({values}, truncation=True{cut}, padding=True, return_tensors="pt")'
    elif images:
        yield 'processor = AutoImageProcessor.from_pretrained(".")'
        yield 'inputs = processor([Image.open("picture.png").convert("RGB")], return_tensors="pt")'
    elif sounds:
        yield 'extractor = AutoFeatureExtractor.from_pretrained(".")'
        yield 'sound, rate = soundfile.read("sound.wav", dtype="float32")  # one channel, at extractor.sampling_rate'
        yield 'inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")'
    else:
        yield "# model(pixel_values=…).logits has a column a label"
        return
    yield "with torch.no_grad():"
    if labels and about["auto_class"] == "AutoModelForTokenClassification":
        yield "    # A tag a token, special ones too; `autopeft predict` gives one a word."
        yield "    print([[labels[index] for index in row] for row in model(**inputs).logits.argmax(-1)])"
    elif labels and "threshold" not in about["about"]:
        yield "    print([labels[index] for index in model(**inputs).logits.argmax(-1)])"
    else:
        yield "    print(model(**inputs).logits)  # `autopeft predict` makes answers of them"


def _loading(about: Mapping[str, Any], labels: Any) -> Iterator[str]:
    """Code that loads the model: fp32, as it was trained, whatever the checkpoint's own precision is; or quantised."""
    trust = ", trust_remote_code=True" if about["trust_remote_code"] else ""
    stored = about.get("quantisation_config")
    if stored:
        yield f"stored = json.loads({json.dumps(stored)!r})  # {about['quantisation']}, as it was trained"
        trust += ", quantization_config=AutoQuantizationConfig.from_dict(stored)"
    if about["form"] == "merged" or _writes(about):
        loader = about["auto_class"] if about["form"] == "merged" else _auto_peft(about)
        yield f'model = {loader}.from_pretrained(".", dtype=torch.float32{trust}).eval()'
        return
    outputs = about["about"]["n_outputs"]
    sized = " num_labels=len(labels)," if labels else f" num_labels={outputs}," if outputs else ""
    yield 'config = PeftConfig.from_pretrained(".")  # names the base model'
    yield f"base = {about['auto_class']}.from_pretrained("
    yield '    config.base_model_name_or_path, revision=config.revision or "main", dtype=torch.float32,' + sized
    yield f"    ignore_mismatched_sizes=True{trust},  # the adapter brings its own head"
    yield ")"
    if about.get("pad_token_id") is not None:
        yield f"base.config.pad_token_id = {about['pad_token_id']}  # its own config names none: rows share batches"
    yield 'model = PeftModel.from_pretrained(base, ".").eval()'


def _auto_peft(about: Mapping[str, Any]) -> str:
    return str(about["auto_class"]).replace("AutoModel", "AutoPeftModel")


def _writes(about: Mapping[str, Any]) -> bool:
    """Whether it generates text, by an output layer that is the base's own."""
    return about["auto_class"] in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def _new_tokens(about: Mapping[str, Any]) -> int:
    return int(about["options"].get("new_tokens", 64))


def _columns(about: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The input columns: (of pictures, of texts); none of a task that has no processor of its own."""
    pictures = [name for name, kind in about["inputs"].items() if kind == "picture"]
    return pictures, [name for name, kind in about["inputs"].items() if kind in ("text", "texts")]


def _conversations(about: Mapping[str, Any]) -> list[str]:
    """The input columns of conversations."""
    return [name for name, kind in about["inputs"].items() if kind == "conversation"]


def _prompt(about: Mapping[str, Any]) -> str:
    """An example of a prompt, as code: a template filled in."""
    template = next((about["data"].get(key) for key in ("prompt", "text") if is_template(about["data"].get(key))), None)
    filled = "a text" if template is None else fill(template, dict.fromkeys(columns_in(template), "a text"))
    return json.dumps(filled, ensure_ascii=False)


def _sounds(about: Mapping[str, Any]) -> list[str]:
    """The input columns of sounds."""
    return [name for name, kind in about["inputs"].items() if kind == "sound"]


def _sizes(facts: Facts, record: Record) -> str:
    metrics = {**record.known, **record.metrics}
    if "trainable_parameters" not in metrics:
        return ""
    size = metrics["trainable_parameters"]
    whole = facts.model_parameters
    part = f" ({text.share(size, whole)} of the model)" if whole else ""
    head = f", {text.count(metrics['head_parameters'])} of them the head's" if metrics.get("head_parameters") else ""
    return f"It has {text.count(size)} trained parameters{part}{head}."


def _scores(facts: Facts, record: Record, retrained: float | None) -> Iterator[str]:
    confirmed = facts.confirmation(record)
    metric = text.markdown(text.metric_title(facts.metric))
    if confirmed is not None:
        yield f"| {metric} | {confirmed.value} | {confirmed.label}: of its retrainings, this one is of the search's seed |"
    yield f"| {metric} | {text.score(facts.score(record))} | {facts.validation_label}, the best of many: flattered |"
    if retrained is not None:
        yield f"| {metric} | {text.score(retrained)} | validation, of these weights: trained again for this export |"
    for baseline in facts.baselines:
        yield (
            f"| {metric}: {text.markdown(baseline.title)} | {text.score(baseline.score)} | validation, for comparison |"
        )
