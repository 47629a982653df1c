"""What several families are made of: autoencoder, text encoders, tokenizers, UNet, reading of files.

May import `interface/`.
"""
