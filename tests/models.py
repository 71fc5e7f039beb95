"""Tiny models with random weights, built from configs in milliseconds, saved as transformers folders."""

import itertools
import json

import numpy as np
import torch

from autopeft.training.setup import Setup

WORDS = ["good", "bad", "fine", "awful", "day", "night", "film", "song", "nice", "dull"]

TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "d", "e", "f"]


def bert(folder, attention="eager"):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, num_labels=2,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32})
    )
    return str(folder)


def vit(folder):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def wav2vec2(folder, kind="wav2vec2", norm="layer"):
    """A tiny wav2vec2 or HuBERT at 4 kHz: with masks (`layer`), or a norm over time that takes none (`group`)."""
    import transformers

    torch.manual_seed(0)
    made = {"wav2vec2": transformers.Wav2Vec2Config, "hubert": transformers.HubertConfig}[kind]
    config = made(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16),
        conv_stride=(8, 5), conv_kernel=(16, 5), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        classifier_proj_size=16, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer",
    )  # fmt: skip
    transformers.AutoModelForAudioClassification.from_config(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=4_000, return_attention_mask=norm == "layer").save_pretrained(
        folder
    )
    return str(folder)


def ast(folder):
    """A tiny audio spectrogram transformer, which reads 64 frames of 16 bands at 4 kHz."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_length=64, num_mel_bins=16,
        patch_size=16, frequency_stride=16, time_stride=16,
    )  # fmt: skip
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(sampling_rate=4_000, num_mel_bins=16, max_length=64).save_pretrained(folder)
    return str(folder)


def yamnet(folder):
    """A tiny MobileNetV1 of one channel, as the log-mel patches of YAMNet have; no processor."""
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    torch.manual_seed(0)
    config = MobileNetV1Config(num_channels=1, depth_multiplier=0.25, image_size=96, tf_padding=True)
    model = MobileNetV1ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model.train()(pixel_values=torch.randn(32, 1, 96, 64))
    model.save_pretrained(folder)
    return str(folder)


def tone(hertz, seconds, rate=8_000, seed=0):
    """A sine with a little noise, (n_samples,)."""
    at = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * hertz * at) + np.random.default_rng(seed).normal(0, 0.01, len(at))


def write_tones(path, rows, seed=0):
    """A CSV of paths and labels: high and low tones of different lengths, as WAV, FLAC and Ogg files at 8 kHz."""
    import soundfile

    rng = np.random.default_rng(seed)
    lines = ["audio,label"]
    (path.parent / "sounds").mkdir(exist_ok=True)
    for index in range(rows):
        hertz = rng.uniform(*[(150, 300), (900, 1500)][index % 2])
        file = path.parent / "sounds" / f"{index}.{('wav', 'flac', 'ogg')[index % 3]}"
        soundfile.write(file, tone(hertz, rng.uniform(0.12, 0.5), seed=index), 8_000)
        lines.append(f"sounds/{file.name},{'high' if index % 2 else 'low'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def mobilenet(folder, tf_padding=True):
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=0.35, image_size=32, tf_padding=tf_padding)
    model = MobileNetV2ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean: random weights need calibrated statistics, or all features are 0
    model.train()(pixel_values=torch.randn(64, 3, 32, 32))
    model.save_pretrained(folder)
    MobileNetV2ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_tokenizer(folder, special=("pad", "eos", "bos"), side="right", template=True, **settings):
    """A tokenizer of words; the letters are its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>"}
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(TOKENS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    given = {f"{name}_token": names[name] for name in special}
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", padding_side=side, **given, **settings
    ).save_pretrained(folder)


def text_setup(folder):
    """Steps of 16 rows on a tiny BERT, reporting twice; all tensors are kept."""
    (folder / "model").mkdir()
    data = {"train": str(write_texts(folder / "train.csv", 240)), "text": "text", "label": "label",
            "validation_share": 0.25, "test_share": 0.25}  # fmt: skip
    return Setup.of(
        model=bert(folder / "model"), task="text_classification", data=data, folder=str(folder / "run"),
        cache=str(folder / "cache"), epochs=4, batch_size=16, keep="all", rungs=(0.25, 0.5), score_rungs=True,
    )  # fmt: skip


def picture_setup(folder, make):
    """Steps of 8 of 21 pictures on a tiny model that `make` writes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(21):
        place = folder / "pictures" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(place / f"{index}.png")
    (folder / "model").mkdir()
    return Setup.of(
        model=make(folder / "model"), task="image_classification", data={"train": str(folder / "pictures")},
        folder=str(folder / "run"), cache=str(folder / "cache"), steps=5, batch_size=8,
    )  # fmt: skip


def text_inputs():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(5, 15, (4, 7), generator=generator) * mask, "attention_mask": mask}


def image_inputs(size):
    return {"pixel_values": torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))}


def write_texts(path, rows, seed=0):
    """A CSV whose label is whether the text has more good words than bad ones."""
    rng = np.random.default_rng(seed)
    good, bad, other = ["good", "fine", "nice"], ["bad", "awful", "dull"], ["day", "night", "film", "song"]
    lines = ["text,label"]
    for index in range(rows):
        label = index % 2
        words = [*rng.choice(good if label else bad, 2), *rng.choice(other, rng.integers(1, 8))]
        lines.append(f"{' '.join(rng.permutation(words))},{'positive' if label else 'negative'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_numbers(path, rows, seed=0):
    """A CSV whose score is 3 and a half for each good word, less as much for each bad one."""
    rng = np.random.default_rng(seed)
    lines = ["text,score"]
    for _ in range(rows):
        words = rng.choice(WORDS, rng.integers(2, 9))
        score = sum(0.5 * ((word in ("good", "fine", "nice")) - (word in ("bad", "awful", "dull"))) for word in words)
        lines.append(f"{' '.join(words)},{3 + score}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_sets(path, rows, seed=0):
    """A CSV of texts and their labels, with semicolons: `praise` if there is a good word, `blame` if there is a bad one,
    `time` if there is a day or a night; often none."""
    rng = np.random.default_rng(seed)
    lines = ["text,labels"]
    of = {"praise": {"good", "fine", "nice"}, "blame": {"bad", "awful", "dull"}, "time": {"day", "night"}}
    for _ in range(rows):
        words = rng.choice(WORDS, rng.integers(1, 5)).tolist()
        held = [label for label, signs in of.items() if signs & set(words)]
        lines.append(f"{' '.join(words)},{';'.join(held)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_intents(path, rows, seed=0):
    """A CSV of messages about a `day`, a `night` or a `film`; every fourth has none of the three words: `oos`."""
    rng = np.random.default_rng(seed)
    lines = ["text,label"]
    for index in range(rows):
        label = ("day", "night", "film", "oos")[index % 4]
        words = [*rng.choice(["good", "bad", "fine", "nice"], rng.integers(1, 4)), "song" if label == "oos" else label]
        lines.append(f"{' '.join(rng.permutation(words))},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_ratings(path, rows, seed=0):
    """A CSV of users who rate some of many items, 2 for one with a good word, 0 for one with a bad word."""
    rng = np.random.default_rng(seed)
    words = [["good", "fine", "nice"], ["bad", "awful", "dull"]]
    items = [f"{rng.choice(words[at % 2])} {rng.choice(['film', 'song'])} {'day ' * (at % 5)}" for at in range(rows)]
    lines = ["user,item,profile,dish,label"]
    for row in range(rows):
        user, item = row % (rows // 6), int(rng.integers(0, rows))
        lines.append(f"u{user},i{item},day {'night ' * (user % 7)},{items[item]},{2 - 2 * (item % 2)}")
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return path


def write_columns(path, rows, seed=0):
    """A CSV of texts with two labels each: `mood`, and `topic`, one of four."""
    rng = np.random.default_rng(seed)
    lines = ["text,mood,topic"]
    for index in range(rows):
        mood, topic = ("bad", "good")[index % 2], ("day", "night", "film", "song")[index // 2 % 4]
        words = [
            *rng.choice([["bad", "awful", "dull"], ["good", "fine", "nice"]][index % 2], rng.integers(1, 4)),
            topic,
        ]
        lines.append(f"{' '.join(rng.permutation(words))},{mood},{topic}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_words(path, rows, seed=0):
    """A CSV of words and their tags: `day` and `night` are times, and a `good film` is a work of two words. Some rows
    are longer than the 32 tokens of `bert`."""
    rng = np.random.default_rng(seed)
    lines = ["words,tags"]
    for index in range(rows):
        words = rng.choice(WORDS, 70 if index % 10 == 0 else rng.integers(3, 12)).tolist()
        at = int(rng.integers(0, len(words) - 1))
        words[at : at + 2] = ["good", "film"]
        tags = ["B-time" if word in ("day", "night") else "O" for word in words]
        for place, pair in enumerate(itertools.pairwise(words)):
            if pair == ("good", "film"):
                tags[place : place + 2] = ["B-work", "I-work"]
        lines.append(f"{' '.join(words)},{' '.join(tags)}")
    path.write_text("\n".join(lines) + "\n")
    return path


# A template as chat models have it, with and without the mark of what the assistant says.
CHAT = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' <end>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + ' <end>' }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
UNMARKED_CHAT = CHAT.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def writer(folder, kind="gpt2", chat_template=None):
    """A causal language model of whole words, whose tokenizer has no padding token of its own."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = {word: at for at, word in enumerate(["<end>", "<unk>", *WORDS, "yes", "no", "it", "is", "not"])}
    if chat_template is not None:
        words |= {f"<{role}>": len(words) + at for at, role in enumerate(("user", "assistant", "system"))}
    tokens = Tokenizer(models.WordLevel(words, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace() if chat_template is None else pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<end>", unk_token="<unk>", model_max_length=32, chat_template=chat_template
    ).save_pretrained(folder)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
        )
    else:
        config = transformers.LlamaConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=48, max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def write_chats(path, rows, seed=0):
    """JSON Lines of conversations of two answers: the second says whether there are more good words than bad ones."""
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(rows):
        word = str(rng.choice([["bad", "awful", "dull"], ["good", "fine", "nice"]][index % 2]))
        said = [
            ("user", "is it day"),
            ("assistant", "no"),
            ("user", word),
            ("assistant", "yes it is" if index % 2 else "no"),
        ]
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in said]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_completions(path, rows, seed=0):
    """A CSV of prompts, and a completion that says whether there are more good words than bad ones."""
    rng = np.random.default_rng(seed)
    lines = ["prompt,completion"]
    for index in range(rows):
        words = [*rng.choice([["bad", "awful", "dull"], ["good", "fine", "nice"]][index % 2], 2)]
        words += [*rng.choice(["day", "night", "film", "song"], rng.integers(1, 6))]
        lines.append(f"{' '.join(rng.permutation(words))},{'yes it is' if index % 2 else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_translator(folder, kind="t5"):
    """Saves an encoder-decoder of whole words, which ends each text with `</s>`."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS, "yes", "no", "it", "is", "not", "sums"]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A </s>" if kind == "t5" else "<s> $A </s>"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip
    translator(kind).save_pretrained(folder)
    return str(folder)


def translator(kind="t5"):
    """An encoder-decoder of two blocks each, with random weights: for `<pad>` 1, `</s>` 2, and 20 tokens."""
    import transformers

    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=20, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=1,
            eos_token_id=2, pad_token_id=1, feed_forward_proj="gated-gelu",
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BartConfig(
        vocab_size=20, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)
