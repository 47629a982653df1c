"""The UNet of Stable Diffusion 1, 2 and XL: diffusers' module, its tensor names, its layers."""
