"""Every option of sd-scripts keeps its spelling, type, default, choices and manner."""

import gzip
import json
from pathlib import Path

import pytest

from sfumato.cli.listing import describe
from sfumato.cli.scripts import SCRIPTS, script_named

RECORDED = Path(__file__).parent / "options"
OURS = {
    "allow_partial",
    *("dry_run", "skip_existing", "text_before", "text_behind", "trigger_word", "undo"),
    "for_program",
    "for_regularisation",
    "embeddings",
    *("train_words", "train_words_vectors", "train_words_init", "train_words_lr", "bundle_words"),
    "mask_dir",
    "strict",
    "on_nonfinite",
    "overwrite",
    "base_model",
    "json",
    "prediction_type",
    "offline",
    "model_card",
    "sd3_schedule",
    "device_noise",
    "sd3",
}
NEWER = {"skip_image_resolution", "show_timesteps", "show_timesteps_resolution", "svd_lowrank_niter"}
NEWER |= {"train_inpainting"}
"""Of sd-scripts' versions after the recorded one."""
ELSEWHERE = {"blocks_to_swap", "blockwise_fused_optimizers", "fused_optimizer_groups"}
ELSEWHERE |= {"cpu_offload_checkpointing", "stop_text_encoder_training", "prior_loss_weight", "masked_loss"}
ELSEWHERE |= {"reg_data_dir", "conditioning_data_dir", "vae", "tokenizer_cache_dir", "dtype"}
ELSEWHERE |= {"metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_preprocessor"}
ELSEWHERE |= {"metadata_trigger_phrase", "metadata_is_negative_embedding", "control_dir"}
ELSEWHERE |= {"clip_g", "apply_lg_attn_mask"}
"""What sd-scripts has for other families or kinds of training only."""


@pytest.mark.parametrize("script", [script.name for script in SCRIPTS if script.is_drop_in])
def test_options_equal_those_of_sd_scripts(script: str) -> None:
    recorded = json.loads(gzip.decompress((RECORDED / f"{script.replace('/', '__')}.json.gz").read_bytes()))
    found = {row["dest"]: row for row in describe(script_named(script))}
    print(f"{script}: {len(recorded)} options")
    assert len(recorded) >= 1
    names = {row["dest"] for row in recorded}
    assert names <= set(found)
    assert set(found) - names <= OURS | NEWER | ELSEWHERE
    for row in recorded:
        assert _contract(found[row["dest"]]) == _contract(row)


def _contract(row: dict) -> dict:
    """Return what callers depend on; an int default of 1 and a float default of 1.0 are different things."""
    default = row["default"]
    return {
        "flags": row["flags"],
        "type": row["type"],
        "default": (type(default).__name__, default),
        "choices": row["choices"],
        "nargs": row["nargs"] or None,
        "action": row["action"],
        "required": row["required"],
    }
