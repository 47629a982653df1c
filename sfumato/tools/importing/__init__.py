"""Run files made of those of other trainers: `programs` has a table for each, `translation.py` reads them."""
