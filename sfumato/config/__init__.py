"""What can be asked for: frozen sections of options, torch-free, and the rules that hold between them."""
