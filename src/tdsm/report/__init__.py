"""What a run looked like and what it showed, as one self-contained page."""
