"""Tags by models in ONNX files."""
