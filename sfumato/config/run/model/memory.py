"""How memory is traded for time."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.config.rule import Values, excludes, given, idle, implies, needs


@dataclass(frozen=True)
class MemoryConfig:
    """Memory and speed."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: far less memory, a third slower."""

    cpu_offload_checkpointing: bool = False
    """Keep what checkpointing keeps in RAM instead of the device's. Sets `gradient_checkpointing`,
    excludes `blocks_to_swap` and `split_mode`."""

    blocks_to_swap: int | None = None
    """Number of blocks whose weights make room: they wait in RAM and travel to the device when
    their turn comes."""

    split_mode: bool = False
    """Let the blocks in front of those that are trained travel like swapped ones, and keep the rest on the
    device. Needs `--network_args train_blocks=single`."""

    lowram: bool = False
    """Load models straight onto the device, for machines with little RAM."""

    highvram: bool = False
    """Do not hand freed device memory back between phases: a little quicker where there is plenty."""

    mem_eff_attn: bool = False
    """Attention in slices, in the style of early memory-efficient kernels."""

    xformers: bool = False
    """Attention by the xformers library."""

    sdpa: bool = False
    """Attention by PyTorch's scaled_dot_product_attention."""

    torch_compile: bool = False
    """Compile the model's blocks: slow to start, quicker steps."""

    dynamo_backend: Literal[
        "eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs",
        "ofi", "fx2trt", "onnxrt", "tensort", "ipex", "tvm",
    ] = "inductor"  # fmt: skip
    """Which compiler `torch_compile` uses."""

    def __post_init__(self) -> None:
        at_least(self, 0, "blocks_to_swap")


_SWAPS = ("blocks_to_swap", "split_mode", "double_blocks_to_swap", "single_blocks_to_swap")


def _trains_only_the_end(values: Values) -> bool:
    texts = {text.replace(" ", "") for text in values.get("network_args") or ()}
    return bool(values["blocks_to_swap"]) or "train_blocks=single" in texts


RULES = (
    excludes(["cpu_offload_checkpointing"], _SWAPS, "both move the same memory"),
    needs(
        ["split_mode"],
        reason="--network_args train_blocks=single: the front stays as it is",
        unless=_trains_only_the_end,
    ),
    needs(
        ["torch_compile"],
        given("gradient_checkpointing"),
        reason="blocks are swapped",
        among=(given("blocks_to_swap"), given("split_mode")),
    ),
    implies("cpu_offload_checkpointing", {"gradient_checkpointing": True}),
    implies(
        "split_mode",
        {"split_mode": False},
        "--blocks_to_swap says how much travels, so split_mode is left out",
        among=(given("blocks_to_swap"),),
    ),
    idle(["dynamo_backend"], given("torch_compile")),
)
"""What these options mean to others."""
