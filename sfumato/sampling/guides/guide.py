"""How guides are put between a sampler and a model.

The sampler sees the outermost one alone, so that guides can be combined and samplers know none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

from sfumato.diffusion.samplers import Denoise

Guide = Callable[[Denoise], Denoise]


def guided(denoise: Denoise, guides: Iterable[Guide]) -> Denoise:
    """Return what a sampler sees: the first guide is next to the model, the last one next to the sampler."""
    return reduce(lambda inner, guide: guide(inner), guides, denoise)
