"""What saved files say about themselves, in the fields of the modelspec standard."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetadataConfig:
    """Descriptions inside saved files."""

    metadata_title: str | None = None
    """Title of the model; `output_name` when not given."""

    metadata_author: str | None = None
    """Who made it."""

    metadata_description: str | None = None
    """What it is."""

    metadata_license: str | None = None
    """Under which licence it may be used."""

    metadata_tags: str | None = None
    """Keywords, parted by commas."""

    metadata_usage_hint: str | None = None
    """How to use it well."""

    metadata_thumbnail: str | None = None
    """Small preview: a data URL or the address of an image."""

    metadata_merged_from: str | None = None
    """Models that it was merged from, parted by commas."""

    metadata_trigger_phrase: str | None = None
    """Words of a prompt that call it up."""

    metadata_preprocessor: str | None = None
    """What input images have to go through first, for control models."""

    metadata_is_negative_embedding: str | None = None
    """`true` for an embedding that is meant for negative prompts."""
