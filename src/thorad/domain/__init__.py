"""Is a scan of the kind that a model knows? By its header's tags, and by the picture itself."""
