"""All rules that concern a script or a run: those of its row, and those that stand beside its sections."""

from collections.abc import Iterable, Mapping

from sfumato.config.rule import Rule, given, idle
from sfumato.config.run import composition, distributed, generation, image_series
from sfumato.config.run.data import caching, captions, dataset, images, loader, validation
from sfumato.config.run.image_scripts import (
    control,
    hires,
    image_files,
    networks,
    picture_guidance,
    prompts,
    speed,
    start_images,
    steps,
)
from sfumato.config.run.model import control_networks, flow, memory, model, network, precision, whole_model
from sfumato.config.run.output import hub, preview, saving, tracking
from sfumato.config.run.run import Run
from sfumato.config.run.training import loss, noise, optimizer, schedule, words
from sfumato.config.scripts.script import Script
from sfumato.config.tools import adapter_exchange, conversion, preparation
from sfumato.config.tools.pictures import captioning, faces, masking

OF_SECTIONS: Mapping[type, tuple[Rule, ...]] = {
    caching.CachingConfig: caching.RULES,
    captions.CaptionConfig: captions.RULES,
    dataset.DatasetConfig: dataset.RULES,
    images.ImageConfig: images.RULES,
    loader.LoaderConfig: loader.RULES,
    validation.ValidationConfig: validation.RULES,
    distributed.DistributedConfig: distributed.RULES,
    control_networks.ControlNetConfig: control_networks.RULES,
    control_networks.LLLiteConfig: control_networks.LLLITE_RULES,
    flow.FlowConfig: flow.RULES,
    generation.GenerationConfig: generation.RULES,
    composition.CompositionConfig: composition.RULES,
    image_series.ImageSeriesConfig: image_series.RULES,
    memory.MemoryConfig: memory.RULES,
    model.ModelConfig: model.RULES,
    network.NetworkConfig: network.RULES,
    precision.PrecisionConfig: precision.RULES,
    whole_model.WholeModelConfig: whole_model.RULES,
    hub.HubConfig: hub.RULES,
    preview.PreviewConfig: preview.RULES,
    saving.SavingConfig: saving.RULES,
    tracking.TrackingConfig: tracking.RULES,
    loss.LossConfig: loss.RULES,
    noise.NoiseConfig: noise.RULES,
    optimizer.OptimizerConfig: optimizer.RULES,
    schedule.ScheduleConfig: schedule.RULES,
    words.WordsConfig: words.RULES,
    captioning.BlipConfig: captioning.BLIP,
    captioning.TaggingConfig: captioning.TAGGING,
    control.ControlConfig: control.RULES,
    hires.HighresFixConfig: hires.RULES,
    image_files.ImageFileConfig: image_files.RULES,
    networks.ImageNetworkConfig: networks.RULES,
    picture_guidance.PictureGuidanceConfig: picture_guidance.RULES,
    prompts.PromptSourceConfig: prompts.RULES,
    speed.SpeedConfig: speed.RULES,
    start_images.StartImageConfig: start_images.RULES,
    steps.StartNoiseConfig: steps.RULES,
    words.JoinedWordConfig: words.JOINED_RULES,
    faces.FacesConfig: faces.RULES,
    masking.MaskingConfig: masking.RULES,
    preparation.GatheringConfig: preparation.GATHERING,
    preparation.BucketingConfig: preparation.BUCKETING,
    conversion.ConversionConfig: conversion.RULES,
    adapter_exchange.AdapterExchangeConfig: adapter_exchange.RULES,
}
"""The table of each section that has one."""


def rules_for(script: Script) -> tuple[Rule, ...]:
    """Return the rules of a script; what its row says of an option comes before what sections say."""
    return (*_of_row(script), *script.rules, *_of_sections(script.sections))


def rules_of(run: Run) -> tuple[Rule, ...]:
    """Return the rules of the sections that a run has."""
    return _of_sections(type(section) for section in run)


def _of_sections(sections: Iterable[type]) -> tuple[Rule, ...]:
    return tuple(rule for section in sections for rule in OF_SECTIONS.get(section, ()))


def _of_row(script: Script) -> Iterable[Rule]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in script.without_effect.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield Rule(tuple(names), "idle", reason)
    for name in sorted(script.unsupported):
        yield Rule((name,), "unsupported")
    for name, reason in script.impossible.items():
        yield Rule((name,), "unsupported", reason)
    for name, values in script.unsupported_values.items():
        yield Rule((name,), "unsupported", among=(given(name, *values),))
    if script.conditioning_role == "mask":
        yield idle(["conditioning_data_dir"], given("masked_loss"))
