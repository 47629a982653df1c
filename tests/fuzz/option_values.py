"""Values that no option wants: numbers that overflow, texts that are no names, arguments that do not suit."""

from __future__ import annotations

from sfumato.config.scripts.option import Option

DIGITS = "9" * 20
NUMBERS = (
    *("0", "-1", "-0.0", "1.5", "1e39", "-1e39", "1e21", DIGITS, "9" * 5000, "nan", "inf", "-inf", "1e400%"),
    *("", " ", "x", "[[1]]", "0,0001", "0x10", "٣", "10%", "1e-320"),
)
TEXTS = (
    *("", "..", ".", "a..b", "é猫", "\udce9", "x" * 5000, "[" * 300, "(" * 300, "\x1b[31m", "a\nb", "a=b"),
    *("=a", "a=", "nan", "1e39", "%s{0}", "~", "'", "\\", "C:\\new", "None", "0,1", "x" * 300, "/"),
    *("fifo", "folder", "missing/x", "text", "text/below", "odd.toml", "list.json"),
)
ARGUMENTS = {
    "optimizer_args": (
        *("betas=(0.9,)", "betas=0.9", "betas=(0.9,", "betas={}", "betas=None", "eps='a'", "eps=1e400"),
        *(
            "eps=-1",
            "weight_decay=0.1,",
            "weight_decay=1j",
            "weight_decay=1e39",
            "weight_decay=10**9",
            "lr=1",
        ),
        *("params=1", "foreach=True", "fused=True", "capturable=True", "differentiable=True", "amsgrad='x'"),
    ),
    "lr_scheduler_args": (
        *("step_size=0", "gamma=1e400", "last_epoch=3", "num_cycles=1e300", "power=-1", "lr_end=1e9"),
        *("T_max=0", "milestones=1", "lr_lambda=1", "step_rules='a'", "step_rules='nan:2,1'", "=1"),
    ),
    "network_args": (
        *("conv_dim=1e21", f"conv_dim={DIGITS}", "conv_alpha=nan", "conv_alpha=1e39", "block_dims=1,2", "=1"),
        *("rank_dropout=nan", "module_dropout=inf", "loraplus_lr_ratio=nan", "loraplus_lr_ratio=1e300"),
        *("train_double_block_indices=0-99999999999", "network_reg_dims=[=4", "network_reg_lrs=a=nan"),
        *(
            f"network_reg_dims=a={DIGITS}",
            f"in_dims={DIGITS},1,1,1,1",
            "down_lr_weight=sine+nan",
            "factor=-2",
        ),
        *(
            "mid_lr_weight=inf",
            "ggpo_sigma=nan",
            "verbose=x",
            "split_qkv=maybe",
            "a\udce9=1",
            "train_blocks=x",
        ),
    ),
    "optimizer_type": ("..", "a..b", "LBFGS", "SparseAdam", "torch.nn.Linear", "os.path", "sys.exit", "é.x"),
    "lr_scheduler_type": ("..", "StepLR.", "ReduceLROnPlateau", "LRScheduler", "math.sin", "sys.exit", "é.x"),
    "network_module": (
        "..",
        "networks",
        "os",
        "a/b",
        "é",
        "networks.dylora",
        "networks.oft",
        "sys.exit",
        "[",
    ),
    "dataset_class": ("..", "builtins.dict", "sys.exit", "os.path", "é.x", "a/b", "builtins.range"),
}
"""Values of the options whose texts other code reads."""

OF_FILES = (
    *(0, 1, -1, 10**30, 1.5, 1e39, float("nan"), float("inf"), True, False, "", "x", "\x1b[31m", "9" * 5000),
    *([], [1], ["x"], [[1]], ["x", 2], [True], [[[]]]),
)
"""Values of a TOML file, whatever their option takes."""


def values_of(option: Option) -> tuple[str, ...]:
    """Return what is tried as the option's value on the command line."""
    if option.dest in ARGUMENTS:
        return ARGUMENTS[option.dest]
    return TEXTS if option.kind in ("str", "Path") else NUMBERS
