"""Questions that nobody here wrote, and what is measured with them."""
