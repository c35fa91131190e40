"""From images as they lie around to one table of Parquet shards: read, examined, split, written, and summed up."""
