"""What people write to ask for images: prompt lines with options, prompt files, variants, seeds."""
