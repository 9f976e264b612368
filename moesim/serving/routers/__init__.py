"""Router policies: which rank of which instance a request goes to. One small file each."""
