"""Tiny models in the real file formats, and small pictures, for tests that run whole programs.

Everything is random but well scaled: outputs are finite, differ between prompts and react to training.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

CLIP_WIDTH = 64
T5_WIDTH = 48
T5_VOCABULARY = 128
WORDS = ("cat", "dog", "red", "blue", "photo", "house", "sky", "sks")


@dataclass(frozen=True)
class TinyFlux:
    """The files of one tiny FLUX."""

    transformer: Path
    clip_l: Path
    t5xxl: Path
    ae: Path
    tokenizers: Path

    @property
    def arguments(self) -> list[str]:
        """The options of `flux_train_network` that name these files."""
        return ["--pretrained_model_name_or_path", str(self.transformer), *self._encoders]

    @property
    def generation_arguments(self) -> list[str]:
        """The options of `flux_minimal_inference` that name these files, without the tokenizers."""
        return ["--ckpt_path", str(self.transformer), *self._encoders[:-2]]

    @property
    def _encoders(self) -> list[str]:
        paths = {
            "clip_l": self.clip_l,
            "t5xxl": self.t5xxl,
            "ae": self.ae,
            "tokenizer_cache_dir": self.tokenizers,
        }
        return [text for name, path in paths.items() for text in (f"--{name}", str(path))]


def flux(
    folder: Path,
    *,
    schnell: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    text_dtype: torch.dtype = torch.float16,
    hidden: int = 64,
    heads: int = 2,
    depth: int = 2,
    depth_single: int = 2,
    ae_width: int = 32,
    latent_channels: int = 16,
) -> TinyFlux:
    """Write a tiny FLUX.1: transformer, CLIP-L, T5, autoencoder and tokenizers.

    Args:
        dtype: of the transformer's tensors, float8 included.
        text_dtype: of both text encoders' tensors.
        ae_width: first width of the autoencoder, a multiple of 32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers = folder / "tokenizers"
    clip_vocabulary = _clip_tokenizer(tokenizers / "openai_clip-vit-large-patch14")
    _t5_tokenizer(tokenizers / "google_t5-v1_1-xxl")
    transformer = dict(flux_transformer(hidden, heads, depth, depth_single, 4 * latent_channels, not schnell))
    parts = {
        "flux1-schnell" if schnell else "flux1-dev": (transformer, dtype),
        "clip_l": (dict(clip_l(clip_vocabulary)), text_dtype),
        "t5xxl": (dict(t5()), text_dtype),
        "ae": (dict(autoencoder(ae_width, latent_channels)), torch.float32),
    }
    paths = []
    for number, (name, (shapes, kind)) in enumerate(parts.items()):
        paths.append(folder / f"{name}.safetensors")
        save_file({k: v.to(kind) for k, v in random_weights(shapes, seed + number).items()}, paths[-1])
    return TinyFlux(*paths, tokenizers)


@dataclass(frozen=True)
class TinySd3:
    """The files of one tiny Stable Diffusion 3: everything in one, or the text encoders apart."""

    path: Path
    tokenizers: Path
    encoders: dict[str, Path]

    @property
    def arguments(self) -> list[str]:
        """The options of `sd3_train_network` that name these files."""
        return ["--pretrained_model_name_or_path", str(self.path), *self._others]

    @property
    def generation_arguments(self) -> list[str]:
        """The options of `sd3_minimal_inference` that name these files."""
        return ["--ckpt_path", str(self.path), *self._others]

    @property
    def _others(self) -> list[str]:
        paths = {**self.encoders, "tokenizer_cache_dir": self.tokenizers}
        return [text for name, path in paths.items() for text in (f"--{name}", str(path))]


def sd3(
    folder: Path,
    *,
    form: str = "medium",
    in_one: bool = True,
    has_t5: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    hidden: int = 128,
    depth: int = 2,
    side: int = 16,
) -> TinySd3:
    """Write a tiny Stable Diffusion 3.

    Args:
        form: `medium`, `5-large` or `5-medium`.
        in_one: put the text encoders into the one file, as some published files have them.
        side: of the table of positions, in patches.
    """
    tokenizers, vocabulary = _clip_tokenizers(folder)
    _t5_tokenizer(tokenizers / "google_t5-v1_1-xxl")
    width = CLIP_WIDTH + CLIP_G_WIDTH
    encoders: dict[str, Shapes] = {
        "clip_l": dict(clip_l(vocabulary, layers=3)),
        "clip_g": dict(clip_l(vocabulary, CLIP_G_WIDTH, layers=3))
        | {"text_projection.weight": (CLIP_G_WIDTH, CLIP_G_WIDTH)},
    } | ({"t5xxl": dict(t5(width + 64, heads=4))} if has_t5 else {})
    parts = {
        "model.diffusion_model.": dict(mmdit(form, hidden, depth, side, width + 64, width)),
        "first_stage_model.": dict(autoencoder()),
    }
    weights = _prefixed_weights(parts, seed)
    paths = {}
    for number, (name, shapes) in enumerate(encoders.items(), start=len(parts)):
        own = random_weights(shapes, seed + number)
        if in_one:
            weights |= {f"text_encoders.{name}.transformer.{key}": value for key, value in own.items()}
        else:
            paths[name] = folder / f"{name}.safetensors"
            save_file({key: value.to(dtype) for key, value in own.items()}, paths[name])
    return TinySd3(_write_checkpoint(folder, "sd3", ".safetensors", weights, dtype), tokenizers, paths)


def mmdit(
    form: str, hidden: int, depth: int, side: int, text_width: int, pooled_width: int, channels: int = 16
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a transformer of Stable Diffusion 3, without prefix."""
    yield "pos_embed", (1, side**2, hidden)
    yield from _conv("x_embedder.proj", channels, hidden, 2)
    yield from _linear("context_embedder", text_width, hidden)
    for name, width in (("t_embedder", 256), ("y_embedder", pooled_width)):
        yield from _linear(f"{name}.mlp.0", width, hidden)
        yield from _linear(f"{name}.mlp.2", hidden, hidden)
    for number in range(depth):
        is_dual = form == "5-medium" and number < depth - 1
        for stream in ("context_block", "x_block"):
            block, is_last = f"joint_blocks.{number}.{stream}", stream[0] == "c" and number == depth - 1
            for attention in ("attn", "attn2") if is_dual and stream[0] == "x" else ("attn",):
                yield from _linear(f"{block}.{attention}.qkv", hidden, 3 * hidden)
                for norm in () if form == "medium" else ("ln_q", "ln_k"):
                    yield f"{block}.{attention}.{norm}.weight", (64,)
                if not is_last:
                    yield from _linear(f"{block}.{attention}.proj", hidden, hidden)
            if not is_last:
                yield from _linear(f"{block}.mlp.fc1", hidden, 4 * hidden)
                yield from _linear(f"{block}.mlp.fc2", 4 * hidden, hidden)
            num_vectors = 2 if is_last else 9 if is_dual and stream[0] == "x" else 6
            yield from _linear(f"{block}.adaLN_modulation.1", hidden, num_vectors * hidden)
    yield from _linear("final_layer.linear", hidden, 4 * channels)
    yield from _linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)


def pictures(
    folder: Path,
    count: int,
    size: tuple[int, int] = (64, 64),
    *,
    seed: int = 0,
    suffix: str = ".png",
    captions: str | None = ".txt",
) -> list[Path]:
    """Write `count` pictures of (width, height) `size`, each with a caption file if `captions`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    paths = []
    for number in range(count):
        path = folder / f"picture_{number:02d}{suffix}"
        _picture(size, rng).save(path)
        if captions is not None:
            word, other = (WORDS[i] for i in torch.randperm(len(WORDS), generator=rng)[:2].tolist())
            path.with_suffix(captions).write_text(f"a {word}, {other}, number {number}", encoding="utf-8")
        paths.append(path)
    return paths


def random_weights(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Return float32 tensors of these shapes: norms near 1, biases small, matrices preserving variance."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=rng)
        is_norm = len(shape) == 1 and name.endswith(("weight", "scale"))
        spread = 0.02 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        weights[name] = 1 + 0.02 * noise if is_norm else spread * noise
    if "shared.weight" in weights:  # published T5 files hold their embedding twice
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    return weights


def flux_transformer(
    hidden: int,
    heads: int,
    depth: int,
    depth_single: int,
    channels: int = 64,
    guidance: bool = True,
    text_width: int = T5_WIDTH,
    pooled_width: int = CLIP_WIDTH,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a FLUX transformer file."""
    head_dim, mlp = hidden // heads, 4 * hidden
    yield from _linear("img_in", channels, hidden)
    yield from _linear("txt_in", text_width, hidden)
    embedders = {"time_in": 256, "vector_in": pooled_width} | ({"guidance_in": 256} if guidance else {})
    for name, width in embedders.items():
        yield from _linear(f"{name}.in_layer", width, hidden)
        yield from _linear(f"{name}.out_layer", hidden, hidden)
    for stream in (f"double_blocks.{i}.{side}" for i in range(depth) for side in ("img", "txt")):
        yield from _linear(f"{stream}_mod.lin", hidden, 6 * hidden)
        yield from _linear(f"{stream}_attn.qkv", hidden, 3 * hidden)
        yield from _linear(f"{stream}_attn.proj", hidden, hidden)
        yield from _linear(f"{stream}_mlp.0", hidden, mlp)
        yield from _linear(f"{stream}_mlp.2", mlp, hidden)
        yield f"{stream}_attn.norm.query_norm.scale", (head_dim,)
        yield f"{stream}_attn.norm.key_norm.scale", (head_dim,)
    for block in (f"single_blocks.{i}" for i in range(depth_single)):
        yield from _linear(f"{block}.linear1", hidden, 3 * hidden + mlp)
        yield from _linear(f"{block}.linear2", hidden + mlp, hidden)
        yield from _linear(f"{block}.modulation.lin", hidden, 3 * hidden)
        yield f"{block}.norm.query_norm.scale", (head_dim,)
        yield f"{block}.norm.key_norm.scale", (head_dim,)
    yield from _linear("final_layer.linear", hidden, channels)
    yield from _linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)


def clip_l(
    vocabulary: int, width: int = CLIP_WIDTH, layers: int = 2, inner: int | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a CLIP-L text encoder file (64 dimensions per head, no text projection).

    Args:
        inner: width within the feed-forward layers; four times `width` where None.
    """
    yield "text_model.embeddings.token_embedding.weight", (vocabulary, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    for layer in (f"text_model.encoder.layers.{i}" for i in range(layers)):
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", width, width)
        yield from _linear(f"{layer}.mlp.fc1", width, inner or 4 * width)
        yield from _linear(f"{layer}.mlp.fc2", inner or 4 * width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm("text_model.final_layer_norm", width)


def t5(
    width: int = T5_WIDTH, heads: int = 3, layers: int = 2, *, vocabulary: int = T5_VOCABULARY
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a T5 encoder file, the embedding under both its names."""
    yield "shared.weight", (vocabulary, width)
    yield "encoder.embed_tokens.weight", (vocabulary, width)
    for number in range(layers):
        attention = f"encoder.block.{number}.layer.0"
        for name in "qkvo":
            yield f"{attention}.SelfAttention.{name}.weight", (width, width)
        if number == 0:
            yield f"{attention}.SelfAttention.relative_attention_bias.weight", (32, heads)
        yield f"{attention}.layer_norm.weight", (width,)
        feed_forward = f"encoder.block.{number}.layer.1"
        yield f"{feed_forward}.DenseReluDense.wi_0.weight", (2 * width, width)
        yield f"{feed_forward}.DenseReluDense.wi_1.weight", (2 * width, width)
        yield f"{feed_forward}.DenseReluDense.wo.weight", (width, 2 * width)
        yield f"{feed_forward}.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def autoencoder(
    width: int = 32,
    channels: int = 16,
    multiples: tuple[int, ...] = (1, 1, 1, 1),
    resnets: int = 1,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of an autoencoder file: each multiple but the first halves the picture."""
    widths = [width * multiple for multiple in multiples]
    last = len(widths) - 1
    yield from _conv("encoder.conv_in", 3, widths[0])
    before = widths[0]
    for level, after in enumerate(widths):
        for number in range(resnets):
            yield from _resnet(
                f"encoder.down.{level}.block.{number}", before if number == 0 else after, after
            )
        if level < last:
            yield from _conv(f"encoder.down.{level}.downsample.conv", after, after)
        before = after
    yield from _middle("encoder.mid", widths[-1])
    yield from _norm("encoder.norm_out", widths[-1])
    yield from _conv("encoder.conv_out", widths[-1], 2 * channels)
    yield from _conv("decoder.conv_in", channels, widths[-1])
    yield from _middle("decoder.mid", widths[-1])
    before = widths[-1]
    for level, after in reversed(list(enumerate(widths))):
        for number in range(resnets + 1):
            yield from _resnet(f"decoder.up.{level}.block.{number}", before if number == 0 else after, after)
        if level > 0:
            yield from _conv(f"decoder.up.{level}.upsample.conv", after, after)
        before = after
    yield from _norm("decoder.norm_out", widths[0])
    yield from _conv("decoder.conv_out", widths[0], 3)


def _middle(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _resnet(f"{name}.block_1", width, width)
    yield from _norm(f"{name}.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{projection}", width, width, 1)
    yield from _resnet(f"{name}.block_2", width, width)


def _resnet(name: str, before: int, after: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm1", before)
    yield from _conv(f"{name}.conv1", before, after)
    yield from _norm(f"{name}.norm2", after)
    yield from _conv(f"{name}.conv2", after, after)
    if before != after:
        yield from _conv(f"{name}.nin_shortcut", before, after, 1)


def _linear(name: str, before: int, after: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (after, before)
    yield f"{name}.bias", (after,)


def _conv(name: str, before: int, after: int, side: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (after, before, side, side)
    yield f"{name}.bias", (after,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _clip_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer that knows a few words; return the size of its vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    pieces = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    merges = []
    for word in WORDS:
        for end in range(1, len(word)):
            merge = (word[:end], word[end] + ("</w>" if end == len(word) - 1 else ""))
            pieces["".join(merge)] = None
            merges.append(merge)
    names = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder)
    return len(vocabulary)


def _t5_tokenizer(folder: Path) -> None:
    """Write a unigram tokenizer of printable characters and a few words; it fits `T5_VOCABULARY`."""
    from transformers import T5Tokenizer

    letters = [letter for letter in string.printable if not letter.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -4.0) for letter in letters] + [(f"▁{word}", -1.0) for word in WORDS]
    T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512).save_pretrained(folder)


def _picture(size: tuple[int, int], rng: torch.Generator) -> Image.Image:
    """Draw a smooth background with a few shapes."""
    noise = torch.randint(0, 256, (3, 3, 3), generator=rng, dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy()).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(3):
        x, y, radius = (torch.rand(3, generator=rng) * torch.tensor([*size, min(size) / 3])).tolist()
        colour = tuple(torch.randint(0, 256, (3,), generator=rng).tolist())
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


@dataclass(frozen=True)
class TinyCheckpoint:
    """One tiny Stable Diffusion: everything in one file, or in a folder as diffusers lays it out.

    Attributes:
        path: the file or folder.
        tokenizers: laid out like `--tokenizer_cache_dir`.
        flags: what a script must be told about this kind of model.
    """

    path: Path
    tokenizers: Path
    flags: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The options of a trainer that name these files."""
        model = ["--pretrained_model_name_or_path", str(self.path), *self.flags]
        return [*model, "--tokenizer_cache_dir", str(self.tokenizers)]


CLIP_G_WIDTH = 128


def sd(
    folder: Path,
    *,
    v2: bool = False,
    v_parameterization: bool = False,
    as_folder: bool = False,
    suffix: str = ".safetensors",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    widths: tuple[int, ...] = (32, 32, 64, 64),
    latent_channels: int = 4,
    inpaints: bool = False,
) -> TinyCheckpoint:
    """Write a tiny Stable Diffusion 1 or 2 with the topology of the real one.

    Args:
        inpaints: let its UNet take a mask and masked latents, too.
        as_folder: write diffusers' folders, by diffusers' own conversion of the same weights.
        suffix: of the single file; `.ckpt` writes a pickled one.
    """
    tokenizers, vocabulary = _clip_tokenizers(folder)
    unet = dict(ldm_unet(widths, (1, 1, 1, 0), CLIP_WIDTH, is_linear=v2, inpaints=inpaints))
    text = dict(openclip(vocabulary, CLIP_WIDTH) if v2 else clip_l(vocabulary))
    parts: dict[str, Shapes] = {
        "model.diffusion_model.": unet,
        "first_stage_model.": dict(ldm_autoencoder(latent_channels)),
        "cond_stage_model." + ("model." if v2 else "transformer."): text,
    }
    weights = _prefixed_weights(parts, seed)
    if not v2:
        positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        weights[positions] = torch.arange(77)[None]
    weights["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    flags = ("--v2",) * v2 + ("--v_parameterization",) * v_parameterization
    path = _write_checkpoint(folder, "sd2" if v2 else "sd1", suffix, weights, dtype)
    if as_folder:
        prediction = "v_prediction" if v_parameterization else "epsilon"
        path = _as_folder(path, folder / "diffusers", "sd2" if v2 else "sd1", tokenizers, dtype, prediction)
    return TinyCheckpoint(path, tokenizers, flags)


def sdxl(
    folder: Path,
    *,
    as_folder: bool = False,
    suffix: str = ".safetensors",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    widths: tuple[int, ...] = (32, 64, 64),
    depths: tuple[int, ...] = (0, 1, 2),
    projection: int = CLIP_G_WIDTH,
    inpaints: bool = False,
) -> TinyCheckpoint:
    """Write a tiny SDXL with the topology of the real one but for the depth of its transformers.

    Args:
        inpaints: let its UNet take a mask and masked latents, too.
        as_folder: write diffusers' folders, by diffusers' own conversion of the same weights.
        projection: width of the pooled text.
    """
    tokenizers, vocabulary = _clip_tokenizers(folder)
    context, vector = CLIP_WIDTH + CLIP_G_WIDTH, projection + 6 * 256
    parts: dict[str, Shapes] = {
        "model.diffusion_model.": dict(
            ldm_unet(widths, depths, context, is_linear=True, vector=vector, inpaints=inpaints)
        ),
        "first_stage_model.": dict(ldm_autoencoder(4)),
        "conditioner.embedders.0.transformer.": dict(clip_l(vocabulary, layers=3)),
        "conditioner.embedders.1.model.": dict(openclip(vocabulary, CLIP_G_WIDTH, projection)),
    }
    weights = _prefixed_weights(parts, seed)
    positions = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
    weights[positions] = torch.arange(77)[None]
    path = _write_checkpoint(folder, "sdxl", suffix, weights, dtype)
    if as_folder:
        path = _as_folder(path, folder / "diffusers", "sdxl", tokenizers, dtype, "epsilon")
    return TinyCheckpoint(path, tokenizers)


def ldm_unet(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    context: int,
    *,
    is_linear: bool,
    vector: int = 0,
    resnets: int = 2,
    channels: int = 4,
    inpaints: bool = False,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a UNet as checkpoints hold it, without prefix.

    Args:
        depths: transformer blocks of each level; 0 is a level without attention.
        is_linear: projections around the transformers are Linear instead of 1x1 convolutions.
        vector: width of the vector that is added to the timestep, or 0 where there is none.
    """
    first, time = widths[0], 4 * widths[0]
    yield from _linear("time_embed.0", first, time)
    yield from _linear("time_embed.2", time, time)
    if vector:
        yield from _linear("label_emb.0.0", vector, time)
        yield from _linear("label_emb.0.2", time, time)
    yield from _conv("input_blocks.0.0", 2 * channels + 1 if inpaints else channels, first)
    skips, before, number = [first], first, 1
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for _ in range(resnets):
            yield from _ldm_resnet(f"input_blocks.{number}.0", before, width, time)
            yield from _ldm_transformer(f"input_blocks.{number}.1", width, depth, context, is_linear)
            skips.append(width)
            before, number = width, number + 1
        if level < len(widths) - 1:
            yield from _conv(f"input_blocks.{number}.0.op", width, width)
            skips.append(width)
            number += 1
    last = widths[-1]
    yield from _ldm_resnet("middle_block.0", last, last, time)
    yield from _ldm_transformer("middle_block.1", last, depths[-1] or 1, context, is_linear)
    yield from _ldm_resnet("middle_block.2", last, last, time)
    number = 0
    for level, (width, depth) in reversed(list(enumerate(zip(widths, depths, strict=True)))):
        for index in range(resnets + 1):
            yield from _ldm_resnet(f"output_blocks.{number}.0", before + skips.pop(), width, time)
            yield from _ldm_transformer(f"output_blocks.{number}.1", width, depth, context, is_linear)
            if level > 0 and index == resnets:
                yield from _conv(f"output_blocks.{number}.{2 if depth else 1}.conv", width, width)
            before, number = width, number + 1
    yield from _norm("out.0", first)
    yield from _conv("out.2", first, channels)


def openclip(
    vocabulary: int, width: int, projection: int | None = None, layers: int = 3
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of an OpenCLIP text encoder as checkpoints hold it, without prefix."""
    yield "positional_embedding", (77, width)
    yield "token_embedding.weight", (vocabulary, width)
    yield "text_projection", (width, projection or width)
    yield "logit_scale", ()
    for block in (f"transformer.resblocks.{i}" for i in range(layers)):
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_1", width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _linear(f"{block}.mlp.c_fc", width, 4 * width)
        yield from _linear(f"{block}.mlp.c_proj", 4 * width, width)
    yield from _norm("ln_final", width)


def ldm_autoencoder(channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of an autoencoder of Stable Diffusion, without prefix."""
    yield from autoencoder(32, channels, resnets=1)
    yield from _conv("quant_conv", 2 * channels, 2 * channels, 1)
    yield from _conv("post_quant_conv", channels, channels, 1)


def _ldm_resnet(name: str, before: int, after: int, time: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.in_layers.0", before)
    yield from _conv(f"{name}.in_layers.2", before, after)
    yield from _linear(f"{name}.emb_layers.1", time, after)
    yield from _norm(f"{name}.out_layers.0", after)
    yield from _conv(f"{name}.out_layers.3", after, after)
    if before != after:
        yield from _conv(f"{name}.skip_connection", before, after, 1)


def _ldm_transformer(
    name: str, width: int, depth: int, context: int, is_linear: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not depth:
        return
    yield from _norm(f"{name}.norm", width)
    for projection in ("proj_in", "proj_out"):
        whole = f"{name}.{projection}"
        yield from _linear(whole, width, width) if is_linear else _conv(whole, width, width, 1)
    for block in (f"{name}.transformer_blocks.{i}" for i in range(depth)):
        for attention, source in (("attn1", width), ("attn2", context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, source)
            yield f"{block}.{attention}.to_v.weight", (width, source)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width)
        yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)
        yield from _linear(f"{block}.ff.net.2", 4 * width, width)
        for number in (1, 2, 3):
            yield from _norm(f"{block}.norm{number}", width)


def _clip_tokenizers(folder: Path) -> tuple[Path, int]:
    """Write the tokenizers of all Stable Diffusions; return their folder and the size of the vocabulary."""
    tokenizers = folder / "tokenizers"
    names = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
    vocabularies = [_clip_tokenizer(tokenizers / name) for name in names]
    return tokenizers, vocabularies[0]


def _prefixed_weights(parts: dict[str, Shapes], seed: int) -> dict[str, Tensor]:
    weights = {}
    for number, (prefix, shapes) in enumerate(parts.items()):
        values = random_weights({name: shape for name, shape in shapes.items() if shape}, seed + number)
        values |= {name: torch.tensor(4.6052) for name, shape in shapes.items() if not shape}
        weights |= {prefix + name: value for name, value in values.items()}
    return weights


def _write_checkpoint(
    folder: Path, name: str, suffix: str, weights: dict[str, Tensor], dtype: torch.dtype
) -> Path:
    path = folder / f"{name}{suffix}"
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    if suffix == ".safetensors":
        save_file(stored, path)
    else:
        torch.save({"state_dict": stored, "epoch": 3, "global_step": 700}, path)
    return path


def _as_folder(
    file: Path, folder: Path, kind: str, tokenizers: Path, dtype: torch.dtype, prediction: str
) -> Path:
    """Write a single file's weights as a pipeline in diffusers' layout."""
    from tests.pipelines import pipeline_from

    pipeline_from(file, kind, tokenizers, prediction).to(dtype).save_pretrained(folder)
    return folder
