"""Labelling many pictures: a trained task's answers, or features, in Parquet shards that a kill cannot damage."""
