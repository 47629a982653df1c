"""Image files: their sizes, their pixels, buckets, crops, masks.

May import nothing else in `data/`.
"""
