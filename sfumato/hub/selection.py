"""Which files of a repository a run needs: the parts that it uses, each once, safetensors before pickles."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sfumato.checkpoints.pickles import SUFFIXES as PICKLES
from sfumato.checkpoints.tensors import SUFFIXES

INDEX = "model_index.json"
Shapes = Mapping[str, tuple[int, ...]]

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)$")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What diffusers and transformers call the weights in a part's folder."""
_SETTINGS = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Wanted:
    """What is needed of a repository.

    Attributes:
        parts: of a folder in diffusers' layout, those with weights; without the first it is no such folder.
        may_have: parts that some such folders have.
        settings: of such a folder, those with small files alone: tokenizers, the scheduler.
        variant: take files with this word before their suffix (`fp16`) where a part has any.
        refusal: given shapes by the names of tensors, says what is wrong with a file; "" if nothing is. It is
            asked of the first part, or of a single file, before that is fetched.
        instead: what is needed of a repository without the first part.
    """

    parts: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    variant: str | None = None
    refusal: Callable[[Shapes], str] | None = None
    instead: Wanted | None = None

    def fits(self, files: Iterable[str]) -> bool:
        """Return whether files are those of a folder in diffusers' layout."""
        if not self.parts:
            return bool(self.settings) and INDEX in files
        return any(name.startswith(f"{self.parts[0]}/") for name in files)


@dataclass(frozen=True)
class Choice:
    """The files to fetch.

    Attributes:
        place: the file or folder that was named, within the repository.
        weights: files of tensors, those of the first part or the single file first.
        num_checked: of these, how many belong to the first part.
        others: small files.
        is_sure: whether more files in the repository could not lead to another choice.
        lacks: parts without weights.
    """

    place: str
    weights: tuple[str, ...]
    num_checked: int
    others: tuple[str, ...] = ()
    is_sure: bool = True
    lacks: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether no part and no shard is missing."""
        shards = [match for name in self.weights if (match := _SHARD.match(name))]
        counts = {(match[1], match[3]): int(match[2]) for match in shards}
        found = [(match[1], match[3]) for match in shards]
        return not self.lacks and all(found.count(key) == count for key, count in counts.items())


class AmbiguousError(Exception):
    """Several files could be meant.

    Attributes:
        candidates: their names in the repository; none if there are no weights at all.
    """

    def __init__(self, candidates: Sequence[str]) -> None:
        super().__init__(", ".join(candidates))
        self.candidates = candidates


def choose(files: Collection[str], path: str, wanted: Wanted) -> Choice:
    """Return which of a repository's files are needed.

    Args:
        files: names of all files, with `/`.
        path: the file or folder that was named; empty is the whole repository.

    Raises:
        AmbiguousError: several files could be meant, or there are no weights.
    """
    if path in files:
        shards = _shards_like(files, path)
        return Choice(path, shards, len(shards))
    base = f"{path}/" if path else ""
    below = [name[len(base) :] for name in files if name.startswith(base)]
    if wanted.fits(below):
        return _of_pipeline(below, base, wanted)
    if wanted.instead is not None:
        return choose(files, path, wanted.instead)
    if "config.json" in below and (weights := _weights_in(below, "", wanted.variant)):
        return _choice(base, weights, len(weights), _settings_in(below, ""))
    return _single(below, base)


def _of_pipeline(files: Collection[str], base: str, wanted: Wanted) -> Choice:
    parts = (*wanted.parts, *wanted.may_have)
    found = {part: _weights_in(files, f"{part}/", wanted.variant) for part in parts}
    weights = [name for names in found.values() for name in names]
    folders = (*parts, *wanted.settings)
    others = [name for folder in folders for name in _settings_in(files, f"{folder}/")]
    index = [INDEX] if INDEX in files else []
    num_checked = len(found[wanted.parts[0]]) if wanted.parts else 0
    choice = _choice(base, weights, num_checked, [*index, *others])
    lacks = tuple(part for part in wanted.parts if not found[part])
    return replace(choice, is_sure=choice.is_sure and all(found.values()), lacks=lacks)


def _choice(base: str, weights: Sequence[str], num_checked: int, others: Iterable[str]) -> Choice:
    is_sure = all(map(_is_first_choice, weights))
    own, small = (tuple(f"{base}{name}" for name in names) for names in (weights, others))
    return Choice(base.rstrip("/"), own, num_checked, small, is_sure)


def _single(files: Collection[str], base: str) -> Choice:
    """Choose the one file of weights, at whatever depth: a copy of it as a pickle is left out."""
    for suffixes in (SUFFIXES, PICKLES):
        candidates = sorted(name for name in files if name.endswith(suffixes))
        models = {_SHARD.sub(r"\1", name) for name in candidates}
        if len(models) == 1:
            names = tuple(f"{base}{name}" for name in candidates)
            return Choice(names[0], names, len(names), is_sure=False)
        if models:
            raise AmbiguousError([f"{base}{name}" for name in candidates])
    raise AmbiguousError([])


def _shards_like(files: Collection[str], path: str) -> tuple[str, ...]:
    match = _SHARD.match(path)
    if match is None:
        return (path,)
    own = re.compile(rf"{re.escape(match[1])}-\d{{5}}-of-{match[2]}{re.escape(match[3])}")
    return tuple(sorted(name for name in files if own.fullmatch(name)))


def _weights_in(files: Collection[str], folder: str, variant: str | None) -> list[str]:
    """Return the weights right in a folder, all their shards and the list of these."""
    own = [name for name in files if name.startswith(folder) and "/" not in name[len(folder) :]]
    for suffixes in (SUFFIXES, PICKLES):
        models: dict[str, list[str]] = {}
        for name in sorted(own):
            if name.endswith(suffixes):
                models.setdefault(_SHARD.sub(r"\1\3", name), []).append(name)
        if models:
            best = min(models, key=lambda name: _rank(name[len(folder) :], variant))
            return [*models[best], *(name for name in own if name == f"{best}.index.json")]
    return []


def _rank(name: str, variant: str | None) -> tuple[bool, bool, int, str]:
    """Order the models of one folder, best first."""
    stem, *words = name.split(".")[:-1]
    is_other = variant not in words if variant else bool(words)
    return is_other, bool(words), _STEMS.index(stem) if stem in _STEMS else len(_STEMS), name


def _is_first_choice(name: str) -> bool:
    """Return whether no other file of its folder would come before this one."""
    is_plain = name.rpartition("/")[2].count(".") == 1
    return name.endswith(".index.json") or (is_plain and name.endswith(SUFFIXES))


def _settings_in(files: Collection[str], folder: str) -> list[str]:
    own = [name for name in files if name.startswith(folder) and "/" not in name[len(folder) :]]
    return [name for name in own if name.endswith(_SETTINGS) and not name.endswith(".index.json")]
