"""Files of new words with tensors of any shape, dtype and value: read, or refused with what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.adapters.words.embedding_file import embedding_of
from tests.fuzz.outcomes import outcome

LAYERS = ("IN01", "MID")
KEYS = st.sampled_from(["emb_params", "clip_l", "clip_g", "<cat>", *LAYERS])
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool])
VALUES = st.sampled_from([0.0, 0.5, float("nan"), float("inf")])


@st.composite
def files(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(KEYS, max_size=3, unique=True))
    return {name: torch.full(draw(SHAPES), draw(VALUES)).to(draw(DTYPES)) for name in names}


@pytest.mark.parametrize("keys", [["emb_params"], ["clip_l", "clip_g"]])
@given(tensors=files())
def test_vectors_of_any_file_are_sound_or_refused(keys: list[str], tensors: dict[str, Tensor]) -> None:
    layers = LAYERS if len(keys) == 1 else ()
    found = outcome("embeddings", lambda: embedding_of(Path("x.safetensors"), tensors, keys, layers))
    if found is not None:
        assert found.vectors.keys() <= {*keys}
        copies = len(layers) if found.is_layered else 1
        for vectors in found.vectors.values():
            assert vectors.dtype is torch.float32
            assert vectors.isfinite().all()
            assert len(vectors) == found.num_vectors * copies > 0
