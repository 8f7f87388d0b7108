"""Reports of calls: what is in them, how they are delivered, kept and forgotten."""
