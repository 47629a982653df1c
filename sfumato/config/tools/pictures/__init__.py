"""Tools that look at images: captions, masks, edges, faces."""
