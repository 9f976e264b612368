"""Published claims about training, one paper or table a file."""
