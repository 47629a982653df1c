"""What a user said about the data: options and `--dataset_config` files, resolved to plans.

May import `images/` and `captions/`.
"""
