"""Sources of images: folders, archives, parquet files, the hub."""
