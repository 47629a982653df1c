"""The table of names: what other programs import, from which module of sd-scripts, and what it is here.

Files in drop-in folders import `offer`. Such folders stay where they were written when the package is
updated, so its name does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Offer:
    """Something of ours that stands behind a name.

    Attributes:
        module: where it is.
        name: what it is called there; empty for the module itself.
        arguments: what it is called with besides what a program gives.
    """

    module: str
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import it."""
        module = import_module(self.module)
        if not self.name:
            return module
        found = getattr(module, self.name)
        return partial(found, **self.arguments) if self.arguments else found


_TRAINING = {
    "BucketManager": Offer("sfumato.clients.bucket_manager", "BucketManager"),
    "read_config_from_file": Offer("sfumato.clients.parsers", "read_config_from_file"),
    "precalculate_safetensors_hashes": Offer("sfumato.clients.files", "precalculate_safetensors_hashes"),
}
_PARTS_OF_TRAINING = (
    *("accelerator_setup", "args", "caching", "checkpoint_io", "controlnet_dataset", "dataset"),
    *("dreambooth_dataset", "finetuning_dataset", "hidden_states", "loss", "model_io", "optimizer"),
    *("sampling", "subset"),
)
"""Modules into which later versions divide `train_util`: each answers for all of it."""

_LOGGING = {"setup_logging": Offer("sfumato.clients.files", "setup_logging")}
_SDXL_UNET = {"SdxlUNet2DConditionModel": Offer("sfumato.clients.models", "UnetOfFile")}


def _of_sdxl(name: str) -> Offer:
    return Offer("sfumato.clients.models", name, {"family": "sdxl"})


NAMES: Mapping[str, Mapping[str, Offer]] = {
    "library.train_util": _TRAINING,
    **{f"library.{name}": _TRAINING for name in _PARTS_OF_TRAINING},
    "library.model_util": {
        "is_safetensors": Offer("sfumato.clients.files", "is_safetensors"),
        "load_models_from_stable_diffusion_checkpoint": Offer(
            "sfumato.clients.models", "load_parts", {"family": "sd"}
        ),
    },
    "library.sdxl_model_util": {
        "load_models_from_sdxl_checkpoint": _of_sdxl("load_parts_and_marks"),
        "save_stable_diffusion_checkpoint": _of_sdxl("save_checkpoint"),
        "convert_diffusers_unet_state_dict_to_sdxl": Offer("sfumato.clients.models", "as_published"),
        "_load_state_dict_on_device": Offer("sfumato.clients.models", "fill"),
        "sdxl_original_unet": Offer("library.sdxl_original_unet"),
    },
    "library.sdxl_original_unet": _SDXL_UNET,
    "library.flux_train_utils": {
        "add_flux_train_arguments": Offer(
            "sfumato.clients.parsers", "add_options", {"script": "flux_train_network"}
        ),
    },
    "tools/latent_upscaler": {
        "create_upscaler": Offer("sfumato.sampling.hires.latent_upscaler", "create_upscaler")
    },
    "library.huggingface_util": {},
    "library.config_util": {},
    "library.utils": _LOGGING,
    "library.logging_util": _LOGGING,
    "train_network": {
        "NetworkTrainer": Offer("sfumato.clients.trainer", "Trainer", {"script": "train_network"})
    },
    "sdxl_train_network": {
        "SdxlNetworkTrainer": Offer("sfumato.clients.trainer", "Trainer", {"script": "sdxl_train_network"})
    },
    "flux_train_network": {
        "FluxNetworkTrainer": Offer("sfumato.clients.trainer", "Trainer", {"script": "flux_train_network"})
    },
}
"""What is offered, by the modules that programs import; every script has a `setup_parser` besides."""


def offer(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module of sd-scripts: it imports what is offered under a name.

    Raises:
        ImportError: by that function, for any other name. `from module import name` would replace the text
            of an AttributeError, which says what to use instead.
    """
    offers = NAMES.get(module, {})
    if not module.startswith("library."):
        offers = {"setup_parser": Offer("sfumato.clients.parsers", "parser_of", {"script": module}), **offers}

    def of_name(name: str) -> Any:
        if name.startswith("__"):  # Python itself asks for these
            raise AttributeError(name)
        if name not in offers:
            raise ImportError(_refusal(module, name, offers))
        return offers[name].load()

    return of_name


def _refusal(module: str, name: str, offers: Mapping[str, Offer]) -> str:
    known = f"it has {', '.join(offers)}" if offers else "it has no names"
    return (
        f"{module} has no {name} here, {known}; use sfumato.train, sfumato.load, sfumato.read_dataset or "
        "sfumato.open_tensors instead (docs/library.md)"
    )
