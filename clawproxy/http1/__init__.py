"""HTTP/1.1 without I/O: the strict head check, one seam with two engines, the body, and the writing of responses."""
