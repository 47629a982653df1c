"""Optimizers by the names of sd-scripts, and the extras of pyproject.toml that bring their packages."""

NAMED = {
    "adamw": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "pagedadamw": "bitsandbytes.optim.PagedAdamW",
    "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "pagedadamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "lion": "lion_pytorch.Lion",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
    "sgdnesterov": "torch.optim.SGD",
    "sgdnesterov8bit": "bitsandbytes.optim.SGD8bit",
    "dadaptation": "dadaptation.experimental.DAdaptAdamPreprint",
    "dadaptadampreprint": "dadaptation.experimental.DAdaptAdamPreprint",
    "dadaptadagrad": "dadaptation.DAdaptAdaGrad",
    "dadaptadam": "dadaptation.DAdaptAdam",
    "dadaptadan": "dadaptation.DAdaptAdan",
    "dadaptadanip": "dadaptation.experimental.DAdaptAdanIP",
    "dadaptlion": "dadaptation.DAdaptLion",
    "dadaptsgd": "dadaptation.DAdaptSGD",
    "prodigy": "prodigyopt.Prodigy",
    "adafactor": "transformers.optimization.Adafactor",
    "adamwschedulefree": "schedulefree.AdamWScheduleFree",
    "sgdschedulefree": "schedulefree.SGDScheduleFree",
}
"""Lower-cased names that are accepted without a module path, as in sd-scripts."""

EXTRAS = {
    "bitsandbytes": "adam8bit",
    "lion_pytorch": "optimizers",
    "dadaptation": "optimizers",
    "prodigyopt": "optimizers",
    "schedulefree": "optimizers",
}
"""The extra that has each package which torch and transformers do not bring, by its module."""


def class_path(name: str) -> str:
    """Return the path of an optimizer's class; a name that has no module is one of torch's."""
    path = NAMED.get(name.lower(), name)
    return path if "." in path else f"torch.optim.{path}"


def extra_for(name: str) -> str | None:
    """Return the extra that brings an optimizer's package, or None where none does."""
    return EXTRAS.get(class_path(name).partition(".")[0])
