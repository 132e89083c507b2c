"""Pictures with a class each: folders, shards, Hub sets, and their transforms."""
