"""Image files: their names, and what is written into them."""
