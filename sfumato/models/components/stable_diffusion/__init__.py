"""What Stable Diffusion 1, 2 and XL share beside the UNet: whole checkpoints, CLIP's windows."""
