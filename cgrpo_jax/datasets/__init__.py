"""Questions with their gold answers: read, checked, filtered, mixed, drawn; see README.md."""
