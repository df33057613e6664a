"""Lines of text: reader, writer, byte streams, repairs, scripts and sentence ends."""
