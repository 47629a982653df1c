"""Small trained changes of a model's layers: see the sub-folders, each imports only those before it."""
