"""What a model card tells of a run."""

from __future__ import annotations

from pathlib import Path

from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.data.batches import statistics
from sfumato.data.batches.dataset import TrainingSet
from sfumato.hub.card import Card
from sfumato.hub.names import parse
from sfumato.training.run.session import TrainingSession

_SETTINGS = (
    *("network_module", "network_dim", "network_alpha", "network_args", "optimizer_type", "learning_rate"),
    *("unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "train_batch_size", "resolution"),
    *("gradient_accumulation_steps", "mixed_precision", "min_snr_gamma", "noise_offset", "loss_type"),
    *("timestep_sampling", "discrete_flow_shift", "guidance_scale", "clip_skip"),
)
"""Options that a card tells; none is a path."""

_MOST_TRIGGERS = 5


def card_of(session: TrainingSession) -> Card:
    """Return what is known of a run before its first step."""
    run, told = session.run, session.run[MetadataConfig]
    base = session.run[ModelConfig].pretrained_model_name_or_path or ""
    on_hub = None if Path(base).exists() else parse(base)
    tags = [word.strip() for word in (told.metadata_tags or "").split(",") if word.strip()]
    kind = ["lora"] if NetworkConfig in run else []
    return Card(
        title=told.metadata_title or session.names.last().stem,
        description=told.metadata_description,
        base=str(on_hub) if on_hub else Path(base).name,
        base_on_hub=on_hub.repo if on_hub else None,
        licence=told.metadata_license,
        triggers=_triggers(session),
        tags=["text-to-image", session.family.identity.architecture, *kind, *tags],
        settings=_settings(session),
    )


def _settings(session: TrainingSession) -> dict[str, object]:
    values, plan = session.run.values(), session.plan
    images = session.training_set.num_train_images
    counts = {"images, with repeats": images, "epochs": plan.num_epochs, "steps": plan.num_steps}
    return {
        **counts,
        "seed": session.seed,
        **{name: values[name] for name in _SETTINGS if values.get(name) not in (None, "", 0, ())},
    }


def _triggers(session: TrainingSession) -> list[str]:
    """Return the words that the user names, or else those that all captions of a folder have."""
    if named := session.run[MetadataConfig].metadata_trigger_phrase:
        return [named]
    images = session.training_set
    if not isinstance(images, TrainingSet):
        return []
    folders = statistics.folders(images.sets, is_reg=False)
    found: dict[str, None] = {}
    for folder, tags in images.tag_frequency().items():
        num = folders.get(folder, {}).get("img_count", 0)
        found |= dict.fromkeys([tag for tag, count in tags.items() if count == num][:_MOST_TRIGGERS])
    return list(found)
