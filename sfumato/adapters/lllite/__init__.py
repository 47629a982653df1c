"""ControlNet-LLLite: small networks that make single layers of a denoiser follow a control image."""
