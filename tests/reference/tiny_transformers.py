"""Folders as `save_pretrained` writes them, with tiny models made here: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LABELS = ("cat", "dog", "bird")
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
PEOPLE = ("maria", "jonas", "aisha", "tom")
PLACES = ("paris", "lima", "oslo", "cairo")
VOCABULARY = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "met",
    "in",
    "went",
    "to",
    "from",
    "and",
    ".",
    "we",
    "saw",
    "near",
    *PEOPLE,
    *PLACES,
)


def named(labels: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}


def detector(
    folder: Path, *, kind: str = "rt_detr_v2", side: int = 64, labels: tuple[str, ...] = LABELS, sure: bool = False
) -> Path:
    """RT-DETRv2 or D-FINE with half a million random weights. As they begin, all places look alike to them and nothing
    has a score. `sure` ones tell places apart and have boxes with scores of 0.1 to 0.9; a query for every place of a
    picture of 64 x 64, because which of equal ones are chosen is nobody's."""
    import torch
    import transformers

    torch.manual_seed(0)
    backbone = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    sizes = {
        "d_model": 32, "encoder_hidden_dim": 32, "num_queries": 84 if sure else 20, "decoder_layers": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_in_channels": [32, 64, 128], "num_denoising": 10,
    }  # fmt: skip
    if kind == "rt_detr_v2":
        sizes |= {"decoder_in_channels": [32, 32, 32]}
        stages = transformers.RTDetrResNetConfig(**backbone, out_features=["stage2", "stage3", "stage4"])
        config = transformers.RTDetrV2Config(**sizes, **named(labels), backbone_config=stages)
        model = transformers.RTDetrV2ForObjectDetection(config)
    else:
        sizes |= {"decoder_in_channels": [32, 32, 32], "decoder_n_points": [2, 2, 2]}
        stages = transformers.RTDetrResNetConfig(**backbone, out_features=["stage2", "stage3", "stage4"])
        config = transformers.DFineConfig(**sizes, **named(labels), backbone_config=stages)
        model = transformers.DFineForObjectDetection(config)
    if sure:
        _make_sure(model)
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def _make_sure(model: Any) -> None:
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        for layer in model.model.decoder.class_embed:
            torch.nn.init.normal_(layer.weight, std=0.3)
            torch.nn.init.constant_(layer.bias, -1.0)


def classifier(folder: Path) -> Path:
    """A vision transformer of two layers with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8, **named(LABELS)
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def segmenter(folder: Path, *, sees: str) -> Path:
    """A SegFormer with random weights, but for the last bias: every pixel is `sees`."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **named(LABELS)
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.bias.copy_(torch.tensor([20.0 * (label == sees) for label in LABELS]))
    model.save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def entities(folder: Path, *, steps: int = 60) -> Path:
    """A BERT of one layer that was taught a few names for a second."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, **named(NAMES),
    )  # fmt: skip
    model = transformers.BertForTokenClassification(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    words = torch.randint(0, len(VOCABULARY), (64, 12))
    truth = torch.zeros_like(words)
    for number, word in enumerate(VOCABULARY):
        truth[words == number] = 1 if word in PEOPLE else 3 if word in PLACES else 0
    model.train()
    for _ in range(steps):
        loss = model(input_ids=words, labels=truth).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    inner = Tokenizer(models.WordPiece({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name.lower().strip('[]')}_token": name for name in VOCABULARY[:5]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **special)


def words_detector(folder: Path) -> Path:
    """OWL-ViT with random weights: it looks for words, and finds them anywhere."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: n for n, word in enumerate(["!", "<|startoftext|>", "<|endoftext|>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = transformers.OwlViTConfig(text_config=text, vision_config=vision, projection_dim=32)
    transformers.OwlViTForObjectDetection(config).save_pretrained(folder)
    pictures = transformers.OwlViTImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.OwlViTProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


BERT = 1013
"""Grounding DINO knows [CLS], [SEP] and the full stop by their numbers in BERT's vocabulary: 101, 102 and 1012."""


def phrase_detector(folder: Path, *, words: tuple[str, ...], most: int = 256) -> Path:
    """Grounding DINO with random weights and a tokenizer that knows `words`."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    vocabulary = {f"[unused{number}]": number for number in range(BERT)}
    numbers = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012}
    numbers |= {word: 200 + number for number, word in enumerate(words)}
    vocabulary = {name: number for name, number in vocabulary.items() if number not in numbers.values()} | numbers
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    text = transformers.BertConfig(
        vocab_size=BERT, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=256,
    )  # fmt: skip
    swin = transformers.SwinConfig(
        image_size=128, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=swin, text_config=text, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=most,
    )  # fmt: skip
    model = transformers.GroundingDinoForObjectDetection(config).eval()
    model.save_pretrained(folder)
    pictures = transformers.GroundingDinoImageProcessorPil(size={"height": 128, "width": 128})
    transformers.GroundingDinoProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder
