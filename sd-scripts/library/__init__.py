"""What programs that drive sd-scripts import."""
