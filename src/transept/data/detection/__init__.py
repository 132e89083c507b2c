"""Pictures with boxes and masks of objects, and their transforms."""
