"""Recipe files and flags, read and typed."""
