"""What the tests say of a change: reports read, base and change compared, test files that were touched told."""
