"""Final answers in mathematics: rewritten for the parser, and compared; see README.md."""
