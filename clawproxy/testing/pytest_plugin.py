"""The pytest entry point of the test kit."""
