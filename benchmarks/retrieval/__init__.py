"""Questions from public pages, to measure retrieval with."""
