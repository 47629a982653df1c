"""Networks beside a denoiser that make it follow a control image (Zhang et al. 2023, arXiv:2302.05543)."""
