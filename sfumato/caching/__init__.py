"""What is computed once and kept: latents and text encoder outputs, in memory or in files."""
