"""A process of our own does not wait for packages that others import in passing; those stay importable."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from sfumato.lean_imports import EXTRAS, lean, own_process
{own}
with lean():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel
print(*[name for name in EXTRAS if name in sys.modules])
import scipy.optimize
from peft import LoraConfig
"""


@pytest.mark.parametrize(
    ("own", "imported"),
    [
        ("own_process()", ""),
        pytest.param("", "bitsandbytes peft scipy", marks=pytest.mark.slow),
    ],
)
def test_extras_are_imported_only_where_sfumato_is_a_library(own: str, imported: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(own=own)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == imported
