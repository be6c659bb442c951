"""How text is drawn unless somebody says otherwise: in the terminal, from Python, by the server. Imports no torch."""

WRITING = {"temperature": 0.8, "top_p": 0.95}
"""A small model's own distribution has too long a tail to read well."""
ANSWERING = {"temperature": 0.2, "top_p": 0.9}
"""Near the likeliest answer: a small model's second choice is often nonsense. SmolLM2's authors advise the same."""
