"""The files of a model whose parts may have files of their own: found, opened, and told from others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sfumato.checkpoints.tensors import TensorReader, open_tensors
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.fetching import located
from sfumato.hub.selection import Wanted
from sfumato.models.components import autoencoder, hub_files, text_encoders
from sfumato.models.components.loading import shapes_of
from sfumato.models.components.model_files import open_part
from sfumato.models.components.part_prefixes import prefix_in
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.tensor_views import Shapes
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.published import Published


@dataclass(frozen=True)
class PartSpec:
    """What is expected of one part's file: words for messages, kinds as `recognise` names them.

    Attributes:
        folder: where a folder in diffusers' layout keeps it.
        prefixes: what files may put before its names.
    """

    option: str
    what: str
    kinds: frozenset[str]
    folder: str
    prefixes: tuple[str, ...]


class PartFiles:
    """The files of one model.

    Args:
        specs: of each part, the denoiser's among them.
        given: file or folder of each part, where one is given. The denoiser's may be a folder in diffusers'
            layout, where other parts are found too.
        use_mmap: map files into memory instead of reading them plainly.
        denoiser_option: the command-line option that named the denoiser, for messages.
        access: how the hub is reached, where paths are names on it.
        is_shared: whether the denoiser's file may hold other parts, too.
    """

    def __init__(
        self,
        specs: Mapping[str, PartSpec],
        given: Mapping[str, Path | None],
        *,
        use_mmap: bool,
        denoiser_option: str,
        access: HubAccess = ANYBODY,
        is_shared: bool = False,
    ) -> None:
        self.specs = specs
        self.options = {part: spec.option for part, spec in specs.items()} | {DENOISER: denoiser_option}
        self.use_mmap = use_mmap
        self._given = given
        self._access = access
        self._is_shared = is_shared
        self._sources: dict[str, Path | None] = {}

    def source(self, part: str) -> Path | None:
        """Return the file or folder that a part is loaded from; what is on the hub is fetched by now.

        Raises:
            UserError: it cannot be fetched.
        """
        if part not in self._sources:
            self._sources[part] = self._located(part)
        return self._sources[part]

    def is_held(self, part: str) -> bool:
        """Return whether the denoiser's file holds a part, too, whichever file the part is loaded from."""
        return self._is_held_by(self.source(DENOISER), part)

    def existing(self, part: str) -> Path:
        """Return the file or folder that a part is loaded from.

        Raises:
            UserError: there is none.
        """
        path = self.source(part)
        if path is None:
            raise UserError(f"--{self.options[part]} is not given; it must name {self.specs[part].what}")
        if not path.exists():
            raise UserError(f"--{self.options[part]} is {path}, which does not exist; check the path")
        return path

    def lies_in_base(self, part: str) -> bool:
        """Return whether a part comes from the denoiser's file, or from the folder in which that lies."""
        return self._given[part] is None and self.source(part) is not None

    def opened(self, part: str) -> TensorReader:
        """Open a part's tensors, without what files put before their names."""
        return open_part(self.existing(part), self.specs[part].prefixes, use_mmap=self.use_mmap)

    @contextmanager
    def opened_if_any(self, part: str) -> Iterator[TensorReader | None]:
        """Open a part where there is a file of it; the denoiser's as it is, with all that lies beside."""
        path = self.source(part)
        if path is None or not path.exists():
            yield None
            return
        is_whole = part == DENOISER
        with open_tensors(path, use_mmap=self.use_mmap) if is_whole else self.opened(part) as file:
            yield file

    @contextmanager
    def published(self, part: str, model: nn.Module) -> Iterator[Published]:
        """Open a part other than the denoiser; see `Published`.

        Args:
            model: the part itself, on the meta device.
        """
        with self.opened(part) as file:
            names = {name: text_encoders.name_in_file(name, file.keys()) for name in model.state_dict()}
            tensors = {name: file.lazy(found) for name, found in names.items() if found}
            yield Published({part: tensors}, {part: model}, file.metadata)

    def shapes(self, part: str) -> Shapes:
        """Return the shapes of a part's tensors.

        Raises:
            UserError: there is no such file, or it is another model's.
        """
        with self.opened(part) as file:
            shapes = shapes_of(file)
        kind = recognise(shapes)
        if kind is None or kind.name not in self.specs[part].kinds:
            with open_tensors(self.existing(part), use_mmap=self.use_mmap) as file:
                told = describe(shapes_of(file))
            raise UserError(f"{self.named(part)}: {told}; give {self.specs[part].what}")
        return shapes

    def shapes_or_none(self, part: str) -> Shapes | None:
        """Return a file's shapes; None if it cannot be read, which whoever needs it reports."""
        self.source(part)  # what cannot be fetched is said at once, before anything else is
        try:
            with self.opened(part) as file:
                return shapes_of(file)
        except UserError:
            return None

    def autoencoder_shape(self) -> autoencoder.AutoencoderShape | None:
        """Return the autoencoder's sizes; None if it cannot be read, as `shapes_or_none` has it."""
        shapes = self.shapes_or_none(VAE) or {}
        kind = recognise(shapes)
        is_one = kind is not None and kind.name in self.specs[VAE].kinds
        return autoencoder.told_shape(shapes) if is_one else None

    def named(self, part: str) -> str:
        """Return the option that named a part's file, and the file, for messages."""
        return f"--{self.options[part]} is {self.source(part)}"

    def _located(self, part: str) -> Path | None:
        """Return the part's place in a folder in diffusers' layout, if that is what was given."""
        given = self._given[part]
        root = self._root(part) if given else self._root_of_denoiser(part)
        inside = root / self.specs[part].folder if root else None
        if inside and inside.is_dir():
            return inside
        return root if given or self._is_held_by(root, part) else None

    def _is_held_by(self, root: Path | None, part: str) -> bool:
        """Return whether the denoiser's file holds another part, too."""
        if not self._is_shared or root is None or not root.is_file():
            return False
        with open_tensors(root, use_mmap=self.use_mmap) as file:
            return bool(prefix_in(file.keys(), self.specs[part].prefixes))

    def _root(self, part: str) -> Path | None:
        spec = self.specs[part]
        wanted = hub_files.one_part(spec.folder, spec.kinds, spec.prefixes, spec.what)
        return located(self._given[part], f"--{self.options[part]}", wanted, self._access)

    def _root_of_denoiser(self, part: str) -> Path | None:
        """Return the folder or file that the denoiser lies in; if it is on the hub, with this part too."""
        given, folder = self._given[DENOISER], self.specs[DENOISER].folder
        if given is None or given.exists():
            return given
        source = self.source(DENOISER)
        if source is None or source.name != folder:
            return source if self._is_shared else given
        wanted = Wanted((folder, self.specs[part].folder))
        return located(given, f"--{self.options[DENOISER]}", wanted, self._access)
