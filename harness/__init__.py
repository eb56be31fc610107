"""The machinery behind prunebench, in rooms. tests/house/test_rooms.py says which room may import which."""
