"""From images to stored features."""
