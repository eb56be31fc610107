"""The conformance kit: properties that every method must have, on tiny random models."""
