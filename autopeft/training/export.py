"""Exported adapters: a folder for stock `peft` if peft can hold the adapter, else tensors and a JSON file of ours.

On demand the adapter is merged into its base: then the folder is a stock transformers model.

    exported = autopeft.load("my-adapter")
    exported.predict(rows)                      # {"text": [...]} → a frame of labels and probabilities

Safetensors only; `autopeft.json` says what was trained on which base.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autopeft import plugins
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.methods import Site
from autopeft.recipe import OWN_HEAD, Head
from autopeft.tasks import Raw, Source, Split, Task, input_columns
from autopeft.tasks._format import KEYS as FORMAT_KEYS
from autopeft.tasks._targets import is_missing, n_rows, some_rows
from autopeft.tasks._templates import is_template
from autopeft.tasks._writing import end_tokens
from autopeft.training.answers import Answers, score_batches
from autopeft.training.batches import collate
from autopeft.training.head import headed
from autopeft.training.merge import merge
from autopeft.training.model import clone_shared, load_model, quiet, view
from autopeft.training.offline import from_disk_first
from autopeft.training.quantised import dequantise
from autopeft.training.recipe import attach, load_trained, read_tensors, resolve
from autopeft.training.setup import ModelSpec, Setup

SCHEMA = 3  # 1: classifications only, `label_names` in place of `about`; 2: no form "merged"
NAME = "autopeft.json"
TENSORS = "trained.safetensors"
ADAPTER = "adapter_model.safetensors"  # of a stock peft adapter
PROCESSOR = ("tokenizer*", "vocab.*", "*.model", "preprocessor_config.json", "processor_config.json")  # of a base's
TOLERANCE = 1e-5  # as a share of the largest logit; a different batch shape alone may change this much
MERGED_TOLERANCE = 1e-4  # merged weights round otherwise; many norms in a row amplify it (a convolutional net's)

# transformers class → peft's name of the task, by which `AutoPeftModelFor…` knows what to load.
TASK_TYPES = {"AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM"}


def export(
    *,
    setup: Setup,
    params: Mapping[str, Any],
    seed: int,
    tensors: Path,
    about: Mapping[str, Any],
    to: Path,
    card: Callable[[Mapping[str, Any]], str],
    facts: Mapping[str, Any],
    merged: bool = False,
) -> Path:
    """Writes a trial's adapter to a folder, or the base with the adapter merged into it.

    Args:
        setup: Setup of the search.
        params, seed: Configuration and seed of the trial.
        tensors: File of the trial's trained tensors, as the worker wrote them.
        about: Description of the data (`tasks.Dataset.about`).
        to: Destination folder; it must be empty or absent.
        card: Writes the model card, README.md, from the content of autopeft.json.
        facts: Further content of autopeft.json.
        merged: Whether to write the whole model, with the adapter in its weights.

    Raises:
        UsageError: The configuration cannot be merged.
    """
    task = setup.task.make()
    base: Any = load_model(setup.model, task.auto_class, about["n_outputs"], seed=setup.seed)
    quantisation = None if merged else setup.model.quantisation
    stored = base.config.quantization_config.to_dict() if quantisation is not None else None
    if merged and setup.model.quantisation is not None:
        dequantise(base, setup.model.quantisation, view(base).quantised)
    whole = _merged(base, params, seed, read_tensors(tensors), about) if merged else None
    to.mkdir(parents=True, exist_ok=True)
    form = "merged" if merged else "peft" if is_peft(base, params) else "autopeft"
    if whole is not None:
        with quiet():
            whole.save_pretrained(to)
    elif form == "peft":
        _save_peft(base, params, read_tensors(tensors), setup, to)
    else:
        shutil.copyfile(tensors, to / TENSORS)
    _save_processor(task, setup, to)
    _save_generation(task, base, setup, to)
    columns = input_columns(task, setup.task.data)
    exported = {
        "schema": SCHEMA if merged else 2,
        "form": form,
        "base": setup.model.path,
        "revision": setup.model.revision,
        "trust_remote_code": setup.model.trust_remote_code,
        "task": setup.task.name,
        "options": dict(setup.task.options),
        "auto_class": task.auto_class,
        "data": {key: setup.task.data.get(key) for key in (*task.columns, "image_size", *FORMAT_KEYS)},
        "inputs": {column: task.columns[key] for column, key in columns.items()},
        "max_length": setup.task.max_length,
        "attention": setup.model.attention,
        "kinds": {kind: list(names) for kind, names in setup.model.kinds.items()},
        "quantisation": quantisation,  # of the base; None where weights are fp32
        "quantisation_config": stored,
        "dequantised": setup.model.quantisation if merged else None,
        "pad_token_id": _unsaid_padding(base, setup),
        "about": dict(about),
        "params": dict(params),
        "seed": seed,
        **facts,
    }
    (to / NAME).write_text(json.dumps(exported, indent=2) + "\n")
    (to / "README.md").write_text(card(exported), encoding="utf-8")
    return to


def is_peft(base: nn.Module, params: Mapping[str, Any]) -> bool:
    """Whether one stock peft adapter holds the recipe: one peft method, the model's own head, and convolutions that peft
    can wrap."""
    _, seen = headed(base, view(base), Head.of(params))
    parts = resolve(seen, params)
    is_one = seen.chosen == OWN_HEAD and len(parts) == 1 and parts[0].method.is_peft
    return is_one and not getattr(base.config, "tf_padding", False)


def _save_peft(
    base: nn.Module, params: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], setup: Setup, to: Path
) -> None:
    """Writes the tensors as a stock peft adapter, with the head in `modules_to_save`."""
    from peft import get_peft_model

    (part,) = resolve(view(base), params)
    config = part.method.config(Site(part.scope, part.keys))
    heads = view(base).head
    config.modules_to_save = [head.rpartition(".")[2] for head in heads] or None
    config.base_model_name_or_path = setup.model.path
    config.revision = setup.model.revision
    config.task_type = TASK_TYPES.get(setup.task.make().auto_class)
    own = [name for name, _ in base.named_parameters() if view(base).in_head(name)]
    with _without_peft_warning():
        model = get_peft_model(clone_shared(base, own), config)
    held = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            head = next((head for head in heads if name.startswith(f"{head}.")), None)
            if head is not None:
                name = f"{head}.modules_to_save.default.{name.removeprefix(f'{head}.')}"
            held[f"base_model.model.{name}"].copy_(tensor)
    model.save_pretrained(to)
    (to / "README.md").unlink(missing_ok=True)  # peft's own card is an empty template


def _merged(
    base: nn.Module, params: Mapping[str, Any], seed: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]
) -> Any:
    """Returns a stock transformers model: the base with the recipe in its weights, fp32, its labels by name."""
    parts = view(base)
    if headed(base, parts, Head.of(params))[1].chosen != OWN_HEAD:
        raise UsageError(
            "the head that this configuration chose is none of the architecture's, so that stock transformers could not "
            "load it: export it as an adapter"
        )
    attached = attach(base, parts, params, seed)
    load_trained(attached, tensors)
    model: Any = merge(attached, parts, params)
    labels = about.get("label_names")
    if labels and len(labels) == model.config.num_labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    return model


def _save_generation(task: Task, base: Any, setup: Setup, to: Path) -> None:
    """Writes a language model's generation config: the base's, ended as in `predict`, with a token for padding."""
    if task.auto_class not in TASK_TYPES or base.generation_config is None:
        return
    config = copy.deepcopy(base.generation_config)
    if config.pad_token_id is None:
        config.pad_token_id = base.config.get_text_config().pad_token_id
    config.eos_token_id = end_tokens(task.processor(setup.source), base)
    # Not by its own `save_pretrained`, which refuses some configs that were published.
    (to / "generation_config.json").write_text(config.to_json_string())


def _unsaid_padding(base: Any, setup: Setup) -> int | None:
    """Returns the padding token used in training if the base's config names none, as stock code cannot know it."""
    from transformers import AutoConfig

    pad = getattr(base.config.get_text_config(), "pad_token_id", None)
    revision, trust = setup.model.revision or "main", setup.model.trust_remote_code
    stock = AutoConfig.from_pretrained(setup.model.path, revision=revision, trust_remote_code=trust)
    return None if getattr(stock.get_text_config(), "pad_token_id", None) == pad else pad


def _save_processor(task: Task, setup: Setup, to: Path) -> None:
    """Saves the tokenizer or image processor as the task uses it, if the base has one."""
    folder = Path(setup.model.path)
    if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in PROCESSOR):
        processor = task.processor(setup.source)
        if processor is not None:
            processor.save_pretrained(to)


@dataclass(frozen=True)
class Exported:
    """An exported adapter, loaded.

    Attributes:
        folder: Folder of the adapter.
        about: Content of its autopeft.json.
        model: The transformers model with the adapter, in evaluation mode.
    """

    folder: Path
    about: Mapping[str, Any]
    model: nn.Module

    @cached_property
    def task(self) -> Task:
        task: Task = plugins.make("tasks", self.about["task"], self.about["options"])
        return task

    @property
    def source(self) -> Source:
        """Settings of the task's encoder. `load` has already checked whether code may run."""
        about = self.about
        return Source(
            about["base"], about["revision"], about["trust_remote_code"], about["max_length"], about["data"]
        )  # fmt: skip

    def answers(self, split: Split) -> Answers:
        """Runs the model over an encoded split and collects its answers."""
        device = next(self.model.parameters()).device
        found = Answers(self.task, split)
        with torch.no_grad():
            for rows in score_batches(split.lengths, self.model):
                found.take(rows, self.model(**collate(split, rows, device)).logits, self.model)
        return found

    def predict(self, rows: Mapping[str, Any]) -> Any:
        """Returns a frame with one answer a row. A classification gives `label` and a probability of each label.

        Args:
            rows: Input column → values. The columns are those of the training data, by name, in any order.

        Raises:
            UsageError: There are no rows, columns differ in length, a column is missing or unknown, or a cell is empty.
        """
        import pandas as pd

        keys = input_columns(self.task, self.about["data"])
        columns = list(keys) or list(rows)
        inputs = {name: list(rows[name]) for name in columns if name in rows}
        _require_columns(columns, list(rows))
        lengths = {name: len(values) for name, values in inputs.items()}
        count = max(lengths.values(), default=0)
        if not count or min(lengths.values()) < count:
            found = ", ".join(f"{length} of {name}" for name, length in lengths.items()) or "no column"
            raise UsageError(f"expected a row or more to predict, as many of each column; got {found}")
        for name, values in inputs.items():
            missing = [row for row, value in enumerate(values) if is_missing(value)]
            if missing and not is_template(self.about["data"].get(keys.get(name))):  # in a template it is an empty text
                raise UsageError(
                    f"{n_rows(missing)} without {name!r}: {some_rows(missing)}. Fill it in, or leave it out"
                )
        raw = Raw(inputs, {}, np.arange(count))
        source = self.source
        encoder = partial(self.task.encoder, source, self.about["about"])
        split = from_disk_first(source.model, self.about["revision"], encoder)(raw)
        return pd.DataFrame(self.task.answers(self.answers(split).kept, self.about["about"]))

    def predict_file(self, file: str | Path) -> Any:
        """Predicts the rows of a file, or the files of a folder; then the first column has the files' names."""
        file = Path(file).expanduser()
        rows = self.task.read_rows(file, self.about["data"])
        frame = self.predict(rows)
        if file.is_dir():
            frame.insert(0, "file", [Path(name).name for name in next(iter(rows.values()))])
        return frame


def _require_columns(columns: list[str], given: list[str]) -> None:
    """Raises UsageError unless the columns are those that the adapter was trained on."""
    absent = [name for name in columns if name not in given]
    unknown = [name for name in given if name not in columns]
    if absent or unknown:
        said = [f"no column {', '.join(map(repr, absent))}"] if absent else []
        said += [f"unknown columns {', '.join(map(repr, unknown))}"] if unknown else []
        raise UsageError(f"expected the columns {', '.join(columns)}; got {' and '.join(said)}")


def load(folder: str | Path, *, base: str | None = None, trust_remote_code: bool = False) -> Exported:
    """Loads an exported adapter, of either form, on its base.

    Args:
        folder: What `export` wrote.
        base: Folder or hub name of the base model, if the base has moved since the export.
        trust_remote_code: Whether code that comes with the base may run. The folder's own setting is not used.

    Raises:
        UsageError: The folder is no export, a newer autopeft wrote it, its base has moved, or the base needs code of
            its own.
    """
    folder = Path(folder).expanduser()
    if not (folder / NAME).is_file():
        raise UsageError(f"{folder} is no exported adapter: it has no {NAME}")
    about = _content(folder / NAME)
    if about["schema"] > SCHEMA:
        raise UsageError(f"{folder} has schema {about['schema']}, this autopeft reads up to {SCHEMA}: upgrade autopeft")
    if about["schema"] == 1:
        names = about["label_names"]
        about = {"options": {}, **about, "about": {"label_names": names, "n_outputs": len(names)}}
    if about["trust_remote_code"] and not trust_remote_code:
        raise UsageError(f"{about['base']} runs code of its own: load(..., trust_remote_code=True) if you trust it")
    if about["auto_class"] != plugins.make("tasks", about["task"], about["options"]).auto_class:
        raise UsageError(f"{folder / NAME} is damaged: {about['auto_class']!r} is no class of {about['task']}")
    if base is not None:
        about = {**about, "base": os.path.expanduser(base), "revision": None}
    if about["form"] == "merged":  # the folder is the whole model, wherever its base is
        about = {**about, "base": str(folder.resolve()), "revision": None}
    if Path(about["base"]).is_absolute() and not Path(about["base"]).is_dir():
        raise UsageError(
            f"the base model is not at {about['base']}: say where it is, load(..., base=…) or `autopeft predict --base …`"
        )
    return from_disk_first(about["base"], about["revision"], partial(_load, folder, about, trust_remote_code))


def _content(file: Path) -> dict[str, Any]:
    """Reads an autopeft.json."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise UsageError(f"{file} is damaged: {fault}") from fault
    if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
        raise UsageError(f"{file} is damaged: it says no schema")
    return found


def _load(folder: Path, about: Mapping[str, Any], trust_remote_code: bool) -> Exported:
    """The base with the adapter on it."""
    spec = ModelSpec(
        about["base"], about["revision"], trust_remote_code, about["attention"], about.get("kinds", {}),
        about.get("quantisation"),
    )  # fmt: skip
    model = load_model(spec, about["auto_class"], about["about"]["n_outputs"])
    if about["form"] == "peft":
        from peft import PeftModel

        if not (folder / ADAPTER).is_file():  # peft would look for a pickle, or on the hub
            raise UsageError(f"{folder} has no {ADAPTER}: adapters are loaded from safetensors only")
        read_tensors(folder / ADAPTER)
        with _without_peft_warning():
            return Exported(folder, about, PeftModel.from_pretrained(model, str(folder)).eval())
    if about["form"] == "merged":
        return Exported(folder, about, model)
    attached = attach(model, view(model), about["params"], about["seed"])
    try:
        load_trained(attached, read_tensors(folder / TENSORS))
    except ValueError as fault:
        raise UsageError(f"{folder}: {fault}") from fault
    return Exported(folder, about, attached.model.eval())


@contextlib.contextmanager
def _without_peft_warning() -> Iterator[None]:
    """Hides transformers' warning about a name that peft reads: the user cannot change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


# Run in a fresh process: stock libraries for a peft folder and a merged one, `autopeft.load` for ours.
_STOCK = """
import json, sys, torch, transformers, peft
from safetensors.torch import load_file, save_file
folder, base, revision, auto_class, labels, attention, inputs, out, trust, pad, stored = sys.argv[1:]
sized = {"num_labels": int(labels)} if int(labels) else {}
stock = {"attn_implementation": attention, "trust_remote_code": trust == "True", "dtype": torch.float32}
if json.loads(stored):
    config = transformers.quantizers.AutoQuantizationConfig.from_dict(json.loads(stored))
    stock |= {"quantization_config": config, "device_map": {"": "cpu"}}
if base == "merged":
    model = getattr(transformers, auto_class).from_pretrained(folder, **stock)
elif auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
    load = getattr(peft, auto_class.replace("AutoModel", "AutoPeftModel")).from_pretrained
    model = load(folder, **stock)
else:
    model = getattr(transformers, auto_class).from_pretrained(
        base, revision=revision, **sized, ignore_mismatched_sizes=True, **stock)
    if pad != "None":
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = int(pad)
    model = peft.PeftModel.from_pretrained(model, folder)
model.eval()
for module in model.modules():  # weights are compared, not the bf16 kernels that some CPUs have for 4 bits
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
with torch.no_grad():
    save_file({"logits": model(**load_file(inputs)).logits.contiguous()}, out)
"""
_OURS = """
import sys, torch, autopeft
from safetensors.torch import load_file, save_file
folder, inputs, out, trust = sys.argv[1:]
model = autopeft.load(folder, trust_remote_code=trust == "True").model
with torch.no_grad():
    save_file({"logits": model(**load_file(inputs)).logits.contiguous()}, out)
"""


def verify(folder: Path, expected: np.ndarray, inputs: Mapping[str, torch.Tensor]) -> float:
    """Loads the folder in a fresh process and compares its logits with those of the trained model.

    Args:
        expected: (n_rows, n_labels), the trained model's logits in fp32.
        inputs: The model's inputs for these rows.

    Returns:
        The largest difference, as a share of the largest logit.

    Raises:
        AutoPEFTError: The folder does not load, or its logits differ.
    """
    about = json.loads((folder / NAME).read_text())
    with tempfile.TemporaryDirectory(prefix="autopeft-verify-") as temporary:
        given, out = Path(temporary) / "inputs.safetensors", Path(temporary) / "logits.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in inputs.items()}, given)
        if about["form"] in ("peft", "merged"):
            base = "merged" if about["form"] == "merged" else about["base"]
            known = [base, about["revision"] or "main", about["auto_class"], about["about"]["n_outputs"]]
            words = [_STOCK, folder, *known, about["attention"], given, out, about["trust_remote_code"]]
            words += [about["pad_token_id"], json.dumps(about.get("quantisation_config"))]
        else:
            words = [_OURS, folder, given, out, about["trust_remote_code"]]
        done = subprocess.run([sys.executable, "-c", *map(str, words)], capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise AutoPEFTError(f"{folder} does not load in a fresh process: {last}")
        found = load_file(out)["logits"].float().numpy()
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= (MERGED_TOLERANCE if about["form"] == "merged" else TOLERANCE):
        raise AutoPEFTError(f"{folder} gives other logits than the trained model: {difference:.1e} of the largest")
    return difference
