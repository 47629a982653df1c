"""A LoRA file of ours, loaded by diffusers, changes FLUX.1 and CLIP-L as it changes ours.

The width is the real one, for diffusers' converter takes it for granted; the depth is one block of each kind.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.models.components import text_encoders
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.families.flux.keys import table_for
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.families.flux.packing import image_ids
from sfumato.models.interface.family import DENOISER
from tests import tiny

VOCABULARY, TEXT_WIDTH, TOKENS = 300, 32, 5
HEIGHT, WIDTH = 4, 6


def transformers_with_shared_weights() -> tuple[Flux, FluxTransformer2DModel]:
    """Return both implementations; one set of weights, so that two gigabytes are enough."""
    with torch.device("meta"):
        theirs = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, joint_attention_dim=TEXT_WIDTH, guidance_embeds=True
        )
    shapes = theirs.state_dict()
    table = table_for(shapes)
    empty = {key: source.join(shapes.__getitem__) for key, source in table.items()}
    with torch.device("meta"):
        ours = Flux(FluxShape.of({key: tuple(value.shape) for key, value in empty.items()}))
    rng = torch.Generator().manual_seed(0)
    own, others = {}, {}
    for key, source in table.items():
        shape = empty[key].shape
        spread = 0.02 if len(shape) == 1 else shape[1] ** -0.5
        own[key] = torch.empty(shape).normal_(float(key.endswith(".scale")), spread, generator=rng)
        # One name: the same, or halves exchanged, which undoes itself. Several: views of one tensor.
        pieces = own[key].split([len(shapes[name]) for name in source.names])
        whole = [source.join(lambda _, key=key: own[key])] if len(source.names) == 1 else pieces
        others |= dict(zip(source.names, whole, strict=True))
    ours.load_state_dict(own, assign=True)
    theirs.load_state_dict(others, assign=True)
    return ours.eval().requires_grad_(False), theirs.eval().requires_grad_(False)


def clip_encoders() -> tuple[nn.Module, nn.Module]:
    weights = tiny.random_weights(dict(tiny.clip_l(VOCABULARY, width=768)), seed=1)
    bare = {key.removeprefix(text_encoders.CLIP_PREFIX): value for key, value in weights.items()}
    model = text_encoders.build_clip({k: tuple(v.shape) for k, v in bare.items()}, "quick_gelu", None)
    model.load_state_dict(bare, assign=True)
    positions = torch.arange(model.config.max_position_embeddings)
    model.embeddings.register_buffer("position_ids", positions.expand(1, -1), persistent=False)
    model.eval().requires_grad_(False)
    return model, copy.deepcopy(model)


def write_lora(path: Path, models: Mapping[str, nn.Module]) -> AdapterNetwork:
    """Return a trained adapter of ours, which was written to a file."""
    config = NetworkConfig(network_module="networks.lora_flux", network_dim=4, network_alpha=2)
    plan = network_modules.resolve(Run("flux_train_network", "flux", [config]))
    network = plan.build(FluxFamily(None), models)
    assert isinstance(network, AdapterNetwork)
    rng = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if "lora_up" in name:
            parameter.data.normal_(0.0, 0.3, generator=rng)
    network.save(path, None, {})
    return network.eval()


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_diffusers_pipeline_loads_it_and_both_models_change_as_ours_do(tmp_path: Path) -> None:
    transformer, their_transformer = transformers_with_shared_weights()
    clip, their_clip = clip_encoders()
    network = write_lora(tmp_path / "lora.safetensors", {DENOISER: transformer, "clip_l": clip})
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        text_encoder=their_clip,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=their_transformer,
    )
    rng = torch.Generator().manual_seed(3)
    img = torch.randn(1, HEIGHT * WIDTH // 4, 64, generator=rng)
    txt = torch.randn(1, TOKENS, TEXT_WIDTH, generator=rng)
    pooled, times, scale = torch.randn(1, 768, generator=rng), torch.tensor([0.6]), torch.tensor([3.5])
    ids, txt_ids = image_ids(1, HEIGHT, WIDTH, img.device), torch.zeros(1, TOKENS, 3)
    words = torch.randint(0, VOCABULARY - 2, (2, 77), generator=rng)
    words[:, 9:] = VOCABULARY - 1  # the end of the text, and padding

    def denoisers() -> tuple[Tensor, Tensor]:
        theirs = their_transformer(img, txt, pooled, times, ids[0], txt_ids[0], scale, return_dict=False)
        return transformer(img, ids, txt, txt_ids, times, pooled, scale, None), theirs[0]

    def encoders() -> tuple[Tensor, Tensor]:
        return clip(words).pooler_output, their_clip(words).pooler_output

    with torch.no_grad():
        before = denoisers(), encoders()
        network.attach()
        pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
        after = denoisers(), encoders()
    for (plain, their_plain), (changed, their_changed) in zip(before, after, strict=True):
        assert relative(plain, their_plain) < 1e-5
        assert relative(their_changed, their_plain) > 0.05
        assert relative(changed, plain) > 0.05  # a change worth comparing
        assert relative(changed, their_changed) < 1e-3
        assert relative(changed - plain, their_changed - their_plain) < 1e-3
