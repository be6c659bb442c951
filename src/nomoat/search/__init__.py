"""System 2: search over games, puzzles, texts and pictures; verifiers, self-play, and what thinking longer buys."""
