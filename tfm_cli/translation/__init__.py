"""Translation of lines of text, each into one line of output."""
