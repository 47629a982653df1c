"""What sampling starts from: random numbers, an image, a part of one, an inpainting model's canvas."""
