"""What operators see: `logs`, `metrics`, `lag` (the event loop's), and the pages of the `admin` listener."""
