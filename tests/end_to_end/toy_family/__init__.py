"""A family of models from another package."""
