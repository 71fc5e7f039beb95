"""A model from transformers: load it frozen, look at it on the meta device, name its parts, clone it.

`ModelView` is how everything else speaks of a model: its blocks, the kinds of modules in them, its head. The names are
resolved here, from the tables below; a new architecture is a row there. Knows nothing of methods.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from autopeft.errors import EnvironmentFault, UsageError
from autopeft.methods import CROSS
from autopeft.model_folder import ADAPTER, refuse_adapter
from autopeft.recipe import OWN_HEAD, Head
from autopeft.tasks._reading import CODE, runs_code
from autopeft.tasks._text import model_padding
from autopeft.training import quantised
from autopeft.training.setup import ModelSpec

# Kind → pattern of the names of such modules inside a block; the first row that matches decides. If no row matches a
# linear layer, its shape decides (`_by_shape`).
_ATTENTION = (
    r"(.*\.)?(attn|attention|self_attn|cross_attn|encoder_attn|SelfAttention|EncDecAttention|crossattention"
    r"|self_attention|multi_head_attention)\.(.*\.)?"
)
_FROM_ENCODER = re.compile(r"(.*\.)?(cross_attn|encoder_attn|encdec_attn|EncDecAttention|crossattention)\..*")
KIND_RULES: tuple[tuple[str, str], ...] = (
    ("qkv", r"(.*\.)?(c_attn|in_proj|qkv|qkv_proj|query_key_value|Wqkv)"),
    ("query", r"(.*\.)?(query|query_proj|q_proj|q_lin|q|to_q|q_head|Wq)"),
    ("key", r"(.*\.)?(key|key_proj|k_proj|k_lin|k|to_k|k_head|Wk)"),
    ("value", r"(.*\.)?(value|value_proj|v_proj|v_lin|v|to_v|v_head|Wv)"),
    ("output", _ATTENTION + r"(dense|out_proj|o_proj|out_lin|c_proj|proj|o|Wo|post_proj)"),
    (
        "up",
        r"(.*\.)?(intermediate\.dense|intermediate_dense|lin1|fc1|c_fc|up_proj|gate_proj|gate_up_proj|wi|wi_0|wi_1)",
    ),
    ("up", r"(.*\.)?(ffn|dense_h_to_4h|fc_in|w1|w3)"),
    (
        "down",
        r"(.*\.)?(output\.dense|output_dense|lin2|fc2|mlp\.c_proj|down_proj|wo|ffn_output|dense_4h_to_h|fc_out|w2)",
    ),
)

# Model types in which each block runs once, on the output of the block before, as the prefix cache needs. A test checks
# each. Not in the list: T5 (block 0 passes its position bias on), ALBERT (one block runs many times), DeBERTa (a block
# returns a pair).
CHAINED = frozenset({
    "bert", "camembert", "deit", "distilbert", "electra", "gpt2", "llama", "mobilenet_v1", "mobilenet_v2",
    "roberta", "vit", "xlm-roberta",
})  # fmt: skip

# Modules that run after the blocks, by the first part of their name; all others outside the blocks run before.
ABOVE = re.compile(
    r"(pooler|norm|final_norm|ln_f|final_layer_norm|final_layernorm|layernorm|post_layernorm|fc_norm|conv_1x1)$"
)

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class ModelView:
    """The parts of one model, by full module names.

    Attributes:
        blocks: The repeated blocks, in order of running: those of an encoder, then those of its decoder.
        stem: Modules with parameters that run before block 0, or between an encoder's blocks and its decoder's.
        kinds: Module kind → its modules in the blocks, in order. Convolutions: `convolution`, and `depthwise` where
            they are grouped; fused attention projections: `qkv`; those of a decoder's attention to its encoder:
            `cross_query`, `cross_key`, `cross_value`, `cross_output`.
        head: Modules that each trial initialises and trains: outside the pretrained model, or not in its checkpoint.
        above: Modules after the blocks that are not the head, such as the last norm.
        unknown: Linear and convolution modules in the blocks whose kind is clear from neither config, name nor shape.
        chain: Number of leading blocks that run once each, on the output of the block before; 0 if that is not known.
        model_type: Model type in transformers' words.
        embeddings: Token embedding; empty for a model that reads no tokens.
        output: A language model's output layer, if it is not the head; it may share its weight with the embeddings.
        chosen: The configuration's head (`training.head`); the default is the one that the architecture has.
        left_out: Number of blocks above the one that the head reads. They are not among `blocks`.
        quantised: Linear layers whose weights are stored in 4 or 8 bits.
    """

    blocks: tuple[str, ...]
    stem: tuple[str, ...]
    kinds: Mapping[str, tuple[str, ...]]
    head: tuple[str, ...]
    above: tuple[str, ...]
    unknown: tuple[str, ...]
    chain: int
    model_type: str
    embeddings: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    chosen: Head = OWN_HEAD
    left_out: int = 0
    quantised: tuple[str, ...] = ()

    @property
    def unknown_inside(self) -> tuple[str, ...]:
        """Names of the modules of unknown kind inside their block, each once."""
        inside = {name: block for block in self.blocks for name in self.unknown if _within(name, block)}
        return tuple(dict.fromkeys(name.removeprefix(f"{block}.") for name, block in inside.items()))

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def block_of(self, name: str) -> int:
        """Returns the block of a module or parameter: -1 below the blocks, `n_layers` above them and in the head."""
        for index, block in enumerate(self.blocks):
            if _within(name, block):
                return index
        return self.n_layers if self.is_above(name) else -1

    def is_above(self, name: str) -> bool:
        return any(_within(name, part) for part in (*self.head, *self.above))

    def in_head(self, name: str) -> bool:
        return any(_within(name, part) for part in self.head)


# ── load ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def commit(path: str, revision: str | None) -> str | None:
    """Returns today's commit of a revision of a hub model; None for a folder.

    Raises:
        EnvironmentFault: The model cannot be had.
        UsageError: It is a peft adapter, or holds one.
    """
    if Path(path).is_dir():
        return None
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    try:
        if cached_file(path, ADAPTER, revision=revision or "main", _raise_exceptions_for_missing_entries=False):
            raise UsageError(
                f"the model {path!r} on the hub holds a peft adapter ({ADAPTER}): merge it into its base (peft's "
                "merge_and_unload) and give the merged model, or give the base"
            )
        file = cached_file(path, "config.json", revision=revision or "main")
    except OSError as fault:
        raise _not_had(path, fault) from fault
    found: str | None = extract_commit_hash(file, None)
    return found or revision


def load_model(
    spec: ModelSpec, auto_class: str, n_outputs: int, *, seed: int = 0, device: str | torch.device = "cpu"
) -> nn.Module:
    """Loads a pretrained model: fp32 but for what is quantised, in evaluation mode, all frozen.

    Args:
        spec: Which model.
        auto_class: "AutoModelForSequenceClassification".
        n_outputs: Size of the head; 0 to keep that of the checkpoint. A checkpoint's head of another size is replaced.
        seed: Seed of weights that the checkpoint lacks. They are the head's, which each trial initialises anyway.
        device: Where it computes.

    Raises:
        EnvironmentFault: The model cannot be had, or the library that quantises is not installed.
        UsageError: The checkpoint lacks weights below the head.
        NoSuchAttention: transformers has no such attention for this model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.quantisation is None:
            model = _from_pretrained(spec, auto_class, n_outputs, attn_implementation=spec.attention)
            return model.eval().to(device)
        meta = meta_model(spec, auto_class, n_outputs)
        config = quantised.loading_config(spec.quantisation, meta, view(meta).quantised)
        model = _from_pretrained(
            spec, auto_class, n_outputs, attn_implementation=spec.attention, quantization_config=config,
            device_map={"": device},
        )  # fmt: skip
        quantised.settle(model)
    return model.eval()


class NoSuchAttention(UsageError):
    """The model has no attention of that kind."""


def meta_model(spec: ModelSpec, auto_class: str, n_outputs: int, *, with_attention: bool = False) -> nn.Module:
    """Builds the same model on the meta device: names and shapes only, no weights, no memory.

    Args:
        with_attention: Whether to check that the model has the attention that `spec` names.

    Raises:
        NoSuchAttention: The model does not have that attention.
    """
    options = {"attn_implementation": spec.attention} if with_attention else {}
    return _from_pretrained(spec, auto_class, n_outputs, device_map="meta", **options).eval()


def _from_pretrained(spec: ModelSpec, auto_class: str, n_outputs: int, **options: Any) -> nn.Module:
    import transformers

    path = spec.path
    refuse_adapter(path)
    common = {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(path, **common)
            config._attn_implementation = None  # a config may name a kernel of the hub, which is code
            if n_outputs and config.num_labels != n_outputs:
                config.num_labels = n_outputs  # also replaces the checkpoint's label names
            pad = model_padding(config, path, common)
            if pad is not None:  # the classifiers of GPT-2 and Llama read the last token that is no padding
                config.pad_token_id = config.get_text_config().pad_token_id = pad
            model: Any
            model, info = getattr(transformers, auto_class).from_pretrained(
                path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True,
                **common, **options,
            )  # fmt: skip
    except pickle.UnpicklingError as fault:  # torch reads old formats with a list of what may be in them
        raise UsageError(
            f"the weights of {path!r} are a pickle that holds more than tensors, which could run code: refused. Take a "
            "checkpoint in safetensors"
        ) from fault
    except OSError as fault:
        raise _not_had(path, fault) from fault
    except ValueError as fault:
        attention = options.get("attn_implementation")
        if attention and any(word in str(fault).lower() for word in ("attention", "attn", "sdpa")):
            raise NoSuchAttention(
                f"the model {path!r} has no {attention} attention: set training.attention to eager, or to auto"
            ) from fault
        if CODE in str(fault):
            raise runs_code(path) from fault
        if "model_type" not in str(fault):
            raise
        why = str(fault).splitlines()[0]
        raise UsageError(
            f"the model {path!r} is none that transformers {transformers.__version__} knows: {why}"
        ) from fault
    model.autopeft_source = spec  # source of the tokenizer, for a task that calls the model
    model.requires_grad_(False)
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    model.autopeft_kinds = dict(spec.kinds)
    model.autopeft_fresh = tuple(sorted({name.rpartition(".")[0] for name in fresh}))
    model.autopeft_quantised = spec.quantisation is not None
    lacking = [name for name in model.autopeft_fresh if not view(model).in_head(name)]
    if lacking:
        raise UsageError(f"the checkpoint {path!r} lacks the weights of {', '.join(lacking)}: it is another model's")
    loaded: nn.Module = model
    return loaded


def _not_had(path: str, fault: OSError) -> EnvironmentFault:
    return EnvironmentFault(f"the model {path!r} cannot be had: {str(fault).splitlines()[0]}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides transformers' load report and progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# ── view ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def view(model: nn.Module) -> ModelView:
    """Names the parts of a model, on any device.

    Raises:
        UsageError: The model has no repeated blocks.
    """
    lists = _block_lists(model)
    blocks = tuple(f"{name}.{index}" for name, entries in lists for index in range(len(entries)))
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    head = _head(model, blocks)
    above, stem = _outside(model, lists, head)
    kinds, unknown = _kinds(model, blocks)
    return ModelView(
        blocks=blocks,
        stem=stem,
        kinds=kinds,
        head=head,
        above=above,
        unknown=unknown,
        chain=len(blocks) if model_type in CHAINED else 0,
        model_type=model_type,
        embeddings=_names(model, [module for module in [_inputs(model)] if isinstance(module, nn.Embedding)]),
        output=_names(model, [module for module in [_outputs(model)] if module is not None]),
        quantised=quantised.quantised_names(model, blocks) if getattr(model, "autopeft_quantised", False) else (),
    )


def _inputs(model: nn.Module) -> nn.Module | None:
    """Returns the input embedding that transformers names; None if the model names none."""
    try:
        found: nn.Module | None = cast(Any, model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


def _outputs(model: nn.Module) -> nn.Module | None:
    """Returns a language model's output layer; None for other models."""
    try:
        found: nn.Module | None = cast(Any, model).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


def _names(model: nn.Module, modules: list[nn.Module]) -> tuple[str, ...]:
    """Returns the names of some modules. A module with several names is listed once."""
    return tuple(name for name, module in model.named_modules() if any(module is one for one in modules))


def _block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Finds the lists of same-class modules with the most parameters: one list, or an encoder's and a decoder's.

    An encoder's list comes first. Its blocks may be of another class than the decoder's (BART).
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(entry) for entry in module}) == 1
    ]
    sizes = {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in lists}
    if not lists or not max(sizes.values()):
        raise UsageError(f"{type(model).__name__} has no list of like blocks, so there are no layers to adapt")
    largest, entries = max(lists, key=lambda pair: sizes[pair[0]])
    depth = largest.count(".")
    twins = {largest.replace("decoder", "encoder"), largest.replace("encoder", "decoder")}
    found = [(n, m) for n, m in lists if n in twins or (type(m[0]) is type(entries[0]) and n.count(".") == depth)]
    return sorted(found, key=lambda pair: "decoder" in pair[0].split("."))


def _head(model: nn.Module, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Finds the head: children outside the pretrained model, and modules above the blocks that the checkpoint lacks.

    A language model's output layer is pretrained: such a model has no head.
    """
    prefix = getattr(model, "base_model_prefix", "")
    outside = []
    if prefix and hasattr(model, prefix) and getattr(model, "get_output_embeddings", lambda: None)() is None:
        outside = [n for n, m in model.named_children() if n != prefix and any(True for _ in m.parameters())]
    fresh = []
    for name in getattr(model, "autopeft_fresh", ()):
        owner = next((part for part in _ancestors(name) if ABOVE.match(part.rpartition(".")[2])), name)
        if not any(_within(owner, part) for part in (*outside, *blocks)) and ABOVE.match(owner.rpartition(".")[2]):
            fresh.append(owner)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return tuple(sorted({*outside, *fresh}, key=order.__getitem__))


def _outside(
    model: Any, lists: list[tuple[str, nn.ModuleList]], head: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Finds the modules with parameters outside the blocks and the head: (above the blocks, below them)."""
    paths = {part for name, _ in lists for part in _ancestors(name)}
    above: list[str] = []
    below: list[str] = []
    last = lists[-1][0]
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    inputs = {id(parameter) for parameter in model.get_input_embeddings().parameters()} if output is not None else set()
    for container in ["", *sorted(paths - {name for name, _ in lists}, key=len)]:
        children = model.get_submodule(container).named_children() if container else model.named_children()
        seen_blocks = False
        for leaf, child in children:
            name = f"{container}.{leaf}" if container else leaf
            if name in paths:
                seen_blocks = True
            elif child is output:
                if not any(id(parameter) in inputs for parameter in child.parameters()):  # tied: already below
                    above.append(name)
            elif name not in head and any(True for _ in child.parameters()):
                is_above = seen_blocks and ABOVE.match(leaf) and (not container or _within(last, container))
                (above if is_above else below).append(name)
    return tuple(above), tuple(below)


def _kinds(model: nn.Module, blocks: tuple[str, ...]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Sorts the adaptable modules of the blocks by kind. Returns them, and the modules of unknown kind.

    The config decides first, then the module's name, then its shape.

    Raises:
        UsageError: The config names modules that do not exist.
    """
    said: Mapping[str, tuple[str, ...]] = getattr(model, "autopeft_kinds", {})
    kinds: dict[str, list[str]] = {}
    unknown, used = [], set()
    for block in blocks:
        layers = {
            name.removeprefix(f"{block}.") if name != block else "": module
            for name, module in model.get_submodule(block).named_modules(prefix=block)
            if isinstance(module, ADAPTABLE) or type(module).__name__ == "Conv1D"
        }
        shaped = _by_shape({name: module for name, module in layers.items() if _by_name(name, module) is None})
        for name, module in layers.items():
            fits = [(k, part) for k, parts in said.items() for part in parts if f".{name}".endswith(f".{part}")]
            used.update(fits)
            kind = fits[0][0] if fits else _by_name(name, module) or shaped.get(name)
            full = f"{block}.{name}" if name else block
            if kind is None:
                unknown.append(full)
            else:
                kinds.setdefault(kind, []).append(full)
    wrong = [entry for kind, entries in said.items() for entry in entries if (kind, entry) not in used]
    if wrong:
        last = ", ".join(layers)
        raise UsageError(f"model.kinds: no layer of a block is called {', '.join(wrong)}; the last block has {last}")
    return {kind: tuple(names) for kind, names in kinds.items()}, tuple(unknown)


def _by_name(name: str, module: nn.Module) -> str | None:
    """Tells the kind of a module from its name inside its block."""
    if isinstance(module, nn.Conv2d):
        return "depthwise" if module.groups > 1 else "convolution"
    kind = next((kind for kind, pattern in KIND_RULES if re.fullmatch(pattern, name)), None)
    return CROSS.get(kind, kind) if kind and _FROM_ENCODER.fullmatch(name) else kind


def _by_shape(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Tells the kinds of linear layers from their shapes, if the names say nothing.

    A layer that widens, followed in the same module by one that returns to the first width, is a feed-forward (`up`,
    `down`). The first layer may also hold both halves of a gated one. A layer that triples in an attention is `qkv`.
    """
    beside: dict[str, list[tuple[str, int, int]]] = {}
    for name, module in layers.items():
        if isinstance(module, nn.Linear):
            beside.setdefault(name.rpartition(".")[0], []).append((name, module.in_features, module.out_features))
    out = {}
    for parent, found in beside.items():
        if "attn" in parent.lower() or "attention" in parent.lower():
            out.update({name: "qkv" for name, inputs, outputs in found if outputs == 3 * inputs})
            continue
        *firsts, (last, wide, narrow) = found
        ups = [name for name, inputs, outputs in firsts if inputs == narrow < wide and outputs in (wide, 2 * wide)]
        if ups and len(ups) == len(firsts):
            out.update(dict.fromkeys(ups, "up") | {last: "down"})
    return out


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _ancestors(name: str) -> list[str]:
    """`"a.b.c"` → `["a", "a.b", "a.b.c"]`."""
    parts = name.split(".")
    return [".".join(parts[: index + 1]) for index in range(len(parts))]


# ── clone ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clone_shared(model: nn.Module, own: Iterable[str]) -> nn.Module:
    """Clones modules, hooks and buffers, but shares the parameters. Parameters named in `own` are copied.

    Tied parameters stay tied, also if they are copied.
    """
    names = set(own)
    owned = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in names}
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if id(p) not in owned}
    memo |= quantised.shared_state(model)
    return copy.deepcopy(model, memo)


class Passed(nn.Module):
    """Stands for a block that is not computed, and returns its input."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, by its full name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)
