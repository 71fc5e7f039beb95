"""SmolLM2-135M-Instruct as benchmarks/smollm2.py converts it: what it writes is sensible, and its tokenizer is whole."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_the_converted_model_answers_in_its_chat_template(smollm2: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokens = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    assert model.dtype is torch.float32

    def answer(question: str) -> str:
        asked = tokens.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**asked, max_new_tokens=16, do_sample=False)
        return tokens.decode(written[0, asked["input_ids"].shape[1] :])

    assert answer("What is the capital of France?") == "The capital of France is Paris.<|im_end|>"
    assert answer("What is 2 + 3?") == "2 + 3 = 5<|im_end|>"


@pytest.mark.slow
def test_its_tokenizer_keeps_digits_apart_and_loses_nothing(smollm2: str) -> None:
    """As the published one does: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer.json."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(smollm2)
    text = "48/2 = <<48/2=24>>24  7\n#### 24, Ünïcode 数"
    assert tokens.decode(tokens(text)["input_ids"]) == text
    assert tokens.tokenize("248 and  7") == ["2", "4", "8", "Ġand", "ĠĠ", "7"]
    assert (tokens.eos_token, tokens.pad_token, tokens.model_max_length) == ("<|im_end|>", "<|im_end|>", 8192)
