"""Names that a person reads."""

import subprocess
import sys

import pytest

from autopeft.naming import describe


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"method": "lora", "lora.rank": 8, "lora.modules": ["query", "value"], "lora.layers": [3, 4, 5],
          "lora.lr": 2e-4},
         "LoRA rank 8 on query and value of layers 3–5, lr 2e-4"),
        ({"method": "lora", "lora.modules": ["query", "up", "down"], "lora.layers": [0, 1, 2, 3, 4, 5]},
         "LoRA rank 8 on query, up and down"),
        ({"method": "lora", "lora.modules": ["query"], "lora.layers": [0, 2, 3]},
         "LoRA rank 8 on query of layers 0, 2–3"),
        ({"method": "lora", "lora.modules": "all", "lora.layers": [2]}, "LoRA rank 8 on all modules of layer 2"),
        ({"method": "lora", "lora.rank": 8, "lora.rank.query": 4, "lora.rank.key": 0, "lora.modules": "all"},
         "LoRA rank 8 (4 on query, 0 on key) on all modules"),
        ({"method": "lora", "lora.rank.query": 4, "lora.rank.key": 0, "lora.rank.up": 2, "lora.modules": "all"},
         "LoRA rank 8 (4 on query, 0 on key, 2 on up) on all modules"),
        ({"method": "lora", "lora.modules": "all", "lora.rank.query": 4, "lora.rank.key": 0, "lora.rank.value": 4,
          "lora.rank.output": 0, "lora.rank.up": 0, "lora.rank.down": 2},
         "LoRA rank query 4, value 4, down 2"),
        ({"method": "lora", "lora.rank.query": 4}, "LoRA rank 8 (4 on query)"),
        ({"method": "lora", "lora.rank.query": 4, "lora.rank.value": 2}, "LoRA rank query 4, value 2"),
        ({"method": "lora", "lora.rank": 8, "lora.rank.query": 4, "lora.rank.up": 2, "lora.modules": ["query", "up"],
          "lora.rank.query.5": 1},
         "LoRA rank query 4, up 2 (1 on query in layer 5)"),
        ({"method": "lora", "lora.rank.3": 16}, "LoRA rank 8 (16 in layer 3)"),
        ({"method": "serial_adapter", "serial_adapter.size.0": 0}, "serial adapter of 48 (0 in layer 0)"),
        ({"method": "lora", "lora.layers": "first_2"}, "LoRA rank 8 in the first 2 layers"),
        ({"method": "lora", "lora.layers": "first_1"}, "LoRA rank 8 in the first layer"),
        ({"method": "lora", "lora.layers": "2-5"}, "LoRA rank 8 in layers 2–5"),
        ({"method": "lora", "lora.layers": "0-5"}, "LoRA rank 8"),
        ({"method": "lora", "lora.layers": [7, 8]}, "LoRA rank 8 in layers 7–8"),  # refused, and named all the same
        ({"method": "lora@attn+lora@ffn", "lora@attn.modules": ["query"], "lora@attn.lr": 1e-4, "lora@ffn.rank": 4,
          "lora@ffn.modules": ["up", "down"], "lora@ffn.lr": 1e-3},
         "LoRA rank 8 on query, lr 1e-4 + LoRA rank 4 on up and down, lr 1e-3"),
        ({"method": "lora@attn+lora@ffn", "lora@attn.rank": 0}, "LoRA rank 8"),
        ({"method": "lora", "lora.modules": ["query"], "lora.rank.query": 0}, "nothing but the head"),
        ({"method": "lora", "lora.layers": "2-3", "lora.rank.2": 0, "lora.rank.3": 0}, "nothing but the head"),
        ({"method": "lora", "lora.dora": True, "lora.rslora": True}, "DoRA rank 8 (rsLoRA)"),
        ({"method": "ia3", "ia3.lr": 0.003}, "(IA)³, lr 3e-3"),
        ({"method": "bias", "bias.layers": "last_2", "bias.lr": 1.5e-3}, "biases in the last 2 layers, lr 1.5e-3"),
        ({"method": "bias", "bias.layers": "last_1"}, "biases in the last layer"),
        ({"method": "norm", "norm.layers": [1]}, "norms in layer 1"),
        ({"method": "last_layers", "last_layers.count": 2, "last_layers.lr": 1e-4}, "last 2 layers, lr 1e-4"),
        ({"method": "head", "head.lr": 1e-3}, "head only, lr 1e-3"),
        ({"method": "full", "full.lr": 5e-5, "head.lr": 1e-3}, "full fine-tuning, lr 5e-5"),
        ({"method": "serial_adapter+parallel_adapter+prefix", "serial_adapter.size": 0, "parallel_adapter.size": 6,
          "prefix.size": 3, "shared.layers": [0, 2]},
         "parallel adapter of 6 in layers 0, 2 + prefix of 3 in layers 0, 2"),
        ({"method": "serial_adapter+prefix", "serial_adapter.size": 0, "prefix.size": 0}, "nothing but the head"),
        ({"method": "serial_adapter+prefix", "shared.layers": []}, "nothing but the head"),
    ],
)  # fmt: skip
def test_describe(params, name):
    assert describe(params, n_layers=6) == name


def test_naming_imports_no_torch():
    code = (
        "import sys; from autopeft.naming import describe; from autopeft import plugins\n"
        "for name in plugins.names('methods'): describe({'method': name}, 6)\n"
        "print({'torch', 'peft', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
