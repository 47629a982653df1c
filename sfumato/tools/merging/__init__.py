"""Adapters merged into models, adapters and models merged with each other."""
