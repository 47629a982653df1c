"""An image in two stages: small first, then enlarged and made anew in full size."""
