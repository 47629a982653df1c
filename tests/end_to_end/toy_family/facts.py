"""What is known of the toy without loading torch."""

from dataclasses import dataclass

from sfumato.config.rules.effects import ALWAYS_OURS, NOT_BUILT_FOR_TRAINING, NOT_WITH_FLOW
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.scripts.script import Script
from sfumato.config.scripts.sections import DATA, OUTPUT, TRAINING
from sfumato.config.tools.adapter_merging import AdapterMergingConfig, FreeMergeFormatConfig, MergeOutput
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.file_kinds import FileKind


@dataclass(frozen=True)
class ToyMergeOptions:
    """The toy to merge into."""

    toy_model: str = ""
    """Model to merge into."""

    def outputs(self, save_to: str | None) -> tuple[MergeOutput, ...]:
        return (MergeOutput("toy_model", "denoiser", save_to or ""),)


FACTS = FamilyFacts(
    name="toy",
    kinds=(FileKind("toy", "a toy", ("^toy_in.weight", "^toy_out.weight")),),
    bases={"toy": None},
    versions=("toy",),
    network_modules=("networks.loha",),
    scripts=(
        Script(
            name="toy_train",
            summary="Train an adapter for the toy.",
            family="toy",
            command="train",
            method="lora",
            trainable="adapter",
            sections=(*DATA, *TRAINING, FlowConfig, NetworkConfig, *OUTPUT),
            unsupported=NOT_BUILT_FOR_TRAINING,
            without_effect={**NOT_WITH_FLOW, **ALWAYS_OURS},
        ),
        Script(
            name="toy_generate",
            summary="Make images with the toy.",
            family="toy",
            command="generate",
            sections=(ModelConfig, GenerationConfig),
        ),
        Script(
            name="toy_merge",
            summary="Merge adapters into the toy.",
            family="toy",
            command="merge",
            files={"denoiser": "toy_model"},
            sections=(AdapterMergingConfig, ToyMergeOptions, FreeMergeFormatConfig),
        ),
    ),
)
