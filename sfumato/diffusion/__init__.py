"""Diffusion mathematics: pure functions of tensors and plain numbers; no model, file or configuration."""
