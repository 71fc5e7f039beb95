"""Bases in 4 and 8 bits: which there are, which library each needs, and what it can do. Imports no torch.

The linear layers of the blocks are quantised; embeddings, norms, biases and all outside the blocks stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True, slots=True)
class Quantisation:
    """One way to store a frozen base.

    Attributes:
        library: Package that computes with it; an extra of autopeft has the same name.
        about: What it is, for people.
        merges: Whether dequantised weights give the same outputs, so that an adapter can be merged into them.
    """

    library: str
    about: str
    merges: bool


QUANTISATIONS: Mapping[str, Quantisation] = {
    "nf4": Quantisation("bitsandbytes", "4-bit NormalFloat in blocks of 64, as in QLoRA (arXiv:2305.14314)", True),
    "int8": Quantisation("bitsandbytes", "LLM.int8(): weights and activations in 8 bits (arXiv:2208.07339)", False),
    "torchao_int8": Quantisation("torchao", "8-bit weights with a scale an output, activations as they are", True),
}


def missing_library(name: str) -> str | None:
    """Says which library a quantisation lacks here, and how it is installed; None if it is there."""
    library = QUANTISATIONS[name].library
    if find_spec(library) is not None:
        return None
    return f"{name} needs {library}: pip install 'autopeft[{library}]'"
