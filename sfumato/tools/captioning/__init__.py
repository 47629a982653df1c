"""Captions for images: by taggers, and by models that write sentences."""
