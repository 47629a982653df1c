"""What only trainers of whole models have."""

from dataclasses import dataclass

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class WholeModelConfig:
    """Whole models."""

    blockwise_fused_optimizers: bool = False
    """Update the weights of a block as soon as their gradients are known, and free these."""

    fused_optimizer_groups: int | None = None
    """Part the weights into so many groups, and update each as soon as its gradients are known."""

    double_blocks_to_swap: int | None = None
    """Older spelling: `blocks_to_swap` is this and half of `single_blocks_to_swap`."""

    single_blocks_to_swap: int | None = None
    """Older spelling: see `double_blocks_to_swap`."""

    mem_eff_save: bool = False
    """Write files one tensor at a time; all files are."""

    use_safetensors: bool = False
    """Save as safetensors; files are unless `save_model_as` says otherwise."""

    skip_latents_validity_check: bool = False
    """Older spelling of `skip_cache_check`."""

    def __post_init__(self) -> None:
        at_least(self, 0, "fused_optimizer_groups", "double_blocks_to_swap", "single_blocks_to_swap")
