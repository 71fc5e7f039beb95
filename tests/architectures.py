"""One small model of each architecture, with random weights, as classifiers of three labels."""

import torch
import transformers

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}


def make(architecture, **settings):
    torch.manual_seed(0)
    config = architecture.config_class(**settings)
    return architecture(config).eval().requires_grad_(False)


def bert():
    return make(transformers.BertForSequenceClassification, vocab_size=20, max_position_embeddings=8, **SIZE)


def roberta(architecture=transformers.RobertaForSequenceClassification):
    return make(architecture, vocab_size=20, max_position_embeddings=12, **SIZE)


def distilbert():
    return make(
        transformers.DistilBertForSequenceClassification,
        vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3,
    )  # fmt: skip


def deberta():
    return make(
        transformers.DebertaV2ForSequenceClassification,
        vocab_size=20, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4,
        norm_rel_ebd="layer_norm", share_att_key=True, **SIZE,
    )  # fmt: skip


def electra():
    return make(transformers.ElectraForSequenceClassification, vocab_size=20, embedding_size=8, **SIZE)


def vit(architecture=transformers.ViTForImageClassification):
    return make(architecture, image_size=8, patch_size=4, **SIZE)


def llama():
    return make(
        transformers.LlamaForSequenceClassification, vocab_size=20, num_key_value_heads=1, pad_token_id=0, **SIZE
    )


def gpt2(architecture=transformers.GPT2ForSequenceClassification):
    return make(
        architecture, vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=1, num_labels=3,
    )  # fmt: skip


def t5():
    return make(
        transformers.T5ForSequenceClassification,
        vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, num_labels=3, eos_token_id=9,
        decoder_start_token_id=0,
    )  # fmt: skip


def albert():
    return make(transformers.AlbertForSequenceClassification, vocab_size=20, embedding_size=8, **SIZE)


def mobilenet_v1():
    return make(transformers.MobileNetV1ForImageClassification, image_size=32, depth_multiplier=0.25, num_labels=3)


def mobilenet_v2():
    return make(transformers.MobileNetV2ForImageClassification, image_size=32, depth_multiplier=0.25, num_labels=3)


def deberta_v1():
    return make(
        transformers.DebertaForSequenceClassification,
        vocab_size=20, relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=8, **SIZE,
    )  # fmt: skip


def qwen2():
    return make(
        transformers.Qwen2ForSequenceClassification, vocab_size=20, num_key_value_heads=1, pad_token_id=0, **SIZE
    )


def opt():
    return make(
        transformers.OPTForSequenceClassification,
        vocab_size=20, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip


def gpt_neox():
    return make(transformers.GPTNeoXForSequenceClassification, vocab_size=20, pad_token_id=1, **SIZE)


def mpnet():
    return make(transformers.MPNetForSequenceClassification, vocab_size=20, max_position_embeddings=12, **SIZE)


def longformer():
    return make(
        transformers.LongformerForSequenceClassification,
        vocab_size=20, max_position_embeddings=12, attention_window=4, **SIZE,
    )  # fmt: skip


def esm():
    return make(
        transformers.EsmForSequenceClassification,
        vocab_size=20, max_position_embeddings=12, pad_token_id=1, mask_token_id=4, position_embedding_type="absolute",
        **SIZE,
    )  # fmt: skip


def modernbert():
    return make(
        transformers.ModernBertForSequenceClassification,
        vocab_size=20, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
        max_position_embeddings=64, **SIZE,
    )  # fmt: skip


def bart():
    return make(
        transformers.BartForSequenceClassification,
        vocab_size=20, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip


def xlnet():
    return make(
        transformers.XLNetForSequenceClassification,
        vocab_size=20, d_model=16, n_layer=2, n_head=2, d_inner=24, num_labels=3,
    )  # fmt: skip


def funnel():
    return make(
        transformers.FunnelForSequenceClassification,
        vocab_size=20, d_model=16, n_head=2, d_head=8, d_inner=24, block_sizes=[1, 1], num_decoder_layers=1,
        num_labels=3,
    )  # fmt: skip


def convnext():
    return make(
        transformers.ConvNextForImageClassification,
        image_size=32, hidden_sizes=[8, 16], depths=[2, 2], num_stages=2, num_labels=3,
    )  # fmt: skip


MAKE = {
    "bert": bert,
    "roberta": roberta,
    "camembert": lambda: roberta(transformers.CamembertForSequenceClassification),
    "xlm-roberta": lambda: roberta(transformers.XLMRobertaForSequenceClassification),
    "distilbert": distilbert,
    "electra": electra,
    "vit": vit,
    "deit": lambda: vit(transformers.DeiTForImageClassification),
    "llama": llama,
    "gpt2": gpt2,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
}

# Those that read texts, also where nothing above says of them what holds of most.
TEXT = {
    **{name: made for name, made in MAKE.items() if name not in ("vit", "deit", "mobilenet_v1", "mobilenet_v2")},
    "albert": albert,
    "bart": bart,
    "deberta": deberta_v1,
    "deberta-v2": deberta,
    "esm": esm,
    "funnel": funnel,
    "gpt_neox": gpt_neox,
    "longformer": longformer,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "opt": opt,
    "qwen2": qwen2,
    "t5": t5,
    "xlnet": xlnet,
}


def inputs(model):
    if "ImageClassification" in type(model).__name__:
        side = model.config.image_size
        return {"pixel_values": torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))}
    return {
        "input_ids": torch.tensor([[2, 5, 6, 7], [2, 5, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
