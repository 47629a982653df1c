"""What the Hub says of a repository's files, and the way to fetch some of them."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.atomic import require_disk_space
from sfumato.hub import cache
from sfumato.hub.access import HubAccess
from sfumato.hub.bars import without_bars
from sfumato.hub.names import HubName
from sfumato.log import rank_is_zero

_ANSWER_S = 10.0


@dataclass(frozen=True)
class Repository:
    """One revision of a repository, as the Hub has it.

    Attributes:
        commit: of the revision.
        sizes: bytes of each file, by its name.
        hashes: of large files, by which the cache knows them.
    """

    name: HubName
    access: HubAccess
    commit: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]

    def shapes(self, file: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a safetensors file's tensors; the header alone is fetched."""
        header = self.access.api().parse_safetensors_file_metadata(
            self.name.repo, file, repo_type=self.name.kind, revision=self.commit
        )
        return {name: tuple(info.shape) for name, info in header.tensors.items()}

    def require_room(self, files: Iterable[str]) -> None:
        """Raise UserError unless what is still missing of these files fits on the cache's disk."""
        missing = (file for file in files if not self._is_kept(file))
        needed = sum(self.sizes[file] for file in missing)
        require_disk_space(cache.repository(self.name), needed, f"fetching {self.name}")

    def download(self, files: Iterable[str]) -> Path | None:
        """Return the cache's folder of this revision when it has these files; None for no files.

        A connection that breaks off is taken up where it was, and files that are there are not fetched again.
        """
        patterns = [glob.escape(file) for file in files]
        if not patterns:
            return None
        with nullcontext() if rank_is_zero() else without_bars():
            folder = self.access.api().snapshot_download(
                self.name.repo,
                repo_type=self.name.kind,
                revision=self.name.branch,
                allow_patterns=patterns,
            )
        return Path(str(folder))

    def _is_kept(self, file: str) -> bool:
        return file in self.hashes and cache.has_blob(self.name, self.hashes[file])


def repository(name: HubName, access: HubAccess) -> Repository:
    """Ask the Hub what a repository holds."""
    api = access.api()
    ask = {"model": api.model_info, "dataset": api.dataset_info, "space": api.space_info}[name.kind]
    info = ask(name.repo, revision=name.branch, timeout=_ANSWER_S, files_metadata=True)
    files = info.siblings or []
    return Repository(
        name,
        access,
        info.sha or name.branch,
        {file.rfilename: file.size or 0 for file in files},
        {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None},
    )
