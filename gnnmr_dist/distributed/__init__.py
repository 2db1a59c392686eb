"""The only code that knows ranks."""
