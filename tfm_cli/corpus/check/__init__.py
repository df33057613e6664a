"""What is wrong with a corpus, found before a run reads it."""
