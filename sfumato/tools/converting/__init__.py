"""Models and adapter files in other layouts."""
