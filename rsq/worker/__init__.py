"""The worker: one supervisor, its children, and the crew inside each of them."""
