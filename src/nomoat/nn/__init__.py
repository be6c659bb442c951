"""Parts of networks: one backbone with its mixers, dialects and memory."""
