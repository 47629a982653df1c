"""The name under which drop-in folders written by version 0.1 import `sfumato.dropin.block_helpers`."""

from sfumato.adapters.sd_scripts.block_helpers import (
    get_block_dims_and_alphas,
    get_block_index,
    get_block_lr_weight,
    parse_block_lr_kwargs,
    remove_block_dims_and_alphas,
)

__all__ = [
    "get_block_dims_and_alphas",
    "get_block_index",
    "get_block_lr_weight",
    "parse_block_lr_kwargs",
    "remove_block_dims_and_alphas",
]
