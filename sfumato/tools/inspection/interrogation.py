"""Find out which words a LoRA has learned: the tokens of which the text encoder says something else with it.

Each token of the vocabulary is a prompt of its own, encoded with and without the LoRA. Its distance is the
root mean square of the difference over all that the denoiser reads: the token, and the padding behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.network.loading import layers_from
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.interrogation import InterrogationConfig
from sfumato.errors import UserError
from sfumato.hub.access import access_for
from sfumato.hub.fetching import located
from sfumato.log import progress
from sfumato.models.components.hub_files import any_model
from sfumato.models.interface.caption_lengths import Vocabulary
from sfumato.models.interface.family import Family
from sfumato.models.interface.targets import every_target
from sfumato.models.registry.families import family_for
from sfumato.models.registry.whole_models import run_naming
from sfumato.nn.device import default_device

_SHOWN = 100
"""Tokens that the report names."""


def interrogate(run: Run) -> str:
    """Return the report on the LoRA that the run names: the tokens that it changes most, largest first.

    Raises:
        UserError: an option is missing, a file will not do, or the LoRA leaves the text encoder alone.
    """
    options = run[InterrogationConfig]
    if not options.sd_model or not options.model:
        missing = "model" if options.sd_model else "sd_model"
        raise UserError(f"--{missing} is missing; give --sd_model FILE --model FILE")
    lora = Path(options.model)
    layers = read_adapter(lora)
    family = _family(run)
    (part,) = family.text_outputs
    encoder = family.load(part, torch.float32, default_device())
    network = _network(family, part, encoder, lora, layers)
    tokenizer = family.readers()[part].tokenizer
    tokens = tokenizer.content()
    prompts = torch.tensor([[tokenizer.framed([token])] for token in tokens])
    measured = distances(partial(_encode, family, part, encoder), network, prompts.split(options.batch_size))
    return "\n".join(_report(lora, tokenizer, tokens, measured))


def distances(
    encode: Callable[[Tensor], Tensor], network: AdapterNetwork, batches: Sequence[Tensor]
) -> Tensor:
    """Return how far each prompt's encoding moves when the network acts, (N,) float32, on the CPU.

    Args:
        encode: returns (B, L, W), what the denoiser reads of token ids (B, 1, L).
        network: adapters of the encoder, detached; it is detached again afterwards.
        batches: token ids, (B, 1, L) int64 each.
    """
    found = []
    for ids in progress(batches, unit="batch", title="asking"):
        without = encode(ids)
        network.attach()
        change = encode(ids) - without
        network.detach()
        found.append(change.square().flatten(1).mean(1).sqrt().cpu())
    return torch.cat(found)


def _family(run: Run) -> Family:
    """Return the family bound to the base model, of which the text encoder's header has been read."""
    options = run[InterrogationConfig]
    path = located(options.sd_model, "--sd_model", any_model(), access_for(run))
    assert path is not None
    base = run_naming(path, "--sd_model", version=2 if options.v2 else None)
    if base.family != run.family:
        raise UserError(f"--sd_model is {path}, which is another model; give Stable Diffusion 1 or 2")
    model = replace(base[ModelConfig], clip_skip=options.clip_skip)
    family = family_for(base.with_sections(model))
    family.check(list(family.text_outputs))
    return family


def _network(
    family: Family, part: str, encoder: nn.Module, path: Path, layers: Mapping[str, Mapping[str, Tensor]]
) -> AdapterNetwork:
    """Return the adapters that a file holds for a text encoder, loaded and on its device."""
    network = AdapterNetwork(layers_from(path, layers, every_target(family, part, encoder)))
    if not network.layers:
        raise UserError(
            f"--model is {path}, which changes no layer of the text encoder; give a LoRA trained with it"
        )
    network.load_layers(path, {layer.name: layers[layer.name] for layer in network.layers})
    return network.eval().requires_grad_(False).to(next(encoder.parameters()).device, torch.float32)


@torch.inference_mode()
def _encode(family: Family, part: str, encoder: nn.Module, ids: Tensor) -> Tensor:
    """Return (B, 77, W), what the denoiser reads of token ids (B, 1, 77)."""
    (states,) = family.encode_text({part: encoder}, {part: ids}).values()
    return states


def _report(path: Path, tokenizer: Vocabulary, tokens: Sequence[int], measured: Tensor) -> Iterator[str]:
    most = measured.topk(min(_SHOWN, len(tokens)))
    yield f"{path} moves {len(tokens)} tokens by {float(measured.mean()):.5f} on average, most of all these:"
    yield "   token  distance  text"
    for distance, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
        yield f"{tokens[place]:8d}  {distance:.5f}   {_text(tokenizer, tokens[place])}"


def _text(tokenizer: Vocabulary, token: int) -> str:
    """Return what a token stands for; dots follow where the word goes on, and bytes have their own names."""
    vocabulary = tokenizer.vocabulary
    piece = vocabulary.convert_ids_to_tokens(token)
    text = vocabulary.decode([token]).strip()
    if not text or not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        return piece
    return text if piece.endswith("</w>") else f"{text}..."
