"""What only trainers of whole models have."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import Values, excludes, given, implies, implies_from, needs


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

    no_token_padding: bool = False
    """Read captions without filling them up to the length that the model was trained with."""

    diffusers_xformers: bool = False
    """Attention by the xformers library, in diffusers' way."""

    skip_latents_validity_check: bool = False
    """Older spelling of `skip_cache_check`."""

    def __post_init__(self) -> None:
        at_least(self, 0, "fused_optimizer_groups", "double_blocks_to_swap", "single_blocks_to_swap")


_OLDER_SWAPS = ("double_blocks_to_swap", "single_blocks_to_swap")
_READ_AS_ONE = (
    "--double_blocks_to_swap and --single_blocks_to_swap are read as blocks_to_swap: {blocks_to_swap}"
)


def _as_one_number(values: Values) -> Values:
    num = (values["double_blocks_to_swap"] or 0) + (values["single_blocks_to_swap"] or 0) // 2
    return {**dict.fromkeys(_OLDER_SWAPS), "blocks_to_swap": num}


SWAPS_WHAT_IS_TRAINED = needs(
    ["blocks_to_swap", *_OLDER_SWAPS],
    given("fused_backward_pass"),
    given("blockwise_fused_optimizers"),
    reason="weights can change only while they are there",
)
"""The rule of scripts whose blocks learn themselves."""

RULES = (
    excludes(
        ["fused_backward_pass"],
        ["blockwise_fused_optimizers"],
        "one updates weight by weight, one block by block",
    ),
    excludes(
        ["fused_optimizer_groups"],
        ["blockwise_fused_optimizers"],
        "there is one way to part the weights",
    ),
    needs(
        ["blockwise_fused_optimizers", "fused_optimizer_groups"],
        given("mixed_precision", "bf16", "no"),
        reason="with fp16 no gradient is known to be good before all are there",
    ),
    *(
        implies(
            name,
            dict.fromkeys(_OLDER_SWAPS),
            "--blocks_to_swap replaces double_blocks_to_swap and single_blocks_to_swap",
            among=(given("blocks_to_swap"),),
        )
        for name in _OLDER_SWAPS
    ),
    *(implies_from(name, _as_one_number, _READ_AS_ONE) for name in _OLDER_SWAPS),
    implies(
        "skip_latents_validity_check",
        {"skip_latents_validity_check": False, "skip_cache_check": True},
        "--skip_latents_validity_check is read as skip_cache_check",
    ),
    implies(
        "fused_optimizer_groups",
        {"fused_optimizer_groups": None},
        "--fused_backward_pass updates weight by weight, so fused_optimizer_groups is left out",
        among=(given("fused_backward_pass"),),
    ),
)
"""What these options mean to others."""
