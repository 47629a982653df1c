"""Partner images: for each image one of the same name in another folder, which has a role in training."""

from typing import Literal

PartnerRole = Literal["mask", "control"]
"""What a partner is: a loss mask, or a control image that the model is taught to follow."""

ROLES: tuple[PartnerRole, ...] = ("mask", "control")
