"""Where images come from: folders, archives, parquet files, the hub."""
