"""Sections that several scripts share."""

from sfumato.config.run.console import ConsoleConfig
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.data.loader import LoaderConfig
from sfumato.config.run.data.validation import ValidationConfig
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.file import FileConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.config.run.output.overwriting import OverwritingConfig
from sfumato.config.run.output.preview import PreviewConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig

DATA = (
    ConsoleConfig, ModelConfig, HubAccessConfig, DatasetConfig, CaptionConfig, ImageConfig, CachingConfig,
    LoaderConfig,
)  # fmt: skip
TRAINING = (
    LengthConfig, OptimizerConfig, ScheduleConfig, PrecisionConfig, MemoryConfig, DistributedConfig,
    NoiseConfig, LossConfig,
)  # fmt: skip
OUTPUT = (
    SavingConfig, OverwritingConfig, MetadataConfig, HubConfig, TrackingConfig, PreviewConfig,
    ValidationConfig, FileConfig,
)  # fmt: skip
