"""The effects that a request asks for."""

from __future__ import annotations

from sfumato.errors import UserError
from sfumato.sampling.plan import Effect
from sfumato.sampling.request import Request


def effects_for(request: Request) -> list[Effect]:
    """Return the effects of requests that are sampled at once, in the order in which they enter.

    Raises:
        UserError: one of them is not supported yet.
    """
    for name in ("deep_shrink", "gradual_latent", "regions"):
        if getattr(request, name) is not None:
            raise UserError(f"{name} is not supported yet; leave it out")
    return []
