"""Rewrite a LoRA file with the names that another program gives its layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.files.dialects.fusing import PART
from sfumato.adapters.files.dialects.halves import MARK
from sfumato.adapters.files.dialects.reading import AdapterContent, read_content
from sfumato.adapters.files.dialects.splitting import in_diffusers_names
from sfumato.adapters.files.programs.told import describe
from sfumato.adapters.files.sizes import shapes_of
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.adapter_exchange import AdapterExchangeConfig
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.layer_names import FamilyNames, flat
from sfumato.models.registry.layer_names import names_of
from sfumato.tools.converting.program_forms import best_form, takes
from sfumato.tools.outputs import adapter_output

logger = logging.getLogger(__name__)


def exchange(run: Run) -> None:
    """Write the file that the run names again; its metadata is kept, but for hashes, which are made anew.

    Raises:
        UserError: the file is missing, for another model, or a layer of it has no other name.
    """
    options = run[AdapterExchangeConfig]
    if not options.src_path:
        raise UserError("--src_path is not given; name the file to read")
    source = Path(options.src_path)
    target = adapter_output("--dst_path", options.dst_path, [source])
    content = read_content(source)
    if options.for_program:
        converted, rest = _for_program(source, content, options.for_program)
    else:
        converted, rest = _between_two(source, content, options, run.family)
    if rest:
        _tell_of_rest(source, rest, len(content.layers), run[PartialUseConfig].allow_partial)
    _tell_of_switches(source, content.layers, converted)
    words = _words(source, content, converted, options)
    kept = {key: text for key, text in content.metadata.items() if not key.startswith("sshs_")}
    write_adapter(target, {**converted, **words}, kept)
    logger.info("written: %s (%s)", target, describe(shapes_of(converted)))


def _for_program(source: Path, content: AdapterContent, program: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in the form of which a program loads most, and the layers that it does not load."""
    family = content.family
    names = names_of(family, _paths(content)) if family else None
    form = best_form(program, content.layers, names)
    for remark in form.verdict.remarks:
        logger.warning("%s: %s: %s", source, program, remark)
    kept = {key: tensor for key, tensor in form.tensors.items() if key in form.verdict.loaded}
    return kept, form.lost


def _words(
    source: Path, content: AdapterContent, converted: Mapping[str, Tensor], options: AdapterExchangeConfig
) -> Mapping[str, Tensor]:
    """Return the embeddings of new words that came with an adapter, unless a file must not have them."""
    words = content.embeddings
    if options.for_program:
        fit = not words or takes(options.for_program, {**converted, **words})
    else:
        fit = options.dst == "sd-scripts"
    if words and not fit:
        number = counted(len(words), "embedding")
        logger.warning("%s: %s of new words left out: the file would be refused with them", source, number)
    return words if fit else {}


def _between_two(
    source: Path, content: AdapterContent, options: AdapterExchangeConfig, family: str
) -> tuple[dict[str, Tensor], list[str]]:
    if content.is_ours != (options.src == "sd-scripts"):
        raise UserError(f"--src is {options.src}, but {source} is not written so; exchange --src and --dst")
    return _converted(source, content, family)


def _converted(source: Path, content: AdapterContent, family: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in the other naming, and the layers that have none."""
    names = names_of(family, _paths(content))
    if names is None or content.family not in (None, family):
        raise UserError(
            f"--src_path is {source}, a file for {content.family}; this converts those for {family}"
        )
    if content.is_ours:
        converted, rest = in_diffusers_names(content.layers, names)
    else:
        rest = [name for name, leaves in content.layers.items() if not _is_writable(name, leaves, names)]
        converted = {
            f"{name}.{leaf}": tensor
            for name, leaves in content.layers.items()
            for leaf, tensor in leaves.items()
            if name not in rest
        }
    if not converted:
        raise UserError(f"--src_path is {source}, no layer of which has two names; give another LoRA")
    return converted, rest


def _paths(content: AdapterContent) -> list[str]:
    """Return the paths of layers within their parts, with underscores for dots."""
    return [flat(name.partition("_")[2].partition("_")[2]) for name in content.layers]


def _is_writable(name: str, leaves: Mapping[str, Tensor], names: FamilyNames) -> bool:
    """Return whether a layer is one of the model's, and of a form that other programs know."""
    bare = name.partition("_")[2]
    is_known = bare.partition("_")[0] in {encoder.own for encoder in names.text_encoders} or any(
        bare == layer.own for layer in names.layers
    )
    return is_known and not any(leaf == MARK or leaf.startswith(PART) for leaf in leaves)


def _tell_of_rest(source: Path, rest: Sequence[str], total: int, allow_partial: bool) -> None:
    number = f"{len(rest)} of {counted(total, 'layer')}"
    if not allow_partial:
        raise UserError(
            f"{source}: {number} cannot be written with other names ({rest[0]} ...); add --allow_partial to "
            "leave them out"
        )
    logger.warning("%s: %s left out (%s ...)", source, number, rest[0])


def _tell_of_switches(
    source: Path, before: Mapping[str, Mapping[str, Tensor]], after: Mapping[str, Tensor]
) -> None:
    """Say so where layers are switched off by an alpha of 0, and the other naming has none to say it with."""
    count = sum("alpha" in leaves and not float(leaves["alpha"]) for leaves in before.values())
    left = sum(key.endswith(".alpha") and not float(tensor) for key, tensor in after.items())
    if count > left:
        number = counted(count, "layer is", "layers are")
        logger.info("%s: %s switched off (alpha 0): written with an up of zeros", source, number)
