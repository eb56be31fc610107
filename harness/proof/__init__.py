"""Proof that methods and numbers are right: kit, recorded official outputs, gate, seeded faults."""
