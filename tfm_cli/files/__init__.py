"""Files: ownership, atomic and durable writes, untrusted files, safetensors, fault injection."""
