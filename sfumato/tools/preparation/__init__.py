"""Data prepared before it is trained on: smaller images, metadata files."""
