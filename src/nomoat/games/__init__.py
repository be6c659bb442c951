"""Rules of games and puzzles as batched arrays; each is a `Domain` that search, self-play and play can use."""
