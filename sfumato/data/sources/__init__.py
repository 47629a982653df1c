"""What lies in the folders: images found, checked, remembered in an index.

May import `images/`, `captions/` and `config/`.
"""
