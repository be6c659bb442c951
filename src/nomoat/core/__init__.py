"""The nouns that every other part shares; imports nothing of ours."""
