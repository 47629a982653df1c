"""One loop for every kind of training: see the sub-folders, each imports only those before it."""
