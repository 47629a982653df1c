"""How Stable Diffusion 3 is written: as files, and as a folder in diffusers' layout."""
