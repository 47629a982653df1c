"""How several processes share one run."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class DistributedConfig:
    """Several devices."""

    ddp_timeout: int | None = None
    """Minutes a process waits for the others; raise it where caching takes long. 0 is PyTorch's own limit."""

    ddp_gradient_as_bucket_view: bool = False
    """Let gradients lie inside the communication buffers, which saves a copy of them."""

    ddp_static_graph: bool = False
    """Promise that every step uses the same weights, which allows some optimisations."""

    deepspeed: bool = False
    """Share optimizer state, gradients or weights between devices by DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shares: 1 optimizer state, 2 also gradients, 3 also weights, 0 nothing."""

    offload_optimizer_device: Literal[None, "cpu", "nvme"] = None
    """Where DeepSpeed keeps optimizer state when not on the device."""

    offload_optimizer_nvme_path: str | None = None
    """Folder on the drive, for optimizer state kept on nvme."""

    offload_param_device: Literal[None, "cpu", "nvme"] = None
    """Where DeepSpeed keeps weights when not on the device; stage 3 only."""

    offload_param_nvme_path: str | None = None
    """Folder on the drive, for weights kept on nvme."""

    zero3_init_flag: bool = False
    """Share weights already while the model is built; stage 3 only."""

    zero3_save_16bit_model: bool = False
    """Gather the shared weights into one 16-bit file when saving; stage 3 only."""

    fp16_master_weights_and_gradients: bool = False
    """Keep DeepSpeed's master weights and gradients in fp16. Needs stage 2 with the optimizer on the CPU."""

    def __post_init__(self) -> None:
        at_least(self, 0, "ddp_timeout")


RULES = (idle(["zero_stage"], given("deepspeed")),)
"""What these options mean to others."""
