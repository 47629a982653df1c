"""Sections that several scripts share."""

from sfumato.config.caching import CachingConfig
from sfumato.config.captions import CaptionConfig
from sfumato.config.console import ConsoleConfig
from sfumato.config.dataset import DatasetConfig
from sfumato.config.distributed import DistributedConfig
from sfumato.config.file import FileConfig
from sfumato.config.hub import HubConfig
from sfumato.config.images import ImageConfig
from sfumato.config.length import LengthConfig
from sfumato.config.loader import LoaderConfig
from sfumato.config.loss import LossConfig
from sfumato.config.memory import MemoryConfig
from sfumato.config.metadata import MetadataConfig
from sfumato.config.model import ModelConfig
from sfumato.config.noise import NoiseConfig
from sfumato.config.optimizer import OptimizerConfig
from sfumato.config.precision import PrecisionConfig
from sfumato.config.preview import PreviewConfig
from sfumato.config.saving import SavingConfig
from sfumato.config.schedule import ScheduleConfig
from sfumato.config.tracking import TrackingConfig
from sfumato.config.validation import ValidationConfig

DATA = (
    ConsoleConfig, ModelConfig, DatasetConfig, CaptionConfig, ImageConfig, CachingConfig, LoaderConfig,
)  # fmt: skip
TRAINING = (
    LengthConfig, OptimizerConfig, ScheduleConfig, PrecisionConfig, MemoryConfig, DistributedConfig,
    NoiseConfig, LossConfig,
)  # fmt: skip
OUTPUT = (
    SavingConfig, MetadataConfig, HubConfig, TrackingConfig, PreviewConfig, ValidationConfig, FileConfig,
)  # fmt: skip
