"""System 1: choosing what comes next."""
