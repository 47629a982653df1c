"""The real vocabularies, laid out as sd-scripts keeps them in its tokenizer cache."""

import json
import lzma
from pathlib import Path

FILES = Path(__file__).parent / "golden" / "vocabularies"


def write_cache(folder: Path) -> Path:
    """Write both tokenizers under `folder` and return it."""
    write_clip(folder / "openai_clip-vit-large-patch14")
    write_t5(folder / "google_t5-v1_1-xxl")
    return folder


def write_clip(folder: Path, num_merges: int | None = None) -> None:
    """Write the vocab.json and merges.txt of CLIP, with all merges or only the first ones."""
    folder.mkdir(parents=True)
    merges = lzma.decompress((FILES / "clip_merges.txt.xz").read_bytes()).decode().splitlines()
    letters = _letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *merges[:num_merges]]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_t5(folder: Path) -> None:
    """Write the tokenizer.json of T5."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(lzma.decompress((FILES / "t5_tokenizer.json.xz").read_bytes()))


def _letters() -> list[str]:
    """Return the printable stand-ins of all 256 bytes, in the order of CLIP's token table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]
