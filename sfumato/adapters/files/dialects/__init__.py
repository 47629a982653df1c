"""How programs name the tensors of adapter files, read into our names and written in diffusers'.

May import what `files` may, and the modules of `files` that name no dialect.
"""
