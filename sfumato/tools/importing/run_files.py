"""An imported run as files: options, data sets and prompts, with what was left out as remarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfumato.config.public import to_toml
from sfumato.errors import UserError
from sfumato.tools.importing.program import Values
from sfumato.tools.importing.translation import ImportedRun

_OF_DATASETS = ("resolution", "min_bucket_reso", "max_bucket_reso")
"""Keys that stand above a data set's folder."""

_MOST_CHARACTERS = 60
"""Of a value in a remark."""


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, by their texts.

    Attributes:
        run: the file of options, which names the others.
    """

    run: Path
    texts: Mapping[Path, str]

    def write(self) -> None:
        """Write all of them.

        Raises:
            UserError: one is there already, or cannot be written.
        """
        for path in self.texts:
            if path.exists():
                raise UserError(f"{path} is there already; give another name as --output")
        try:
            for path, text in self.texts.items():
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.run} cannot be written: {error.strerror}; give --output") from None


def files_of(run: ImportedRun, source: Path, output: Path) -> RunFiles:
    """Return the files of an imported run.

    Args:
        output: that of its options.
    """
    stem = output.name.removesuffix(".toml")
    texts: dict[Path, str] = {}
    options = {**run.options, "strict": False}
    if run.datasets:
        options["dataset_config"] = str(output.with_name(f"{stem}.data.toml"))
        texts[Path(options["dataset_config"])] = "\n".join(map(_dataset, run.datasets))
    if run.prompts:
        options["sample_prompts"] = str(output.with_name(f"{stem}.prompts.txt"))
        texts[Path(options["sample_prompts"])] = "".join(f"{line}\n" for line in run.prompts)
    head = (
        f"# From {source.name} of {run.program}; unknown keys and idle options only warn (strict = false).\n"
    )
    remarks = "".join(f"# {line}\n" for line in left_lines(run))
    return RunFiles(output, {output: head + to_toml(options) + remarks, **texts})


def left_lines(run: ImportedRun) -> Iterator[str]:
    """Yield what was not taken over, under a heading."""
    if run.left:
        yield "not taken over:"
    for name, value in run.left.items():
        text = " ".join(str(value).split())
        yield f"  {name} = {text[:_MOST_CHARACTERS]}{'...' if len(text) > _MOST_CHARACTERS else ''}"


def _dataset(keys: Values) -> str:
    above = {name: value for name, value in keys.items() if name in _OF_DATASETS}
    below = {name: value for name, value in keys.items() if name not in _OF_DATASETS}
    return f"[[datasets]]\n{to_toml(above)}\n  [[datasets.subsets]]\n{_indented(to_toml(below))}"


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
