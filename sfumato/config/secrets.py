"""The options whose values nobody else may see."""

ENVIRONMENT = {"huggingface_token": "HF_TOKEN", "wandb_api_key": "WANDB_API_KEY"}
"""Each secret option and the environment variable that should carry it instead.

A command line is seen by every user of the machine and recorded by trackers; a variable is not.
"""
