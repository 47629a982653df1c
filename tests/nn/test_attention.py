"""Attention against its formula."""

import math

import torch

from sfumato.nn.attention import attend, visible_keys


def test_attention_is_its_formula_and_hides_masked_keys() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 4) for length in (5, 6, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]])
    scores = query @ key.transpose(-1, -2) / math.sqrt(4)
    scores = scores.masked_fill(mask[:, None, None] == 0, float("-inf"))
    expected = (scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(attend(query, key, value, visible_keys(mask)), expected)
