"""Bytes and names of model files: no `nn.Module`, no family."""
