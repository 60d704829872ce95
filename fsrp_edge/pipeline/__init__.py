"""The stages in order, what a run keeps on disk, and what is known before it starts."""
