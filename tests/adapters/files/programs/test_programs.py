"""What we say that other programs load of an adapter file is what they were seen to load.

The counts were found by running the programs on such files; `takes` is a file that is read, uncounted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfumato.adapters.files.programs.told import verdicts
from tests.adapters.files.programs import published as p

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "loaded.json").read_text())

PEFT = p.named(".lora_A.weight", ".lora_B.weight", p.without_alpha(p.lora))
PEFT_ALPHA = p.named(".lora_A.weight", ".lora_B.weight")
DEFAULT = p.named(".lora_A.default.weight", ".lora_B.default.weight", p.without_alpha(p.lora))
DOTTED = p.named(".lora.down.weight", ".lora.up.weight", p.without_alpha(p.lora))
OLD_TEXT = p.named(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", p.without_alpha(p.lora))
MAGNITUDE = p.plus(PEFT, ".lora_magnitude_vector")
WORD: p.Shapes = {"bundle_emb.cat.string_to_param.*": (2, 64)}


def texts(kind: str, leaves: p.Leaves) -> p.Shapes:
    if kind == "sd":
        return p.of(p.clip(2), leaves, "lora_te_")
    return p.of(p.clip(3), leaves, "lora_te1_") | p.of(p.clip(3), leaves, "lora_te2_")


def peft_texts(kind: str, leaves: p.Leaves) -> p.Shapes:
    if kind == "sd":
        return p.of(p.clip(2), leaves, "text_encoder.", flat=False)
    first = p.of(p.clip(3), leaves, "text_encoder.", flat=False)
    return first | p.of(p.clip(3), leaves, "text_encoder_2.", flat=False)


def unet_file(layers: list[p.Layer], kind: str, leaves: p.Leaves, prefix: str = "lora_unet_") -> p.Shapes:
    return p.of(layers, leaves, prefix, theirs=kind == "sd")


def everything(kind: str, leaves: p.Leaves) -> p.Shapes:
    return unet_file(p.inner(kind), kind, leaves) | texts(kind, leaves)


def lycoris_full(kind: str) -> p.Shapes:
    return everything(kind, p.full)


def flux(leaves: p.Leaves, *, texts: bool = False) -> p.Shapes:
    encoder = p.of(p.clip(2), leaves, "lora_te1_") if texts else {}
    return p.of(p.flux(), leaves, "lora_unet_") | encoder


def flux_oft() -> p.Shapes:
    parts = {"qkv": 3, "linear1": 4}

    def leaves(layer: p.Layer) -> p.Shapes:
        count = parts.get(layer.published.rpartition(".")[2], 1)
        blocks = [".oft_blocks"] if count == 1 else [f".oft_blocks.{i}" for i in range(count)]
        return dict.fromkeys([*blocks, ".alpha"], (4, 2, 2))

    return p.of(p.flux(), leaves, "oft_unet_")


def theirs(
    leaves: p.Leaves, prefix: str = "transformer.", *, flat: bool = False, outside: bool = False
) -> p.Shapes:
    layers = [*p.flux_diffusers(), *(p.flux_outside() if outside else [])]
    return p.of(layers, leaves, prefix, theirs=True, flat=flat)


def comfy(leaves: p.Leaves, *, outside: bool = False) -> p.Shapes:
    layers = [*p.flux(), *(p.flux_outside() if outside else [])]
    return p.of(layers, leaves, "diffusion_model.", flat=False)


def onetrainer_texts() -> p.Shapes:
    return p.of(p.clip(2), p.lora, "lora_te1_") | p.of(p.t5(), p.lora, "lora_te2_")


def of_unet(
    layers: Callable[[str], list[p.Layer]], kind: str, leaves: p.Leaves, prefix: str, **how: bool
) -> p.Shapes:
    return p.of(layers(kind), leaves, prefix, **{"theirs": True, "flat": False, **how})


def files_of(kind: str) -> dict[str, Callable[[], p.Shapes]]:
    flat = {"flat": True}
    sgm = {"flat": True, "theirs": kind == "sd"}
    word = WORD if kind == "sd" else {"bundle_emb.cat.clip_l": (2, 64)}
    return {
        "lora": lambda: unet_file(p.linear(kind), kind, p.lora) | texts(kind, p.lora),
        "dylora": lambda: (everything if kind == "sd" else linear_and_texts)(kind, p.lora),
        "lora_fa": lambda: (everything if kind == "sd" else linear_and_texts)(kind, p.lora),
        **{
            name: lambda: everything(kind, p.lora)
            for name in ("lora_all", "lora_block", "lora_conv", "lyc_locon")
        },
        "loha": lambda: everything(kind, p.loha),
        "loha_tucker": lambda: everything(kind, p.loha_tucker),
        "lokr": lambda: p.some_whole(everything(kind, p.lokr), 80 if kind == "sd" else 260),
        "lokr_tucker": lambda: halved_first(everything(kind, p.lokr_tucker), 239),
        "oft": lambda: unet_file(
            p.inner(kind) if kind == "sd" else p.linear(kind), kind, p.rotated, "oft_unet_"
        ),
        "lyc_boft": lambda: everything(kind, p.rotated),
        "lyc_diag-oft": lambda: everything(kind, p.rotated),
        "lyc_dylora": lambda: everything(kind, p.flat_up),
        "lyc_full": lambda: lycoris_full(kind),
        "lyc_glora": lambda: everything(kind, p.glora),
        "lyc_ia3": lambda: everything(kind, p.ia3),
        "lyc_locon_dora": lambda: everything(kind, p.plus(p.lora, ".dora_scale")),
        "lyc_locon_norm": lambda: everything(kind, p.lora) | unet_file(p.norms(kind), kind, p.w_norm),
        "lyc_locon_tucker": lambda: everything(kind, p.tucker),
        "lyc_loha": lambda: everything(kind, p.loha),
        "lyc_loha_dora": lambda: everything(kind, p.plus(p.loha, ".dora_scale")),
        "lyc_lokr": lambda: p.some_whole(everything(kind, p.lokr), 97 if kind == "sd" else 8),
        "lyc_lokr_dora": lambda: p.some_whole(
            everything(kind, p.plus(p.lokr, ".dora_scale")), 97 if kind == "sd" else 8
        ),
        "bundle_emb": lambda: of_unet(p.attention, kind, p.lora, "lora_unet_", **sgm) | word,
        "comfy": lambda: p.of(p.attention(kind)[:56], PEFT, "diffusion_model.", flat=False),
        "flatdiffusers": lambda: (
            of_unet(p.attention, kind, p.lora, "lora_unet_", **flat) | texts(kind, p.lora)
        ),
        "flatdiffusers_shallow": lambda: p.of(
            [layer for layer in p.attention(kind) if "down_blocks.1.attentions.0" in layer.diffusers],
            *(p.lora, "lora_unet_"),
            theirs=True,
        ),
        **{
            name: lambda: of_unet(p.attention, kind, p.lora, "lora_unet_", **sgm)
            for name in ("fp8", "oddmeta")
        },
        "hyper": lambda: of_unet(p.whole, kind, p.lora, "lora_unet_", **flat),
        "lightning": lambda: of_unet(p.whole, kind, p.lora, "lora_unet_", flat=True, theirs=False),
        "lcm": lambda: of_unet(p.inner, kind, p.lora, "lora_unet_", **flat),
        "lora_dot": lambda: of_unet(p.attention, kind, DOTTED, "unet."),
        "lycoris_prefix": lambda: of_unet(p.attention, kind, p.lora, "lycoris_", **flat),
        "noalpha": lambda: of_unet(p.attention, kind, p.without_alpha(p.lora), "lora_unet_", **sgm),
        "oldproc": lambda: p.processors(p.attention(kind), "unet.") | peft_texts(kind, OLD_TEXT),
        "oldproc_noprefix": lambda: p.processors(p.attention(kind), ""),
        "peft": lambda: of_unet(p.attention, kind, PEFT, "unet.") | peft_texts(kind, PEFT),
        "peft_dora": lambda: of_unet(p.attention, kind, MAGNITUDE, "unet."),
        "peft_full": lambda: of_unet(p.inner, kind, PEFT, "unet."),
        "peft_raw": lambda: of_unet(p.attention, kind, PEFT, "base_model.model."),
    }


def linear_and_texts(kind: str, leaves: p.Leaves) -> p.Shapes:
    return unet_file(p.linear(kind), kind, leaves) | texts(kind, leaves)


def halved_first(shapes: p.Shapes, num: int) -> p.Shapes:
    """Return a LoKr file in which so many layers have their first factor in two parts."""
    found = dict(shapes)
    for key in [key for key in shapes if key.endswith(".lokr_w1")][:num]:
        del found[key]
        found |= {f"{key}_a": (2, 2), f"{key}_b": (2, 2)}
    return found


FLUX: dict[str, Callable[[], p.Shapes]] = {
    "flux_in": lambda: flux(p.lora) | p.of(p.flux_outside(with_last=False), p.lora, "lora_unet_"),
    "flux_loha": lambda: flux(p.loha, texts=True),
    "flux_lokr": lambda: flux(p.lokr, texts=True),
    **{
        f"flux_{name}": lambda: flux(p.lora)
        for name in (
            "lora",
            "lora_fa",
            "reg",
            "split",
            "lyc_dylora",
            "lyc_locon",
            "lyc_locon_tucker",
            "kohya_fp8",
        )
    },
    "flux_lora_te": lambda: flux(p.lora, texts=True),
    "flux_lora_t5": lambda: flux(p.lora, texts=True) | p.of(p.t5(), p.lora, "lora_te3_"),
    "flux_lyc_diag-oft": lambda: flux(p.rotated),
    "flux_lyc_full": lambda: flux(p.full),
    "flux_lyc_glora": lambda: flux(p.glora),
    "flux_lyc_ia3": lambda: flux(p.ia3),
    "flux_lyc_loha": lambda: flux(p.loha),
    "flux_lyc_lokr": lambda: flux(p.lokr),
    "flux_lyc_locon_dora": lambda: flux(p.plus(p.lora, ".dora_scale")),
    "flux_lyc_loha_dora": lambda: flux(p.plus(p.loha, ".dora_scale")),
    "flux_lyc_lokr_dora": lambda: flux(p.plus(p.lokr, ".dora_scale")),
    "flux_oft": flux_oft,
    "fluxdeep_lora": lambda: (
        p.of(p.flux(19, 38), p.lora, "lora_unet_") | p.of(p.clip(2), p.lora, "lora_te1_")
    ),
    "fluxdeep_split": lambda: p.of(p.flux(19, 38), p.lora, "lora_unet_"),
    "flux_aitoolkit": lambda: theirs(PEFT),
    "flux_aitoolkit_alpha": lambda: theirs(PEFT_ALPHA),
    "flux_aitoolkit_lokr": lambda: theirs(
        p.leaves_of("lokr_w1", "lokr_w2", "alpha"), "lora_transformer_", flat=True
    ),
    "flux_base_model": lambda: theirs(PEFT, "base_model.model."),
    "flux_bfl_control": p.control,
    "flux_bfl_plain": lambda: p.of(p.flux(), PEFT, "", flat=False),
    "flux_comfy_AB": lambda: comfy(PEFT),
    "flux_comfy_all": lambda: comfy(p.lora, outside=True),
    "flux_comfy_lokr": lambda: comfy(p.leaves_of("lokr_w1", "lokr_w2", "alpha")),
    "flux_comfy_te": lambda: p.joined(
        comfy(p.lora),
        p.of(p.clip(2), p.lora, "text_encoders.clip_l.transformer.", flat=False),
        p.of(p.t5(), p.lora, "text_encoders.t5xxl.transformer.", flat=False),
    ),
    "flux_comfy_updown": lambda: comfy(p.lora),
    "flux_hyper": lambda: theirs(PEFT, outside=True),
    "flux_kohya_all": lambda: flux(p.lora) | p.of(p.flux_outside(), p.lora, "lora_unet_"),
    "flux_kohya_dora": lambda: flux(p.plus(p.lora, ".dora_scale")),
    "flux_lycoris_lora": lambda: theirs(p.lora, "lycoris_", flat=True),
    "flux_mixed_ranks": lambda: theirs(PEFT),
    "flux_onetrainer": lambda: theirs(p.lora, "lora_transformer_", flat=True) | onetrainer_texts(),
    "flux_onetrainer_bundle": lambda: (
        theirs(p.lora, "lora_transformer_", flat=True) | {"bundle_emb.cat.clip_l": (2, 64)}
    ),
    "flux_onetrainer_oft": lambda: theirs(p.leaves_of("oft_R.weight"), "lora_transformer_", flat=True),
    "flux_onetrainer_top": lambda: theirs(p.lora, "lora_transformer_", flat=True, outside=True),
    "flux_partial": lambda: p.of(p.flux_diffusers()[:8], PEFT, "transformer.", flat=False),
    "flux_peft_default": lambda: theirs(DEFAULT),
    "flux_peft_dora": lambda: theirs(MAGNITUDE),
    "flux_peft_te": lambda: theirs(PEFT) | p.of(p.clip(2), PEFT, "text_encoder.", flat=False),
    "flux_simpletuner_lokr": lambda: theirs(
        p.leaves_of("lokr_w1", "lokr_w2", "alpha"), "lycoris_", flat=True
    ),
    "flux_xlabs": lambda: p.xlabs("", with_single=False),
    "flux_xlabs_dm": lambda: p.xlabs("diffusion_model.", with_single=True),
    "flux_xlabs_single": lambda: p.xlabs("", with_single=True),
}
FILES = {
    **FLUX,
    **{f"sd_{name}": made for name, made in files_of("sd").items()},
    **{f"sdxl_{name}": made for name, made in files_of("sdxl").items()},
}


def told(shapes: p.Shapes, program: str) -> int | str | None:
    verdict = verdicts(shapes).get(program)
    if verdict is None:
        return None
    return "refuses" if verdict.refusal else len(verdict.loaded)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_what_is_told_is_what_was_seen(row: dict[str, Any]) -> None:
    shapes = FILES[row["file"]]()
    assert len(shapes) == row["tensors"]
    for program in row.keys() - {"file", "tensors"}:
        seen = len(shapes) if row[program] == "takes" else row[program]
        assert told(shapes, program) == seen, program


def test_what_was_seen_without_a_count() -> None:
    joint = {f"lora_unet_joint_blocks_0_x_block_attn_qkv{leaf}": (4, 4) for leaf in p.lora(p.t5()[0])}
    assert (told(joint, "ComfyUI"), told(joint, "diffusers")) == (3, 0)
    tlora = p.of(p.linear("sd"), p.leaves_of("p", "q", "lambda_layer"), "lora_unet_", theirs=True)
    assert told(tlora, "ComfyUI") == 0
