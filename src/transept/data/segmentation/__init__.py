"""Pictures with a class for each pixel, and their transforms."""
