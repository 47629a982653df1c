"""Tiny models that write about images: BLIP, GIT, LLaVA and PaliGemma with random weights and 20 words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "[PAD] [CLS] [SEP] [UNK] [DEC] <image> <s> </s> a picture of the cat dog on mat with red describe it"
IDS = {word: number for number, word in enumerate(WORDS.split())}
SIDE = 32
_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SEEN = {**_SMALL, "image_size": SIDE, "patch_size": 16}
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def write_blip(folder: Path) -> Any:
    """Write a BLIP for captions; return the model."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

    torch.manual_seed(0)
    special = {"bos_token_id": IDS["[DEC]"], "sep_token_id": IDS["[SEP]"], "eos_token_id": IDS["[SEP]"]}
    text = {**_SMALL, **special, "pad_token_id": 0, "vocab_size": len(IDS), "encoder_hidden_size": 16}
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={**text, "max_position_embeddings": 96}, vision_config=_SEEN, projection_dim=16
        )
    )
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    BlipProcessor(images, _tokenizer(cls_token="[CLS]", sep_token="[SEP]")).save_pretrained(folder)
    return model


def write_git(folder: Path) -> None:
    """Write a GIT."""
    from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM, GitProcessor

    torch.manual_seed(0)
    config = GitConfig(
        vision_config=_SEEN, vocab_size=len(IDS), **_SMALL, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    GitForCausalLM(config).save_pretrained(folder)
    tokenizer = _tokenizer(cls_token="[CLS]", sep_token="[SEP]")
    GitProcessor(_clip_images(CLIPImageProcessorPil), tokenizer).save_pretrained(folder)


def write_llava(folder: Path) -> None:
    """Write a LLaVA, which has a chat template."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    seen = CLIPVisionConfig(**{**_SEEN, "num_hidden_layers": 2})
    config = LlavaConfig(
        vision_config=seen, text_config=LlamaConfig(**_text()), image_token_id=IDS["<image>"]
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        _clip_images(CLIPImageProcessorPil),
        _tokenizer(eos_token="</s>", bos_token="<s>", additional_special_tokens=["<image>"]),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)


def write_gemma3(folder: Path) -> None:
    """Write a Gemma 3, which takes several images with one prompt."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    text = Gemma3TextConfig(**_text(), num_key_value_heads=1, head_dim=8)
    seen, place = SiglipVisionConfig(**_SEEN), IDS["<image>"]
    config = Gemma3Config(
        text_config=text, vision_config=seen, mm_tokens_per_image=4, image_token_index=place
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    marks = {"image_token": "<image>", "boi_token": "<s>", "eoi_token": "</s>"}
    tokenizer = _tokenizer(
        eos_token="</s>", bos_token="<s>", additional_special_tokens=["<image>"], extra_special_tokens=marks
    )
    images: Any = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    template = _TEMPLATE.replace("<image>", "<s>")
    Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4).save_pretrained(folder)


def write_paligemma(folder: Path) -> None:
    """Write a PaliGemma, which has no chat template."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    text = GemmaConfig(**_text(), num_key_value_heads=1, head_dim=8)
    seen, place = SiglipVisionConfig(**_SEEN), IDS["<image>"]
    config = PaliGemmaConfig(vision_config=seen, text_config=text, image_token_index=place, projection_dim=16)
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    images: Any = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 4
    tokenizer = _tokenizer(eos_token="</s>", bos_token="<s>", additional_special_tokens=["<image>"])
    PaliGemmaProcessor(images, tokenizer).save_pretrained(folder)


def _text() -> dict[str, Any]:
    ends = {"eos_token_id": IDS["</s>"], "bos_token_id": IDS["<s>"], "pad_token_id": 0}
    return {**_SMALL, **ends, "vocab_size": len(IDS)}


def _clip_images(kind: Any) -> Any:
    return kind(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _tokenizer(**special: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "sep_token" in special:
        pair = [("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])]
        words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
        special["additional_special_tokens"] = ["[DEC]"]
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", **special)
