"""Those who send calls and wait for them in a chaos run; each tells the journal what it did and what it was told."""
