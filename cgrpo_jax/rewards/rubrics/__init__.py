"""What a response to one question is judged by, and what a model that judges is asked."""
