"""New words as what is learned: alone, one for each layer of the denoiser, or together with an adapter."""
