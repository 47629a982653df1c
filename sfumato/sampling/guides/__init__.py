"""What stands between a sampler and the model: each guide takes a `Denoise` and returns another."""
