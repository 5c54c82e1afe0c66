"""What operators see: `logs`, `metrics`, and the pages of the `admin` listener."""
