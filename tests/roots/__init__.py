"""What a new user does on a Debian that has nothing else, and what an image of it does."""
