"""Train, run and rework image diffusion models."""
