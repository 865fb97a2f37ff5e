"""Does sparse pay where a person without a cluster can train? A study: RULES.md, docs/evidence.md."""
