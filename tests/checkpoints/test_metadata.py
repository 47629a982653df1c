"""What files say of themselves."""

import hashlib
from pathlib import Path

import torch

from sfumato.checkpoints import modelspec
from sfumato.checkpoints.hashes import adapter_hashes, file_sha256, legacy_file_hash
from sfumato.checkpoints.metadata import as_strings, minimum_set
from sfumato.checkpoints.tensors import write_tensors
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.models.interface.identity import ModelIdentity

IDENTITY = ModelIdentity("x1", "x-1", "https://example.org", (64, 32))


def test_minimum_set_keeps_what_loading_needs_and_what_describes() -> None:
    kept = {"ss_network_dim": "4", "modelspec.title": "t", "sshs_model_hash": "0"}
    assert minimum_set({**kept, "ss_learning_rate": "1", "ss_tag_frequency": "{}"}) == kept


def test_values_are_written_as_python_prints_them() -> None:
    assert as_strings({"a": None, "b": True, "c": 2.0, "d": "x", "e": (1, 2)}) == {
        "a": "None",
        "b": "True",
        "c": "2.0",
        "d": "x",
        "e": "(1, 2)",
    }


def test_hashes_are_those_of_the_file_that_holds_only_training_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(600, 700), "b": torch.ones(3).half()}
    metadata = {"ss_x": "1", "modelspec.title": "t"}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, {"ss_x": "1"})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    hashes = adapter_hashes(tensors, metadata)
    assert hashes["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert hashes["sshs_legacy_hash"] == legacy_file_hash(path)
    assert file_sha256(path) == hashlib.sha256(data).hexdigest()


def test_hashes_of_what_is_no_file_are_words(tmp_path: Path) -> None:
    for function in (file_sha256, legacy_file_hash):
        assert function(tmp_path) == "IsADirectory"
        assert function(tmp_path / "x") == "NOFILE"


def test_every_description_the_user_gives_becomes_a_field(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_bytes(b"\x89PNG")
    config = MetadataConfig(
        metadata_title="T",
        metadata_usage_hint="h",
        metadata_thumbnail=str(tmp_path / "t.png"),
        metadata_trigger_phrase="p",
    )
    fields = modelspec.build(IDENTITY, config, kind="lora", name="n", timestamp=0.0)
    assert fields["modelspec.title"] == "T"
    assert fields["modelspec.usage_hint"] == "h"
    assert fields["modelspec.trigger_phrase"] == "p"
    assert fields["modelspec.thumbnail"] == "data:image/png;base64,iVBORw=="
    assert fields["modelspec.resolution"] == "64x32"
    assert "modelspec.prediction_type" not in fields
    assert "modelspec.author" not in fields
