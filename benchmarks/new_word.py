"""How well a new word learns the demo's cat on the toy FLUX, with nothing else trained: PSNR in dB.

    python benchmarks/new_word.py [FOLDER]

The word's vectors are all that learns: a few hundred numbers at the input of the toy's CLIP. What is compared
with the photograph is the image of the same sentence before and after.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sfumato.demo import base
from sfumato.demo.photographs import SUBJECT, psnr_db

WORD, SENTENCE = "zxqk", "a zxqk"
VECTORS, STEPS = 8, 200
TRAINING = f"""
--token_string {WORD} --num_vectors_per_token {VECTORS} --max_train_steps {STEPS} --learning_rate 5e-2
--lr_scheduler cosine --optimizer_type AdamW --optimizer_args weight_decay=0 --timestep_sampling uniform
--model_prediction_type raw --guidance_scale 1 --t5xxl_max_token_length {base.TEXT_LENGTH}
--apply_t5_attn_mask --cache_latents --cache_text_encoder_outputs --max_data_loader_n_workers 0 --seed 1
--train_batch_size 4 --caption_extension .txt --resolution 64 --overwrite --output_name {WORD}
"""


def run(*arguments: str) -> None:
    """Run a command of the program."""
    subprocess.run([sys.executable, "-m", "sfumato", *arguments], check=True)


def quality_db(folder: Path, *options: str) -> float:
    """Return how alike the image of the sentence and the photograph are."""
    out = folder / ("after" if options else "before")
    shutil.rmtree(out, ignore_errors=True)
    shown = ["--prompt", SENTENCE, "--output_dir", str(out)]
    run("generate", *base.generation_options(), *shown, *options)
    return psnr_db(Image.open(next(out.glob("*.png"))), Image.open(SUBJECT.path))


def main(folder: Path) -> None:
    """Train the word and print the figures as JSON."""
    place = folder / "data" / f"4_{WORD}"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(SUBJECT.path, place)
    (place / SUBJECT.path.with_suffix(".txt").name).write_text(SENTENCE, "utf-8")
    where = ["--train_data_dir", str(folder / "data"), "--output_dir", str(folder)]
    before = quality_db(folder)
    run("train", "flux", "embedding", *base.training_options(), *where, *TRAINING.split())
    after = quality_db(folder, "--embeddings", str(folder / f"{WORD}.safetensors"))
    figures = {"vectors": VECTORS, "steps": STEPS, "before_db": round(before, 1), "after_db": round(after, 1)}
    print(json.dumps(figures))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
