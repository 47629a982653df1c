"""Which cached latents on disk are missing, broken or made from something else."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path

from sfumato.caching import store
from sfumato.caching.encoding import Encoder, WantedLatents
from sfumato.caching.latent_cache import ALPHA, Job, is_mine
from sfumato.caching.records import IMAGE, latents_differ, made_again
from sfumato.caching.store import BrokenCacheError
from sfumato.checkpoints.atomic import atomic_file
from sfumato.data.sources.index import Index, Status
from sfumato.log import counted
from sfumato.models.interface.family import Family

_ADOPTED = "adopted "

logger = logging.getLogger(__name__)


@dataclass
class Checker:
    """Tells which latents on disk are missing, broken or made from something else."""

    encoder: Encoder
    family: Family
    index: Index
    trust: bool
    num_adopted: int = 0
    unfit: Counter[str] = field(default_factory=Counter)

    def missing(self, rank: int, world: int) -> list[Job]:
        """Return those of this process's share whose latents must be made."""
        share = self.encoder.wanted()
        if world > 1:
            share = (wanted for wanted in share if is_mine(wanted.file, rank, world))
        if self.trust:
            return [wanted.job for wanted in share if not store.has_content(wanted.file)]
        share, asked = tee(share)
        recalled = self.index.recall_all((wanted.kind, wanted.file) for wanted in asked)
        found = [
            wanted.job
            for wanted, (status, known) in zip(share, recalled, strict=True)
            if known != wanted.finding and not self._is_valid(wanted, status, known)
        ]
        if self.num_adopted:
            logger.info(
                "%s without a record (sd-scripts writes none), newer than the image and of the right "
                "shapes: used; delete what comes from another VAE",
                counted(self.num_adopted, "latent cache"),
            )
        if self.unfit:
            logger.info(made_again(self.unfit, "latent cache"))
        return found

    def _is_valid(self, wanted: WantedLatents, status: Status, known: str | None) -> bool:
        """Look into a file of which the index does not say that it is as it should be."""
        job, file, kind, finding = wanted
        if known == _ADOPTED + finding:
            self.num_adopted += 1
            return True
        num_adopted = self.num_adopted
        try:
            is_valid = self._holds(job, Path(file)) or self._took_over(job, file)
        except BrokenCacheError as error:
            logger.warning("%s is damaged (%s) and made again", file, error)
            return False
        if is_valid:
            adopted = _ADOPTED if self.num_adopted > num_adopted else ""
            self.index.learn(kind, file, adopted + finding, status)
        return is_valid

    def _took_over(self, job: Job, file: str) -> bool:
        """Give latents that still have their older name the name of today; return whether there were any."""
        older = self.encoder.cache.older_file(*job)
        if older is None or os.path.exists(file) or not os.path.exists(older):
            return False
        if not self._holds(job, Path(older)):
            return False
        with atomic_file(Path(file), is_flushed=False) as copy, open(older, "rb") as source:
            shutil.copyfileobj(source, copy)
        return True

    def _holds(self, job: Job, path: Path) -> bool:
        cache = self.encoder.cache
        shape = (self.family.latents.channels, *cache.size(*job))
        wanted: dict[str, tuple[int, ...]] = {
            cache.name(*job, flipped): shape for flipped in cache.flips(*job)
        }
        if mask := cache.mask_name(*job):
            height_first = cache.sets[job[0]].fit(job[1]).bucket[::-1]
            wanted[mask] = height_first if mask.startswith(ALPHA) else cache.size(*job)
        found, record = store.contents(path, wanted, cache.key_suffix(*job))
        if found != wanted:
            return False
        if record is None:
            return self._adopt(job, path)
        wanted_record = self.encoder.record(job)
        if not wanted_record[IMAGE]:  # the image is gone, and its latents are all that is left
            record = {**record, IMAGE: wanted_record[IMAGE]}
        if reason := latents_differ(record, wanted_record):
            self.unfit[reason] += 1
        return not reason

    def _adopt(self, job: Job, path: Path) -> bool:
        adopted = store.is_newer(path, self.encoder.cache.sets[job[0]].images.paths[job[1]])
        self.num_adopted += adopted
        return adopted
