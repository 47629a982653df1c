"""The sections check their own ranges."""

import math

import pytest

from sfumato.cli.options.help_texts import field_docs
from sfumato.cli.scripts import SCRIPTS
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.data.loader import LoaderConfig
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.config.secrets import ENVIRONMENT
from sfumato.errors import UserError

SECTIONS = sorted({section for script in SCRIPTS for section in script.sections}, key=lambda s: s.__name__)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (LengthConfig, "max_train_steps", 0),
        (LengthConfig, "gradient_accumulation_steps", 0),
        (OptimizerConfig, "max_grad_norm", -1.0),
        (LoaderConfig, "max_data_loader_n_workers", -1),
        (SavingConfig, "save_every_n_epochs", 0),
        (SavingConfig, "output_name", "folder/name"),
        (CaptionConfig, "caption_dropout_rate", 1.5),
        (NoiseConfig, "max_timestep", 1001),
        (FlowConfig, "discrete_flow_shift", 0.0),
        (LossConfig, "min_snr_gamma", -1.0),
        (ImageConfig, "resolution", "1024x768"),
        (ImageConfig, "resolution", "512,"),
        (ImageConfig, "face_crop_aug_range", "2.0"),
        (ImageConfig, "face_crop_aug_range", "4,2"),
        (ImageConfig, "face_crop_aug_range", "a,b"),
        (ImageConfig, "bucket_reso_steps", 0),
        (OptimizerConfig, "max_grad_norm", math.nan),
        (LossConfig, "huber_c", math.nan),
        (ScheduleConfig, "lr_scheduler_power", -1.0),
        (NetworkConfig, "network_module", ".."),
        (OptimizerConfig, "optimizer_type", "a..b"),
        (ScheduleConfig, "lr_scheduler_type", "StepLR."),
        (DatasetConfig, "dataset_class", "my/data.py"),
    ],
)
def test_a_value_out_of_range_names_option_and_value(section: type, name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^--{name} is .*{value}") as caught:
        section(**{name: value})
    assert "\n" not in str(caught.value)


def test_zero_keeps_its_meaning_where_it_has_one() -> None:
    assert OptimizerConfig(max_grad_norm=0).max_grad_norm == 0
    assert LoaderConfig(max_data_loader_n_workers=0).max_data_loader_n_workers == 0
    assert CaptionConfig(caption_dropout_every_n_epochs=0, keep_tokens=0).keep_tokens == 0


@pytest.mark.parametrize("resolution", ["512", "512,768", " 1024 , 1024 "])
def test_resolution_takes_one_or_two_sides(resolution: str) -> None:
    assert ImageConfig(resolution=resolution).resolution == resolution


@pytest.mark.parametrize("resolution", ["512,512,512", "0", "-8", "9" * 5000])
def test_resolution_takes_nothing_else(resolution: str) -> None:
    with pytest.raises(UserError, match=r"^--resolution is '.*write pixels as 1024 or width,height"):
        ImageConfig(resolution=resolution)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_section_explains_itself_in_one_line_of_help(section: type) -> None:
    docs = field_docs(section)
    names = set(section.__dataclass_fields__)
    assert {name for name in names if len(docs.get(name, "")) > 10} == names
    assert not any("\n" in text for text in docs.values())


def test_secrets_do_not_show_when_a_section_is_printed() -> None:
    shown = repr(HubConfig(huggingface_token="s3cret")) + repr(TrackingConfig(wandb_api_key="s3cret"))
    assert "s3cret" not in shown
    assert set(ENVIRONMENT) == {"huggingface_token", "wandb_api_key"}
