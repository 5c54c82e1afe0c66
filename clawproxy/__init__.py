"""ClawProxy."""
