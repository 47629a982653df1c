"""What values in a file mean that their option does not take: front-ends send such values.

A value counts as not given where it can mean nothing else, and as a choice of the option where it is another
spelling of it. Whatever is left cannot be understood. Command lines are read by the letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.config.scripts.option import Option

ZERO_MEANS_UNSET: Mapping[str, str] = {
    "log_with": "no tracker has that name; front-ends send it for an empty choice",
    "sample_sampler": "no sampler has that name; front-ends send it for an empty choice",
    "max_token_length": "no caption has 0 tokens",
    "clip_skip": "0 would take the text encoder's raw word embeddings",
    "min_bucket_reso": "no bucket has sides of 0 pixels",
    "max_bucket_reso": "no bucket has sides of 0 pixels",
    "bucket_reso_steps": "sides cannot be multiples of 0",
    "show_timesteps_resolution": "no image has sides of 0 pixels",
    "huber_c": "the loss would be 0 everywhere",
    "vae_batch_size": "a batch of 0 images encodes nothing",
    "text_encoder_batch_size": "a batch of 0 captions encodes nothing",
    "t5xxl_max_token_length": "no caption has 0 tokens",
    "max_train_steps": "front-ends send it beside max_train_epochs, which counts instead",
    "max_train_epochs": "a run of 0 epochs trains nothing; max_train_steps counts instead",
    "max_timestep": "no timestep lies below 0",
    "save_every_n_epochs": "there is no 0th part of a run to save after",
    "save_every_n_steps": "there is no 0th part of a run to save after",
    "save_n_epoch_ratio": "there is no 0th part of a run to save after",
    "save_last_n_epochs": "it would delete what has just been saved",
    "save_last_n_steps": "it would delete what has just been saved",
    "save_last_n_epochs_state": "it would delete what has just been saved",
    "save_last_n_steps_state": "it would delete what has just been saved",
    "initial_epoch": "epochs are counted from 1",
    "network_dim": "an adapter of rank 0 learns nothing",
    "dataset_repeats": "no image would be seen",
    "train_batch_size": "a batch of 0 images trains nothing",
    "gradient_accumulation_steps": "no batch would be trained before a step",
    "huber_scale": "the loss would be 0 everywhere",
    "logit_std": "every image would have the same noise level",
    "discrete_flow_shift": "every image would have no noise",
    "training_shift": "every image would have no noise",
    "num_vectors_per_token": "a word without vectors learns nothing",
    "train_words_vectors": "a word without vectors learns nothing",
    "cond_emb_dim": "no control image would be read",
}
"""The options whose 0 in a file counts as not given, each with the reason; every other 0 is a value."""

NOT_USED = frozenset({"", "no", "none", "null", "default", "auto", "off", "false"})
"""Words that count as not given, in any case, where an option has choices and none of them is that word."""

SAYS_SOMETHING: Mapping[str, tuple[frozenset[str], str]] = {
    "mixed_precision": (frozenset({"auto"}), "it could ask for the best that the device has"),
    "huber_schedule": (
        NOT_USED - {"", "default", "auto"},
        "it could ask for a threshold that stays the same",
    ),
    "model_prediction_type": (NOT_USED - {"", "default", "auto"}, "it could ask for the output as it is"),
    "on_nonfinite": (NOT_USED - {"", "default", "auto"}, "it could ask for no check"),
}
"""Which of those words are no 'not given' for an option after all, and why; they are refused."""

WORDS_OF_ITS_OWN = frozenset({"lr_scheduler", "lr_scheduler_type", "optimizer_type", "t5xxl_dtype"})
"""Texts without choices that are no names of a user's own: such a word counts as not given for them, too."""

NAMES_NOTHING = frozenset(
    {
        *("vae", "train_data_dir", "reg_data_dir", "in_json", "dataset_config"),
        *("conditioning_data_dir", "mask_dir"),
        *(
            "dataset_class",
            "tokenizer_cache_dir",
            "network_weights",
            "resume",
            "output_dir",
            "sample_prompts",
        ),
        *(
            "clip_l",
            "clip_g",
            "t5xxl",
            "t5xxl_device",
            "ae",
            "controlnet_model_name_or_path",
            "console_log_file",
            "logging_dir",
        ),
        *("log_tracker_config", "log_tracker_name", "log_prefix", "wandb_run_name", "wandb_api_key"),
        *("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token"),
        *("huggingface_repo_visibility", "metadata_author", "metadata_license", "metadata_thumbnail"),
        *("offload_optimizer_nvme_path", "offload_param_nvme_path", "face_crop_aug_range"),
        "skip_image_resolution",
    }
)
"""Texts for which Python's `None` and `False`, written as text, count as not given: nothing is called so."""


@dataclass(frozen=True)
class ToleratedValue:
    """What some spellings of a value mean.

    Attributes:
        spellings: in lower case.
        value: a choice of the option, or None for 'not given'.
        is_told: whether a line says so, since it is not quite what was written.
    """

    spellings: tuple[str, ...]
    value: Any
    reason: str
    is_told: bool = False


_SAVED_FORMATS = (
    ToleratedValue(("fp32", "float32"), "float", "the same dtype"),
    ToleratedValue(("float16", "half"), "fp16", "the same dtype"),
    ToleratedValue(("bfloat16",), "bf16", "the same dtype"),
)
_PIECES = "texts are read in pieces of 75 tokens, one to three of them"
_MARKS = "it counts the two marks around the text"

READ_AS: Mapping[str, tuple[ToleratedValue, ...]] = {
    "max_token_length": (
        ToleratedValue(("75",), None, "that is the length where none is given"),
        ToleratedValue(("77",), None, _MARKS),
        ToleratedValue(("152",), 150, _MARKS),
        ToleratedValue(("227",), 225, _MARKS),
        ToleratedValue(("255",), 225, _PIECES, is_told=True),
    ),
    "mixed_precision": (
        ToleratedValue(("fp32", "float32", "float"), "no", "everything is computed in that format then"),
        *_SAVED_FORMATS[1:],
        ToleratedValue(
            ("fp8",),
            "bf16",
            "nothing is computed in 8 bits here; fp8_base stores weights so",
            is_told=True,
        ),
    ),
    "save_precision": _SAVED_FORMATS,
    "weighting_scheme": (
        ToleratedValue(("uniform",), "none", "both draw noise levels evenly"),
        ToleratedValue(("logit-normal",), "logit_normal", "the same word"),
    ),
    "dynamo_backend": (ToleratedValue(("tensorrt",), "tensort", "sd-scripts spells it so"),),
    "loss_type": (
        ToleratedValue(("mse",), "l2", "the same loss"),
        ToleratedValue(("mae",), "l1", "the same loss"),
    ),
    "save_model_as": (
        ToleratedValue(("same as source model",), None, "a front-end's words for 'not given'"),
        ToleratedValue((".safetensors", "safetensor"), "safetensors", "the suffix of such a file"),
        ToleratedValue((".ckpt",), "ckpt", "the suffix of such a file"),
    ),
    "resize_interpolation": (ToleratedValue(("lanczos4",), "lanczos", "OpenCV's name of it"),),
    "console_log_level": (
        ToleratedValue(("warn",), "WARNING", "the older name"),
        ToleratedValue(("fatal",), "CRITICAL", "the older name"),
    ),
}
"""Other spellings of an option's choices, which win over `NOT_USED`."""

TRAINS_ALIKE: Mapping[str, str] = {
    "sample_sampler": "it only generates previews",
    "console_log_level": "it only chooses what is shown",
    "log_with": "it only records the run",
}
"""Options of which no value changes what is trained: one that means nothing is left out with a line."""


LOWER_CASE = frozenset({"lr_scheduler"})
"""Texts without choices whose known values are all in lower case."""


def is_not_given(option: Option, value: Any) -> bool:
    """Tell whether a value in a file stands for nothing, so that what the option is by default holds."""
    if isinstance(value, bool):
        return not value and option.kind != "bool" and (option.default is None or bool(option.choices))
    if value == []:
        return True
    if isinstance(value, str):
        return _is_text_for_nothing(option, value.strip())
    return value == 0 and (option.dest in ZERO_MEANS_UNSET or _has_no_place_for_numbers(option))


def _has_no_place_for_numbers(option: Option) -> bool:
    return option.kind in ("str", "Path") and (option.default is None or bool(option.choices))


def _is_text_for_nothing(option: Option, text: str) -> bool:
    if text == "":
        is_name = option.kind == "str" and not option.choices and option.default is not None
        return not is_name or option.dest in WORDS_OF_ITS_OWN
    if text == "0":
        return option.dest in ZERO_MEANS_UNSET
    if option.dest in NAMES_NOTHING:
        return text in ("None", "False")
    return _is_word_for_nothing(option, text)


def _is_word_for_nothing(option: Option, text: str) -> bool:
    words = NOT_USED - SAYS_SOMETHING.get(option.dest, (frozenset(), ""))[0]
    if option.choices is None:
        return option.dest in WORDS_OF_ITS_OWN and text.lower() in words
    return text.lower() in words and _as_choice(option, text) is None


def meaning(option: Option, value: str | int | float) -> ToleratedValue | None:
    """Return what a value means that is none of its option's choices; None where nobody can tell."""
    text = str(value).strip()
    if (choice := _as_choice(option, text)) is not None:
        return ToleratedValue((text,), choice, "the same word")
    found = (reading for reading in READ_AS.get(option.dest, ()) if text.lower() in reading.spellings)
    return next((reading for reading in found if _suits(option, reading)), None)


def _suits(option: Option, reading: ToleratedValue) -> bool:
    return reading.value is None or reading.value in (option.accepted or ())


def _as_choice(option: Option, text: str) -> Any:
    """Return the choice that a text is but for upper and lower case, and for blanks that are underscores."""
    choices = {str(choice).lower(): choice for choice in option.accepted or () if choice is not None}
    return choices.get(text.lower(), choices.get(text.lower().replace(" ", "_")))
