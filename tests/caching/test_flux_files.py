"""Cache files of a real family have the arrays, shapes and types that sd-scripts looks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.interface.parts import Parts
from tests import tiny
from tests.data.folders import folder, plan, subset


@pytest.mark.parametrize("mask", [False, True])
def test_flux_caches_have_the_published_layout(tmp_path: Path, mask: bool) -> None:
    files = tiny.flux(tmp_path / "model")
    family = FluxFamily(
        files.transformer,
        files.clip_l,
        files.t5xxl,
        files.ae,
        files.tokenizers,
        t5_max_length=32,
        apply_t5_mask=mask,
    )
    path = folder(tmp_path / "cats", [(64, 64)])
    made, parts = dataset.read([plan(subset(path))], seed=1), Parts(family, torch.device("cpu"))
    fill_latents(made, family, parts, to_disk=True)
    fill_texts(made, family, parts, ("clip_l", "t5xxl"), to_disk=True)
    with np.load(path / "im0_0064x0064_flux.npz") as arrays:
        assert {k: v.shape for k, v in arrays.items() if not k.startswith("sfumato")} == {
            "latents_8x8": (16, 8, 8),
            "original_size_8x8": (2,),
            "crop_ltrb_8x8": (4,),
        }
    with np.load(path / "im0_flux_te.npz") as arrays:
        assert {k: (v.shape, v.dtype.kind) for k, v in arrays.items() if not k.startswith("sfumato")} == {
            "l_pooled": ((64,), "f"),
            "t5_out": ((32, 48), "f"),
            "txt_ids": ((32, 3), "f"),
            "t5_attn_mask": ((32,), "i"),
            "apply_t5_attn_mask": ((), "b"),
        }
        assert bool(arrays["apply_t5_attn_mask"]) == mask
    batch = made[made.batches(1)[0]]
    assert batch.latents is not None
    assert batch.text.keys() == {"l_pooled", "t5_out", "t5_attn_mask"}
