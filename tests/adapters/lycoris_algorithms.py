"""Everything that LyCORIS 4.1 lists, for the tests that go through all of it."""

ALGORITHMS = {
    "lora": "algo=lora",
    "lora, rank-stabilized": "algo=lora rs_lora=True",
    "lora, with a scalar": "algo=lora use_scalar=True",
    "lora, bypassing": "algo=lora bypass_mode=True",
    "lora, dropouts": "algo=lora rank_dropout=0.3 module_dropout=0.3 dropout=0.2",
    "lora, plus": "algo=lora loraplus_lr_ratio=4",
    "lora, decomposed": "algo=lora dora_wd=True",
    "locon": "algo=locon conv_dim=2 conv_alpha=2",
    "locon, tucker": "algo=locon use_tucker=True",
    "locon, decomposed by inputs": "algo=locon dora_wd=True wd_on_output=False",
    "loha": "algo=loha",
    "loha, tucker": "algo=loha use_tucker=True",
    "loha, with a scalar": "algo=loha use_scalar=True",
    "loha, decomposed": "algo=loha dora_wd=True",
    "lokr": "algo=lokr factor=4",
    "lokr, tucker": "algo=lokr factor=4 conv_dim=1 use_tucker=True decompose_both=True",
    "lokr, whole": "algo=lokr full_matrix=True",
    "lokr, decomposed": "algo=lokr factor=4 dora_wd=True",
    "dylora": "algo=dylora block_size=1",
    "glora": "algo=glora",
    "ia3": "algo=ia3",
    "diag-oft": "algo=diag-oft",
    "diag-oft, constrained": "algo=diag-oft constraint=0.1 rescaled=True",
    "boft": "algo=boft",
    "full": "algo=full",
    "tlora": "algo=tlora",
}
"""Arguments by a name for people."""

RANKS = {"boft": 16}
"""Ranks where 2 does not do: BOFT cuts widths into a power of two times at most as many."""
