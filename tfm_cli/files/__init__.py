"""Files: ownership, atomic and durable writes, wary reads, safetensors, fault injection."""
