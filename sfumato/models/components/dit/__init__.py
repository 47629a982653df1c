"""Shared by families whose denoiser is a transformer of our own, and which may have a file for each part."""
