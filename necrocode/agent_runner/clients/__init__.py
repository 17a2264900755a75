"""What stands behind the Protocols: an HTTP client and an embedded service for each role, side by side."""
