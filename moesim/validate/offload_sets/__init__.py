"""Parts of the set of claims about offload."""
