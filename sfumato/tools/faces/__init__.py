"""Faces in images: where they are, and images cut out around them."""
