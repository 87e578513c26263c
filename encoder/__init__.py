"""Token sets become unit vectors."""
