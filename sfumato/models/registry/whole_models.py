"""Base models, told apart by their files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol, cast

from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.fetching import located
from sfumato.models.components import part_prefixes
from sfumato.models.components.autoencoder import told_shape
from sfumato.models.components.hub_files import any_model
from sfumato.models.components.model_files import open_part, open_weights
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions
from sfumato.models.components.stable_diffusion.predicted import Predicted, told_by
from sfumato.models.components.tensor_views import Shapes, view_of
from sfumato.models.families.sd.layouts import is_version_2
from sfumato.models.interface.catalogue import everyone
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.identity import ModelIdentity
from sfumato.models.registry.families import family_for

logger = logging.getLogger(__name__)

_LATENT_CHANNELS = 4
"""Of Stable Diffusion's latents, by which its autoencoders are told from those of newer models."""

_NOTHING = InsistenceOptions()


class WholeModel(Family, Protocol):
    """A family whose parts are published together."""

    checkpoint: Checkpoint
    predicted: Predicted


def open_rewritable(
    path: Path, option: str, *, version: int | None = None, variant: str | None = None
) -> Family:
    """Return the family that a model belongs to, bound to it, as `open_base` does.

    Models that are published in parts, whose denoiser is a file of its own, are taken as well.
    """
    family = _family_of_denoiser(path)
    if family is not None:
        if version or variant:
            given = f"--v{version}" if version else f"--variant {variant}"
            raise UserError(f"{given} is about Stable Diffusion, but {option} is {path}; leave it out")
        return _bound_to_denoiser(family, path)
    return open_base(path, option, version=version, variant=variant)


def open_model(
    name: str, option: str, insistence: InsistenceOptions, access: HubAccess = ANYBODY
) -> tuple[str, Family]:
    """Return the name of the family that a base model belongs to, and the family bound to it.

    Args:
        name: a file or a folder, or a name on the hub; the denoiser of a model whose parts are published one
            by one.
        option: what the name was given as, for messages.
        access: how the hub is reached.

    Raises:
        UserError: there is no such model, it is another kind of file, or not what the user insists on.
    """
    path = located(name, option, any_model(), access)
    if path is None:
        raise UserError(f"{option} is empty; give a file or a folder in diffusers' layout")
    family = _family_of_denoiser(path)
    if family is None:
        base = open_base(path, option, version=2 if insistence.v2 else None, insistence=insistence)
        if base.predicted.contradiction:
            raise UserError(base.predicted.contradiction)
        is_sdxl = base.checkpoint.layout.kind == "sdxl"
        if insistence.sdxl and not is_sdxl:
            raise UserError(f"--sdxl is given, but {option} is {path}, which is another model; leave it out")
        return "sdxl" if is_sdxl else "sd", base
    for flag in ("v2", "v_parameterization", "sdxl", "prediction_type"):
        if getattr(insistence, flag) not in (None, False, "auto"):
            raise UserError(
                f"--{flag} is given, but {option} is {path}, which is another model; leave it out"
            )
    return family, _bound_to_denoiser(family, path)


def open_base(
    path: Path,
    option: str,
    *,
    version: int | None = None,
    variant: str | None = None,
    insistence: InsistenceOptions = _NOTHING,
) -> WholeModel:
    """Return the family that a base model belongs to, bound to it; its headers have been read.

    Args:
        option: what the path was given as, for messages.
        version: the version of Stable Diffusion that the user insists on.
        variant: as `Checkpoint` has it.
        insistence: what the user says of the prediction; files or, where they are silent, the version tell
            what is not said.

    Raises:
        UserError: there is no such model, it is another kind of file, or another version.
    """
    run = run_naming(path, option, version=version, insistence=insistence)
    base = cast(WholeModel, family_for(run))
    base.checkpoint.variant = variant
    if base.predicted.remark:
        logger.info(base.predicted.remark)
    parts = list(base.checkpoint.layout.parts)
    base.checkpoint.check(parts)
    if variant and not any(_is_file(base.source(part)) for part in parts if path.is_dir()):
        raise UserError(
            f"--variant is {variant}, but {option} is {path}, which has no such files; leave it out"
        )
    return base


def run_naming(
    path: Path, option: str, *, version: int | None = None, insistence: InsistenceOptions = _NOTHING
) -> Run:
    """Return a run that has a base model and nothing else: its family and what tells its versions apart.

    Args and errors are those of `open_base`.
    """
    source = path / "unet" if path.is_dir() else path
    if not source.exists():
        reason = "has no folder unet" if path.is_dir() else "does not exist"
        raise UserError(f"{option} is {path}, which {reason}; give a file or a folder in diffusers' layout")
    with open_weights(source) as file:
        shapes = view_of(file).shapes
    family, found = _identified(path, shapes, option)
    if version is not None and found != version:
        what = f"Stable Diffusion {found}" if found else "SDXL"
        raise UserError(f"--v{version} is given, but {option} is {path}, which is {what}; leave it out")
    model = ModelConfig(
        v2=found == 2,
        v_parameterization=_predicts_velocity(path, found, insistence),
        prediction_type=insistence.prediction_type,
        pretrained_model_name_or_path=str(path),
    )
    return Run("", family, [model])


def run_encoding(path: Path, option: str, *, version: int | None = None) -> Run:
    """Return a run that has the autoencoder of a base model, or one that lies there alone, and its family.

    Args and errors are those of `open_base`; an autoencoder alone is Stable Diffusion's, of either version.
    """
    source = path / "vae" if (path / "vae").is_dir() and not (path / "unet").is_dir() else path
    if not source.exists() or (source / "unet").is_dir():
        return run_naming(path, option, version=version)
    with open_weights(source) as file:
        shapes = view_of(file).shapes
    kind = recognise(shapes)
    if kind is None or kind.name not in ("vae", "vae diffusers"):
        return run_naming(path, option, version=version)
    shape = told_shape(shapes)
    channels = shape.channels if shape else 0
    if channels != _LATENT_CHANNELS:
        raise UserError(
            f"{option} is {path}, an autoencoder with {channels} channels; Stable Diffusion's has "
            f"{_LATENT_CHANNELS}, give one of those"
        )
    return Run("", "sd", [ModelConfig(v2=version == 2, vae=str(source))])


def identity_named(version: str | None, family: str = "", *, is_v2: bool = False) -> ModelIdentity | None:
    """Return what a family says of itself in files, without a model.

    Args:
        version: `ss_base_model_version` of an adapter file, or None where it has none.
        family: to take where there is no version.
        is_v2: whether a model of Stable Diffusion is version 2.

    Returns:
        None where neither tells a family.
    """
    told = (facts.name for facts in everyone() if (version or "").startswith(facts.versions))
    named = next(told, family)
    if not named:
        return None
    is_velocity = is_v2 if version is None else version.endswith("_v")
    model = ModelConfig(v2=is_v2, v_parameterization=is_velocity) if named == "sd" else ModelConfig()
    return family_for(Run("", named, [model])).identity


def _family_of_denoiser(path: Path) -> str | None:
    """Return the family of a model whose denoiser has a file of its own; None for everything else."""
    source = path / "transformer" if (path / "transformer").is_dir() else path
    if not source.exists() or (source / "unet").is_dir():
        return None
    with open_part(source, part_prefixes.DENOISER) as file:
        facts = _facts_of(view_of(file).shapes)
    return facts.name if facts is not None and facts.lies_in_parts else None


def _facts_of(shapes: Shapes) -> FamilyFacts | None:
    """Return the facts of the family whose base model, or its denoiser, has such tensors."""
    kind = recognise(shapes)
    return next((facts for facts in everyone() if kind.name in facts.bases), None) if kind else None


def _bound_to_denoiser(name: str, path: Path) -> Family:
    """Return the family of that name, bound to a denoiser whose headers have been read."""
    family = family_for(Run("", name, [ModelConfig(pretrained_model_name_or_path=str(path))]))
    family.check([DENOISER])
    return family


def _identified(path: Path, shapes: Shapes, option: str) -> tuple[str, int | None]:
    """Return (family, version), where the family has versions."""
    kind, facts = recognise(shapes), _facts_of(shapes)
    if kind is None or facts is None or facts.lies_in_parts:
        raise UserError(f"{option} is {path}: {describe(shapes)}; give a whole model")
    version = facts.bases[kind.name]
    return facts.name, 2 if version == 1 and is_version_2(path, shapes) else version


def _predicts_velocity(path: Path, version: int | None, insistence: InsistenceOptions) -> bool:
    """Return what counts where the files do not tell, or contradicts them where the user says so."""
    if insistence.v_parameterization is not None or insistence.prediction_type != "auto":
        return bool(insistence.v_parameterization)
    # Files of version 2 mostly do not tell. Most of them predict velocity, as sd-scripts takes for granted.
    return version == 2 and told_by(path).kind is None


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()
