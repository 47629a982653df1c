"""Sentences by models of transformers: BLIP, GIT, and those that are told what to write."""
