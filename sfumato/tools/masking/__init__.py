"""Loss masks for folders of images, and a sheet to look at them."""
