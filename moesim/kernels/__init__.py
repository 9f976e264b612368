"""How long one operation takes on one device, and how we know."""
