"""Nothing global: fixtures live beside the tests that use them, the test kit's in `clawproxy.testing`."""
