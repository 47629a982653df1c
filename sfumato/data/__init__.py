"""From folders of images to batches: see the sub-folders, each imports only those before it."""
