"""The model of the scripts that take any Stable Diffusion: its file tells which one it is."""

from __future__ import annotations

from pathlib import Path

from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.components.stable_diffusion.checkpoint_options import CheckpointOptions
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions
from sfumato.models.registry.whole_models import run_naming

_SDXL = "sdxl"


def run_with_checkpoint(run: Run, path: Path, option: str) -> Run:
    """Return the run with the family that a model belongs to, and the model as its base.

    Args:
        run: with `CheckpointOptions`, of which one may insist on a model.
        option: what the path was given as, for messages.

    Raises:
        UserError: there is no such model, or not what the user insists on.
    """
    options = run[CheckpointOptions]
    # Without the option it is noise in these scripts, whatever the version, unless the file tells.
    insistence = InsistenceOptions(v_parameterization=options.v_parameterization)
    version = 1 if options.v1 else 2 if options.v2 else None
    found = run_naming(path, option, version=version, insistence=insistence)
    if options.sdxl and found.family != _SDXL:
        raise UserError(f"--sdxl is given, but {option} is {path}, which is another model; leave it out")
    own = {"vae": options.vae, "tokenizer_cache_dir": options.tokenizer_cache_dir}
    return run.of_family(found.family).with_sections(*found.with_values(own))
