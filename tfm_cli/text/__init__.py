"""Lines of text: the one reader, the one writer, byte streams, repairs, scripts, sentence ends."""
