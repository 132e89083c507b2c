"""Pictures with what was found in them: boxes, overlays, labelled sheets."""
