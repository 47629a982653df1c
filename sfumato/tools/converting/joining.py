"""Put the parts of a model into one file; every tensor goes from file to file."""

from __future__ import annotations

import logging
from pathlib import Path

from sfumato.config.run.run import Run
from sfumato.config.tools.joining import JoiningConfig
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Layout, Publishing
from sfumato.models.registry.families import family_for
from sfumato.nn.precision import dtype_named
from sfumato.tools.converting.conversion import kept_metadata
from sfumato.tools.outputs import require_other

logger = logging.getLogger(__name__)


def join_parts(run: Run) -> None:
    """Write one file with all parts that the run names.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options, family = run[JoiningConfig], family_for(run)
    sources = {part: family.source(part) for part in (DENOISER, VAE, *family.text_outputs)}
    family.check([part for part in (DENOISER, VAE) if sources[part] is not None])
    for part in family.text_outputs:
        if sources[part] is not None:
            with family.published(part):  # checks it without its tokenizer
                pass
    found = {source for source in sources.values() if source is not None}
    target = Path(options.output)
    require_other("--output", target, found)
    dtype = dtype_named(options.save_precision, "--save_precision") if options.save_precision else None
    base = sources[DENOISER]
    assert base is not None
    how = Publishing(Layout.WHOLE_FILE, dtype, kept_metadata(base), is_complete=True)
    family.write({}, target, how)
    logger.info("written: %s", target)
