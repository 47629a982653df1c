"""A toy FLUX that ships with the package, and the demonstration that trains a LoRA on it."""
