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


def inputs(model):
    if "ImageClassification" in type(model).__name__:
        side = model.config.image_size
        return {"pixel_values": torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))}
    return {
        "input_ids": torch.tensor([[2, 5, 6, 7], [2, 5, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
