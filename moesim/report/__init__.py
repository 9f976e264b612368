"""Numbers to files: figures, pages and timelines. Computes no physics."""
