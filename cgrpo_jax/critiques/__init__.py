"""Words about answers: critiques, prompts, verdicts, and when which kind is asked for; see README.md."""
