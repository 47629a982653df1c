"""sd-scripts: its network modules of February 2026; LoHa and LoKr through LyCORIS."""

from __future__ import annotations

import re

from sfumato.adapters.files.programs.keys import acting
from sfumato.adapters.files.programs.verdict import Shapes, Verdict

_LEAVES = (
    r"lora_(down|up|mid)\.weight|lora_(down|up)\.\d+\.weight|lora_[AB]\.\d+|alpha"
    r"|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)"
)
_OF_RESNETS = (
    r"_(resnets|downsamplers|upsamplers|in_layers|out_layers|emb_layers|skip_connection)_|_(op|conv)\."
)
_LORA = re.compile(rf"(lora_unet|lora_te\d?)_\w+\.({_LEAVES})$")
_OFT = re.compile(r"oft_unet_\w+\.(oft_blocks(\.\d+)?|alpha)$")


def judge(shapes: Shapes) -> Verdict:
    """Return what sd-scripts makes of a file."""
    taken = [key for key in shapes if _LORA.match(key)]
    turned = [key for key in shapes if _OFT.match(key) and not re.search(_OF_RESNETS, key)]
    return Verdict(acting([*taken, *turned]))
