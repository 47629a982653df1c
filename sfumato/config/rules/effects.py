"""Options without effect, always or for some models, and options that are not built."""

from collections.abc import Iterable, Mapping

from sfumato.config.scripts.script import names


def because(reason: str, options: Iterable[str]) -> dict[str, str]:
    """Give several options the same reason for having no effect."""
    return dict.fromkeys(options, reason)


NOT_WITH_FLOW: Mapping[str, str] = {
    "min_snr_gamma": "it weighs the loss of noise-predicting models",
    "scale_v_pred_loss_like_noise_pred": "it weighs the loss of velocity-predicting models",
    "v_pred_like_loss": "it weighs the loss of noise-predicting models",
    "debiased_estimation_loss": "it weighs the loss of noise-predicting models",
    "noise_offset": "flow matching takes plain noise",
    "noise_offset_random_strength": "flow matching takes plain noise",
    "multires_noise_iterations": "flow matching takes plain noise",
    "multires_noise_discount": "flow matching takes plain noise",
    "adaptive_noise_scale": "flow matching takes plain noise",
    "zero_terminal_snr": "the noise levels of flow matching end in pure noise anyway",
    "v2": "it tells Stable Diffusion 1 from 2",
    "v_parameterization": "it is about velocity-predicting Stable Diffusion",
    "prediction_type": "it is about Stable Diffusion, which predicts one or the other",
    "clip_skip": "the model listens to the text encoder's end",
}
"""Options of the older families that a flow-matching model has no use for."""

OWN_ATTENTION: Mapping[str, str] = {
    "xformers": "attention always runs in PyTorch's scaled_dot_product_attention",
    "mem_eff_attn": "attention always runs in PyTorch's scaled_dot_product_attention",
}

OWN_GRADIENTS: Mapping[str, str] = {
    "ddp_gradient_as_bucket_view": "gradients always lie in the one buffer that processes sum",
    "ddp_static_graph": "gradients are summed once a step, whichever weights it used",
}

ALWAYS_OURS: Mapping[str, str] = {
    **OWN_ATTENTION,
    **OWN_GRADIENTS,
    "lowram": "models are always loaded straight onto the device, one tensor at a time",
}

ALWAYS_STREAMED: Mapping[str, str] = {"mem_eff_load_save": "one tensor is read and written at a time anyway"}

STAYS_IN_FILES = "models stay in their files, and weights are read one by one"
LOADING_DEVICES: Mapping[str, str] = {
    "load_original_model_to": STAYS_IN_FILES,
    "load_tuned_model_to": STAYS_IN_FILES,
}

NOT_WITHOUT_FILES: Mapping[str, str] = {
    "dataset_class": "what a class of one's own makes is in no files, to look at or to keep caches beside",
}
"""Options that tools cannot follow which work on the files of a data set."""

SAFETENSORS_ANYWAY: Mapping[str, str] = {
    "use_safetensors": "files are safetensors unless --save_model_as says otherwise"
}
ALWAYS_OURS_WHOLE: Mapping[str, str] = {
    **ALWAYS_OURS,
    **SAFETENSORS_ANYWAY,
    "diffusers_xformers": OWN_ATTENTION["xformers"],
}

ADAPTERS_ALONE = names(
    "no_metadata training_comment fp8_base_unet split_mode "
    "skip_until_initial_step initial_epoch initial_step "
    "validation_seed validation_split validate_every_n_steps validate_every_n_epochs max_validation_steps"
)
"""Options of the trainers that those of whole models have not."""

WORDS_ABSENT = (
    ADAPTERS_ALONE
    | names("caption_dropout_rate caption_dropout_every_n_epochs weighted_captions")
    | names("caption_tag_dropout_rate cpu_offload_checkpointing fp8_base_unet")
)
"""Options that trainers of new words have not."""

CONTROL_ABSENT = ADAPTERS_ALONE | names(
    "reg_data_dir prior_loss_weight masked_loss cpu_offload_checkpointing"
)
"""Options of the trainers that those of control networks have not."""

NOT_BUILT_FOR_CONTROL = names(
    "sample_every_n_steps sample_every_n_epochs sample_at_first sample_prompts sample_sampler"
)
"""Options of previews, which do not show control images yet."""

NO_CONTROL: Mapping[str, str] = {
    "train_inpainting": "control networks are trained on models that make whole images; leave it out"
}
"""Options of the trainers that control networks cannot follow."""

NOT_BUILT_FOR_TRAINING = names(
    "deepspeed zero_stage zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients"
) | names("offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path")
"""Options of the trainers that stop a run when they ask for something."""
