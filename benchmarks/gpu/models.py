"""Models of real shapes with random weights, and smaller ones for a rehearsal on a CPU."""

from __future__ import annotations

from pathlib import Path

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}  # fmt: skip
LLAMA_1B = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
VIT_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TINY_LLAMA = {**TINY, "num_key_value_heads": 2, "vocab_size": 49152, "head_dim": 16}


def language_model(folder: Path, shape: dict[str, object], tokenizer: Path, device: str) -> str:
    """A Llama, stored in bf16, with SmolLM2's tokenizer: ids of a larger vocabulary beyond it are not met."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=2)
        with torch.device(device):
            model = LlamaForCausalLM(config)
        model.to(torch.bfloat16).cpu().save_pretrained(folder)
        del model
        if device == "cuda":  # the sides are processes of their own, and need all of the card
            torch.cuda.empty_cache()
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def vision_transformer(folder: Path, shape: dict[str, object], pixels: int) -> str:
    """A ViT with patches of 16, or of 8 where pictures are small."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = ViTConfig(**shape, image_size=pixels, patch_size=16 if pixels > 64 else 8, num_labels=10)
        ViTForImageClassification(config).save_pretrained(folder)
        side = {"height": pixels, "width": pixels}
        ViTImageProcessor(size=side).save_pretrained(folder)
    return str(folder)


def tiny_encoder(folder: Path, tokenizer: Path) -> str:
    """A BERT of two layers with MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        tokens = AutoTokenizer.from_pretrained(tokenizer)
        BertModel(BertConfig(**TINY, vocab_size=len(tokens))).save_pretrained(folder)
        tokens.save_pretrained(folder)
    return str(folder)
