"""`sfumato demo`: a toy FLUX learns a cat from a photograph, and shows what it forgets unless it is reminded.

Everything goes the way of a real run: a data set file, `sfumato train flux lora`, a LoRA file, pictures made
with it. Only the base is small.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from sfumato import log
from sfumato.demo import base, data_sets, training
from sfumato.demo.data_sets import PLAIN, REMINDED
from sfumato.demo.photographs import KNOWN, SUBJECT, psnr_db
from sfumato.demo.sheet import Row, Tile, contact_sheet

STRENGTHS = (0.0, 0.5, 1.0)
SHEET = "contact-sheet.png"
FIGURES = "figures.json"

_TITLES = {
    PLAIN: "after training on the cat alone",
    REMINDED: "after training on the cat and on regularisation pictures, equally long",
}

_HONEST = """
The base is a toy: four million parameters that have memorised eight photographs, 64 pixels wide, so that
a seed hardly changes a picture. Its autoencoder has seen no cat either and keeps 29 dB of this one at best.
All else is real: the file formats, the training, the forgetting.
"""


@dataclass(frozen=True)
class Pictures:
    """What was drawn.

    Attributes:
        subject: the subject by strength of the LoRA that was trained with regularisation.
        alone: the subject, drawn with the LoRA that was trained on it alone.
        before: the known prompts, drawn by the base alone.
        after: the same by run, drawn with its LoRA.
    """

    subject: Mapping[float, Image.Image]
    alone: Image.Image
    before: Sequence[Image.Image]
    after: Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class Figures:
    """How alike pictures are, in dB.

    Attributes:
        subject_db: the subject and its photograph, by strength of the LoRA trained with regularisation.
        alone_db: the same for the LoRA that was trained on the subject alone.
        kept_db: each known prompt's picture before and after training, by run.
        seconds: how long the demonstration took.
    """

    subject_db: dict[str, float]
    alone_db: float
    kept_db: dict[str, dict[str, float]]
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Run the demonstration; what it makes lies in the folder that `argv` names."""
    parser = argparse.ArgumentParser(prog="sfumato demo", description="Train a LoRA on a toy FLUX.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("sfumato-demo"), help="for all it makes")
    folder: Path = parser.parse_args(argv).folder
    log.set_up("WARNING")
    torch.set_num_threads(1)  # layers this small only lose by sharing
    start = time.monotonic()
    pictures = _demonstrate(folder)
    _sheet(pictures).save(folder / SHEET)
    figures = _measure(pictures, time.monotonic() - start)
    (folder / FIGURES).write_text(json.dumps(asdict(figures), indent=2), encoding="utf-8")
    _report(folder, figures)
    return 0


def _demonstrate(folder: Path) -> Pictures:
    """Draw, write data sets, train, and draw again."""
    prompts = [known.prompt for known in KNOWN]
    _say(f"1/4  drawing the {len(prompts)} pictures that the base knows")
    before = base.draw(prompts)
    _say(f"2/4  writing pictures, captions and data sets to {folder / 'data'}")
    sets = data_sets.write(folder / "data", before)
    _say("3/4  training two LoRAs on a cat, without and with regularisation pictures")
    loras = training.train(folder, sets)
    _say("4/4  drawing with the LoRAs")
    subject = {strength: base.draw([SUBJECT.prompt], loras[REMINDED], strength)[0] for strength in STRENGTHS}
    (alone,) = base.draw([SUBJECT.prompt], loras[PLAIN])
    return Pictures(subject, alone, before, {name: base.draw(prompts, lora) for name, lora in loras.items()})


def _measure(pictures: Pictures, seconds: float) -> Figures:
    photograph = Image.open(SUBJECT.path)
    subject = {f"{strength:g}": psnr_db(cat, photograph) for strength, cat in pictures.subject.items()}
    kept = {
        name: {known.name: psnr_db(*pair) for known, *pair in zip(KNOWN, pictures.before, after, strict=True)}
        for name, after in pictures.after.items()
    }
    return Figures(subject, psnr_db(pictures.alone, photograph), kept, seconds)


def _sheet(pictures: Pictures) -> Image.Image:
    photograph = Image.open(SUBJECT.path)
    cats = [
        Tile(cat, f"strength {strength:g}: {psnr_db(cat, photograph):.1f} dB")
        for strength, cat in pictures.subject.items()
    ]
    alone = Tile(pictures.alone, f"cat alone: {psnr_db(pictures.alone, photograph):.1f} dB")
    known = [Tile(picture, photo.name) for photo, picture in zip(KNOWN, pictures.before, strict=True)]
    rows = [
        Row(
            f'"{SUBJECT.prompt}", which the base had never seen',
            [*cats, Tile(photograph, "the photograph"), alone],
        ),
        Row("what the base knows", known),
    ]
    for name, after in pictures.after.items():
        pairs = zip(after, pictures.before, strict=True)
        rows.append(
            Row(_TITLES[name], [Tile(now, f"kept {psnr_db(now, then):.1f} dB") for now, then in pairs])
        )
    return contact_sheet("A LoRA on a toy FLUX, before and after", rows)


def _report(folder: Path, figures: Figures) -> None:
    """Say what came out, where it lies and what to try next."""
    _say("\nThe cat and its photograph, by strength of the LoRA:")
    by_strength = "".join(f"  {strength}: {db:.1f} dB" for strength, db in figures.subject_db.items())
    _say(f"{by_strength}   (trained alone: {figures.alone_db:.1f} dB)")
    _say("All else, compared with what the base drew before:")
    for name, kept in figures.kept_db.items():
        low, high, mean = min(kept.values()), max(kept.values()), sum(kept.values()) / len(kept)
        _say(f"  {_TITLES[name]:72} {low:.1f} to {high:.1f} dB, mean {mean:.1f}")
    _say(_HONEST)
    _say(f"Look at      {folder / SHEET}")
    for name in figures.kept_db:
        _say(f"LoRA file    {training.lora_file(folder, name)}")
    lora = f"{training.lora_file(folder, REMINDED)};0.7"
    drawing = ["--lora_weights", lora, "--output_dir", str(folder), "--prompt", SUBJECT.prompt]
    _say("\nDraw with it (where `sfumato` is not found, write `python quickstart.py` instead):")
    _say(f"  {shlex.join(['sfumato', 'generate', *base.generation_options(), *drawing])}")
    _say("\nTrain it again:")
    _say(f"  {shlex.join(training.command(folder, REMINDED, folder / 'data' / f'{REMINDED}.toml'))}")
    _say("\nA LoRA for the real FLUX.1 takes the same options: docs/getting_started.md")
    _say(f"All this took {figures.seconds:.0f} s.")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what it says is what the program is for
