"""SDXL."""
