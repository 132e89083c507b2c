"""Pictures and labels: reading, built-in sets, folders, transforms, loading."""
